//! A base as a read-only block device.

use std::sync::Arc;

use bytes::Bytes;
use clonegate_core::Result;
use clonegate_core::units::ByteRange;
use futures::FutureExt;
use futures::future::BoxFuture;

use super::Base;
use crate::device::{Device, DeviceInfo, Extent, Segments, Version, WriteOptions, read_only};

/// A base served by itself (`base/ID`, `template/NAME`).
#[derive(Debug)]
pub struct BaseDevice {
    base: Arc<Base>,
    info: DeviceInfo,
    life: u64,
}

impl BaseDevice {
    /// The device, under the name that users know it by.
    pub fn new(base: Arc<Base>, name: impl Into<String>) -> Self {
        let record = base.record();
        let info = DeviceInfo {
            name: name.into(),
            size: record.size,
            read_only: true,
            description: format!("base of {} version {}, read-only", record.template, record.version),
            modified_ms: record.created_ms,
        };
        let mut life = [0; 8];
        life.copy_from_slice(&record.id.bytes()[..8]);
        Self { info, life: u64::from_le_bytes(life), base }
    }

    fn refuse<T>(&self) -> BoxFuture<'_, Result<T>>
    where
        T: Send + 'static,
    {
        futures::future::ready(Err(read_only(&self.info.name))).boxed()
    }
}

impl Device for BaseDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn version(&self) -> (Version, u64) {
        (Version { life: self.life, change: 0 }, self.info.modified_ms)
    }

    fn try_read(&self, range: ByteRange) -> Option<Segments> {
        self.base.try_read(range)
    }

    fn read(&self, range: ByteRange) -> BoxFuture<'_, Result<Segments>> {
        self.base.read(range).boxed()
    }

    fn write(&self, _offset: u64, _data: Bytes, _options: WriteOptions) -> BoxFuture<'_, Result<()>> {
        self.refuse()
    }

    fn write_zeroes(&self, _range: ByteRange, _discard: bool, _fua: bool) -> BoxFuture<'_, Result<()>> {
        self.refuse()
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        futures::future::ready(Ok(())).boxed()
    }

    fn extents(&self, range: ByteRange) -> BoxFuture<'_, Result<Vec<Extent>>> {
        self.base.extents(range).boxed()
    }

    fn prefetch(&self, range: ByteRange) -> BoxFuture<'_, Result<()>> {
        self.base.prefetch(range).boxed()
    }
}
