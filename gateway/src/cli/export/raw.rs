//! A raw image: a sparse file, whose holes are what is zero.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::Writer;

/// A block of a file system; a hole is at least so long.
const BLOCK: usize = 4096;

/// Writes a raw image.
pub(super) struct Raw {
    file: File,
}

impl Raw {
    pub(super) fn new(file: File, size: u64) -> std::io::Result<Self> {
        file.set_len(size)?;
        Ok(Self { file })
    }
}

impl Writer for Raw {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        let mut at = 0;
        while at < bytes.len() {
            let zero = |at: usize| bytes[at..bytes.len().min(at + BLOCK)].iter().all(|byte| *byte == 0);
            let is_zero = zero(at);
            let mut end = bytes.len().min(at + BLOCK);
            while end < bytes.len() && zero(end) == is_zero {
                end = bytes.len().min(end + BLOCK);
            }
            if !is_zero {
                self.file.write_all_at(&bytes[at..end], offset + at as u64)?;
            }
            at = end;
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> std::io::Result<()> {
        self.file.sync_all()
    }
}
