//! A small FAT image of some files: the same files give the same bytes.

use std::io::{Cursor, Write as _};

use bytes::Bytes;
use clonegate_core::limits::IDENTITY_DISK_BYTES;
use clonegate_core::{Error, Result};
use fatfs::{Date, DateTime, FileSystem, FormatVolumeOptions, FsOptions, Time, TimeProvider};

use super::File;
use super::facts::Identity;
use super::spec::IdentityFormat;

/// The moment at which every file was made: none of ours may be in the bytes.
#[derive(Debug)]
struct Never;

impl TimeProvider for Never {
    fn get_current_date(&self) -> Date {
        Date { year: 1980, month: 1, day: 1 }
    }

    fn get_current_date_time(&self) -> DateTime {
        DateTime { date: self.get_current_date(), time: Time { hour: 0, min: 0, sec: 0, millis: 0 } }
    }
}

impl Identity {
    /// The files of its disk.
    pub fn files(&self) -> Vec<File> {
        let mut files = match self.spec.format {
            IdentityFormat::Nocloud => self.nocloud(),
            IdentityFormat::ConfigDrive => self.config_drive(),
        };
        files.extend(self.unattend());
        files
    }

    /// Its disk: the bytes up to the last one that is not zero; the disk has [`IDENTITY_DISK_BYTES`].
    ///
    /// # Errors
    /// `Internal` when the files do not fit, which the bounds of a spec rule out.
    pub fn image(&self) -> Result<Bytes> {
        let label = match self.spec.format {
            IdentityFormat::Nocloud => *b"CIDATA     ",
            IdentityFormat::ConfigDrive => *b"config-2   ",
        };
        let hash = blake3::derive_key("clonegate 2026 volume id", self.instance_id.as_bytes());
        let volume = u32::from_le_bytes([hash[0], hash[1], hash[2], hash[3]]);
        write(label, volume, &self.files()).map_err(|e| {
            Error::internal("no-identity-image", "the identity disk cannot be made").on(self.name.clone()).because(e)
        })
    }
}

fn write(label: [u8; 11], volume: u32, files: &[File]) -> std::io::Result<Bytes> {
    let size = usize::try_from(IDENTITY_DISK_BYTES).unwrap_or(usize::MAX);
    let mut disk = Cursor::new(vec![0; size]);
    let options = FormatVolumeOptions::new().volume_label(label).volume_id(volume).bytes_per_cluster(2048);
    fatfs::format_volume(&mut disk, options)?;
    disk.set_position(0);
    let fs = FileSystem::new(&mut disk, FsOptions::new().update_accessed_date(false).time_provider(&Never))?;
    {
        let root = fs.root_dir();
        for file in files {
            let mut dir = root.clone();
            let mut parts = file.path.split('/').peekable();
            while let Some(part) = parts.next() {
                if parts.peek().is_some() {
                    dir = dir.create_dir(part)?;
                } else {
                    dir.create_file(part)?.write_all(file.text.as_bytes())?;
                }
            }
        }
    }
    fs.unmount()?;
    let mut bytes = disk.into_inner();
    mend_directories(&mut bytes);
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
    bytes.truncate(end);
    bytes.shrink_to_fit();
    Ok(bytes.into())
}

/// Bytes of a directory entry.
const ENTRY: usize = 32;
/// Attributes of an entry that is part of a long name.
const LONG_NAME: u8 = 0x0f;
/// Attribute of a directory.
const DIRECTORY: u8 = 0x10;

/// fatfs gives `.` and `..` long names, which belong to no such entry: strict readers take the directory for damaged. Puts the two first and
/// marks their long names as deleted.
fn mend_directories(disk: &mut [u8]) {
    let word = |at: usize, disk: &[u8]| usize::from(u16::from_le_bytes([disk[at], disk[at + 1]]));
    // The boot sector, as `write` had it formatted: FAT12 or FAT16, whose root directory has its own place before the clusters.
    let (sector, cluster) = (word(11, disk), usize::from(disk[13]) * word(11, disk));
    let root = (word(14, disk) + usize::from(disk[16]) * word(22, disk)) * sector;
    let clusters = root + word(17, disk) * ENTRY;
    let mut waiting = vec![(root, clusters)];
    while let Some((start, end)) = waiting.pop() {
        for at in (start..end).step_by(ENTRY) {
            let entry = &disk[at..at + ENTRY];
            if entry[0] == 0 {
                break;
            }
            if entry[11] & DIRECTORY == 0 || entry[11] == LONG_NAME || [b'.', 0xe5].contains(&entry[0]) {
                continue;
            }
            let first = clusters + (word(at + 26, disk) - 2) * cluster;
            let [long, dot, long_too, dots] = [0, 1, 2, 3].map(|n| first + n * ENTRY);
            if disk[long + 11] == LONG_NAME && disk[long_too + 11] == LONG_NAME && disk[dots..].starts_with(b"..") {
                disk.copy_within(dot..dot + ENTRY, long);
                disk.copy_within(dots..dots + ENTRY, dot);
                disk[long_too] = 0xe5;
                disk[dots] = 0xe5;
            }
            waiting.push((first, first + cluster));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::facts::{Body, hex};
    use crate::identity::spec::{IdentitySpec, WindowsSpec};
    use clonegate_core::ids::CloneId;
    use clonegate_core::limits::IDENTITY_USER_DATA_BYTES_MAX;
    use std::io::Read as _;

    fn identity(spec: IdentitySpec) -> Identity {
        let body = Body { spec, host_key: Some(hex(&[9; 32])), mac_number: 0 };
        Identity::of(CloneId::from_bytes([1; 16]), "desk-001", 1, Some(&body)).unwrap()
    }

    fn check(identity: &Identity, label: &str) {
        let mut bytes = identity.image().unwrap().to_vec();
        assert_eq!(bytes, identity.image().unwrap(), "the same every time");
        bytes.resize(usize::try_from(IDENTITY_DISK_BYTES).unwrap(), 0);
        let fs = FileSystem::new(Cursor::new(bytes), FsOptions::new()).unwrap();
        assert_eq!(fs.volume_label(), label);
        assert_eq!(fs.read_volume_label_from_root_dir().unwrap().as_deref(), Some(label));
        let root = fs.root_dir();
        for file in identity.files() {
            let mut text = String::new();
            root.open_file(file.path).unwrap().read_to_string(&mut text).unwrap();
            assert_eq!(text, file.text, "{}", file.path);
        }
    }

    #[test]
    fn every_kind_of_disk_holds_its_files_under_its_label() {
        check(&identity(IdentitySpec::default()), "CIDATA");
        let windows = Some(WindowsSpec::default());
        check(
            &identity(IdentitySpec { format: IdentityFormat::ConfigDrive, windows, ..IdentitySpec::default() }),
            "config-2",
        );
    }

    #[test]
    fn the_largest_spec_fits() {
        let large = "#cloud-config\n".to_owned() + &"é".repeat((IDENTITY_USER_DATA_BYTES_MAX - 14) / 2);
        let windows = WindowsSpec { unattend: Some(large.clone()), ..WindowsSpec::default() };
        let keys = vec![format!("ssh-rsa AAAA{}", "\\".repeat(500)); 64];
        let mut spec = IdentitySpec {
            user_data: Some(large),
            windows: Some(windows),
            authorized_keys: keys,
            ..IdentitySpec::default()
        };
        spec.check("desk-001").unwrap();
        for format in [IdentityFormat::Nocloud, IdentityFormat::ConfigDrive] {
            spec.format = format;
            Body { spec: spec.clone(), ..Body::default() }.encode().unwrap();
            check(&identity(spec.clone()), if format == IdentityFormat::Nocloud { "CIDATA" } else { "config-2" });
        }
    }
}
