//! What an operator may set of the boot routes.

use std::path::PathBuf;

/// Settings of the boot routes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BootSettings {
    /// Template of the script of a clone, instead of the built-in one.
    pub script: Option<String>,
    /// What a machine gets that no clone is labelled with.
    pub unknown: Unknown,
    /// Directory that is served under `/efi/`.
    pub efi: Option<PathBuf>,
    /// Port of the NBD server that clones find their disk on, if there is one.
    pub nbd_port: Option<u16>,
}

/// What a machine gets that no clone is labelled with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Unknown {
    /// A clear text on its screen.
    #[default]
    Refuse,
    /// A menu of the clones.
    Menu,
    /// A clone of this template, made for its MAC address and kept for it.
    Create(String),
    /// A clone of this pool, given to its MAC address as to a user.
    Pool(String),
}
