//! One clone as a device: delta over base.
//!
//! A [`Volume`] is opened as a reader and becomes the owner of its clone at the first write. There is one of each clone
//! in a process, and both edges share it.

mod base;
mod commit;
mod core;
mod fill;
mod ops;
mod own;
mod parts;
mod plan;
mod read;
mod room;
mod snapshot;
mod tail;
#[cfg(test)]
mod tests;
mod unlink;
mod upkeep;
mod write;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use bytes::Bytes;
use clonegate_core::format::clone::{CloneRecord, Durability, VolumeKind};
use clonegate_core::ids::{BaseId, Epoch, GatewayId, Name};
use clonegate_core::units::{BLOCK_BYTES, ByteRange};
use clonegate_core::{Error, Result};
use futures::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, Semaphore};

pub use self::base::{BaseProvider, BaseRead};
use self::core::{Core, Face, Progress, Role, State, units};
use self::ops::Operation;
use crate::delta::Engine;
use crate::delta::dirty::Dirty;
use crate::delta::load::{End, Loaded, load};
use crate::delta::unsettled::Mark;
use crate::device::{Device, DeviceInfo, Extent, Segments, Version, WriteOptions};
use crate::store::Store;

/// What a volume is opened with.
#[derive(Debug, Clone)]
pub struct VolumeSetup {
    /// The datastore that the clone is on.
    pub store: Store,
    /// The clone.
    pub record: CloneRecord,
    /// Opens bases of that datastore.
    pub bases: Arc<dyn BaseProvider>,
    /// What the volumes of this gateway share.
    pub engine: Arc<Engine>,
}

/// What an operator is told of an open volume.
#[derive(Debug, Clone)]
pub struct VolumeStatus {
    /// The epoch that this gateway owns; none when it only reads.
    pub epoch: Option<Epoch>,
    /// Why it can no longer be used, when that is so.
    pub dead: Option<Error>,
    /// What a flush promises.
    pub durability: Durability,
    /// The base under the delta.
    pub base: Option<BaseId>,
    /// Bytes of blocks in the delta that are in the store, without zeroes.
    pub delta_bytes: u64,
    /// Bytes accepted and not in the store.
    pub dirty_bytes: u64,
    /// Snapshots, oldest first.
    pub snapshots: Vec<SnapshotStatus>,
    /// Until when the last reset or restore can be undone, milliseconds since 1970 UTC.
    pub undo_until_ms: Option<u64>,
    /// The base that undoing it leads to.
    pub undo_base: Option<BaseId>,
    /// When it was opened, its last owner had not closed it: that one has it open still, or ended suddenly.
    pub cut: bool,
    /// Flushed writes may be missing since a gateway was lost, and an operator accepted that.
    pub lost_tail: bool,
    /// Accepted writes were lost with an earlier owner, and no machine has begun anew since.
    pub torn: bool,
    /// Bytes of memory that the map takes.
    pub map_bytes: u64,
}

/// One snapshot.
#[derive(Debug, Clone)]
pub struct SnapshotStatus {
    /// Its name.
    pub name: Name,
    /// When it was made, milliseconds since 1970 UTC.
    pub time_ms: u64,
    /// Its base.
    pub base: Option<BaseId>,
}

/// See the module.
#[derive(Debug)]
pub struct Volume {
    core: Arc<Core>,
}

impl Volume {
    /// Opens the volume as a reader: nothing is claimed and nothing written, unless the journal of this gateway holds
    /// flushed writes of it: those are put into the store first.
    ///
    /// # Errors
    /// `Conflict` with code `already-open` when this process has it open; `NotFound` with code `clone-deleted`;
    /// `Corrupt` naming the object; what the store gives.
    pub async fn open(setup: VolumeSetup) -> Result<Arc<Self>> {
        let VolumeSetup { store, record, bases, engine } = setup;
        let registration = engine.register(record.id).await?;
        let loaded = load(&store, &record).await?;
        let torn = own::is_torn(&engine, &store, &record, loaded.end).await?;
        let cut = matches!(loaded.end, Some((_, End::Open)));
        let Loaded { state: mut log, listing, .. } = loaded;
        if record.durability == Durability::Ephemeral {
            log.forget_delta();
        }
        let base = match log.image.base {
            Some(id) => Some(bases.base(id).await?),
            None => None,
        };
        let version = own::version_of(&record, &log);
        let what = match record.kind {
            VolumeKind::LinkedClone => "linked clone",
            VolumeKind::FullClone => "full clone",
            VolumeKind::DataDisk => "data disk",
        };
        let mode = match record.durability {
            Durability::Ephemeral => "ephemeral",
            Durability::Local => "local",
            Durability::Object => "object",
        };
        let over = log.image.base.map(|base| format!(" over {base}")).unwrap_or_default();
        let info = DeviceInfo {
            name: record.name.to_string(),
            size: record.size,
            read_only: false,
            description: format!("{what}{over}, durability {mode}"),
            modified_ms: log.modified_ms,
        };
        let budget = units(engine.settings.dirty_bytes_per_volume.max(BLOCK_BYTES));
        let state = State {
            role: Role::Reader,
            version,
            modified_ms: log.modified_ms,
            log,
            base: base.clone(),
            open: Dirty::default(),
            open_bytes: 0,
            open_since: None,
            open_room: room::Room::default(),
            sealed: Dirty::default(),
            queue: VecDeque::new(),
            queue_bytes: 0,
            unjournaled: VecDeque::new(),
            next_batch: 1,
            seen: own::seen(&listing),
            mark: Mark::default(),
        };
        let opened = engine.now();
        let core = Core {
            mode: record.durability,
            face: ArcSwap::from_pointee(Face { pristine: false, reader: true, base }),
            state: RwLock::new(state),
            gate: tokio::sync::RwLock::new(()),
            turn: tokio::sync::Mutex::new(()),
            calm: tokio::sync::Mutex::new(()),
            budget: Arc::new(Semaphore::new(budget as usize)),
            store_share: engine.share_of(&store),
            progress: Progress::default(),
            wake: Notify::new(),
            commands: Mutex::new(None),
            committing: tokio::sync::Mutex::new(()),
            given_up: Semaphore::new(0),
            read_end: AtomicU64::new(0),
            ahead_end: AtomicU64::new(0),
            segments: AtomicU64::new(0),
            looked: core::Looked::new(opened),
            confirmed: Mutex::new(core::Moment::now(&engine.clock)),
            looking: AtomicBool::new(false),
            lost_tail_accepted: AtomicBool::new(false),
            torn: AtomicBool::new(torn),
            anew: AtomicBool::new(false),
            cut,
            _registration: registration,
            store,
            record,
            bases,
            engine,
            info,
        };
        core.publish(&core.state.read());
        let core = Arc::new(core);
        if core.engine.journal.as_ref().is_some_and(|journal| journal.has_pending(core.record.id)) {
            core.recover().await?;
        }
        Ok(Arc::new(Self { core }))
    }

    /// Says that flushed writes of a lost gateway, which only its journal held, may be missing: an operator's yes to
    /// what the error `lost-tail` says. Holds for the next claim.
    pub fn accept_lost_tail(&self) {
        self.core.lost_tail_accepted.store(true, Ordering::Release);
    }

    /// Makes this gateway the owner now, rather than at the first write.
    ///
    /// # Errors
    /// `Fenced` with code `taken-over` when another gateway is quicker; `Conflict` with code `lost-tail` when a gateway
    /// that is gone may have flushed writes in its journal, see [`Volume::accept_lost_tail`]; what the store gives.
    pub async fn claim(&self) -> Result<()> {
        self.core.own().await
    }

    /// The other gateway that has it open for writing, or ended without closing it; looked up anew.
    ///
    /// # Errors
    /// What the store gives.
    pub async fn owner_elsewhere(&self) -> Result<Option<GatewayId>> {
        self.core.owner_elsewhere().await
    }

    /// What a takeover would leave behind: `None` when nothing flushed can be missing, otherwise the error that [`Volume::claim`]
    /// gives without an operator's yes.
    ///
    /// # Errors
    /// What the store gives.
    pub async fn lost_tail(&self) -> Result<Option<Error>> {
        self.core.lost_tail().await
    }

    /// Drops the delta: the volume is its base again, or the base that is given. One store request, whatever the size.
    /// It can be undone for a while, see [`Volume::undo`].
    ///
    /// # Errors
    /// What opening the base gives; `Fenced`; what the store gives.
    pub async fn reset(&self, onto: Option<BaseId>) -> Result<()> {
        let base = match onto {
            Some(id) => self.core.base(Some(id)).await?,
            None => None,
        };
        self.core.operate(Operation::Reset(base)).await?;
        self.core.begin_anew();
        Ok(())
    }

    /// Takes the last reset or restore back, within its undo window. What was written since is dropped.
    ///
    /// # Errors
    /// `Conflict` with code `nothing-to-undo`.
    pub async fn undo(&self) -> Result<()> {
        self.core.operate(Operation::Undo).await?;
        self.core.begin_anew();
        Ok(())
    }

    /// Keeps the present bytes under a name; a snapshot of that name is replaced.
    ///
    /// # Errors
    /// `Exhausted` with code `too-many-snapshots`; `Unsupported` with code `ephemeral`.
    pub async fn snapshot(&self, name: Name) -> Result<()> {
        self.core.operate(Operation::Snapshot(name, None)).await
    }

    /// The same of a copy, for a snapshot that the original had made at this time, milliseconds since 1970 UTC.
    ///
    /// # Errors
    /// As [`Volume::snapshot`].
    pub async fn snapshot_as_of(&self, name: Name, made_ms: u64) -> Result<()> {
        self.core.operate(Operation::Snapshot(name, Some(made_ms))).await
    }

    /// Gives a snapshot up.
    ///
    /// # Errors
    /// `NotFound` with code `unknown-snapshot`.
    pub async fn drop_snapshot(&self, name: Name) -> Result<()> {
        self.core.operate(Operation::DropSnapshot(name)).await
    }

    /// A snapshot as a read-only device. It does not keep the volume open.
    ///
    /// # Errors
    /// `NotFound` with code `unknown-snapshot`; what the store and opening the snapshot's base give.
    pub async fn open_snapshot(&self, name: &Name) -> Result<Arc<dyn Device>> {
        self.core.snapshot_device(name).await
    }

    /// Makes the volume what a snapshot says. It can be undone for a while.
    ///
    /// # Errors
    /// `NotFound` with code `unknown-snapshot`; what opening the snapshot's base gives.
    pub async fn restore(&self, name: Name) -> Result<()> {
        self.core.operate(Operation::Restore(name)).await?;
        self.core.begin_anew();
        Ok(())
    }

    /// Copies what of `range` comes from the base into the delta, never over what is written meanwhile; says how many bytes that were.
    ///
    /// # Errors
    /// What reading the base gives; `Fenced`; what the store gives.
    pub async fn fill(&self, range: ByteRange) -> Result<u64> {
        self.core.fill(range).await
    }

    /// Lets the base go, when the delta holds all that the base held. Bytes do not change.
    ///
    /// # Errors
    /// `Conflict` with code `base-needed` when [`Volume::fill`] has not come everywhere, or `has-snapshots`; `Fenced`.
    pub async fn promote(&self) -> Result<()> {
        match self.core.needed().await? {
            None => Ok(()),
            Some(needed) => self.core.operate(Operation::Promote(needed)).await,
        }
    }

    /// Puts everything accepted into the store and gives the volume up; it is unusable afterwards.
    ///
    /// # Errors
    /// `Fenced` when it was taken over before; what the store gives.
    pub async fn close(&self) -> Result<()> {
        self.core.close().await
    }

    /// Gives the volume up without putting anything more into the store: it is about to be deleted, or was a copy that nobody wants. It is
    /// unusable afterwards; a request that is under way is waited for, for a while.
    pub async fn give_up(&self) {
        self.core.give_up().await;
    }

    /// Why nothing of it comes into the store at the moment: the store has no room, or does not answer. It is tried again all the time.
    pub fn waits(&self) -> Option<Error> {
        self.core.progress.waits()
    }

    /// Does a round of upkeep now: folds, writes a checkpoint, deletes garbage that is past its grace. Otherwise that
    /// happens by itself when enough has been written.
    ///
    /// # Errors
    /// What the store gives; nothing is lost by it, and it is tried again by itself.
    pub async fn tend(&self) -> Result<()> {
        self.core.own().await?;
        let (reply, answer) = tokio::sync::oneshot::channel();
        let sent = self.core.commands.lock().as_ref().is_some_and(|c| c.send(commit::Command::Tend(reply)).is_ok());
        if !sent {
            return Err(commit::closed(&self.core));
        }
        answer.await.map_err(|_| commit::closed(&self.core))?
    }

    /// How it stands.
    pub fn status(&self) -> VolumeStatus {
        let state = self.core.state.read();
        let named = |kept: &crate::delta::state::KeptImage| {
            let name = kept.kept.name.clone()?;
            Some(SnapshotStatus { name, time_ms: kept.kept.time_ms, base: kept.kept.base })
        };
        VolumeStatus {
            epoch: matches!(state.role, Role::Owner).then_some(state.log.at.map_or(Epoch(0), |at| at.epoch)),
            dead: match &state.role {
                Role::Dead(error) => Some(error.clone()),
                _ => None,
            },
            durability: self.core.mode,
            base: state.log.image.base,
            delta_bytes: state.log.image.map.data_blocks() * BLOCK_BYTES,
            dirty_bytes: state.queue_bytes + state.open_bytes,
            snapshots: state.log.kept.iter().filter_map(named).collect(),
            undo_until_ms: state.log.kept(None).map(|kept| kept.kept.until_ms),
            undo_base: state.log.kept(None).and_then(|kept| kept.kept.base),
            cut: self.core.cut,
            lost_tail: state.log.lost_tail,
            torn: self.core.torn.load(Ordering::Acquire),
            map_bytes: state.log.image.map.memory() as u64,
        }
    }

    /// The clone.
    pub fn record(&self) -> &CloneRecord {
        &self.core.record
    }
}

impl Drop for Volume {
    /// The committer puts what was accepted into the store, and ends.
    fn drop(&mut self) {
        self.core.commands.lock().take();
    }
}

impl Device for Volume {
    fn info(&self) -> &DeviceInfo {
        &self.core.info
    }

    fn version(&self) -> (Version, u64) {
        let state = self.core.state.read();
        (state.version, state.modified_ms)
    }

    fn try_read(&self, range: ByteRange) -> Option<Segments> {
        self.core.try_read(range)
    }

    fn read(&self, range: ByteRange) -> BoxFuture<'_, Result<Segments>> {
        Box::pin(self.core.read(range))
    }

    fn write(&self, offset: u64, data: Bytes, options: WriteOptions) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.core.write(offset, data, options))
    }

    fn try_write(&self, offset: u64, data: Bytes) -> std::result::Result<Result<()>, Bytes> {
        self.core.try_write(offset, &data).ok_or(data)
    }

    fn write_zeroes(&self, range: ByteRange, _discard: bool, fua: bool) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.core.write_zeroes(range, fua))
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.core.flush())
    }

    fn extents(&self, range: ByteRange) -> BoxFuture<'_, Result<Vec<Extent>>> {
        Box::pin(self.core.extents(range))
    }

    fn prefetch(&self, range: ByteRange) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.core.prefetch(range))
    }

    fn is_torn(&self) -> bool {
        self.core.torn.load(Ordering::Acquire)
    }

    fn begin_anew(&self) {
        self.core.begin_anew();
    }
}
