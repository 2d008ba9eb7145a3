//! Room for accepted writes: the dirty budgets of a volume and of the whole gateway, and what is taken of them.

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
        merge(&mut self.all, other.all);
    }

    /// Takes out `part` of `whole` of what it holds.
    pub(super) fn split(&mut self, part: u64, whole: u64) -> Self {
        Self { own: split(&mut self.own, part, whole), all: split(&mut self.all, part, whole) }
    }
}

/// Bytes of the blocks that `range` touches: what a write of it holds.
pub(super) fn held(range: ByteRange) -> u64 {
    (range.end().div_ceil(BLOCK_BYTES) - range.start() / BLOCK_BYTES) * BLOCK_BYTES
}

impl Core {
    /// Waits for room in the dirty budgets: this volume's, then everybody's.
    pub(super) async fn room(self: &Arc<Self>, bytes: u64) -> Result<Room> {
        let (own, all) = self.shares(bytes);
        if let Some(room) = self.try_room(bytes) {
            return Ok(room);
        }
        self.press();
        let closed = |_| super::read::stopping();
        let own = Some(Arc::clone(&self.budget).acquire_many_owned(own).await.map_err(closed)?);
        let everybody = Arc::clone(&self.engine.budget).acquire_many_owned(all);
        tokio::pin!(everybody);
        loop {
            // Volumes that send nothing by themselves hold on to what they have until they are asked.
            self.engine.pressure.notify_waiters();
            tokio::select! {
                biased;
                got = &mut everybody => return Ok(Room { own, all: Some(got.map_err(closed)?) }),
                () = self.engine.clock.sleep(PRESSURE_PAUSE) => {}
            }
        }
    }

    /// Room in the dirty budgets, when there is some at once.
    pub(super) fn try_room(&self, bytes: u64) -> Option<Room> {
        let (own, all) = self.shares(bytes);
        let own = Some(Arc::clone(&self.budget).try_acquire_many_owned(own).ok()?);
        let all = Some(Arc::clone(&self.engine.budget).try_acquire_many_owned(all).ok()?);
        Some(Room { own, all })
    }

    /// What a write of so many bytes takes of the budgets: never more than there is.
    fn shares(&self, bytes: u64) -> (u32, u32) {
        let limit = |budget: u64| units(budget.max(BLOCK_BYTES));
        let settings = &self.engine.settings;
        (units(bytes).min(limit(settings.dirty_bytes_per_volume)), units(bytes).min(limit(settings.dirty_bytes)))
    }
}
