//! Becoming the owner, and reading on as one who is not.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clonegate_core::format::clone::{CloneRecord, Durability};
use clonegate_core::format::envelope;
use clonegate_core::format::log::{EpochRecord, Position};
use clonegate_core::ids::{Epoch, GatewayId};
use clonegate_core::{Error, ErrorKind, Result};

use super::commit::{Command, Committer, closed};
use super::core::{Core, Moment, Role, Seen};
use crate::delta::Engine;
use crate::delta::claim::{Claimant, Claimed, claim, fenced};
use crate::delta::journal::{BatchAt, Journal};
use crate::delta::load::{End, Listing, Loaded, load};
use crate::delta::unsettled::Found;
use crate::device::Version;
use crate::store::{Store, keys};

/// How long a read waits for a look at the log before it is answered from what is known.
const PATIENCE: Duration = Duration::from_secs(3);
/// Times that a takeover is begun anew because another gateway was at it too.
const TAKE_OVERS: u32 = 4;
/// How long an owner may know nothing of its volume before it has to look whether that was deleted: well below the hour for which what fences
/// a deleted volume stays.
const UNKNOWN_MOST: Duration = Duration::from_secs(20 * 60);

/// What of a listing tells whether there is anything new.
pub(super) fn seen(listing: &Listing) -> Seen {
    let last = listing.logs.last().map(|(at, _)| *at);
    (last, listing.checkpoints.last().map(|(at, _)| *at), listing.logs.len())
}

impl Core {
    /// Makes this gateway the owner unless it is.
    pub(super) async fn own(self: &Arc<Self>) -> Result<()> {
        match &self.state.read().role {
            Role::Owner => return Ok(()),
            Role::Dead(error) => return Err(error.clone()),
            Role::Reader => {}
        }
        let core = Arc::clone(self);
        // A task of its own: once begun it goes on, whoever asked.
        let task = self.engine.handle.spawn(async move {
            let _turn = core.turn.lock().await;
            match &core.state.read().role {
                Role::Owner => return Ok(()),
                Role::Dead(error) => return Err(error.clone()),
                Role::Reader => {}
            }
            core.take_over().await
        });
        task.await.map_err(|_| super::read::stopping())?
    }

    /// Puts what the journal of this gateway held of the volume into the store. When something of it is lost, the volume stays a reader until
    /// an operator says yes.
    pub(super) async fn recover(self: &Arc<Self>) -> Result<()> {
        match self.own().await {
            Err(error) if error.code() == "lost-tail" => {
                tracing::error!(clone = %self.record.name, %error, "it can be read, and not written");
                Ok(())
            }
            owned => owned,
        }
    }

    /// The other gateway that has the volume open for writing, or ended without closing it.
    pub(super) async fn owner_elsewhere(&self) -> Result<Option<GatewayId>> {
        if matches!(self.state.read().role, Role::Owner) {
            return Ok(None);
        }
        let Some((next, End::Open)) = load(&self.store, &self.record).await?.end else { return Ok(None) };
        match self.claim_of(next.epoch).await {
            Ok(claim) => Ok((claim.gateway != self.engine.gateway).then_some(claim.gateway)),
            // A claim that is gone says nothing of who made it.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn take_over(self: &Arc<Self>) -> Result<()> {
        for _ in 0..TAKE_OVERS {
            if self.try_take_over().await? {
                return Ok(());
            }
        }
        Err(fenced(&self.record))
    }

    /// One attempt. False when another gateway opened the volume meanwhile, so that what was concluded from its state no longer holds.
    async fn try_take_over(self: &Arc<Self>) -> Result<bool> {
        let begun = Moment::now(&self.engine.clock);
        let loaded = load(&self.store, &self.record).await?;
        let leftovers = loaded.listing.logs.len() + loaded.listing.segments.len();
        let lost_tail = self.check_tail(&loaded).await?;
        let (tail, gap) = self.tail(&loaded).await?;
        let lost = is_torn(&self.engine, &self.store, &self.record, loaded.end).await?;
        let who = Claimant {
            gateway: self.engine.gateway,
            journal: self.engine.journal.as_ref().filter(|_| self.mode == Durability::Local).map(Journal::id),
            fresh: self.mode == Durability::Ephemeral,
            lost_tail: lost_tail || gap,
        };
        let mut log = match claim(&self.store, &self.record, loaded, &who, &self.engine.clock).await? {
            Claimed::Ours(log) => *log,
            Claimed::OpenedMeanwhile => return Ok(false),
        };
        // What keeps others out of a deleted volume may have come and gone in the meantime.
        if begun.elapsed(&self.engine.clock) >= UNKNOWN_MOST {
            return Err(Error::unavailable("slow-claim", "to take the volume over took too long to be sure of it")
                .on(self.record.name.to_string())
                .hint("try again"));
        }
        self.replay_tail(&mut log, tail).await?;
        let base = self.base(log.image.base).await?;
        let at = log.at.ok_or_else(|| Error::internal("no-open", "a claim without a record"))?;
        let mark = log.journal_mark;
        if let Some(journal) = &self.engine.journal {
            journal.settle(self.record.id, BatchAt { epoch: at.epoch, number: mark });
        }
        self.lost_tail_accepted.store(false, Ordering::Release);
        let mut state = self.state.write();
        self.adopt(&mut state, log, base);
        state.role = Role::Owner;
        let torn = lost && !self.anew.load(Ordering::Acquire);
        self.torn.store(torn, Ordering::Release);
        state.mark = self.engine.unsettled.begin(self.record.id, torn);
        state.next_batch = mark + 1;
        self.looked.set(self.engine.now());
        *self.confirmed.lock() = begun;
        self.progress.begin_at(mark);
        Committer::start(self, at, mark, leftovers);
        self.publish(&state);
        Ok(true)
    }

    /// Takes in what the log says.
    pub(super) fn adopt(
        &self,
        state: &mut super::core::State,
        log: crate::delta::state::LogState,
        base: Option<Arc<dyn super::base::BaseRead>>,
    ) {
        state.version = version_of(&self.record, &log);
        state.modified_ms = log.modified_ms;
        state.log = log;
        state.base = base;
        self.publish(state);
    }

    /// Milliseconds since what is known of the log was last known to be true, and how many it may be; 0: any number.
    fn age(&self) -> (u64, u64) {
        let most = u64::try_from(self.engine.settings.staleness.as_millis()).unwrap_or(u64::MAX);
        (self.looked.age(self.engine.now()), most)
    }

    /// Whether what is known of the log is as young as it has to be. When it grows old, somebody is sent to look, so that
    /// those who read all the time never wait for it.
    pub(super) fn is_fresh(self: &Arc<Self>) -> bool {
        let (age, most) = self.age();
        if most == 0 || age * 2 < most {
            return true;
        }
        if age < most && !self.face.load().reader && !self.looking.swap(true, Ordering::AcqRel) {
            let core = Arc::clone(self);
            self.engine.handle.spawn(async move {
                if let Err(error) = core.look().await {
                    tracing::debug!(clone = %core.record.name, %error, "its log could not be looked at");
                }
                core.looking.store(false, Ordering::Release);
            });
        }
        age < most
    }

    /// Makes sure that what is read is not older than it may be. A store that does not answer stops no reads: then they
    /// are of what is known, and the store is asked again after a while.
    pub(super) async fn refresh_if_stale(self: &Arc<Self>) -> Result<()> {
        if self.is_fresh() {
            return Ok(());
        }
        let look = self.look();
        let result = tokio::select! {
            biased;
            result = look => result,
            () = self.engine.clock.sleep(PATIENCE) => Err(Error::unavailable("slow-store", "the store does not answer")),
        };
        match result {
            Err(error) if error.kind() == ErrorKind::Unavailable && error.code() != "stopping" => {
                tracing::warn!(clone = %self.record.name, %error, "reads go on with what is known");
                self.looked.set(self.engine.now());
                Ok(())
            }
            result => result,
        }
    }

    /// Looks at the log: as the owner whether that is still so, otherwise at what others wrote.
    async fn look(self: &Arc<Self>) -> Result<()> {
        let role = self.state.read().role.clone();
        match role {
            Role::Reader => self.refresh_once(false).await,
            Role::Dead(error) => Err(error),
            Role::Owner => {
                let core = Arc::clone(self);
                let task = self.engine.handle.spawn(async move { core.confirm().await });
                task.await.map_err(|_| super::read::stopping())?
            }
        }
    }

    /// As the owner: whether somebody claimed the next epoch. A stalled owner learns so before it answers reads for long.
    async fn confirm(self: &Arc<Self>) -> Result<()> {
        let begun = self.engine.now();
        let Some(at) = self.state.read().log.at else { return Ok(()) };
        let next = keys::epoch(self.record.id, Epoch(at.epoch.0 + 1));
        match self.store.head(&next).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if let Err(error) = self.still_ours(at.epoch).await {
                    if error.kind() == ErrorKind::Fenced {
                        self.die(&error);
                    }
                    return Err(error);
                }
                self.looked.set(begun);
                Ok(())
            }
            Err(error) => Err(error),
            Ok(_) => {
                let error = fenced(&self.record);
                // The claim may not have come to its end, but ours has: nothing is acknowledged any more.
                self.die(&error);
                Err(error)
            }
        }
    }

    /// What keeps an owner out whose volume was deleted stays for an hour. An owner that knew nothing of its volume for longer than a part of that
    /// may find nothing in its way, so it looks whether the volume is there at all: before it believes that a record was accepted.
    ///
    /// # Errors
    /// `Fenced` with code `clone-deleted`; what the store gives.
    pub(super) async fn still_ours(&self, epoch: Epoch) -> Result<()> {
        let confirmed = *self.confirmed.lock();
        if confirmed.elapsed(&self.engine.clock) < UNKNOWN_MOST {
            return Ok(());
        }
        let begun = Moment::now(&self.engine.clock);
        // In this order: the tombstone goes last, so when it is gone the claim is gone too.
        for (key, there) in [(keys::deleted(self.record.id), false), (keys::epoch(self.record.id, epoch), true)] {
            let found = match self.store.head(&key).await {
                Ok(_) => true,
                Err(error) if error.kind() == ErrorKind::NotFound => false,
                Err(error) => return Err(error),
            };
            if found != there {
                return Err(
                    Error::fenced("clone-deleted", "the volume was deleted meanwhile").on(self.record.name.to_string())
                );
            }
        }
        *self.confirmed.lock() = begun;
        Ok(())
    }

    /// Reads what other gateways wrote, however young what is known may be.
    pub(super) async fn refresh(self: &Arc<Self>) -> Result<()> {
        self.refresh_once(true).await
    }

    async fn refresh_once(self: &Arc<Self>, anyway: bool) -> Result<()> {
        let core = Arc::clone(self);
        let task = self.engine.handle.spawn(async move {
            let _turn = core.turn.lock().await;
            // Somebody else may have looked while this one waited for its turn.
            let (age, most) = core.age();
            if !matches!(core.state.read().role, Role::Reader) || !(anyway || age >= most) {
                return Ok(());
            }
            let begun = core.engine.now();
            let listing = Listing::read(&core.store, core.record.id).await?;
            let vanished = listing.logs.is_empty() && core.state.read().seen.0.is_some();
            if listing.deleted || vanished {
                // Deleted, or moved to another datastore: whoever asks for it by its name finds out which.
                core.die(&closed(&core));
                return Err(
                    Error::not_found("clone-deleted", "the volume was deleted").on(core.record.name.to_string())
                );
            }
            if seen(&listing) != core.state.read().seen {
                let Loaded { state: mut log, listing, .. } = load(&core.store, &core.record).await?;
                if core.mode == Durability::Ephemeral {
                    log.forget_delta();
                }
                let base = core.base(log.image.base).await?;
                let mut state = core.state.write();
                state.seen = seen(&listing);
                core.adopt(&mut state, log, base);
            }
            core.looked.set(begun);
            Ok(())
        });
        task.await.map_err(|_| super::read::stopping())?
    }

    /// Puts everything into the store and gives the volume up.
    pub(super) async fn close(self: &Arc<Self>) -> Result<()> {
        let _turn = self.turn.lock().await;
        // Nothing is accepted any more from here on: the record that closes the epoch says that everything accepted is in the log.
        let _gate = self.gate.write().await;
        let role = self.state.read().role.clone();
        match role {
            Role::Dead(error) if error.code() == "closed" => Ok(()),
            Role::Dead(error) => Err(error),
            Role::Reader => {
                self.die(&closed(self));
                Ok(())
            }
            Role::Owner => {
                let (reply, answer) = tokio::sync::oneshot::channel();
                let sent = self.commands.lock().take().is_some_and(|c| c.send(Command::Close(reply)).is_ok());
                if !sent {
                    return Err(closed(self));
                }
                answer.await.map_err(|_| closed(self))?
            }
        }
    }
}

/// Whether writes that an earlier owner accepted, and a machine may rely on, are lost: it did not close the volume, and is not
/// known to have had everything stored.
pub(super) async fn is_torn(
    engine: &Engine,
    store: &Store,
    record: &CloneRecord,
    end: Option<(Position, End)>,
) -> Result<bool> {
    let found = engine.unsettled.found(record.id);
    if found == Found::Unsettled {
        return Ok(true);
    }
    let Some((next, end)) = end.filter(|(_, end)| *end != End::Closed) else { return Ok(false) };
    if found == Found::Nothing {
        tracing::debug!(volume = %record.name, ?next, ?end, "its last owner is not known to have had everything stored");
        return Ok(true);
    }
    let key = keys::epoch(record.id, next.epoch);
    match store.get(&key).await {
        Ok(bytes) => {
            let claim: EpochRecord = envelope::decode(&bytes).map_err(|e| e.on(key.to_string()))?;
            Ok(claim.gateway != engine.gateway)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// The life that an epoch gives to versions. It is of this record alone: a clone made again under its name, or one that was moved, counts
/// its epochs and changes from the beginning, and must not say of other bytes what was said before.
pub(super) fn life(record: &CloneRecord, epoch: Epoch) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&record.nonce.0[..8]);
    u64::from_le_bytes(first).wrapping_add(epoch.0) & !OF_A_BASE
}

/// Set in the lives of versions that are those of a base.
const OF_A_BASE: u64 = 1 << 63;

/// The version of the bytes that a log adds up to. Two gateways that read the same log say the same.
pub(super) fn version_of(record: &CloneRecord, log: &crate::delta::state::LogState) -> Version {
    let life = if log.change == 0 {
        // Never changed: the bytes are those of its base.
        log.image.base.map_or(0, |base| {
            let mut first = [0; 8];
            first.copy_from_slice(&base.bytes()[..8]);
            u64::from_le_bytes(first) | OF_A_BASE
        })
    } else {
        life(record, log.changed_in)
    };
    Version { life, change: log.change }
}
