//! Byte and block quantities as distinct types, so that an offset is never added to an index.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Bytes in a sector: image sizes are multiples of it.
pub const SECTOR_BYTES: u64 = 512;
/// Bytes in a delta block, the unit of copy-on-write.
pub const BLOCK_BYTES: u64 = 4096;

/// The index of a 4 KiB delta block within a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlockIndex(pub u64);

impl BlockIndex {
    /// The block that holds the byte at `offset`.
    pub const fn of_byte(offset: u64) -> Self {
        Self(offset / BLOCK_BYTES)
    }

    /// The offset of the first byte of this block.
    pub const fn first_byte(self) -> u64 {
        self.0 * BLOCK_BYTES
    }
}

/// The index of a chunk within a base; a chunk is the unit of storage and caching.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChunkIndex(pub u64);

/// A half-open range of bytes `start..end` of a volume; never empty backwards.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ByteRange {
    start: u64,
    end: u64,
}

impl ByteRange {
    /// `start..end`. An `end` before `start` gives the empty range at `start`.
    pub const fn new(start: u64, end: u64) -> Self {
        Self { start, end: if end < start { start } else { end } }
    }

    /// `len` bytes from `start`.
    ///
    /// # Errors
    /// `Invalid` when the end does not fit 64 bits.
    pub fn at(start: u64, len: u64) -> Result<Self> {
        match start.checked_add(len) {
            Some(end) => Ok(Self { start, end }),
            None => {
                Err(Error::invalid("range-overflow", format!("{len} bytes at {start} pass the end of all numbers")))
            }
        }
    }

    /// First byte.
    pub const fn start(self) -> u64 {
        self.start
    }

    /// One past the last byte.
    pub const fn end(self) -> u64 {
        self.end
    }

    /// Length in bytes.
    pub const fn len(self) -> u64 {
        self.end - self.start
    }

    /// Whether it holds no byte.
    pub const fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// The part that both hold.
    #[must_use]
    pub fn intersect(self, other: Self) -> Self {
        Self::new(self.start.max(other.start), self.end.min(other.end))
    }

    /// The same range as a standard one.
    pub const fn as_range(self) -> Range<u64> {
        self.start..self.end
    }

    /// Fails when the range passes the end of a volume of `size` bytes.
    ///
    /// # Errors
    /// `Invalid` with code `beyond-end`.
    pub fn check_within(self, size: u64) -> Result<()> {
        if self.end <= size {
            return Ok(());
        }
        Err(Error::invalid(
            "beyond-end",
            format!("bytes {}..{} pass the end of the volume at {size}", self.start, self.end),
        )
        .hint("nothing was read or written: stay below its size"))
    }
}

impl fmt::Debug for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

/// Blocks of a volume of `size` bytes (the last may be partial).
pub const fn blocks_of(size: u64) -> u64 {
    size.div_ceil(BLOCK_BYTES)
}
