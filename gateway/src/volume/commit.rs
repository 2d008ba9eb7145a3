//! The committer of a volume: one task that puts sealed batches into the store as commit records, in order.
//!
//! Up to [`IN_FLIGHT_COMMITS`] records are put at the same time; they are acknowledged strictly in order, which is what
//! makes fencing right. A store that does not answer makes it wait, never give up.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use clonegate_core::format::clone::Durability;
use clonegate_core::format::log::{Change, CommitHead, CommitRecord, Position, Run};
use clonegate_core::ids::Sequence;
use clonegate_core::limits::{COMMIT_BYTES_MAX, COMMIT_EXTENTS_MAX};
use clonegate_core::units::BlockIndex;
use clonegate_core::{Error, ErrorKind, Result};
use futures::future::BoxFuture;
use futures::stream::{FuturesOrdered, StreamExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::core::{Batch, Core, Moment};
use super::ops::Operation;
use super::parts::{data_bytes, split};
use super::room::Room;
use super::unlink::Unlinking;
use super::upkeep::{House, Round};
use crate::delta::Now;
use crate::delta::claim::fenced;
use crate::delta::dirty::Dirty;
use crate::delta::journal::BatchAt;
use crate::delta::load::IN_FLIGHT_COMMITS;
use crate::delta::state::Applied;
use crate::store::{Key, PutNew, keys};

/// Runs of one record; half of what a record takes, since a run of zeroes may become several extents. Of several batches half of that again,
/// since one may cut the runs of another in two.
pub(super) const RUNS_MAX: usize = COMMIT_EXTENTS_MAX / 2;
/// Blocks in a run from which on a record is one of large writes, which are seldom read soon: a copy, an installation.
const COLD_RUN_BLOCKS: usize = 8;
/// How often an `ephemeral` volume that is written looks for another owner.
const GUARD: Duration = Duration::from_secs(5);
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(10);

/// What others ask of the committer.
#[derive(Debug)]
pub(super) enum Command {
    /// Do this, in the order of the log.
    Do(Operation, oneshot::Sender<Result<()>>),
    /// Do a round of upkeep now; answered when it has come to its end.
    Tend(oneshot::Sender<Result<()>>),
    /// Put everything into the store, close the epoch, end.
    Close(oneshot::Sender<Result<()>>),
}

/// One record on its way.
struct Commit {
    record: CommitRecord,
    runs: Vec<Run>,
    /// The newest batch that any of its blocks is of.
    newest: u64,
    /// The batch up to which everything is in the log with it.
    upto: u64,
    room: Room,
}

/// A record that is in the store.
pub(super) struct Done {
    head: CommitHead,
    size: u64,
    newest: u64,
    upto: u64,
    /// When it was sent.
    begun: Now,
    room: Room,
}

pub(super) struct Committer {
    pub(super) core: Arc<Core>,
    commands: mpsc::UnboundedReceiver<Command>,
    pub(super) in_flight: FuturesOrdered<BoxFuture<'static, Result<Done>>>,
    /// Parts of a large batch that wait for their turn.
    parts: VecDeque<Commit>,
    /// Where the next record goes.
    pub(super) next: Position,
    /// The batch up to which records were begun.
    begun: u64,
    /// What upkeep remembers; away while a round is under way.
    pub(super) house: Option<House>,
    /// The round that is under way: a task of its own, for its walks over a large map take time that no commit is to wait for.
    pub(super) upkeep: Option<AbortOnDropHandle<Round>>,
    /// What the last round found, until it is named in the log.
    pub(super) unlinking: Option<Unlinking>,
    /// When an `ephemeral` volume, which commits nothing that would tell, next looks for another owner.
    guard: Instant,
    guarded: u64,
    /// Those who asked for a round that has not begun, and for the one that has.
    pub(super) tending: Vec<oneshot::Sender<Result<()>>>,
    pub(super) tended: Vec<oneshot::Sender<Result<()>>>,
}

impl Committer {
    /// Starts the committer of a volume that was just claimed; its next record follows `at`.
    pub(super) fn start(core: &Arc<Core>, at: Position, durable: u64, leftovers: usize) {
        let (send, commands) = mpsc::unbounded_channel();
        *core.commands.lock() = Some(send);
        let committer = Self {
            core: Arc::clone(core),
            commands,
            in_flight: FuturesOrdered::new(),
            parts: VecDeque::new(),
            next: at.next(),
            begun: durable,
            house: Some(House::new(leftovers)),
            upkeep: None,
            unlinking: None,
            guard: Instant::now() + GUARD,
            guarded: 0,
            tending: Vec::new(),
            tended: Vec::new(),
        };
        core.engine.handle.spawn(committer.run());
    }

    async fn run(mut self) {
        let core = Arc::clone(&self.core);
        let _committing = core.committing.lock().await;
        // When it ends for another reason, what is on its way may come into the store or not, as after a crash.
        while core.state.read().dead().is_none() {
            if let Err(error) = self.begin_unlink() {
                return self.core.die(&error);
            }
            while self.in_flight.len() < IN_FLIGHT_COMMITS && !self.unlink_is_next() {
                let Some(commit) = self.next_commit(false) else { break };
                self.count_between();
                if let Err(error) = self.begin(commit) {
                    return self.core.die(&error);
                }
            }
            self.begin_upkeep();
            let ephemeral = self.core.mode == Durability::Ephemeral;
            let (deadline, look) = (self.deadline(), self.look());
            let full = self.in_flight.len() >= IN_FLIGHT_COMMITS || self.unlink_is_next();
            tokio::select! {
                biased;
                Some(done) = self.in_flight.next() => {
                    if let Err(error) = done.and_then(|done| self.finish(done)) {
                        return self.core.die(&error);
                    }
                }
                round = next_round(&mut self.upkeep), if self.upkeep.is_some() => self.end_upkeep(round),
                command = self.commands.recv() => match command {
                    Some(Command::Do(operation, reply)) => {
                        let calm = core.calm.lock().await;
                        let result = self.operate(operation).await;
                        drop(calm);
                        if let Some(house) = &mut self.house {
                            house.wanted |= result.is_ok();
                        }
                        let dead = result.as_ref().err().filter(|e| e.kind() == ErrorKind::Fenced).cloned();
                        let _ = reply.send(result);
                        if let Some(error) = dead {
                            return self.core.die(&error);
                        }
                    }
                    Some(Command::Tend(reply)) => self.tending.push(reply),
                    Some(Command::Close(reply)) => {
                        let result = self.close().await;
                        self.core.die(&closed(&self.core));
                        let _ = reply.send(result);
                        return;
                    }
                    // The volume was dropped without being closed: what was accepted still goes to the store.
                    None => {
                        if let Err(error) = self.drain().await {
                            tracing::warn!(clone = %self.core.record.name, %error, "a volume was dropped with writes under way");
                        }
                        return self.core.die(&closed(&self.core));
                    }
                },
                () = self.core.wake.notified() => {}
                () = self.core.engine.pressure.notified(), if ephemeral => self.core.press(),
                () = tokio::time::sleep_until(self.guard), if ephemeral => {
                    if let Err(error) = self.look_for_another_owner().await {
                        return self.core.die(&error);
                    }
                }
                () = tokio::time::sleep_until(deadline.unwrap_or_else(far)), if deadline.is_some() && !full => {}
                () = tokio::time::sleep_until(look.unwrap_or_else(far)), if look.is_some() => {}
            }
        }
    }

    /// An `ephemeral` volume that is written looks for a newer epoch from time to time: nothing else would tell it.
    async fn look_for_another_owner(&mut self) -> Result<()> {
        self.guard = Instant::now() + GUARD;
        let (change, epoch) = {
            let state = self.core.state.read();
            (state.version.change, self.next.epoch)
        };
        if change == self.guarded {
            return Ok(());
        }
        self.guarded = change;
        let key = keys::epoch(self.core.record.id, clonegate_core::ids::Epoch(epoch.0 + 1));
        match self.core.store.head(&key).await {
            Ok(_) => Err(fenced(&self.core.record)),
            Err(_) => match self.core.still_ours(epoch).await {
                Err(error) if error.kind() == ErrorKind::Fenced => Err(error),
                // A store that does not answer says nothing; it is looked at again.
                _ => Ok(()),
            },
        }
    }

    /// When upkeep is to be looked at even if nothing happens.
    fn look(&self) -> Option<Instant> {
        let house = self.house.as_ref()?;
        [house.look, house.rests].into_iter().flatten().min()
    }

    /// When accepted writes are due to be sent even if nobody asks.
    fn deadline(&self) -> Option<Instant> {
        if self.core.mode == Durability::Ephemeral {
            return None;
        }
        let state = self.core.state.read();
        let oldest = state.queue.front().map(|batch| batch.since).or(state.open_since)?;
        Some(oldest + self.core.engine.settings.upload_lag)
    }

    /// The next record to be put, when one is due.
    fn next_commit(&mut self, all: bool) -> Option<Commit> {
        if let Some(part) = self.parts.pop_front() {
            return Some(part);
        }
        let core = Arc::clone(&self.core);
        let mut state = core.state.write();
        // What is open then is newer than what was dropped.
        if state.dead().is_some() {
            return None;
        }
        let settings = &core.engine.settings;
        let wanted = all || core.progress.wanted.load(Ordering::Acquire) > self.begun;
        let late = |since: Option<Instant>| {
            core.mode != Durability::Ephemeral && since.is_some_and(|since| since.elapsed() >= settings.upload_lag)
        };
        if wanted || late(state.open_since) {
            core.seal(&mut state);
        }
        let due = match core.mode {
            Durability::Object => !state.queue.is_empty(),
            // Half of its room stays free for what is written while the other half is on its way.
            Durability::Ephemeral => {
                let half = (settings.dirty_bytes_per_volume / 2).max(super::write::BATCH_BYTES);
                wanted || (!state.queue.is_empty() && state.queue_bytes + state.open_bytes >= half)
            }
            Durability::Local => {
                wanted
                    || state.queue_bytes >= super::write::BATCH_BYTES
                    || late(state.queue.front().map(|batch| batch.since))
            }
        };
        if !due {
            return None;
        }
        let mut batches: Vec<Batch> = Vec::new();
        let (mut bytes, mut runs) = (0, 0);
        while let Some(batch) = state.queue.front() {
            bytes += batch.bytes;
            runs += batch.runs.len();
            if !batches.is_empty() && (bytes > COMMIT_BYTES_MAX as u64 / 2 || runs > RUNS_MAX / 2) {
                break;
            }
            state.queue_bytes -= batch.bytes;
            batches.extend(state.queue.pop_front());
        }
        let base = state.log.image.base;
        drop(state);
        self.make(batches, base)
    }

    /// The records of these batches; the first is given back, the others wait in `parts`.
    fn make(&mut self, mut batches: Vec<Batch>, base: Option<clonegate_core::ids::BaseId>) -> Option<Commit> {
        let last = batches.last()?;
        let (number, change, time_ms) = (last.number, last.change, last.time_ms);
        let mut room = Room::default();
        batches.iter_mut().for_each(|batch| room.add(std::mem::take(&mut batch.room)));
        let runs = if batches.len() == 1 {
            batches.swap_remove(0).runs
        } else {
            let mut merged = Dirty::default();
            for run in batches.into_iter().flat_map(|batch| batch.runs) {
                merged.insert(run.start.0, run.start.0 + run.blocks, run.data, number);
            }
            merged.take()
        };
        let parts = split(runs);
        let before = self.begun;
        self.begun = number;
        let count = parts.len() as u64;
        let bytes_of = |runs: &[Run]| -> u64 { runs.iter().map(data_bytes).sum() };
        let mut left: u64 = parts.iter().map(|runs| bytes_of(runs)).sum();
        for (index, runs) in parts.into_iter().enumerate() {
            let rest = count - 1 - index as u64;
            let whole = rest == 0;
            let mark = if whole { number } else { before };
            let record = CommitRecord {
                clone: self.core.record.id,
                at: Position::new(0, 0),
                nonce: self.core.engine.clock.nonce(),
                base,
                change: change - rest,
                time_ms,
                journal_mark: mark,
                settled: Sequence(0),
                what: Change::Data,
                extents: 0,
                blocks: 0,
                table_crc: 0,
            };
            // Each part gives its room back when it is stored, so that writers need not wait for the last.
            let bytes = bytes_of(&runs);
            let room = if whole { std::mem::take(&mut room) } else { room.split(bytes, left) };
            left -= bytes;
            self.parts.push_back(Commit { record, runs, newest: number, upto: mark, room });
        }
        self.parts.pop_front()
    }

    /// Gives a record its place in the log and sends it off.
    fn begin(&mut self, commit: Commit) -> Result<()> {
        let Commit { mut record, runs, newest, upto, room } = commit;
        record.at = self.next;
        {
            let state = self.core.state.read();
            // What was accepted before it may have been dropped.
            state.dead().map_or(Ok(()), |error| Err(error.clone()))?;
            // What was applied is in the store.
            record.settled = state.log.at.map_or(Sequence(0), |at| Sequence(at.sequence.0 + 1));
        }
        self.next = self.next.next();
        let key = keys::log(record.clone, record.at.epoch, record.at.sequence);
        let (object, head) = super::tail::encode(record, &runs)?;
        let begun = self.core.engine.now();
        let cold = head.record.blocks as usize >= COLD_RUN_BLOCKS * head.extents.len();
        let done = Done { head, size: object.len() as u64, newest, upto, begun, room };
        let core = Arc::clone(&self.core);
        let sent = Moment::now(&core.engine.clock);
        let epoch = done.head.record.at.epoch;
        self.in_flight.push_back(Box::pin(async move {
            put(&core, &key, object, cold).await?;
            // What is in nobody's way may be in nobody's volume.
            let mut wait = RETRY_FIRST;
            while let Err(error) = core.still_ours(epoch).await {
                if error.kind() == ErrorKind::Fenced {
                    return Err(error);
                }
                tracing::warn!(clone = %core.record.name, %error, "a commit waits to know whether its volume is still there");
                pause(&core, wait).await?;
                wait = (wait * 2).min(RETRY_LAST);
            }
            *core.confirmed.lock() = sent;
            Ok(done)
        }));
        Ok(())
    }

    /// Takes a record that is in the store into the state, and tells those who wait.
    fn finish(&mut self, done: Done) -> Result<()> {
        let mut state = self.core.state.write();
        let applied = Applied {
            record: &done.head.record,
            extents: &done.head.extents,
            frames_at: done.head.frames_at,
            size: done.size,
        };
        state.log.apply(&applied)?;
        for extent in &done.head.extents {
            let BlockIndex(start) = extent.start;
            state.sealed.clear(start, start + u64::from(extent.blocks), done.newest);
        }
        self.core.publish(&state);
        while state.unjournaled.front().is_some_and(|batch| batch.number <= done.upto) {
            state.unjournaled.pop_front();
        }
        self.core.progress.set_durable(done.upto);
        self.core.note_settled(&mut state);
        drop(state);
        drop(done.room);
        // A record that was accepted says that the volume is still ours.
        self.core.looked.set(done.begun);
        if let Some(journal) = self.core.engine.journal.as_ref().filter(|_| self.core.mode == Durability::Local) {
            journal.release(self.core.record.id, BatchAt { epoch: done.head.record.at.epoch, number: done.upto });
        }
        if let Change::Unlink { objects } = done.head.record.what
            && !objects.is_empty()
        {
            self.unlinked(objects);
        }
        Ok(())
    }

    /// Puts everything that was accepted so far into the store. What is accepted meanwhile does not keep it here: a machine that writes all
    /// the time never pauses.
    pub(super) async fn drain(&mut self) -> Result<()> {
        let newest = self.core.state.read().newest_batch();
        loop {
            while self.in_flight.len() < IN_FLIGHT_COMMITS && (self.begun < newest || !self.parts.is_empty()) {
                let Some(commit) = self.next_commit(true) else { break };
                self.begin(commit)?;
            }
            match self.in_flight.next().await {
                Some(done) => self.finish(done?)?,
                None => return Ok(()),
            }
        }
    }

    /// Waits for what is on its way, and begins nothing.
    pub(super) async fn settle(&mut self) -> Result<()> {
        while let Some(done) = self.in_flight.next().await {
            self.finish(done?)?;
        }
        Ok(())
    }

    /// Forgets what was accepted and is not in the store: it is about to be replaced.
    pub(super) fn forget_parts(&mut self, upto: u64) {
        self.parts.clear();
        self.begun = self.begun.max(upto);
    }

    /// Puts one record that carries no blocks, alone, and applies it.
    pub(super) async fn put_alone(&mut self, record: CommitRecord, upto: u64) -> Result<()> {
        self.begin_alone(record, upto)?;
        self.settle().await
    }

    /// Sends a record off that carries no blocks.
    pub(super) fn begin_alone(&mut self, record: CommitRecord, upto: u64) -> Result<()> {
        self.begin(Commit { record, runs: Vec::new(), newest: upto, upto, room: Room::default() })
    }

    async fn close(&mut self) -> Result<()> {
        if self.core.mode != Durability::Ephemeral {
            self.drain().await?;
        } else {
            self.settle().await?;
        }
        let (record, upto) = self.record(Change::Close, 0, None);
        self.put_alone(record, upto).await?;
        // What an ephemeral volume held is gone with it, which a machine that comes back has to be told.
        if !self.core.state.read().mark.is_unsettled() {
            self.core.engine.unsettled.forget(self.core.record.id);
        }
        Ok(())
    }

    /// A record of the state as it is, `changes` further on.
    pub(super) fn record(
        &self,
        what: Change,
        changes: u64,
        base: Option<Option<clonegate_core::ids::BaseId>>,
    ) -> (CommitRecord, u64) {
        let state = self.core.state.read();
        let mark = if changes > 0 { state.newest_batch() } else { state.log.journal_mark };
        let change = if changes > 0 { state.version.change + changes } else { state.log.change };
        let record = CommitRecord {
            clone: self.core.record.id,
            at: Position::new(0, 0),
            nonce: self.core.engine.clock.nonce(),
            base: base.unwrap_or(state.log.image.base),
            change,
            time_ms: self.core.engine.clock.now_ms(),
            journal_mark: mark,
            settled: Sequence(0),
            what,
            extents: 0,
            blocks: 0,
            table_crc: 0,
        };
        (record, mark)
    }
}

async fn next_round(upkeep: &mut Option<AbortOnDropHandle<Round>>) -> Round {
    match upkeep {
        Some(round) => round.await.unwrap_or_else(|ended| Round::lost(&ended)),
        None => std::future::pending().await,
    }
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

pub(super) fn closed(core: &Core) -> Error {
    Error::conflict("closed", "the volume was closed").on(core.record.name.to_string()).hint("open it again")
}

/// Puts a record until it is there, or is somebody else's; a `cold` one is not expected to be read soon. An outage is waited out; another failure is told to those who
/// flush, and tried again all the same.
pub(super) async fn put(core: &Core, key: &Key, object: Bytes, cold: bool) -> Result<()> {
    let mut wait = RETRY_FIRST;
    loop {
        let put = match cold {
            true => core.store.put_new_cold(key, object.clone()).await,
            false => core.store.put_new(key, object.clone()).await,
        };
        match put {
            Ok(PutNew::Created) => return Ok(()),
            Ok(PutNew::Exists(_)) => return Err(fenced(&core.record)),
            Err(error) => {
                tracing::warn!(clone = %core.record.name, %error, "a commit waits for the store");
                core.progress.set_waits(error.clone());
                if error.kind() != ErrorKind::Unavailable {
                    core.progress.set_stuck(error);
                }
            }
        }
        pause(core, wait).await?;
        wait = (wait * 2).min(RETRY_LAST);
    }
}

/// Waits before the next try.
///
/// # Errors
/// `Conflict` with code `closed` when the volume was given up.
async fn pause(core: &Core, wait: Duration) -> Result<()> {
    tokio::select! {
        biased;
        // Nothing is ever acquired: it ends when it is closed.
        _ = core.given_up.acquire() => Err(closed(core)),
        () = core.engine.clock.sleep(core.engine.clock.jitter(wait)) => Ok(()),
    }
}
