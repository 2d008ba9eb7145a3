//! What the volumes of one gateway share: settings, clock, runtime, the cache of delta blocks, the dirty budget.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};
use std::time::Duration;

use clonegate_core::ids::{CloneId, GatewayId};
use clonegate_core::limits::{CHECKPOINT_BYTES, CHECKPOINT_RECORDS};
use clonegate_core::{Error, Result};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use super::cache::DeltaCache;
use super::journal::{Journal, JournalSettings};
use super::unsettled::Unsettled;
use crate::clock::Clock;
use crate::store::Store;

/// How deltas are kept. Sizes in bytes.
#[derive(Debug, Clone)]
pub struct DeltaSettings {
    /// Directory of the journal for `local` clones; without it a flush of theirs waits for the store.
    pub journal: Option<PathBuf>,
    /// Size of a file of the journal.
    pub journal_file_bytes: u64,
    /// Write the journal where a batch is sealed rather than in a thread, and do not sync it: for simulations, in which
    /// time stands still.
    pub journal_inline: bool,
    /// Says that the disk of the journal has no room left: for simulations.
    pub journal_full: Arc<AtomicBool>,
    /// Most bytes that are accepted and not in the store, all volumes together; writes wait above it. Those of one store have three quarters of it.
    pub dirty_bytes: u64,
    /// The same for one volume.
    pub dirty_bytes_per_volume: u64,
    /// Size of the cache of delta blocks.
    pub cache_bytes: u64,
    /// Accepted writes are on their way to the store after this time at the latest.
    pub upload_lag: Duration,
    /// Commit records after which a checkpoint is due.
    pub checkpoint_records: u64,
    /// Bytes of commit records after which a checkpoint is due.
    pub checkpoint_bytes: u64,
    /// Small objects of commits that all volumes together have before the oldest are folded: each takes some memory, and a request to read.
    pub small_objects: usize,
    /// As many a volume may have in any case, and at most.
    pub small_objects_per_volume: (usize, usize),
    /// How long an object that nothing needs any more is left for readers of other gateways.
    pub grace: Duration,
    /// How long a reset can be undone.
    pub undo_window: Duration,
    /// How old the state may be that a gateway serves which does not own the volume.
    pub staleness: Duration,
}

impl Default for DeltaSettings {
    fn default() -> Self {
        Self {
            journal: None,
            journal_file_bytes: 64 << 20,
            journal_inline: false,
            journal_full: Arc::default(),
            dirty_bytes: 1 << 30,
            dirty_bytes_per_volume: 64 << 20,
            cache_bytes: 64 << 20,
            upload_lag: Duration::from_millis(800),
            checkpoint_records: CHECKPOINT_RECORDS,
            checkpoint_bytes: CHECKPOINT_BYTES,
            small_objects: 1 << 20,
            small_objects_per_volume: (4096, 65_536),
            grace: Duration::from_secs(15 * 60),
            undo_window: Duration::from_secs(24 * 3600),
            staleness: Duration::from_secs(5),
        }
    }
}

const UPKEEP_MAX: usize = 2;
/// How long an opening waits for an owner that ended here to let go of its last request.
const LEAVE_PATIENCE: Duration = Duration::from_secs(10);

/// A moment by both clocks of the host, in milliseconds: one stands still while the host sleeps, the other may be set back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    /// Since the engine was opened.
    pub(crate) ms: u64,
    /// Since 1970 UTC.
    pub(crate) wall_ms: u64,
}

/// Dirty memory is counted in units of this, so that 32 bits of permits are enough.
pub(crate) const BUDGET_UNIT: u64 = 4096;

/// See the module. One per gateway process.
#[derive(Debug)]
pub struct Engine {
    /// As they were given.
    pub settings: DeltaSettings,
    /// This gateway.
    pub gateway: GatewayId,
    /// Time and randomness.
    pub clock: Clock,
    /// The runtime that store IO runs on.
    pub handle: Handle,
    pub(crate) cache: Arc<DeltaCache>,
    pub(crate) budget: Arc<Semaphore>,
    /// What of it the volumes of one store may take, by store.
    shares: Mutex<HashMap<usize, Weak<Semaphore>>>,
    /// Somebody waits for the budget: volumes that only hold it have to let go.
    pub(crate) pressure: Notify,
    pub(crate) journal: Option<Journal>,
    pub(crate) unsettled: Unsettled,
    /// Volumes that fold and write checkpoints at the same time: a round takes memory.
    pub(crate) upkeep: Semaphore,
    /// When it was opened.
    opened: Instant,
    open: Mutex<HashSet<CloneId>>,
    /// One of them was closed.
    left: Notify,
}

impl Engine {
    /// Opens what the volumes share. `handle` is the runtime that lives as long as the gateway.
    ///
    /// # Errors
    /// What the journal gives: `Conflict` with code `journal-in-use` or `journal-of-another`, `Corrupt`, `Invalid`.
    pub fn open(settings: DeltaSettings, gateway: GatewayId, clock: Clock, handle: Handle) -> Result<Arc<Self>> {
        let units = |bytes: u64| usize::try_from(bytes / BUDGET_UNIT).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        let journal = settings.journal.clone().map(|path| JournalSettings {
            path,
            owner: gateway.to_string(),
            file_bytes: settings.journal_file_bytes,
            inline: settings.journal_inline,
            full: Arc::clone(&settings.journal_full),
        });
        let journal = journal.map(|settings| Journal::open(settings, &clock)).transpose()?;
        let engine = Arc::new(Self {
            journal,
            unsettled: Unsettled::open(settings.journal.as_deref()),
            upkeep: Semaphore::new(UPKEEP_MAX),
            pressure: Notify::new(),
            cache: DeltaCache::new(settings.cache_bytes, handle.clone()),
            budget: Arc::new(Semaphore::new(units(settings.dirty_bytes))),
            shares: Mutex::default(),
            open: Mutex::new(HashSet::new()),
            left: Notify::new(),
            settings,
            gateway,
            opened: clock.instant(),
            clock,
            handle,
        });
        Ok(engine)
    }

    /// Now, for those who remember when they looked. It is read from the clocks, and not counted by a task: a process that was stopped
    /// wakes before its tasks run.
    pub(crate) fn now(&self) -> Now {
        let elapsed = self.clock.instant().saturating_duration_since(self.opened).as_millis();
        Now { ms: u64::try_from(elapsed).unwrap_or(u64::MAX), wall_ms: self.clock.now_ms() }
    }

    /// The part of the dirty budget that the volumes of `store` have together.
    pub(crate) fn share_of(&self, store: &Store) -> Arc<Semaphore> {
        let mut shares = self.shares.lock();
        if let Some(share) = shares.get(&store.identity()).and_then(Weak::upgrade) {
            return share;
        }
        shares.retain(|_, share| share.strong_count() > 0);
        let units = usize::try_from(self.share_bytes() / BUDGET_UNIT).unwrap_or(usize::MAX);
        let share = Arc::new(Semaphore::new(units.min(Semaphore::MAX_PERMITS)));
        shares.insert(store.identity(), Arc::downgrade(&share));
        share
    }

    /// Accepted bytes that the volumes of one store may hold: while that takes nothing, those of the others still have room.
    pub(crate) fn share_bytes(&self) -> u64 {
        (self.settings.dirty_bytes / 4 * 3).max(BUDGET_UNIT)
    }

    /// Bytes of delta blocks in the cache.
    pub fn cache_bytes(&self) -> u64 {
        self.cache.bytes()
    }

    /// Bytes accepted and not yet in the store, all volumes together.
    pub fn dirty_bytes(&self) -> u64 {
        let free = self.budget.available_permits() as u64 * BUDGET_UNIT;
        self.settings.dirty_bytes.saturating_sub(free)
    }

    /// Small objects that each of the volumes that are open may have before the oldest of them are folded.
    pub(crate) fn small_objects_max(&self) -> usize {
        let (least, most) = self.settings.small_objects_per_volume;
        (self.settings.small_objects / self.open.lock().len().max(1)).clamp(least, most)
    }

    /// Clones of which the journal has flushed writes that may not be in the store, though nobody is about to put them there: it held them at
    /// start, or an owner in this process ended before they were. Open them: what is not in the store yet goes there.
    pub fn pending_clones(&self) -> Vec<CloneId> {
        let Some(journal) = &self.journal else { return Vec::new() };
        let mut clones = journal.pending();
        let ahead = journal.ahead();
        let open = self.open.lock();
        clones.extend(ahead.into_iter().filter(|clone| !open.contains(clone)));
        drop(open);
        clones.sort_unstable();
        clones.dedup();
        clones
    }

    /// Gives up what the journal has of a clone, because the clone is gone.
    pub fn forget(&self, clone: CloneId) {
        self.unsettled.forget(clone);
        if let Some(journal) = &self.journal {
            journal.forget(clone);
        }
    }

    /// Marks a volume as open in this process: there is one instance of each. One that ended, and of which a request is still under way, is waited
    /// for.
    pub(crate) async fn register(self: &Arc<Self>, clone: CloneId) -> Result<Registration> {
        let registered = async {
            loop {
                let left = self.left.notified();
                tokio::pin!(left);
                left.as_mut().enable();
                if self.open.lock().insert(clone) {
                    return Registration { engine: Arc::clone(self), clone };
                }
                left.await;
            }
        };
        tokio::time::timeout(LEAVE_PATIENCE, registered).await.map_err(|_| {
            Error::conflict(
                "already-open",
                "this process has the volume open already, or has a request to its store under way",
            )
            .on(clone.to_string())
            .hint("try again in a moment")
        })
    }
}

/// Holds a volume's place in the table of open ones.
#[derive(Debug)]
pub(crate) struct Registration {
    engine: Arc<Engine>,
    clone: CloneId,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.engine.open.lock().remove(&self.clone);
        self.engine.left.notify_waiters();
    }
}
