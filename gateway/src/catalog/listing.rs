//! When this gateway last listed the names of a noun, and what it saw: so that it knows from where a name's newest number is found by asking
//! for single ones.
//!
//! Of a series the states that were superseded long ago are taken away (see `prune`), so "the next number is missing" only tells something
//! about numbers that are younger than that. What a listing saw as the highest was the newest when the listing began, or came after; all above it
//! is younger than the listing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use clonegate_core::ids::Name;
use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;

use crate::clock::Clock;

/// A listing that is older is made anew before names are looked for from it.
pub(super) const RELIST_AFTER: Duration = Duration::from_secs(12 * 3600);
/// On a listing that is older nothing is decided: what was looked for or put since is looked at again. Between this and `RELIST_AFTER` lies the
/// longest that one look and one put may take.
pub(super) const STALE_AFTER: Duration = Duration::from_secs(24 * 3600);
/// A state that was superseded for so long may be taken away. The day from `STALE_AFTER` to here is for a store whose clock jumps, and for requests that arrive late.
pub(super) const PRUNE_AFTER: Duration = Duration::from_secs(48 * 3600);

/// A moment by both clocks: a host that sleeps stops the one, and somebody may set the other.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    wall_ms: u64,
    instant: Instant,
}

impl Moment {
    pub(super) fn now(clock: &Clock) -> Self {
        Self { wall_ms: clock.now_ms(), instant: clock.instant() }
    }

    /// How long ago it was; `MAX` when the wall clock went back since, for then nobody knows.
    pub(super) fn age(&self, clock: &Clock) -> Duration {
        let wall = clock.now_ms().checked_sub(self.wall_ms).map_or(Duration::MAX, Duration::from_millis);
        wall.max(clock.instant().saturating_duration_since(self.instant))
    }
}

/// What one listing of a noun saw.
#[derive(Debug)]
pub(super) struct Listing {
    begun: Moment,
    /// The highest number of each name of which no state as high was remembered.
    above: HashMap<Name, u64>,
}

impl Listing {
    /// `begun` is from before the request.
    pub(super) fn new(begun: Moment, above: HashMap<Name, u64>) -> Self {
        Self { begun, above }
    }

    /// The highest number of this name, where it is above what was remembered then; else 0.
    pub(super) fn above(&self, name: &Name) -> u64 {
        self.above.get(name).copied().unwrap_or(0)
    }

    /// All names of which more was seen than remembered.
    pub(super) fn all_above(&self) -> impl Iterator<Item = (&Name, u64)> {
        self.above.iter().map(|(name, number)| (name, *number))
    }

    /// Whether so much time went by since it began that numbers which it did not see may be gone already.
    pub(super) fn is_stale(&self, clock: &Clock) -> bool {
        self.begun.age(clock) >= STALE_AFTER
    }
}

/// The newest listing of each noun.
#[derive(Debug, Default)]
pub(super) struct Listings {
    newest: RwLock<HashMap<&'static str, Arc<Listing>>>,
    turns: Mutex<HashMap<&'static str, Arc<tokio::sync::Mutex<()>>>>,
}

impl Listings {
    /// The newest listing when names may be looked for from it, and it began after `since`.
    pub(super) fn fresh(&self, noun: &'static str, clock: &Clock, since: Option<Moment>) -> Option<Arc<Listing>> {
        let newest = self.newest.read().get(noun).cloned()?;
        let after = since.is_none_or(|since| newest.begun.instant > since.instant);
        (after && newest.begun.age(clock) < RELIST_AFTER).then_some(newest)
    }

    /// Remembers a listing, unless one that began later is there.
    pub(super) fn keep(&self, noun: &'static str, listing: &Arc<Listing>) {
        let mut newest = self.newest.write();
        if newest.get(noun).is_none_or(|before| before.begun.instant <= listing.begun.instant) {
            newest.insert(noun, Arc::clone(listing));
        }
    }

    /// Who lists because a listing is missing holds this; who comes meanwhile waits, and finds one.
    pub(super) fn turn(&self, noun: &'static str) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(self.turns.lock().entry(noun).or_default())
    }
}
