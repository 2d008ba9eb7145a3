//! FAT12, FAT16 and FAT32, read by `fatfs`.

use std::io::{self, Read, Seek, SeekFrom};

use bytes::Bytes;
use clonegate_core::Result;
use clonegate_core::limits::FILE_NAMES_MAX;
use fatfs::{Dir, DirEntry, File, FileSystem, FsOptions};

use super::reader::Reader;
use super::{FileRead, NameView, Names, Thing};

/// An open file system.
pub(super) struct Fat(FileSystem<Reader>);

/// Whether the reader's part begins with the boot sector of a FAT file system.
pub(super) fn is_one(reader: &mut Reader) -> Result<bool> {
    let mut sector = [0; 512];
    if reader.size() < 512 {
        return Ok(false);
    }
    reader.read_at(0, &mut sector).map_err(super::read_failed)?;
    Ok(sector[510..] == [0x55, 0xaa] && (sector[54..].starts_with(b"FAT1") || sector[82..].starts_with(b"FAT32")))
}

impl Fat {
    pub(super) fn open(mut reader: Reader) -> Result<Self> {
        reader.seek(SeekFrom::Start(0)).map_err(super::read_failed)?;
        FileSystem::new(reader, FsOptions::new()).map(Self).map_err(super::read_failed)
    }

    pub(super) fn label(&self) -> Option<String> {
        let label = self.0.volume_label().trim().to_owned();
        (!label.is_empty() && label != "NO NAME").then_some(label)
    }

    pub(super) fn look(&self, path: &str) -> Result<Option<Thing<'_>>> {
        let mut dir = self.0.root_dir();
        let mut names = path.split('/').filter(|name| !name.is_empty()).peekable();
        while let Some(name) = names.next() {
            let Some(entry) = find(&dir, name)? else { return Ok(None) };
            if entry.is_dir() {
                dir = entry.to_dir();
            } else if names.peek().is_none() {
                return Ok(Some(Thing::File(Box::new(Opened { size: entry.len(), file: entry.to_file() }))));
            } else {
                return Ok(None);
            }
        }
        let mut names = Names::default();
        for entry in dir.iter() {
            let entry = entry.map_err(super::read_failed)?;
            let name = entry.file_name();
            if name != "." && name != ".." {
                let kind = if entry.is_dir() { "directory" } else { "file" };
                let size = entry.is_file().then(|| entry.len());
                if !names.add(NameView { name, kind: kind.to_owned(), size }) {
                    break;
                }
            }
        }
        Ok(Some(Thing::Directory(names)))
    }
}

/// Names compare without case, long or short.
fn find<'a>(dir: &Dir<'a, Reader>, name: &str) -> Result<Option<DirEntry<'a, Reader>>> {
    for entry in dir.iter().take(FILE_NAMES_MAX) {
        let entry = entry.map_err(super::read_failed)?;
        let same = |other: String| other.to_lowercase() == name.to_lowercase();
        if same(entry.file_name()) || same(entry.short_file_name()) {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

struct Opened<'a> {
    size: u64,
    file: File<'a, Reader>,
}

impl FileRead for Opened<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&mut self, offset: u64, length: usize) -> Result<Bytes> {
        let mut read = || -> io::Result<Bytes> {
            self.file.seek(SeekFrom::Start(offset))?;
            let mut bytes = Vec::with_capacity(length);
            self.file.by_ref().take(length as u64).read_to_end(&mut bytes)?;
            Ok(Bytes::from(bytes))
        };
        read().map_err(super::read_failed)
    }
}
