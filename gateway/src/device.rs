//! A block device as every edge sees it: clones, bases, identity disks and data disks all are one.

use std::fmt;

use bytes::Bytes;
use clonegate_core::Result;
use clonegate_core::units::ByteRange;
use futures::future::BoxFuture;
use smallvec::SmallVec;

/// Bytes of a read, in order, without a copy: slices of cached lines, delta blocks or [`zeroes`].
pub type Segments = SmallVec<[Bytes; 4]>;

/// Names one state of a device's bytes. Equal versions mean equal bytes; it changes with every accepted change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Version {
    /// Distinguishes lives of the device: for a clone its record and epoch (or the base while it is unchanged), for a base its id.
    pub life: u64,
    /// Counts changes within that life.
    pub change: u64,
}

/// As in entity tags and in the `version` of URLs.
impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:x}", self.life, self.change)
    }
}

/// Where bytes of a device come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// Written by this clone.
    Delta,
    /// From the base, and not a hole there.
    Base,
    /// Zero, stored nowhere.
    Zero,
}

/// A run of bytes with one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Which bytes.
    pub range: ByteRange,
    /// Where they come from.
    pub source: Source,
}

impl Extent {
    /// Appends it to `list`, or lengthens the last there when it goes on from that and has the same source.
    pub fn append_to(self, list: &mut Vec<Self>) {
        match list.last_mut() {
            Some(last) if last.source == self.source && last.range.end() == self.range.start() => {
                last.range = ByteRange::new(last.range.start(), self.range.end());
            }
            _ => list.push(self),
        }
    }
}

/// Facts of a device that do not change while it is open.
#[derive(Debug, Clone)]
pub struct DeviceInfo {
    /// What users call it, as in an NBD export name.
    pub name: String,
    /// Size, bytes; a multiple of 512.
    pub size: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// One line for people: kind, base, durability mode.
    pub description: String,
    /// When its bytes last changed before it was opened, milliseconds since 1970 UTC.
    pub modified_ms: u64,
}

/// How a write is done.
#[derive(Debug, Clone, Copy, Default)]
pub struct WriteOptions {
    /// Return only when it is as durable as the device promises.
    pub fua: bool,
    /// Write only if this is still the version, decided together with the write.
    pub expect: Option<Version>,
}

/// A block device. Offsets and lengths need not be aligned; a range past the end is `Invalid` with code `beyond-end`.
///
/// Every method may be called from any thread and any runtime. Dropping a returned future never loses an accepted
/// write and never harms another caller: fetches go on for those who wait with it.
pub trait Device: Send + Sync + fmt::Debug + 'static {
    /// Facts that do not change while it is open.
    fn info(&self) -> &DeviceInfo;

    /// The version of its bytes now, and when it last changed (milliseconds since 1970 UTC).
    fn version(&self) -> (Version, u64);

    /// Reads without waiting when everything is in memory; otherwise `None`, and [`Device::read`] is to be asked.
    /// The hot path: takes no lock for long and allocates nothing but the segments.
    fn try_read(&self, range: ByteRange) -> Option<Segments>;

    /// Reads `range`, all of it from one version.
    fn read(&self, range: ByteRange) -> BoxFuture<'_, Result<Segments>>;

    /// Writes `data` at `offset`. Accepted when it returns: every later read sees it.
    /// Durable when `options.fua` is set, or at the next flush. All of it is accepted or nothing.
    ///
    /// # Errors
    /// `Conflict` with code `version-changed` when `options.expect` is not the version now.
    fn write(&self, offset: u64, data: Bytes, options: WriteOptions) -> BoxFuture<'_, Result<()>>;

    /// Accepts an unflushed write without waiting when there is room in the dirty budget; otherwise gives the data back,
    /// and [`Device::write`] is to be asked. Small data may be a slice of a large buffer: who keeps it is to copy it.
    ///
    /// # Errors
    /// The inner result is that of the write.
    fn try_write(&self, _offset: u64, data: Bytes) -> std::result::Result<Result<()>, Bytes> {
        Err(data)
    }

    /// Makes `range` read as zeroes. `discard` says that the space may be given back and the caller does not insist on
    /// zeroes being stored; both read as zeroes afterwards.
    fn write_zeroes(&self, range: ByteRange, discard: bool, fua: bool) -> BoxFuture<'_, Result<()>>;

    /// Returns when everything accepted before is as durable as the device promises.
    fn flush(&self) -> BoxFuture<'_, Result<()>>;

    /// Where the bytes of `range` come from; neighbouring runs of one source are merged.
    fn extents(&self, range: ByteRange) -> BoxFuture<'_, Result<Vec<Extent>>>;

    /// Fetches `range` into memory if it fits there; a hint.
    fn prefetch(&self, range: ByteRange) -> BoxFuture<'_, Result<()>>;

    /// Whether writes that were accepted earlier are lost, in a crash or a takeover, and no machine has begun anew since.
    /// One that relies on them must not be told that they are flushed.
    fn is_torn(&self) -> bool {
        false
    }

    /// A machine begins anew: it knows nothing of what was accepted and lost.
    fn begin_anew(&self) {}
}

static ZEROES: [u8; 256 * 1024] = [0; 256 * 1024];

/// Appends `length` zero bytes without allocating them.
pub fn zeroes(segments: &mut Segments, mut length: u64) {
    while length > 0 {
        let part = usize::try_from(length).unwrap_or(usize::MAX).min(ZEROES.len());
        segments.push(Bytes::from_static(&ZEROES[..part]));
        length -= part as u64;
    }
}

/// Whether these bytes are of [`zeroes`]: a hole that need not be sent. Zeroes stored as data are not told.
pub fn is_zeroes(bytes: &Bytes) -> bool {
    ZEROES.as_ptr_range().contains(&bytes.as_ptr())
}

/// The error for a write to a device that takes none.
pub fn read_only(name: &str) -> clonegate_core::Error {
    clonegate_core::Error::new(clonegate_core::ErrorKind::Denied, "read-only", "it cannot be written")
        .on(name)
        .hint("bases and templates never change: write to a clone")
}
