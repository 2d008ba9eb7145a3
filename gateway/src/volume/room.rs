//! Room for accepted writes: the dirty budgets of a volume, of its store and of the whole gateway, and what is taken of them.

use std::sync::Arc;

use clonegate_core::Result;
use clonegate_core::units::{BLOCK_BYTES, ByteRange};
use tokio::sync::OwnedSemaphorePermit;

use super::core::{Core, units};

/// How often those who hold the budget are asked again.
const PRESSURE_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

/// What accepted writes have taken of the budgets; given back when it is dropped, which is when they are stored.
#[derive(Debug, Default)]
pub(super) struct Room {
    own: Option<OwnedSemaphorePermit>,
    store: Option<OwnedSemaphorePermit>,
    all: Option<OwnedSemaphorePermit>,
}

fn merge(mine: &mut Option<OwnedSemaphorePermit>, other: Option<OwnedSemaphorePermit>) {
    match (mine, other) {
        (Some(mine), Some(other)) => mine.merge(other),
        (mine @ None, other) => *mine = other,
        (Some(_), None) => {}
    }
}

fn split(permit: &mut Option<OwnedSemaphorePermit>, part: u64, whole: u64) -> Option<OwnedSemaphorePermit> {
    let permit = permit.as_mut()?;
    let count = permit.num_permits();
    let share = count as u64 * part.min(whole) / whole.max(1);
    permit.split(usize::try_from(share).unwrap_or(0).min(count))
}

impl Room {
    /// Takes over what `other` holds, of the same volume.
    pub(super) fn add(&mut self, other: Self) {
        merge(&mut self.own, other.own);
        merge(&mut self.store, other.store);
        merge(&mut self.all, other.all);
    }

    /// Takes out `part` of `whole` of what it holds.
    pub(super) fn split(&mut self, part: u64, whole: u64) -> Self {
        Self {
            own: split(&mut self.own, part, whole),
            store: split(&mut self.store, part, whole),
            all: split(&mut self.all, part, whole),
        }
    }
}

/// Bytes of the blocks that `range` touches: what a write of it holds.
pub(super) fn held(range: ByteRange) -> u64 {
    (range.end().div_ceil(BLOCK_BYTES) - range.start() / BLOCK_BYTES) * BLOCK_BYTES
}

impl Core {
    /// Waits for room in the dirty budgets: this volume's, that of its store, then everybody's. In this order, so that those whose store takes
    /// nothing do not wait before the others.
    pub(super) async fn room(self: &Arc<Self>, bytes: u64) -> Result<Room> {
        let shares = self.shares(bytes);
        if let Some(room) = self.try_room(bytes) {
            return Ok(room);
        }
        self.press();
        let closed = |_| super::read::stopping();
        let own = Some(Arc::clone(&self.budget).acquire_many_owned(shares.own).await.map_err(closed)?);
        let mut room = Room { own, store: None, all: None };
        let others = async {
            let store = Arc::clone(&self.store_share).acquire_many_owned(shares.store).await;
            let all = Arc::clone(&self.engine.budget).acquire_many_owned(shares.all).await;
            (store, all)
        };
        tokio::pin!(others);
        loop {
            // Volumes that send nothing by themselves hold on to what they have until they are asked.
            self.engine.pressure.notify_waiters();
            tokio::select! {
                biased;
                (store, all) = &mut others => {
                    (room.store, room.all) = (Some(store.map_err(closed)?), Some(all.map_err(closed)?));
                    return Ok(room);
                }
                () = self.engine.clock.sleep(PRESSURE_PAUSE) => {}
            }
        }
    }

    /// Room in the dirty budgets, when there is some at once.
    pub(super) fn try_room(&self, bytes: u64) -> Option<Room> {
        let shares = self.shares(bytes);
        let own = Some(Arc::clone(&self.budget).try_acquire_many_owned(shares.own).ok()?);
        let store = Some(Arc::clone(&self.store_share).try_acquire_many_owned(shares.store).ok()?);
        let all = Some(Arc::clone(&self.engine.budget).try_acquire_many_owned(shares.all).ok()?);
        Some(Room { own, store, all })
    }

    /// What a write of so many bytes takes of the budgets: never more than there is.
    fn shares(&self, bytes: u64) -> Shares {
        let settings = &self.engine.settings;
        let of = |budget: u64| units(bytes).min(units(budget.max(BLOCK_BYTES)));
        Shares {
            own: of(settings.dirty_bytes_per_volume),
            store: of(self.engine.share_bytes()),
            all: of(settings.dirty_bytes),
        }
    }
}

/// Units of each budget that a write takes.
struct Shares {
    own: u32,
    store: u32,
    all: u32,
}
