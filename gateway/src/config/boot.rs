//! What machines get that boot over the network.

use std::path::PathBuf;

use clonegate_core::limits::HTTP_CONTROL_BODY_BYTES_MAX;
use clonegate_core::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::http::{BootSettings, Unknown, blanks, unknown_blank};

/// Boot scripts and EFI programs; `docs/boot.md` tells how a boot goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Boot {
    /// Template of the iPXE script of a clone, instead of the built-in one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub script: Option<PathBuf>,
    /// What a machine gets that no clone is labelled with.
    pub unknown: UnknownMachine,
    /// The template of which a clone is made for an unknown machine, with `unknown = "create"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// The pool of which an unknown machine gets a clone, with `unknown = "pool"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Directory that is served under `/efi/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub efi: Option<PathBuf>,
}

/// What a machine gets that no clone is labelled with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnknownMachine {
    /// A clear text on its screen.
    #[default]
    Refuse,
    /// A menu of the clones.
    Menu,
    /// A clone of `template`, made for its MAC address and kept for it.
    Create,
    /// A clone of `pool`, given to its MAC address as to a user: of a floating pool, until it is switched off.
    Pool,
}

impl Boot {
    /// The settings of the boot routes; reads the script.
    ///
    /// # Errors
    /// `Invalid` with code `bad-config` for a script that cannot be read or a missing template.
    pub fn settings(&self, nbd_port: Option<u16>) -> Result<BootSettings> {
        let wrong = |key: &str, message: String| Error::invalid("bad-config", message).on(key.to_owned());
        let unknown = match (self.unknown, &self.template) {
            (UnknownMachine::Refuse, _) => Unknown::Refuse,
            (UnknownMachine::Menu, _) => Unknown::Menu,
            (UnknownMachine::Create, Some(template)) => Unknown::Create(template.clone()),
            (UnknownMachine::Pool, _) => match &self.pool {
                Some(pool) => Unknown::Pool(pool.clone()),
                None => return Err(wrong("boot.pool", "unknown = \"pool\" needs a pool".to_owned())),
            },
            (UnknownMachine::Create, None) => {
                return Err(wrong("boot.template", "unknown = \"create\" needs a template".to_owned()));
            }
        };
        let script = match &self.script {
            None => None,
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|e| wrong("boot.script", format!("{}: {e}", path.display())))?;
                if text.len() > HTTP_CONTROL_BODY_BYTES_MAX || !text.starts_with("#!ipxe") {
                    return Err(wrong("boot.script", "an iPXE script begins with #!ipxe and is small".to_owned()));
                }
                if let Some(blank) = unknown_blank(&text) {
                    let what = format!("{}: {{{blank}}} is no blank that is filled", path.display());
                    return Err(wrong("boot.script", what).hint(format!("there are {}", blanks())));
                }
                Some(text)
            }
        };
        Ok(BootSettings { script, unknown, efi: self.efi.clone(), nbd_port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_unknown_machines_get_is_checked_at_the_start() {
        assert_eq!(Boot::default().settings(Some(1)).unwrap().unknown, Unknown::Refuse);
        let create = Boot { unknown: UnknownMachine::Create, ..Boot::default() };
        assert_eq!(create.settings(None).unwrap_err().object(), Some("boot.template"));
        let create = Boot { template: Some("debian".to_owned()), ..create };
        assert_eq!(create.settings(None).unwrap().unknown, Unknown::Create("debian".to_owned()));
        let pool = Boot { unknown: UnknownMachine::Pool, ..Boot::default() };
        assert_eq!(pool.settings(None).unwrap_err().object(), Some("boot.pool"));
        let pool = Boot { pool: Some("lab".to_owned()), ..pool };
        assert_eq!(pool.settings(None).unwrap().unknown, Unknown::Pool("lab".to_owned()));
        let script = Boot { script: Some("/nonexistent/boot.ipxe".into()), ..Boot::default() };
        assert_eq!(script.settings(None).unwrap_err().object(), Some("boot.script"));
        let file = tempfile::NamedTempFile::new().unwrap();
        let script = Boot { script: Some(file.path().to_owned()), ..Boot::default() };
        std::fs::write(file.path(), "#!ipxe\nsanboot {disk_url} ${net0/mac}\n").unwrap();
        assert!(script.settings(None).unwrap().script.is_some());
        std::fs::write(file.path(), "#!ipxe\nsanboot {disk} ${net0/mac}\n").unwrap();
        let error = script.settings(None).unwrap_err();
        assert!(error.message().contains("{disk}") && error.what_to_do().unwrap().contains("{disk_url}"), "{error}");
    }
}
