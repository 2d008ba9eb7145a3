//! Labels that say which machine boots a clone, and from what: their names, and what they may say.

use std::fmt;
use std::str::FromStr;

use clonegate_core::{Error, Result};

use super::views::Labels;

/// Labels by which a clone belongs to a machine.
pub const MAC: &str = "boot.mac";
/// The UUID of its SMBIOS.
pub const UUID: &str = "boot.uuid";
/// The serial number of its SMBIOS.
pub const SERIAL: &str = "boot.serial";
/// The kernel that a clone is booted from, a path in its volume.
pub const KERNEL: &str = "boot.kernel";
/// The initrd beside it.
pub const INITRD: &str = "boot.initrd";

/// A network card's address: 52:54:00:12:34:56.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac([u8; 6]);

impl FromStr for Mac {
    type Err = Error;

    /// Six bytes in hexadecimal, with `:`, `-`, `.` or nothing between.
    fn from_str(text: &str) -> Result<Self> {
        let digits: Vec<u8> = text.bytes().filter(|byte| !b":-.".contains(byte)).collect();
        let mut bytes = [0; 6];
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|value| u8::try_from(value).ok());
        let right = digits.len() == 12 && text.len() <= 17;
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            match (digit(pair[0]), digit(pair[1])) {
                (Some(high), Some(low)) if right => *byte = high * 16 + low,
                _ => return Err(bad_mac(text)),
            }
        }
        if right { Ok(Self(bytes)) } else { Err(bad_mac(text)) }
    }
}

fn bad_mac(text: &str) -> Error {
    let shown: String = text.chars().take(32).collect();
    Error::invalid("bad-mac", format!("{shown:?} is no MAC address")).hint("write it as 52-54-00-12-34-56")
}

impl Mac {
    /// As in names: `525400123456`.
    pub fn digits(self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// What a label that names a machine is looked up by, however it is written: the same for a label and for what a machine says.
pub fn machine_key(label: &str, value: &str) -> String {
    let value = match value.parse::<Mac>() {
        Ok(mac) if label == MAC => mac.to_string(),
        _ => value.trim().to_lowercase(),
    };
    format!("{label}={value}")
}

/// The label `name`, a path in the volume; empty when there is none.
///
/// # Errors
/// `Invalid` with code `bad-boot-label` for what cannot stand as a path in a boot script.
pub fn path<'a>(labels: &'a Labels, name: &str) -> Result<&'a str> {
    let value = labels.get(name).map_or("", String::as_str);
    let right = |c: char| c.is_ascii_alphanumeric() || "/._-+~@".contains(c);
    if value.is_empty() || (value.starts_with('/') && value.chars().all(right)) {
        return Ok(value);
    }
    Err(Error::invalid("bad-boot-label", format!("the label {name} is no path"))
        .hint("write an absolute path, as /boot/vmlinuz, without blanks"))
}

/// Refuses boot labels that no machine could be booted by: it would be found out at the machine, by a number on its screen.
///
/// # Errors
/// `Invalid` with codes `bad-mac` and `bad-boot-label`.
pub(super) fn check(labels: &Labels) -> Result<()> {
    if let Some(mac) = labels.get(MAC).filter(|mac| !mac.is_empty()) {
        mac.parse::<Mac>().map_err(|error| error.on(MAC))?;
    }
    path(labels, KERNEL)?;
    path(labels, INITRD).map(drop)
}

/// The keys of the machines that `labels` name.
pub(super) fn machine_keys(labels: &Labels) -> Vec<String> {
    let named = |label: &&str| labels.get(*label).filter(|value| !value.trim().is_empty());
    [MAC, UUID, SERIAL].iter().filter_map(|label| named(label).map(|value| machine_key(label, value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_is_read_however_it_is_written() {
        for text in ["52:54:00:12:34:Ab", "52-54-00-12-34-ab", "5254.0012.34ab", "5254001234ab"] {
            assert_eq!(text.parse::<Mac>().unwrap().to_string(), "52:54:00:12:34:ab", "{text}");
        }
        for text in
            ["", "52:54:00:12:34", "52:54:00:12:34:5g", "52:54:00:12:34:56:78", "é2:54:00:12:34:5", "-:-:-:-:-:-"]
        {
            assert_eq!(text.parse::<Mac>().unwrap_err().code(), "bad-mac", "{text}");
        }
    }

    #[test]
    fn labels_that_no_machine_could_boot_by_are_refused() {
        let check = |key: &str, value: &str, code: Option<&str>| {
            let labels = Labels::from([(key.to_owned(), value.to_owned())]);
            let refused = check(&labels).err();
            assert_eq!(refused.as_ref().map(Error::code), code, "{key}={value}");
        };
        check(MAC, "52-54-00-12-34-56", None);
        check(MAC, "", None);
        check(MAC, "52-54-00-12-34", Some("bad-mac"));
        check(KERNEL, "/boot/vmlinuz", None);
        check(KERNEL, "boot/vmlinuz", Some("bad-boot-label"));
        check(INITRD, "/x y", Some("bad-boot-label"));
        check(UUID, "anything", None);
        check("kernel", "x y", None);
    }
}
