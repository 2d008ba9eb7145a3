//! The end of a volume: a tombstone that nobody opens it behind, and an end to every epoch that may have a writer.
//!
//! The tombstone comes first, then the next epoch is claimed and the places that a stalled owner would write to are taken. A gateway that claims
//! meanwhile either finds the tombstone when it looks again after its claim, or its epoch is among those that are closed here.

use bytes::Bytes;
use clonegate_core::Result;
use clonegate_core::format::clone::{CloneRecord, DeletedRecord};
use clonegate_core::format::envelope;
use clonegate_core::format::log::{Change, CommitRecord, EpochRecord, Position, encode_commit};
use clonegate_core::ids::{Epoch, GatewayId, Sequence};

use super::load::{IN_FLIGHT_COMMITS, Listing};
use crate::clock::Clock;
use crate::store::{Key, Store, keys};

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
    let listing = Listing::read(store, record.id).await?;
    for epoch in listing.epochs.iter().copied() {
        stays.push(keys::epoch(record.id, Epoch(epoch)));
        let last = listing.logs.iter().filter(|(at, _)| at.epoch.0 == epoch).map(|(at, _)| at.sequence.0).max();
        // With so many on their way at once, the first that a writer has no answer for is not further back than this.
        let first = last.map_or(0, |last| (last + 1).saturating_sub(IN_FLIGHT_COMMITS as u64));
        let mut sequence = first;
        loop {
            let key = keys::log(record.id, Epoch(epoch), Sequence(sequence));
            let put = store.put_new(&key, poison(record, Position::new(epoch, sequence), next, clock)?).await?;
            stays.push(key);
            if put.is_created() && last.is_none_or(|last| sequence > last) {
                break;
            }
            sequence += 1;
        }
    }
    Ok(stays)
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
