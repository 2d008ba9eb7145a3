//! The end of a volume: a tombstone that nobody opens it behind, and an end to every epoch that may have a writer.
//!
//! The tombstone comes first, then the next epoch is claimed and the places that a stalled owner would write to are taken. A gateway that claims
//! meanwhile either finds the tombstone when it looks again after its claim, or its epoch is among those that are closed here.

use bytes::Bytes;
use clonegate_core::format::clone::{CloneRecord, DeletedRecord};
use clonegate_core::format::envelope;
use clonegate_core::format::log::{Change, CommitRecord, EpochRecord, Head, Position, decode_head, encode_commit};
use clonegate_core::ids::{Epoch, GatewayId, Sequence};
use clonegate_core::{ErrorKind, Result};

use super::load::{IN_FLIGHT_COMMITS, Listing, read_head};
use crate::clock::Clock;
use crate::store::{Key, PutNew, Store, keys};

/// Records that a writer may put while its epoch is being closed before poison is planted ahead of it.
const COLLISIONS: u32 = 4;

/// Puts the tombstone: one request. From then on the volume is not opened any more.
///
/// # Errors
/// What the store gives.
pub async fn bury(store: &Store, record: &CloneRecord, clock: &Clock) -> Result<()> {
    let tombstone = DeletedRecord { id: record.id, nonce: clock.nonce(), deleted_ms: clock.now_ms(), moved_to: None };
    store.put_new(&keys::deleted(record.id), envelope::encode(&tombstone)?).await.map(drop)
}

/// Closes every epoch of a volume that has its tombstone. Gives what has to stay for as long as a stalled owner may wake up: the
/// tombstone, the last claim, and what stands where such an owner would write.
///
/// # Errors
/// What the store gives; it can be run again.
pub async fn fence(store: &Store, record: &CloneRecord, gateway: GatewayId, clock: &Clock) -> Result<Vec<Key>> {
    let mut stays = vec![keys::deleted(record.id)];
    let before = Listing::read(store, record.id).await?;
    let highest = before.highest_epoch();
    if highest == 0 {
        return Ok(stays);
    }
    // An owner that only answers reads looks for this one.
    let next = Epoch(highest + 1);
    let claim = EpochRecord {
        clone: record.id,
        epoch: next,
        nonce: clock.nonce(),
        gateway,
        journal: None,
        claimed_ms: clock.now_ms(),
    };
    store.put_new(&keys::epoch(record.id, next), envelope::encode(&claim)?).await?;
    let mut listing = Listing::read(store, record.id).await?;
    stays.extend(listing.epochs.iter().map(|epoch| keys::epoch(record.id, Epoch(*epoch))));
    let closing = |epoch: &u64| Closing { store, record, epoch: Epoch(*epoch), by: next, clock };
    let mut open: Vec<Closing<'_>> = listing.epochs.iter().map(closing).collect();
    while !open.is_empty() {
        let mut closed = Vec::with_capacity(open.len());
        for epoch in open {
            let sequence = epoch.close(&listing, &mut stays).await?;
            closed.push((epoch, sequence));
        }
        // Poison may have taken the place of a record that was collected while the writer went on: then it has to be closed further on.
        listing = Listing::read(store, record.id).await?;
        open = Vec::new();
        for (epoch, sequence) in closed {
            if !epoch.is_closed(&listing, sequence, &mut stays).await? {
                open.push(epoch);
            }
        }
    }
    Ok(stays)
}

/// The end of one epoch, whoever may be writing in it.
///
/// A writer has [`IN_FLIGHT_COMMITS`] records on their way at most and is answered in order, so the first without an answer lies less than
/// that below the highest record of its own. From there on everything is taken up to a poison record above all of its own. What an
/// earlier run took is found again and stays; so it is the highest record of the *writer* that counts, and not the highest of all.
struct Closing<'a> {
    store: &'a Store,
    record: &'a CloneRecord,
    epoch: Epoch,
    by: Epoch,
    clock: &'a Clock,
}

impl Closing<'_> {
    /// Closes it as it was listed; gives the place of the poison that does.
    async fn close(&self, listing: &Listing, stays: &mut Vec<Key>) -> Result<u64> {
        let written = self.highest(listing, None, stays).await?.map(|(sequence, _)| sequence);
        let first = written.map_or(0, |last| (last + 1).saturating_sub(IN_FLIGHT_COMMITS as u64));
        let (mut sequence, mut met) = (first, 0);
        loop {
            let at = Position { epoch: self.epoch, sequence: Sequence(sequence) };
            let key = keys::log(self.record.id, at.epoch, at.sequence);
            let put = self.store.put_new(&key, poison(self.record, at, self.by, self.clock)?).await?;
            stays.push(key);
            let ends = match &put {
                PutNew::Created => true,
                PutNew::Exists(there) => is_poison(there),
            };
            // A place below it may be empty because its record was collected: poison there stops nobody.
            if ends && written.is_none_or(|last| sequence > last) {
                return Ok(sequence);
            }
            sequence += 1;
            // A writer that is quicker than this meets poison ahead of it.
            met += u32::from(written.is_none_or(|last| sequence > last));
            if met >= COLLISIONS {
                let ahead = sequence + (2u64 << (met - COLLISIONS).min(11));
                let at = Position { epoch: self.epoch, sequence: Sequence(ahead) };
                let key = keys::log(self.record.id, at.epoch, at.sequence);
                self.store.put_new(&key, poison(self.record, at, self.by, self.clock)?).await?;
                stays.push(key);
            }
        }
    }

    /// Whether poison at this place stops its writer: no later record of its own says that the place was behind it.
    async fn is_closed(&self, listing: &Listing, sequence: u64, stays: &mut Vec<Key>) -> Result<bool> {
        let later = self.highest(listing, Some(sequence), stays).await?;
        Ok(later.is_none_or(|(_, settled)| settled.is_some_and(|settled| settled <= sequence)))
    }

    /// The highest record of the writer, of those above `above`, and what it says is settled, unless it was collected meanwhile. Records that cannot be
    /// read may be anybody's: the highest readable one counts, or the lowest of the others. Poison above it stays: it may be all that is left of an epoch
    /// which a later owner closed and collected.
    async fn highest(
        &self,
        listing: &Listing,
        above: Option<u64>,
        stays: &mut Vec<Key>,
    ) -> Result<Option<(u64, Option<u64>)>> {
        let own = |(at, _): &&(Position, u64)| at.epoch == self.epoch && above.is_none_or(|n| at.sequence.0 > n);
        let mut damaged = None;
        for (at, size) in listing.logs.iter().rev().filter(own) {
            let sequence = at.sequence.0;
            match read_head(self.store, self.record.id, *at, Some(*size)).await {
                Ok((head, _)) if !matches!(head.record.what, Change::Poison { .. }) => {
                    return Ok(Some((sequence, Some(head.record.settled.0))));
                }
                // By a writer that is at work: it has gone on.
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Some((sequence, None))),
                Err(error) if error.kind() != ErrorKind::Corrupt => return Err(error),
                Err(_) => damaged = Some((sequence, Some(0))),
                Ok(_) => {}
            }
            stays.push(keys::log(self.record.id, at.epoch, at.sequence));
        }
        Ok(damaged)
    }
}

fn is_poison(object: &[u8]) -> bool {
    let head = decode_head(object, object.len() as u64);
    matches!(head, Ok(Head::Whole(head)) if matches!(head.record.what, Change::Poison { .. }))
}

fn poison(record: &CloneRecord, at: Position, by: Epoch, clock: &Clock) -> Result<Bytes> {
    let commit = CommitRecord {
        clone: record.id,
        at,
        nonce: clock.nonce(),
        base: record.base,
        change: 0,
        time_ms: clock.now_ms(),
        journal_mark: 0,
        settled: Sequence(0),
        what: Change::Poison { by },
        extents: 0,
        blocks: 0,
        table_crc: 0,
    };
    Ok(encode_commit(commit, &[])?.0)
}
