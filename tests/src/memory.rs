//! A volume in memory, for tests of what stands above volumes.

use bytes::Bytes;
use clonegate::device::{Device, DeviceInfo, Extent, Segments, Source, Version, WriteOptions, read_only};
use clonegate_core::Result;
use clonegate_core::units::ByteRange;
use futures::future::{BoxFuture, FutureExt, ready};

/// A read-only volume of given bytes.
#[derive(Debug)]
pub struct MemoryVolume {
    info: DeviceInfo,
    bytes: Bytes,
}

impl MemoryVolume {
    /// The volume of `bytes`.
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let (name, description) = ("memory".to_owned(), "a volume in memory".to_owned());
        let info = DeviceInfo { name, size: bytes.len() as u64, read_only: true, description, modified_ms: 0 };
        Self { info, bytes }
    }

    fn slice(&self, range: ByteRange) -> Result<Segments> {
        range.check_within(self.info.size)?;
        let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
        Ok(std::iter::once(self.bytes.slice(at(range.start())..at(range.end()))).collect())
    }
}

impl Device for MemoryVolume {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn version(&self) -> (Version, u64) {
        (Version { life: 1, change: 0 }, 0)
    }

    fn try_read(&self, range: ByteRange) -> Option<Segments> {
        self.slice(range).ok()
    }

    fn read(&self, range: ByteRange) -> BoxFuture<'_, Result<Segments>> {
        ready(self.slice(range)).boxed()
    }

    fn write(&self, _: u64, _: Bytes, _: WriteOptions) -> BoxFuture<'_, Result<()>> {
        ready(Err(read_only("memory"))).boxed()
    }

    fn write_zeroes(&self, _: ByteRange, _: bool, _: bool) -> BoxFuture<'_, Result<()>> {
        ready(Err(read_only("memory"))).boxed()
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        ready(Ok(())).boxed()
    }

    fn extents(&self, range: ByteRange) -> BoxFuture<'_, Result<Vec<Extent>>> {
        ready(Ok(vec![Extent { range, source: Source::Base }])).boxed()
    }

    fn prefetch(&self, _: ByteRange) -> BoxFuture<'_, Result<()>> {
        ready(Ok(())).boxed()
    }
}
