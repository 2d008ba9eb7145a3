//! Reads the chunks of a base and verifies each against its index.
//!
//! A [`Base`] is a base record opened: packed (an index and packs, see [`packed`]) or somebody's raw image by reference (see [`raw`]).
//! Both answer from the iCache and fetch what is missing once, however many wait. Fetches run on the main runtime, so a base may be
//! read from any runtime.

mod ahead;
mod boot;
mod device;
mod fetch;
mod forget;
pub mod frame;
pub(crate) mod leftover;
pub(crate) mod making;
pub(crate) mod packed;
mod raw;
pub mod verify;
mod warming;

use std::sync::Arc;

use clonegate_core::format::base::{BaseData, BaseRecord};
use clonegate_core::format::index::IndexRecord;
use clonegate_core::ids::BaseId;
use clonegate_core::limits::CHUNK_BYTES;
use clonegate_core::units::ByteRange;
use clonegate_core::{Error, Result};
use tokio::runtime::Handle;

pub use device::BaseDevice;
pub use forget::{Forgotten, forget};
pub use raw::{NoRawSources, RawImage, RawSources, inspect};
pub use warming::Piece;

use crate::device::{Extent, Segments, Source};
use crate::icache::{Asker, ICache};
use crate::store::{Store, keys};
use ahead::Ahead;
use boot::Trace;
use packed::{Packed, Warmed};
use raw::Raw;

/// An open base. It never changes; share it by `Arc`.
#[derive(Debug)]
pub struct Base {
    record: BaseRecord,
    store: Store,
    data: Data,
    trace: Trace,
    ahead: Ahead,
    runtime: Handle,
}

#[derive(Debug)]
enum Data {
    Packed(Arc<Packed>),
    Raw(Arc<Raw>),
}

impl Base {
    /// Opens a base: reads its index, or looks whether its raw image is still the same. `runtime` is the one that does store IO.
    ///
    /// # Errors
    /// `NotFound` and `Corrupt` naming the index; `Conflict` with code `source-changed`; `Denied` from `sources`; `Unavailable`.
    pub async fn open(
        store: Store,
        record: BaseRecord,
        sources: &dyn RawSources,
        cache: Arc<ICache>,
        runtime: Handle,
    ) -> Result<Arc<Self>> {
        let size = record.size;
        let (data, chunk_bytes) = match &record.data {
            BaseData::Packed { index } => {
                let packed = Packed::open(store.clone(), *index, size, cache, runtime.clone()).await?;
                let chunk_bytes = packed.chunk_bytes();
                (Data::Packed(Arc::new(packed)), chunk_bytes)
            }
            BaseData::Raw { store: url, key, etag } => {
                let raw = Raw::open(sources, (url, key, etag), size, cache, runtime.clone()).await?;
                (Data::Raw(Arc::new(raw)), u64::from(CHUNK_BYTES))
            }
        };
        let trace = Trace::new(size.div_ceil(chunk_bytes), chunk_bytes);
        Ok(Arc::new(Self { record, store, data, trace, ahead: Ahead::default(), runtime }))
    }

    /// Its id.
    pub fn id(&self) -> BaseId {
        self.record.id
    }

    /// Size, bytes.
    pub fn size(&self) -> u64 {
        self.record.size
    }

    /// Its record.
    pub fn record(&self) -> &BaseRecord {
        &self.record
    }

    /// The head of its index, unless it is a raw image by reference.
    pub fn index(&self) -> Option<&IndexRecord> {
        match &self.data {
            Data::Packed(packed) => Some(packed.record()),
            Data::Raw(_) => None,
        }
    }

    /// Reads without waiting when everything is in memory. `None` otherwise, also for a range past the end.
    pub fn try_read(&self, range: ByteRange) -> Option<Segments> {
        if range.end() > self.record.size {
            return None;
        }
        self.trace.touch(range);
        match &self.data {
            Data::Packed(packed) => packed.try_read(range),
            Data::Raw(raw) => raw.try_read(range),
        }
    }

    /// Reads `range`, fetching what is missing: neighbouring chunks by one GET, each chunk once however many ask.
    ///
    /// # Errors
    /// `Invalid` with code `beyond-end`; `Corrupt` naming pack and chunk when a chunk failed its check twice; `Conflict` with code
    /// `source-changed`; `Unavailable`.
    ///
    /// # Cancel safety
    /// May be dropped at any time; fetches go on for those who wait with it.
    pub async fn read(&self, range: ByteRange) -> Result<Segments> {
        range.check_within(self.record.size).map_err(|e| self.on(e))?;
        self.trace.touch(range);
        self.read_ahead(range);
        match &self.data {
            Data::Packed(packed) => packed.read(range, Asker::Machine).await,
            Data::Raw(raw) => raw.read(range, Asker::Machine).await,
        }
    }

    /// Starts fetching what a sequence of reads will want next.
    fn read_ahead(&self, range: ByteRange) {
        if range.is_empty() {
            return;
        }
        let Some(ahead) = self.ahead.note(self.trace.whole_chunks(range), self.record.size) else { return };
        // Whoever reads it will hear of an error; here nobody waits.
        match &self.data {
            Data::Packed(packed) => {
                let packed = Arc::clone(packed);
                self.runtime.spawn(async move { packed.start_reading(ahead).await });
            }
            Data::Raw(raw) => raw.start_reading(ahead),
        }
    }

    /// Which parts of `range` are zeroes and which are stored, neighbours merged. A raw image by reference is all stored.
    ///
    /// # Errors
    /// As [`Base::read`].
    pub async fn extents(&self, range: ByteRange) -> Result<Vec<Extent>> {
        self.extents_for(range, Asker::Machine).await
    }

    async fn extents_for(&self, range: ByteRange, asker: Asker) -> Result<Vec<Extent>> {
        range.check_within(self.record.size).map_err(|e| self.on(e))?;
        if range.is_empty() {
            return Ok(Vec::new());
        }
        match &self.data {
            Data::Packed(packed) => packed.extents(range, asker).await,
            Data::Raw(_) => Ok(vec![Extent { range, source: Source::Base }]),
        }
    }

    /// Fetches `range` into memory, a few chunks at a time, below what is asked for.
    ///
    /// # Errors
    /// As [`Base::read`].
    pub async fn prefetch(&self, range: ByteRange) -> Result<()> {
        range.check_within(self.record.size).map_err(|e| self.on(e))?;
        for chunk in self.trace.chunks_of(range) {
            self.warm(chunk).await?;
        }
        Ok(())
    }

    async fn warm(&self, chunk: u64) -> Result<Warmed> {
        match &self.data {
            Data::Packed(packed) => packed.warm(chunk).await,
            Data::Raw(raw) => raw.warm(chunk).await,
        }
    }

    fn on(&self, error: Error) -> Error {
        error.on(keys::base(self.record.id).to_string())
    }
}

#[cfg(test)]
mod tests;
