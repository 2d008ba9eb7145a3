//! Part of a volume as the synchronous readers want it: seekable, read ahead, with a budget, never written.

use std::fmt;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use clonegate_core::units::ByteRange;
use tokio::runtime::Handle;

use crate::device::Device;

/// Bytes read from the volume at a time.
const WINDOW_BYTES: u64 = 128 * 1024;
/// Windows kept: tables and contents alternate.
const WINDOWS: usize = 8;

/// Bytes that a reader may still hand out.
#[derive(Debug, Clone)]
pub(super) struct Budget(Arc<AtomicU64>);

impl Budget {
    /// Allows `more` bytes.
    pub(super) fn raise(&self, more: u64) {
        self.0.fetch_add(more.min(1 << 48), Ordering::Relaxed);
    }

    fn spend(&self, bytes: usize) -> io::Result<()> {
        let left = self.0.load(Ordering::Relaxed).checked_sub(bytes as u64);
        // One thread only spends, so that nothing is lost between the load and the store.
        self.0.store(left.ok_or_else(|| io::Error::other("the file system leads in circles"))?, Ordering::Relaxed);
        Ok(())
    }
}

/// Reads `range` of a volume. Only for threads that may block.
pub(super) struct Reader {
    device: Arc<dyn Device>,
    handle: Handle,
    range: ByteRange,
    position: u64,
    budget: Budget,
    /// Newest last; each begins at a multiple of [`WINDOW_BYTES`] from the start of `range`.
    windows: Vec<(u64, Vec<u8>)>,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("range", &self.range).field("position", &self.position).finish_non_exhaustive()
    }
}

impl Reader {
    pub(super) fn new(device: Arc<dyn Device>, handle: Handle, range: ByteRange, budget: u64) -> Self {
        let budget = Budget(Arc::new(AtomicU64::new(budget)));
        Self { device, handle, range, position: 0, budget, windows: Vec::new() }
    }

    pub(super) fn budget(&self) -> Budget {
        self.budget.clone()
    }

    /// Size of the part, bytes.
    pub(super) fn size(&self) -> u64 {
        self.range.len()
    }

    /// Fills `into` from `offset` within the part.
    pub(super) fn read_at(&mut self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.position = offset;
        self.read_exact(into)
    }

    /// The window that holds `offset`, which is within the part.
    fn window(&mut self, offset: u64) -> io::Result<&(u64, Vec<u8>)> {
        let start = offset - offset % WINDOW_BYTES;
        if let Some(at) = self.windows.iter().position(|(first, _)| *first == start) {
            let window = self.windows.remove(at);
            self.windows.push(window);
        } else {
            let end = (start + WINDOW_BYTES).min(self.size());
            let range = ByteRange::new(self.range.start() + start, self.range.start() + end);
            let segments = self.handle.block_on(self.device.read(range)).map_err(io::Error::other)?;
            let bytes: Vec<u8> = segments.iter().flat_map(|segment| segment.iter().copied()).collect();
            if self.windows.len() == WINDOWS {
                self.windows.remove(0);
            }
            self.windows.push((start, bytes));
        }
        self.windows.last().ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

impl Read for Reader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.position >= self.size() || into.is_empty() {
            return Ok(0);
        }
        let position = self.position;
        let (start, bytes) = self.window(position)?;
        let from = usize::try_from(position - start).map_err(io::Error::other)?;
        let available = bytes.get(from..).unwrap_or_default();
        let length = available.len().min(into.len());
        into[..length].copy_from_slice(&available[..length]);
        self.budget.spend(length)?;
        self.position += length as u64;
        Ok(length)
    }
}

impl Seek for Reader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(by) => self.size().checked_add_signed(by),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
        };
        self.position = target.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

/// The FAT library wants to be able to write; it never does for reading.
impl Write for Reader {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
