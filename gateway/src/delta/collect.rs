//! Garbage: which objects of a clone nothing needs any more.
//!
//! Only the owner collects, and only behind a checkpoint of its own epoch; what it deletes it has first named in an
//! `unlink` record of its own, so a stale owner cannot delete.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use clonegate_core::format::log::{Change, ObjectName, Position};
use clonegate_core::ids::CloneId;
use clonegate_core::units::BLOCK_BYTES;
use clonegate_core::{ErrorKind, Result};
use futures::{FutureExt, StreamExt, stream};
use parking_lot::Mutex;
use std::time::Duration;
use tokio::time::Instant;

use super::load::{Listing, read_checkpoint, read_head};
use super::map::Place;
use super::object::{Objects, key_of};
use super::state::{Image, KeptImage, LogState};
use crate::store::Store;

/// Deletes in flight.
const IN_FLIGHT: usize = 16;
/// A record without blocks is not larger than this: it may be a poison record.
const SMALL_BYTES: u64 = 4096;
/// Garbage may wait for its whole grace as long as it is less than this, or less than what the volume needs; above that it
/// waits for [`GRACE_SHORT`], which is enough for a reader to look at the log: a disk must not fill with it.
const WAITING_BYTES_MAX: u64 = 256 << 20;
const GRACE_SHORT: Duration = Duration::from_secs(60);

/// What a collector remembers from one run to the next.
#[derive(Debug, Default)]
pub struct Memory {
    /// Since when each object has been garbage.
    since: HashMap<ObjectName, Instant>,
    /// Records that are known to be poison; they are never deleted.
    poison: HashSet<Position>,
    /// What the checkpoint of each kept state needs.
    kept: HashMap<Position, HashSet<ObjectName>>,
    /// What is being deleted: it may be listed for some time yet.
    deleting: Arc<Mutex<HashSet<ObjectName>>>,
}

/// What a stored checkpoint needs.
#[derive(Debug, Default)]
pub struct Needed {
    /// The objects of its image.
    pub objects: HashSet<ObjectName>,
    /// Where the states lie that it keeps. Whoever replays the log from it may have to go back to one of them, although the
    /// present state has given it up since.
    pub kept: Vec<Position>,
}

impl Needed {
    /// What the checkpoint of this image needs, in a state that keeps these others.
    pub fn new(state: &LogState, image: &Image) -> Self {
        let kept = state.kept.iter().map(|k| k.kept.at).collect();
        Self { objects: names_of(&state.objects, image), kept }
    }
}

/// The names of the objects that an image needs.
pub fn names_of(objects: &Objects, image: &Image) -> HashSet<ObjectName> {
    let mut indexes = HashSet::new();
    for run in image.map.iter() {
        if let Place::Object { object, .. } = run.place {
            indexes.insert(object);
        }
    }
    indexes.into_iter().filter_map(|index| objects.get(index).map(|object| object.facts.name)).collect()
}

/// Lists the clone's objects and says which may be deleted now: garbage since `grace`. `state` is behind the checkpoint
/// `at`, which is of the collector's own epoch; `stored` is what that checkpoint needs.
///
/// # Errors
/// What the store gives; on any error nothing is garbage.
pub async fn garbage(
    store: &Store,
    state: &LogState,
    at: Position,
    stored: &Needed,
    grace: Duration,
    memory: &mut Memory,
) -> Result<Vec<ObjectName>> {
    let listing = Listing::read(store, state.clone).await?;
    let mut live: HashSet<ObjectName> = names_of(&state.objects, &state.image);
    live.extend(&stored.objects);
    // In order, so that a simulation asks the store in the same order each time.
    let kept: BTreeSet<Position> = state.kept.iter().map(|k| k.kept.at).chain(stored.kept.iter().copied()).collect();
    memory.kept.retain(|at, _| kept.contains(at));
    // Kept since the checkpoint: what such a state needs is in memory, and in what is stored at the place of the checkpoint itself. Nobody but us
    // writes a checkpoint of a later place in our epoch, and we have not tried yet.
    let unwritten = |kept: &KeptImage| {
        let (place, in_memory) = (kept.kept.at, kept.unwritten.is_some() && kept.image.is_some());
        in_memory && place.epoch == at.epoch && place >= at
    };
    let unwritten: HashSet<Position> = state.kept.iter().filter(|k| unwritten(k)).map(|k| k.kept.at).collect();
    for at in kept {
        live.insert(ObjectName::Checkpoint(at));
        if unwritten.contains(&at) {
            continue;
        }
        // What the stored checkpoint says counts: another owner may have written it, over other objects.
        let names = match memory.kept.entry(at) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => {
                let loaded = read_checkpoint(store, state.clone, at, None).await?;
                unknown.insert(names_of(&loaded.objects, &loaded.image))
            }
        };
        live.extend(names.iter());
    }
    for image in state.kept.iter().filter_map(|k| k.image.as_ref()) {
        live.extend(names_of(&state.objects, image));
    }
    live.insert(ObjectName::Checkpoint(at));
    let mut dead = Vec::new();
    for (position, _) in listing.checkpoints.iter().filter(|(position, _)| *position < at) {
        dead.push(ObjectName::Checkpoint(*position));
    }
    for (epoch, number, _) in &listing.segments {
        dead.push(ObjectName::Segment(*epoch, *number));
    }
    for (position, size) in listing.logs.iter().filter(|(position, _)| *position <= at) {
        if live.contains(&ObjectName::Log(*position)) || memory.poison.contains(position) {
            continue;
        }
        if *size <= SMALL_BYTES && position.epoch != at.epoch {
            match read_head(store, state.clone, *position, Some(*size)).await {
                Ok((head, _)) if matches!(head.record.what, Change::Poison { .. } | Change::Close) => {
                    memory.poison.insert(*position);
                    continue;
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                // What cannot be read may be a poison record: it stays.
                Err(error) if error.kind() == ErrorKind::Corrupt => continue,
                Err(error) => return Err(error),
            }
        }
        dead.push(ObjectName::Log(*position));
    }
    dead.retain(|name| !live.contains(name));
    let bytes: HashMap<ObjectName, u64> = listing.sizes().collect();
    let deleting = memory.deleting.lock();
    let left = |name: &&ObjectName| !deleting.contains(name);
    let waiting: u64 = dead.iter().filter(left).filter_map(|name| bytes.get(name)).sum();
    let needed = state.image.map.data_blocks() * BLOCK_BYTES;
    let grace = if waiting > needed.max(WAITING_BYTES_MAX) { grace.min(GRACE_SHORT) } else { grace };
    let now = Instant::now();
    let known: HashSet<ObjectName> = dead.iter().copied().collect();
    memory.since.retain(|name, _| known.contains(name));
    dead.retain(|name| now.duration_since(*memory.since.entry(*name).or_insert(now)) >= grace && left(&name));
    Ok(dead)
}

impl Memory {
    /// Whether anything waits for its grace to end.
    pub fn waits(&self) -> bool {
        !self.since.is_empty()
    }

    /// Begins to delete objects that accepted `unlink` records name. What fails is found again by the next collection.
    pub fn delete(&self, store: &Store, clone: CloneId, objects: Vec<ObjectName>) -> impl Future<Output = ()> + use<> {
        self.deleting.lock().extend(&objects);
        let (store, deleting) = (store.clone(), Arc::clone(&self.deleting));
        async move {
            let store = &store;
            let deletes: Vec<_> = objects
                .into_iter()
                .map(|name| (name, key_of(clone, name)))
                .map(|(name, key)| async move { (name, store.delete(&key).await) }.boxed())
                .collect();
            let mut done = stream::iter(deletes).buffer_unordered(IN_FLIGHT);
            while let Some((name, result)) = done.next().await {
                deleting.lock().remove(&name);
                if let Err(error) = result {
                    tracing::warn!(%error, "garbage could not be deleted; it is tried again later");
                }
            }
        }
    }
}
