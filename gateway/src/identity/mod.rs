//! What makes a machine itself: one spec, rendered as a cloud-init NoCloud image, as a config drive and as files for HTTP.
//!
//! Rendering is pure: the same spec gives the same bytes on every gateway, for ever, so an identity disk is stable over reset and update.
//! Structures are written by a JSON library, which cloud-init reads as YAML; no user's text is ever pasted into one.

mod check;
mod cloud_init;
mod config_drive;
mod disk;
mod facts;
mod image;
mod network;
mod seal;
mod spec;
mod ssh;
mod windows;

pub use disk::IdentityDisk;
pub use facts::{Body, Identity};
pub use seal::IdentityKeys;
pub use spec::{HostKeys, IdentityFormat, IdentitySpec, InterfaceSpec, NetworkSpec, UserSpec, WindowsSpec};
pub use ssh::HostKey;

/// One file of an identity disk or seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Its path, with `/` between directories.
    pub path: &'static str,
    /// What is in it.
    pub text: String,
}
