//! Reads qcow2 images with `imago`, after checks of our own, and without letting it open anything.

mod header;
mod tables;

use std::fs::File;
use std::os::unix::fs::FileExt;

use clonegate_core::{Error, Result};
use imago::qcow2::Qcow2;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder};

use header::{HEAD_BYTES, Header};

use super::source::ReadAt;

/// An image that passed every check.
pub struct Image {
    file: File,
    header: Header,
    access: FormatAccess<imago::file::File>,
}

impl Image {
    /// Checks the header and every table of the image, then opens it. Opens no other file, whatever the image says: it is given an open
    /// file without a name, no backing file and no data file, and a gate that denies the rest.
    ///
    /// # Errors
    /// `Invalid` and `Unsupported` with what to do.
    pub fn open(file: File, file_bytes: u64) -> Result<Self> {
        let mut head = vec![0; HEAD_BYTES.min(usize::try_from(file_bytes).unwrap_or(HEAD_BYTES))];
        file.read_exact_at(&mut head, 0).map_err(unreadable)?;
        let header = Header::parse(&head, file_bytes)?;
        tables::check(&file, &header, file_bytes)?;
        let storage = imago::file::File::try_from(file.try_clone().map_err(unreadable)?).map_err(unreadable)?;
        let builder = Qcow2::<imago::file::File>::builder(storage).backing(None).data_file(None).write(false);
        let image = futures::executor::block_on(builder.open(DenyImplicitOpenGate::default())).map_err(|error| {
            Error::invalid("bad-qcow2-image", "the image cannot be opened")
                .because(error)
                .hint("make a plain image of it: qemu-img convert -f qcow2 -O qcow2 IMAGE plain.qcow2")
        })?;
        let access = FormatAccess::new(image);
        if access.size() != header.size {
            return Err(Error::invalid("bad-qcow2-image", "its size is told in two ways"));
        }
        Ok(Self { file, header, access })
    }

    /// Size of the disk, bytes.
    pub fn size(&self) -> u64 {
        self.header.size
    }

    /// Gives the runs of the disk that hold something, ascending: first byte, one past the last.
    ///
    /// # Errors
    /// Those of `found`; `Invalid` when a table cannot be read.
    pub fn for_each_run(&self, found: impl FnMut(u64, u64) -> Result<()>) -> Result<()> {
        tables::for_each_run(&self.file, &self.header, found)
    }
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Image").field(&self.header).finish()
    }
}

impl ReadAt for Image {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        self.read(offset, into)
    }
}

impl Image {
    /// Fills `into` with what the disk has at `offset`.
    ///
    /// # Errors
    /// `Invalid` with code `bad-qcow2-image`.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        let read = self.access.read(into, offset);
        futures::executor::block_on(read).map_err(|error| {
            Error::invalid("bad-qcow2-image", format!("a cluster at {offset} of the disk cannot be read"))
                .because(error)
                .hint("try: qemu-img check IMAGE")
        })
    }
}

fn unreadable(error: std::io::Error) -> Error {
    Error::invalid("unreadable-image", "the image cannot be read").because(error)
}

#[cfg(test)]
mod tests;
