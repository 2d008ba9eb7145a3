//! ext2, ext3 and ext4, read by `ext4-view`.

use std::error::Error as StdError;

use bytes::Bytes;
use clonegate_core::{Error, Result};
use ext4_view::{Ext4, Ext4Error, Ext4Read, File, FileType};

use super::reader::Reader;
use super::{FileRead, NameView, Names, Thing};

/// Block groups that a file system may claim: those of 64 TiB at the usual 128 MiB, and as many again. More would be
/// allocated before any is read.
const GROUPS_MAX: u64 = 1 << 20;

/// An open file system.
pub(super) struct Ext(Ext4);

/// Whether the reader's part begins with an ext superblock that claims no more than there is.
pub(super) fn is_one(reader: &mut Reader) -> Result<bool> {
    let mut block = [0; 1024];
    if reader.size() < 2048 {
        return Ok(false);
    }
    reader.read_at(1024, &mut block).map_err(super::read_failed)?;
    if block[56..58] != [0x53, 0xef] {
        return Ok(false);
    }
    let field = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    let blocks = u64::from(field(4)) | (u64::from(field(0x150)) << 32);
    let per_group = u64::from(field(0x20)).max(1);
    let bytes = 1024u64.checked_shl(field(0x18)).and_then(|size| size.checked_mul(u64::from(field(4))));
    let possible = field(0x18) <= 6 && blocks.div_ceil(per_group) <= GROUPS_MAX && bytes.is_some();
    if possible { Ok(true) } else { Err(super::damaged()) }
}

impl Ext {
    pub(super) fn open(reader: Reader) -> Result<Self> {
        Ext4::load(Box::new(Source(reader))).map(Self).map_err(failed)
    }

    pub(super) fn label(&self) -> Option<String> {
        let label = self.0.label().to_str().ok()?;
        (!label.is_empty()).then(|| label.to_owned())
    }

    pub(super) fn look(&self, path: &str) -> Result<Option<Thing<'_>>> {
        let facts = match self.0.metadata(path) {
            Ok(facts) => facts,
            Err(Ext4Error::NotFound | Ext4Error::NotADirectory) => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        if facts.is_dir() {
            let mut names = Names::default();
            for entry in self.0.read_dir(path).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let name = entry.file_name().display().to_string();
                if name == "." || name == ".." {
                    continue;
                }
                let (kind, size) = match entry.file_type().map_err(failed)? {
                    FileType::Regular => ("file", Some(entry.metadata().map_err(failed)?.len())),
                    FileType::Directory => ("directory", None),
                    FileType::Symlink => ("link", None),
                    _ => ("other", None),
                };
                if !names.add(NameView { name, kind: kind.to_owned(), size }) {
                    break;
                }
            }
            return Ok(Some(Thing::Directory(names)));
        }
        if facts.file_type() != FileType::Regular {
            return Ok(None);
        }
        let file = self.0.open(path).map_err(failed)?;
        Ok(Some(Thing::File(Box::new(file))))
    }
}

impl FileRead for File {
    fn size(&self) -> u64 {
        self.metadata().len()
    }

    fn read_at(&mut self, offset: u64, length: usize) -> Result<Bytes> {
        if self.position() != offset {
            self.seek_to(offset).map_err(failed)?;
        }
        let mut bytes = vec![0; length];
        let mut filled = 0;
        while filled < length {
            match self.read_bytes(&mut bytes[filled..]).map_err(failed)? {
                0 => break,
                more => filled += more,
            }
        }
        bytes.truncate(filled);
        Ok(Bytes::from(bytes))
    }
}

struct Source(Reader);

impl Ext4Read for Source {
    fn read(&mut self, start: u64, into: &mut [u8]) -> Result<(), Box<dyn StdError + Send + Sync>> {
        Ok(self.0.read_at(start, into)?)
    }
}

fn failed(error: Ext4Error) -> Error {
    match error {
        Ext4Error::Io(cause) => match cause.downcast::<std::io::Error>() {
            Ok(error) => super::read_failed(*error),
            Err(_) => super::damaged(),
        },
        Ext4Error::TooManySymlinks => {
            Error::not_found("no-such-file", "the symbolic links on this path lead in circles")
        }
        Ext4Error::Encrypted => Error::unsupported("file-encrypted", "the file is encrypted in its file system"),
        Ext4Error::Incompatible(_) => {
            Error::unsupported("file-system-unsupported", "the ext4 file system uses a feature that is not understood")
                .because(error)
        }
        other => super::damaged().because(other),
    }
}
