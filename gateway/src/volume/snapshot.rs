//! A snapshot of a clone as a read-only device.

use std::sync::Arc;

use bytes::Bytes;
use clonegate_core::ids::Name;
use clonegate_core::units::ByteRange;
use clonegate_core::{Error, ErrorKind, Result};
use futures::future::BoxFuture;

use super::base::BaseRead;
use super::core::Core;
use super::plan::{Plan, View, plan_of};
use super::read::{extents_of, fetch_ahead, gather, gone, try_gather};
use crate::delta::Engine;
use crate::delta::load::read_checkpoint;
use crate::delta::map::BlockMap;
use crate::delta::object::Objects;
use crate::device::{Device, DeviceInfo, Extent, Segments, Version, WriteOptions, read_only};
use crate::store::Store;

/// See the module. It keeps nothing of its volume open; when the snapshot is given up, reads fail once its blocks are collected.
#[derive(Debug)]
pub(super) struct SnapshotDevice {
    info: DeviceInfo,
    version: Version,
    store: Store,
    engine: Arc<Engine>,
    base: Option<Arc<dyn BaseRead>>,
    map: BlockMap,
    objects: Objects,
}

impl Core {
    /// The snapshot of this name as a device.
    pub(super) async fn snapshot_device(self: &Arc<Self>, name: &Name) -> Result<Arc<dyn Device>> {
        self.refresh_if_stale().await?;
        let (kept, here) = {
            let state = self.state.read();
            let kept = state.log.kept(Some(name)).ok_or_else(|| self.unknown_snapshot(name))?;
            let here = kept.image.as_ref().map(|image| (image.map.clone(), state.log.objects.clone()));
            (kept.kept.clone(), here)
        };
        let (map, objects) = match here {
            Some(here) => here,
            None => {
                let loaded = read_checkpoint(&self.store, self.record.id, kept.at, None).await?;
                (loaded.image.map, loaded.objects)
            }
        };
        let base = match kept.base {
            Some(id) => Some(self.bases.base(id).await?),
            None => None,
        };
        let info = DeviceInfo {
            name: format!("{}@{name}", self.record.name),
            size: self.record.size,
            read_only: true,
            description: format!("snapshot {name} of {}", self.record.name),
            modified_ms: kept.time_ms,
        };
        let version = Version { life: super::own::life(&self.record, kept.at.epoch), change: kept.at.sequence.0 };
        let (store, engine) = (self.store.clone(), Arc::clone(&self.engine));
        Ok(Arc::new(SnapshotDevice { info, version, store, engine, base, map, objects }))
    }
}

impl SnapshotDevice {
    fn plan(&self, range: ByteRange) -> Plan {
        plan_of(View { dirty: None, map: &self.map, objects: &self.objects, base: self.base.as_ref() }, range)
    }

    fn refuse(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Err(read_only(&self.info.name)) })
    }
}

impl Device for SnapshotDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn version(&self) -> (Version, u64) {
        (self.version, self.info.modified_ms)
    }

    fn try_read(&self, range: ByteRange) -> Option<Segments> {
        range.check_within(self.info.size).ok()?;
        try_gather(&self.engine, &self.store, &self.plan(range), range.len())
    }

    fn read(&self, range: ByteRange) -> BoxFuture<'_, Result<Segments>> {
        Box::pin(async move {
            range.check_within(self.info.size)?;
            let read = gather(&self.engine, &self.store, &self.plan(range), range.len()).await;
            read.map_err(
                |error| if error.kind() == ErrorKind::NotFound { given_up(&self.info.name, error) } else { error },
            )
        })
    }

    fn write(&self, _offset: u64, _data: Bytes, _options: WriteOptions) -> BoxFuture<'_, Result<()>> {
        self.refuse()
    }

    fn write_zeroes(&self, _range: ByteRange, _discard: bool, _fua: bool) -> BoxFuture<'_, Result<()>> {
        self.refuse()
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    fn extents(&self, range: ByteRange) -> BoxFuture<'_, Result<Vec<Extent>>> {
        Box::pin(async move {
            range.check_within(self.info.size)?;
            extents_of(&self.plan(range), range).await
        })
    }

    fn prefetch(&self, range: ByteRange) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            range.check_within(self.info.size)?;
            fetch_ahead(&self.engine, &self.store, &self.plan(range)).await
        })
    }
}

fn given_up(name: &str, error: Error) -> Error {
    let hint = format!("{name} was given up, or `clonegate fsck` finds what is wrong");
    gone(error).hint(hint)
}
