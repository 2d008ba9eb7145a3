//! Becoming the owner of a volume: claim the next epoch, close every older one with a poison record, open.
//!
//! Nothing here trusts a clock. What makes it safe: a writer's only way to commit is to create the next record of its own
//! epoch; a poison record stands exactly there and is never deleted; and commits are acknowledged in order, so whatever a
//! stalled writer still creates behind the poison was never acknowledged. See ADR 3.

use clonegate_core::format::clone::CloneRecord;
use clonegate_core::format::envelope;
use clonegate_core::format::log::{
    Change, CommitHead, CommitRecord, EpochRecord, Head, Position, decode_head, encode_commit,
};
use clonegate_core::ids::{Epoch, GatewayId, Nonce, Sequence};
use clonegate_core::{Error, Result};

use super::load::{End, Listing, Loaded, apply, load};
use super::state::LogState;
use crate::clock::Clock;
use crate::store::{PutNew, Store, keys};

/// Others that claim at the same time before we give way.
const CLAIM_ATTEMPTS: u64 = 16;
/// Records that an incumbent may put between our reading and our poison before we plant one ahead of it.
const COLLISIONS: u32 = 4;
/// Farthest that a poison is planted ahead.
const FAR_MAX: u64 = 4096;

/// Who claims, and how.
#[derive(Debug, Clone)]
pub struct Claimant {
    /// The gateway.
    pub gateway: GatewayId,
    /// Its journal.
    pub journal: Option<Nonce>,
    /// The delta is to begin empty.
    pub fresh: bool,
    /// What flushed writes of an earlier owner may be missing was accepted.
    pub lost_tail: bool,
}

/// Another gateway was quicker.
pub fn fenced(clone: &CloneRecord) -> Error {
    Error::fenced("taken-over", "another gateway owns the volume now")
        .on(clone.name.to_string())
        .hint("attach it there, or attach again here to take it over")
}

/// How a claim ended.
#[derive(Debug)]
pub enum Claimed {
    /// The volume is ours. The state holds everything that any older owner was ever acknowledged, and ends with our own `open` record.
    Ours(Box<LogState>),
    /// Another gateway opened an epoch after the state was loaded that the claim began with. Whatever was concluded from that state (whether a journal
    /// may be applied, whether something may be lost) has to be concluded again: load it and claim once more.
    OpenedMeanwhile,
}

/// The last epoch that wrote anything.
fn epoch_of(state: &LogState) -> u64 {
    state.at.map_or(0, |at| at.epoch.0)
}

/// Claims the volume as it was `loaded`.
///
/// # Errors
/// `Fenced` with code `taken-over` when another gateway claims at the same time and is ahead; `Corrupt`; what the store gives.
pub async fn claim(
    store: &Store,
    clone: &CloneRecord,
    loaded: Loaded,
    who: &Claimant,
    clock: &Clock,
) -> Result<Claimed> {
    let known = epoch_of(&loaded.state);
    let mine = claim_epoch(store, clone, &loaded, who, clock).await?;
    let listing = Listing::read(store, clone.id).await?;
    if listing.highest_epoch() > mine {
        return Err(fenced(clone));
    }
    let mut loaded = loaded;
    let state = loop {
        let Some(state) = close_older(store, loaded, &listing, known, mine, clock).await? else {
            return Ok(Claimed::OpenedMeanwhile);
        };
        // An owner that was still at work may have made a checkpoint and collected what our state points to. It was
        // durable before it collected, so it is seen now, and after the poison there can be no further collection.
        let now = Listing::read(store, clone.id).await?;
        if now.deleted {
            return Err(Error::not_found("clone-deleted", "the volume was deleted").on(clone.name.to_string()));
        }
        if now.checkpoints.last().map(|(at, _)| *at) == state.checkpoint {
            break state;
        }
        loaded = load(store, clone).await?;
        // Its first record may be collected already.
        if epoch_of(&loaded.state) > known {
            return Ok(Claimed::OpenedMeanwhile);
        }
    };
    open(store, clone, state, mine, who, clock).await.map(|state| Claimed::Ours(Box::new(state)))
}

async fn claim_epoch(
    store: &Store,
    clone: &CloneRecord,
    loaded: &Loaded,
    who: &Claimant,
    clock: &Clock,
) -> Result<u64> {
    let first = loaded.listing.highest_epoch() + 1;
    for epoch in first..first + CLAIM_ATTEMPTS {
        let record = EpochRecord {
            clone: clone.id,
            epoch: Epoch(epoch),
            nonce: clock.nonce(),
            gateway: who.gateway,
            journal: who.journal,
            claimed_ms: clock.now_ms(),
        };
        if store.put_new(&keys::epoch(clone.id, Epoch(epoch)), envelope::encode(&record)?).await?.is_created() {
            return Ok(epoch);
        }
    }
    Err(fenced(clone))
}

/// Closes every epoch below `mine` that may have a writer, taking in what it still committed. `None` at the first one after `known` that somebody has
/// opened; that one is left as it is. `listing` was made after `mine` was claimed: whoever claims an older one later finds ours.
async fn close_older(
    store: &Store,
    loaded: Loaded,
    listing: &Listing,
    known: u64,
    mine: u64,
    clock: &Clock,
) -> Result<Option<LogState>> {
    let Loaded { mut state, end, .. } = loaded;
    let first = end.map_or(1, |(next, _)| next.epoch.0);
    for epoch in listing.may_be_written(first, mine) {
        let next = match end {
            Some((_, End::Closed | End::Poisoned)) if epoch == first => continue,
            Some((next, End::Open)) if epoch == first => next,
            _ => Position::new(epoch, 0),
        };
        if !close(store, &mut state, next, known, mine, clock).await? {
            return Ok(None);
        }
    }
    Ok(Some(state))
}

fn poison(state: &LogState, at: Position, by: u64, clock: &Clock) -> Result<bytes::Bytes> {
    let record = CommitRecord {
        clone: state.clone,
        at,
        nonce: clock.nonce(),
        base: state.image.base,
        change: 0,
        time_ms: clock.now_ms(),
        journal_mark: 0,
        settled: Sequence(0),
        what: Change::Poison { by: Epoch(by) },
        extents: 0,
        blocks: 0,
        table_crc: 0,
    };
    Ok(encode_commit(record, &[])?.0)
}

/// Closes one epoch from `next` on. A writer that puts records faster than we read them meets a poison planted ahead of it. False when it is
/// an epoch after `known` that somebody has opened.
async fn close(
    store: &Store,
    state: &mut LogState,
    mut next: Position,
    known: u64,
    by: u64,
    clock: &Clock,
) -> Result<bool> {
    let mut collisions = 0;
    loop {
        let key = keys::log(state.clone, next.epoch, next.sequence);
        let there = match store.put_new(&key, poison(state, next, by, clock)?).await? {
            PutNew::Created => return Ok(true),
            PutNew::Exists(there) => there,
        };
        let size = there.len() as u64;
        let head: CommitHead = match decode_head(&there, size).map_err(|e| e.on(key.to_string()))? {
            Head::Whole(head) if head.record.clone == state.clone && head.record.at == next => head,
            _ => return Err(Error::corrupt("misplaced", "not the record of this place").on(key.to_string())),
        };
        if matches!(head.record.what, Change::Poison { .. }) {
            return Ok(true);
        }
        if next.epoch.0 > known {
            return Ok(false);
        }
        apply(store, state, &head, size).await?;
        if head.record.what == Change::Close {
            return Ok(true);
        }
        next = next.next();
        collisions += 1;
        if collisions >= COLLISIONS {
            let ahead = (2u64 << (collisions - COLLISIONS).min(16)).min(FAR_MAX);
            let far = Position::new(next.epoch.0, next.sequence.0 + ahead);
            // Whether it is created or something is there already: we go on reading towards it.
            store.put_new(&keys::log(state.clone, far.epoch, far.sequence), poison(state, far, by, clock)?).await?;
        }
    }
}

/// Makes sure, after the tombstone of a volume was put, that nobody owns or opens it any more. `last` is the last epoch that had an owner, which
/// has closed it. False when somebody opened it since.
///
/// # Errors
/// `Fenced` when too many claim at the same time; what the store gives.
pub async fn fence(store: &Store, clone: &CloneRecord, last: u64, gateway: GatewayId, clock: &Clock) -> Result<bool> {
    // An epoch of ours, put after the tombstone: whoever claims a later one sees the tombstone.
    let loaded = Loaded { state: LogState::born(clone), listing: Listing::read(store, clone.id).await?, end: None };
    let who = Claimant { gateway, journal: None, fresh: false, lost_tail: false };
    let mine = claim_epoch(store, clone, &loaded, &who, clock).await?;
    for epoch in loaded.listing.may_be_written(last.saturating_add(1), mine) {
        // Whoever claimed this one, and did not see the tombstone, has not opened it and cannot any more.
        let at = Position::new(epoch, 0);
        let key = keys::log(clone.id, at.epoch, at.sequence);
        let PutNew::Exists(there) = store.put_new(&key, poison(&loaded.state, at, mine, clock)?).await? else {
            continue;
        };
        match decode_head(&there, there.len() as u64).map_err(|e| e.on(key.to_string()))? {
            Head::Whole(head) if matches!(head.record.what, Change::Poison { .. }) => {}
            _ => return Ok(false),
        }
    }
    Ok(true)
}

/// Puts the first record of our epoch: from then on we are the owner.
async fn open(
    store: &Store,
    clone: &CloneRecord,
    mut state: LogState,
    mine: u64,
    who: &Claimant,
    clock: &Clock,
) -> Result<LogState> {
    let at = Position::new(mine, 0);
    let drops = who.fresh && !state.image.map.is_empty();
    let record = CommitRecord {
        clone: clone.id,
        at,
        nonce: clock.nonce(),
        base: state.image.base,
        change: state.change + u64::from(drops),
        time_ms: clock.now_ms(),
        journal_mark: state.journal_mark,
        settled: Sequence(0),
        what: Change::Open { gateway: who.gateway, lost_tail: who.lost_tail, fresh: who.fresh },
        extents: 0,
        blocks: 0,
        table_crc: 0,
    };
    let (object, extents, frames_at) = encode_commit(record.clone(), &[])?;
    let size = object.len() as u64;
    if !store.put_new(&keys::log(clone.id, at.epoch, at.sequence), object).await?.is_created() {
        return Err(fenced(clone));
    }
    apply(store, &mut state, &CommitHead { record, extents, frames_at }, size).await?;
    Ok(state)
}
