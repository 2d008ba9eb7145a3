//! The inside of an open volume: its state under one lock, and what its tasks wait for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use clonegate_core::format::clone::{CloneRecord, Durability};
use clonegate_core::format::log::{Position, Run};
use clonegate_core::ids::Epoch;
use clonegate_core::{Error, ErrorKind, Result};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::Instant;

use super::base::{BaseProvider, BaseRead};
use super::commit::Command;
use super::room::Room;
use crate::clock::Clock;
use crate::delta::dirty::Dirty;
use crate::delta::journal::{BatchAt, Journal, Submission};
use crate::delta::state::LogState;
use crate::delta::unsettled::Mark;
use crate::delta::{BUDGET_UNIT, Engine, Now, Registration};
use crate::device::{DeviceInfo, Version};
use crate::store::Store;

/// What this gateway is to the volume.
#[derive(Debug, Clone)]
pub(super) enum Role {
    /// It reads what others wrote.
    Reader,
    /// It owns the present epoch.
    Owner,
    /// It owned one, and does no more; with the reason.
    Dead(Error),
}

/// Writes that go to the store together.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) number: u64,
    pub(super) change: u64,
    pub(super) time_ms: u64,
    pub(super) runs: Vec<Run>,
    pub(super) bytes: u64,
    /// When the oldest write in it was accepted.
    pub(super) since: Instant,
    pub(super) room: Room,
}

/// A batch that may have to go to the journal.
#[derive(Debug)]
pub(super) struct Unjournaled {
    pub(super) number: u64,
    change: u64,
    time_ms: u64,
    runs: Vec<Run>,
}

/// What the lock of a volume guards.
#[derive(Debug)]
pub(super) struct State {
    pub(super) role: Role,
    /// What is in the store.
    pub(super) log: LogState,
    pub(super) base: Option<Arc<dyn BaseRead>>,
    /// Accepted writes of the batch that is being filled.
    pub(super) open: Dirty,
    pub(super) open_bytes: u64,
    pub(super) open_since: Option<Instant>,
    pub(super) open_room: Room,
    /// Accepted writes of the batches that are on their way.
    pub(super) sealed: Dirty,
    pub(super) queue: VecDeque<Batch>,
    pub(super) queue_bytes: u64,
    /// Batches that are neither in the journal nor in the store, oldest first; empty when there is no journal.
    pub(super) unjournaled: VecDeque<Unjournaled>,
    /// The number that the open batch will have.
    pub(super) next_batch: u64,
    pub(super) version: Version,
    pub(super) modified_ms: u64,
    /// What of the log a reader has read: last record, checkpoint, and how many records.
    pub(super) seen: Seen,
    /// Notes for the next process whether anything accepted is stored nowhere.
    pub(super) mark: Mark,
}

/// A moment by both clocks of the host: one stands still while the host sleeps, the other may be set back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    at: Instant,
    wall_ms: u64,
}

impl Moment {
    pub(super) fn now(clock: &Clock) -> Self {
        Self { at: clock.instant(), wall_ms: clock.now_ms() }
    }

    /// Time since then by the clock that says more.
    pub(super) fn elapsed(self, clock: &Clock) -> Duration {
        let wall = Duration::from_millis(clock.now_ms().saturating_sub(self.wall_ms));
        clock.instant().saturating_duration_since(self.at).max(wall)
    }
}

/// When somebody last looked. Whoever sets it late sets it back, and then one looks once more than is needed.
#[derive(Debug)]
pub(super) struct Looked {
    ms: AtomicU64,
    wall_ms: AtomicU64,
}

impl Looked {
    pub(super) fn new(at: Now) -> Self {
        Self { ms: AtomicU64::new(at.ms), wall_ms: AtomicU64::new(at.wall_ms) }
    }

    pub(super) fn set(&self, at: Now) {
        self.ms.store(at.ms, Ordering::Relaxed);
        self.wall_ms.store(at.wall_ms, Ordering::Relaxed);
    }

    /// Nothing of what is known counts any more.
    fn forget(&self) {
        self.wall_ms.store(0, Ordering::Relaxed);
    }

    /// Milliseconds since then, by the clock that says more.
    pub(super) fn age(&self, now: Now) -> u64 {
        let since = |then: &AtomicU64, now: u64| now.saturating_sub(then.load(Ordering::Relaxed));
        since(&self.ms, now.ms).max(since(&self.wall_ms, now.wall_ms))
    }
}

/// Tells whether a log that was read has more now.
pub(super) type Seen = (Option<Position>, Option<Position>, usize);

/// What the hot path reads, at once: the base, and whether it is all there is.
#[derive(Debug)]
pub(super) struct Face {
    pub(super) pristine: bool,
    /// We do not own the volume, so what we know of it grows old.
    pub(super) reader: bool,
    pub(super) base: Option<Arc<dyn BaseRead>>,
}

/// How far batches have come; those who flush wait for it.
#[derive(Debug, Default)]
pub(super) struct Progress {
    durable: AtomicU64,
    journaled: AtomicU64,
    /// Batches up to this number are waited for.
    pub(super) wanted: AtomicU64,
    changed: Notify,
    /// Batches up to this number that the journal did not take: they wait for the store like those of a volume without one.
    refused: AtomicU64,
    /// Why the store does not take more at the moment, when that is not an outage.
    stuck: Mutex<Option<Error>>,
    /// Why the last put failed, for as long as none has succeeded since.
    waits: Mutex<Option<Error>>,
    dead: Mutex<Option<Error>>,
}

impl Progress {
    pub(super) fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    pub(super) fn set_durable(&self, number: u64) {
        self.durable.fetch_max(number, Ordering::AcqRel);
        self.journaled.fetch_max(number, Ordering::AcqRel);
        *self.stuck.lock() = None;
        *self.waits.lock() = None;
        self.changed.notify_waiters();
    }

    pub(super) fn set_waits(&self, error: Error) {
        *self.waits.lock() = Some(error);
    }

    /// Why nothing comes into the store at the moment.
    pub(super) fn waits(&self) -> Option<Error> {
        self.waits.lock().clone()
    }

    pub(super) fn set_journaled(&self, number: u64) {
        self.journaled.fetch_max(number, Ordering::AcqRel);
        self.changed.notify_waiters();
    }

    /// The journal did not take a batch.
    fn set_refused(&self, number: u64) {
        self.refused.fetch_max(number, Ordering::AcqRel);
        self.changed.notify_waiters();
    }

    pub(super) fn begin_at(&self, number: u64) {
        self.durable.store(number, Ordering::Release);
        self.journaled.store(number, Ordering::Release);
    }

    pub(super) fn set_stuck(&self, error: Error) {
        *self.stuck.lock() = Some(error);
        self.changed.notify_waiters();
    }

    pub(super) fn set_dead(&self, error: Error) {
        *self.dead.lock() = Some(error);
        self.changed.notify_waiters();
    }

    /// Waits until batch `number` is in the store, or at least in the journal.
    pub(super) async fn reached(&self, number: u64, journal: bool) -> Result<()> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let at = if journal { &self.journaled } else { &self.durable };
            if at.load(Ordering::Acquire) >= number {
                return Ok(());
            }
            if let Some(error) = self.dead.lock().clone() {
                return Err(error);
            }
            // What the store does not take is no matter of one who waits for the journal.
            let store = !journal || self.refused.load(Ordering::Acquire) >= number;
            // Taken, so that the next flush tries for itself: an error is told, and does not last.
            if store && let Some(error) = self.stuck.lock().take() {
                return Err(error);
            }
            changed.await;
        }
    }
}

/// The inside of a volume, shared by its handle, its committer and the fetches that outlive their askers.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) store: Store,
    pub(super) record: CloneRecord,
    pub(super) bases: Arc<dyn BaseProvider>,
    pub(super) engine: Arc<Engine>,
    pub(super) info: DeviceInfo,
    pub(super) mode: Durability,
    pub(super) face: ArcSwap<Face>,
    pub(super) state: RwLock<State>,
    /// Held shared by a write while it is accepted, alone by what replaces the whole volume.
    pub(super) gate: tokio::sync::RwLock<()>,
    /// Held while ownership, or what a reader knows, changes.
    pub(super) turn: tokio::sync::Mutex<()>,
    /// Held by the committer while it replaces or keeps the whole volume, and for a moment by upkeep where that changes what is known of the log:
    /// what an operation found there is so until its record is applied.
    pub(super) calm: tokio::sync::Mutex<()>,
    pub(super) budget: Arc<Semaphore>,
    /// What all volumes of the store have together.
    pub(super) store_share: Arc<Semaphore>,
    pub(super) progress: Progress,
    /// Wakes the committer.
    pub(super) wake: Notify,
    pub(super) commands: Mutex<Option<mpsc::UnboundedSender<Command>>>,
    /// Held by the committer for as long as it lives.
    pub(super) committing: tokio::sync::Mutex<()>,
    /// Closed when nobody wants what was accepted any more: whatever waits for the store ends.
    pub(super) given_up: Semaphore,
    /// Where the last read ended, to see sequential readers.
    pub(super) read_end: AtomicU64,
    /// Up to where was fetched ahead of the present one.
    pub(super) ahead_end: AtomicU64,
    /// Segments that this owner began.
    pub(super) segments: AtomicU64,
    /// When what is known of the log was last known to be true.
    pub(super) looked: Looked,
    /// When the volume was last known to be ours and not deleted.
    pub(super) confirmed: Mutex<Moment>,
    /// Somebody was sent to look.
    pub(super) looking: AtomicBool,
    /// An operator said that flushed writes of a lost gateway may be missing.
    pub(super) lost_tail_accepted: AtomicBool,
    /// Accepted writes were lost with an earlier owner, and no machine has begun anew since.
    pub(super) torn: AtomicBool,
    /// A machine has begun anew since the volume was opened.
    pub(super) anew: AtomicBool,
    /// When it was opened, its last owner had not closed it.
    pub(super) cut: bool,
    pub(super) _registration: Registration,
}

impl Core {
    /// Publishes what the hot path may know. Called under the state's write lock, after every change that matters to it.
    pub(super) fn publish(&self, state: &State) {
        let pristine = state.log.image.map.is_empty() && state.open.is_empty() && state.sealed.is_empty();
        let face = self.face.load();
        let same_base = match (&face.base, &state.base) {
            (None, None) => true,
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            _ => false,
        };
        let reader = matches!(state.role, Role::Reader);
        if face.pristine != pristine || face.reader != reader || !same_base {
            self.face.store(Arc::new(Face { pristine, reader, base: state.base.clone() }));
        }
    }

    /// Closes the open batch. It goes to the store; to the journal only when a flush asks before it is there, for what nobody
    /// flushes would be written twice for nothing.
    pub(super) fn seal(&self, state: &mut State) {
        if state.seal().is_none() || self.mode != Durability::Local || self.engine.journal.is_none() {
            return;
        }
        let Some(Batch { number, change, time_ms, runs, .. }) = state.queue.back() else { return };
        let noted = Unjournaled { number: *number, change: *change, time_ms: *time_ms, runs: runs.clone() };
        state.unjournaled.push_back(noted);
    }

    /// Hands what is closed, and neither in the store nor in the journal, to the journal.
    fn journal(self: &Arc<Self>, state: &mut State) {
        let Some(journal) = &self.engine.journal else { return };
        let epoch = state.epoch();
        // Under the state's lock, so that batches come to the journal in their order.
        for batch in state.unjournaled.drain(..) {
            self.submit(journal, epoch, batch);
        }
    }

    fn submit(self: &Arc<Self>, journal: &Journal, epoch: Epoch, batch: Unjournaled) {
        let core = Arc::clone(self);
        let number = batch.number;
        journal.submit(Submission {
            clone: self.record.id,
            at: BatchAt { epoch, number },
            change: batch.change,
            time_ms: batch.time_ms,
            runs: batch.runs,
            done: Box::new(move |done| match done {
                Ok(()) => core.progress.set_journaled(number),
                // The journal cannot promise it, so the store has to.
                Err(_) => {
                    core.progress.set_refused(number);
                    core.progress.wanted.fetch_max(number, Ordering::AcqRel);
                    core.wake.notify_one();
                }
            }),
        });
    }

    /// Asks the committer to put everything accepted so far into the store, to make room.
    pub(super) fn press(&self) {
        let newest = self.state.read().newest_batch();
        self.progress.wanted.fetch_max(newest, Ordering::AcqRel);
        self.wake.notify_one();
    }

    /// See [`crate::device::Device::flush`].
    pub(super) async fn flush(self: &Arc<Self>) -> Result<()> {
        match self.mode {
            Durability::Ephemeral => match &self.state.read().role {
                Role::Dead(error) => Err(error.clone()),
                _ => Ok(()),
            },
            Durability::Local if self.engine.journal.is_some() => {
                let newest = {
                    let mut state = self.state.write();
                    match &state.role {
                        Role::Dead(error) => return Err(error.clone()),
                        Role::Reader => return Ok(()),
                        Role::Owner => self.seal(&mut state),
                    }
                    self.journal(&mut state);
                    state.newest_batch()
                };
                self.progress.reached(newest, true).await?;
                self.note_settled(&mut self.state.write());
                Ok(())
            }
            Durability::Local | Durability::Object => {
                let newest = {
                    let state = self.state.read();
                    match &state.role {
                        Role::Dead(error) => return Err(error.clone()),
                        Role::Reader => return Ok(()),
                        Role::Owner => state.newest_batch(),
                    }
                };
                if self.progress.durable() >= newest {
                    return Ok(());
                }
                self.progress.wanted.fetch_max(newest, Ordering::AcqRel);
                self.wake.notify_one();
                self.progress.reached(newest, false).await?;
                self.note_settled(&mut self.state.write());
                Ok(())
            }
        }
    }

    /// Notes that everything accepted is stored, if it is.
    pub(super) fn note_settled(&self, state: &mut State) {
        let kept = self.mode == Durability::Ephemeral || self.torn.load(Ordering::Acquire);
        if !kept && state.open.is_empty() && self.progress.journaled.load(Ordering::Acquire) >= state.newest_batch() {
            state.mark.set(false);
        }
    }

    /// See [`crate::device::Device::begin_anew`].
    pub(super) fn begin_anew(&self) {
        self.anew.store(true, Ordering::Release);
        if self.torn.swap(false, Ordering::AcqRel) {
            tracing::info!(volume = %self.record.name, "a machine begins anew after writes were lost");
            let mut state = self.state.write();
            if state.open.is_empty() && state.sealed.is_empty() {
                state.mark.set(false);
            }
        }
    }

    /// Gives up what was accepted and is not in the store, and ends whatever waits for the store.
    pub(super) async fn give_up(&self) {
        const LINGER: Duration = Duration::from_secs(5);
        let newest = {
            let state = self.state.read();
            BatchAt { epoch: state.epoch(), number: state.newest_batch() }
        };
        self.die(&super::commit::closed(self));
        self.commands.lock().take();
        if let Some(journal) = self.engine.journal.as_ref().filter(|_| self.mode == Durability::Local) {
            journal.release(self.record.id, newest);
        }
        let _ = tokio::time::timeout(LINGER, self.committing.lock()).await;
    }

    /// Ends ownership: nothing is acknowledged any more, and whatever waits for the store ends, so that the volume can be opened again. What was
    /// said first is the reason.
    pub(super) fn die(&self, error: &Error) {
        let mut state = self.state.write();
        let error = match &state.role {
            Role::Dead(first) => first.clone(),
            _ => error.clone(),
        };
        state.role = Role::Dead(error.clone());
        state.open_room = Room::default();
        state.queue.clear();
        state.unjournaled.clear();
        state.queue_bytes = 0;
        self.publish(&state);
        drop(state);
        self.given_up.close();
        self.wake.notify_one();
        if error.kind() == ErrorKind::Fenced {
            self.looked.forget();
        }
        self.progress.set_dead(error);
    }
}

impl State {
    /// Why the volume does no more, when that is so.
    pub(super) fn dead(&self) -> Option<&Error> {
        match &self.role {
            Role::Dead(error) => Some(error),
            Role::Reader | Role::Owner => None,
        }
    }

    /// The last epoch that wrote anything: ours, when we are the owner.
    pub(super) fn epoch(&self) -> Epoch {
        self.log.at.map_or(Epoch(0), |at| at.epoch)
    }

    /// Closes the open batch: what is accepted from now on belongs to the next. Its number, when there was anything.
    pub(super) fn seal(&mut self) -> Option<u64> {
        if self.open.is_empty() {
            return None;
        }
        let number = self.next_batch;
        self.next_batch += 1;
        let runs = self.open.take();
        for run in &runs {
            self.sealed.insert(run.start.0, run.start.0 + run.blocks, run.data.clone(), number);
        }
        let bytes = std::mem::take(&mut self.open_bytes);
        self.queue_bytes += bytes;
        self.queue.push_back(Batch {
            number,
            change: self.version.change,
            time_ms: self.modified_ms,
            runs,
            bytes,
            since: self.open_since.take().unwrap_or_else(Instant::now),
            room: std::mem::take(&mut self.open_room),
        });
        Some(number)
    }

    /// The number of the last batch that holds anything accepted so far.
    pub(super) fn newest_batch(&self) -> u64 {
        if self.open.is_empty() { self.next_batch - 1 } else { self.next_batch }
    }
}

/// Budget units of so many bytes.
pub(super) fn units(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(BUDGET_UNIT)).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_the_store_refuses_is_told_to_those_who_wait_for_it_and_not_to_those_who_wait_for_the_journal() {
        let progress = Progress::default();
        let full = || Error::exhausted("store-full", "no room");
        let soon = Duration::from_secs(1);
        progress.set_stuck(full());
        assert!(tokio::time::timeout(soon, progress.reached(1, true)).await.is_err(), "the journal is at it");
        progress.set_journaled(1);
        progress.reached(1, true).await.unwrap();
        assert_eq!(progress.reached(1, false).await.unwrap_err().code(), "store-full");
        // The journal has no room either.
        progress.set_stuck(full());
        progress.set_refused(2);
        assert_eq!(progress.reached(2, true).await.unwrap_err().code(), "store-full");
        assert!(tokio::time::timeout(soon, progress.reached(2, true)).await.is_err(), "an error is told once");
        progress.set_durable(2);
        progress.reached(2, true).await.unwrap();
    }
}
