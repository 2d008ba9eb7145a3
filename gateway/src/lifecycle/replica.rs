//! Copies what a device reads as into a volume of its own, window by window, and compares both afterwards.
//!
//! The copy is written through an engine of its own, without a journal: when a window is flushed it is in the store, so whoever goes on with
//! the work finds it there, on whatever host.

use std::sync::Arc;

use bytes::Bytes;
use clonegate_core::format::clone::{CloneRecord, Durability};
use clonegate_core::ids::Name;
use clonegate_core::limits::READ_WINDOW_BYTES;
use clonegate_core::units::ByteRange;
use clonegate_core::{Error, Result};

use super::datastores::Datastore;
use super::gateway::Gateway;
use super::jobs::JobRun;
use super::waiting;
use crate::delta::{DeltaSettings, Engine};
use crate::device::{Device, Extent, Source, WriteOptions};
use crate::volume::{Volume, VolumeSetup};

/// Bytes of a volume between two points to go on from.
pub(super) const STEP_BYTES: u64 = 64 << 20;
/// Cache of delta blocks that a copy may use.
const CACHE_BYTES: u64 = 16 << 20;
const BLOCK: usize = 4096;

/// What lies under the copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Under {
    /// Nothing: all that is not zero is copied.
    Nothing,
    /// The same base as under the original: what the original wrote is copied.
    SameBase,
}

/// A copy under way.
pub(super) struct Copying<'a> {
    pub(super) gateway: &'a Gateway,
    /// Where the copy is made.
    pub(super) datastore: &'a Name,
    pub(super) from: Arc<dyn Device>,
    pub(super) to: Arc<Volume>,
    pub(super) under: Under,
    pub(super) run: &'a JobRun,
    /// The job counts something else than bytes.
    pub(super) quiet: bool,
    /// Which state of the original this is, counted from 0, and of how many.
    pub(super) state: (u64, u64),
}

impl Gateway {
    /// Opens a volume that no name leads to yet, for a copy.
    pub(super) async fn open_copy(&self, datastore: &Arc<Datastore>, record: &CloneRecord) -> Result<Arc<Volume>> {
        let settings = DeltaSettings {
            journal: None,
            cache_bytes: CACHE_BYTES,
            dirty_bytes: STEP_BYTES,
            dirty_bytes_per_volume: STEP_BYTES / 2,
            ..self.settings.delta.clone()
        };
        let engine = Engine::open(settings, self.settings.gateway, self.clock.clone(), self.handle.clone())?;
        let setup = VolumeSetup {
            store: datastore.store.clone(),
            record: CloneRecord { durability: Durability::Object, ..record.clone() },
            bases: self.bases_on(datastore),
            engine,
        };
        Volume::open(setup).await
    }
}

impl Copying<'_> {
    fn size(&self) -> u64 {
        self.from.info().size
    }

    fn progress(&self, done: u64) {
        if !self.quiet {
            let (number, states) = self.state;
            self.run.progress(number * self.size() * 2 + done, Some(states * self.size() * 2));
        }
    }

    /// Copies from `at` on; `save` is called with each offset up to which all is in the store.
    pub(super) async fn copy(&self, at: u64, save: &mut (dyn AsyncSave + Send)) -> Result<()> {
        let size = self.size();
        let mut at = at;
        while at < size {
            self.run.check()?;
            let step = ByteRange::new(at, size.min(at + STEP_BYTES));
            let copied = async {
                for extent in self.from.extents(step).await? {
                    self.copy_extent(&extent).await?;
                    self.run.check()?;
                    self.progress(extent.range.end());
                }
                waiting::flush(self.run, &self.to).await
            };
            self.gateway.for_room_of(self.run, self.datastore, &self.to, copied).await?;
            at = step.end();
            self.progress(at);
            save.save(at).await?;
        }
        Ok(())
    }

    async fn copy_extent(&self, extent: &Extent) -> Result<()> {
        match (extent.source, self.under) {
            (Source::Base, Under::SameBase) | (Source::Zero, Under::Nothing) => Ok(()),
            (Source::Zero, Under::SameBase) => {
                // Only where the base is not zero: a hole over a hole says nothing.
                for below in self.to.extents(extent.range).await? {
                    if below.source != Source::Zero {
                        self.to.write_zeroes(below.range, false, false).await?;
                    }
                }
                Ok(())
            }
            (Source::Delta, _) | (Source::Base, Under::Nothing) => {
                let mut at = extent.range.start();
                while at < extent.range.end() {
                    let range = ByteRange::new(at, extent.range.end().min(at + READ_WINDOW_BYTES));
                    let bytes: Bytes = self.from.read(range).await?.concat().into();
                    self.write(range.start(), &bytes, self.under == Under::SameBase).await?;
                    at = range.end();
                }
                Ok(())
            }
        }
    }

    /// Makes the copy, which reads as an earlier state of the original, read as this one. What is the same is not written again, so snapshots share
    /// it. Can be cut and done again at any point.
    pub(super) async fn change(&self) -> Result<()> {
        let size = self.size();
        let mut at = 0;
        while at < size {
            let step = ByteRange::new(at, size.min(at + STEP_BYTES));
            let changed = async {
                let mut at = step.start();
                while at < step.end() {
                    self.run.check()?;
                    let window = ByteRange::new(at, step.end().min(at + READ_WINDOW_BYTES));
                    self.change_window(window).await?;
                    at = window.end();
                    self.progress(at);
                }
                waiting::flush(self.run, &self.to).await
            };
            self.gateway.for_room_of(self.run, self.datastore, &self.to, changed).await?;
            at = step.end();
        }
        Ok(())
    }

    async fn change_window(&self, window: ByteRange) -> Result<()> {
        let (ours, theirs) = (self.from.extents(window).await?, self.to.extents(window).await?);
        if self.same_by_place(&ours, &theirs) {
            return Ok(());
        }
        let ours: Bytes = self.from.read(window).await?.concat().into();
        let theirs: Bytes = self.to.read(window).await?.concat().into();
        let blocks = ours.len().div_ceil(BLOCK);
        let part = |n: usize| n * BLOCK..((n + 1) * BLOCK).min(ours.len());
        let same = |n: usize| ours[part(n)] == theirs[part(n)];
        let mut from = 0;
        while from < blocks {
            let to = (from + 1..blocks).find(|n| same(*n) != same(from)).unwrap_or(blocks);
            if !same(from) {
                let run = from * BLOCK..part(to - 1).end;
                self.write(window.start() + run.start as u64, &ours.slice(run), true).await?;
            }
            from = to;
        }
        Ok(())
    }

    /// Writes what is not zero; zeroes only where they hide something.
    async fn write(&self, offset: u64, bytes: &Bytes, hides: bool) -> Result<()> {
        let blocks = bytes.len().div_ceil(BLOCK);
        let part = |n: usize| n * BLOCK..((n + 1) * BLOCK).min(bytes.len());
        let is_zero = |n: usize| bytes[part(n)].iter().all(|byte| *byte == 0);
        let mut from = 0;
        while from < blocks {
            let zero = is_zero(from);
            let to = (from + 1..blocks).find(|n| is_zero(*n) != zero).unwrap_or(blocks);
            let run = from * BLOCK..part(to - 1).end;
            let start = offset + run.start as u64;
            let range = ByteRange::new(start, offset + run.end as u64);
            match (zero, hides) {
                (true, false) => {}
                (true, true) => self.to.write_zeroes(range, false, false).await?,
                (false, _) => self.to.write(start, bytes.slice(run), WriteOptions::default()).await?,
            }
            from = to;
        }
        Ok(())
    }

    /// Reads both and compares; what is the same by where it lies is not read.
    pub(super) async fn verify(&self) -> Result<()> {
        let size = self.size();
        let mut at = 0;
        self.run.note("comparing");
        while at < size {
            self.run.check()?;
            let window = ByteRange::new(at, size.min(at + READ_WINDOW_BYTES));
            let (ours, theirs) = (self.from.extents(window).await?, self.to.extents(window).await?);
            if !self.same_by_place(&ours, &theirs) {
                let (ours, theirs) = (self.from.read(window).await?, self.to.read(window).await?);
                if ours.concat() != theirs.concat() {
                    return Err(Error::corrupt("copy-differs", format!("bytes {window:?} are not what was copied"))
                        .on(self.to.info().name.clone())
                        .hint("run it again; if it happens twice, check the memory of this host"));
                }
            }
            at = window.end();
            self.progress(size + at);
        }
        Ok(())
    }

    /// Ends a copy: closes it when it is whole, and otherwise gives up what of it is not in the store.
    pub(super) async fn end(&self, copied: Result<()>) -> Result<()> {
        let closed = match copied {
            Ok(()) => self.gateway.for_room_of(self.run, self.datastore, &self.to, self.to.close()).await,
            Err(error) => Err(error),
        };
        if closed.is_err() {
            self.to.give_up().await;
        }
        closed
    }

    fn same_by_place(&self, ours: &[Extent], theirs: &[Extent]) -> bool {
        let zero = |extents: &[Extent]| extents.iter().all(|extent| extent.source == Source::Zero);
        let written = |extents: &[Extent]| extents.iter().any(|extent| extent.source == Source::Delta);
        zero(ours) && zero(theirs) || self.under == Under::SameBase && ours == theirs && !written(ours)
    }
}

/// Writes down how far a copy is.
#[async_trait::async_trait]
pub(super) trait AsyncSave {
    /// Everything below `at` is in the store.
    async fn save(&mut self, at: u64) -> Result<()>;
}
