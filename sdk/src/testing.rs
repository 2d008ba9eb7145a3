//! Tests of a policy natively, without WebAssembly: made-up questions, and decisions that a gateway recorded.
//!
//! ```
//! use clonegate_policy::prelude::*;
//! use clonegate_policy::testing::{context, inventory, placement_request};
//!
//! let there_is = inventory().datastore("d1", 500).base("b1", "w11:1", "d1", 90).base("b2", "w11:1", "d1", 3).build();
//! let ask = placement_request("w11:1");
//! assert_eq!(there_is.ready_bases(&ask).count(), 2);
//! assert_eq!(context().sequence, 0);
//! ```

mod record;

pub use record::{Difference, Replay, recorded_settings, replay_placement, replay_reset, replay_rollover};

use crate::types::{
    Base, BaseState, Context, Datastore, Exit, Health, Inventory, Label, Labels, Lifetime, PlacementRequest,
    PlacementVerdict, ResetEvent, ResetRequest, RolloverRequest, RolloverTrigger, Target, Volume,
};

const GIB: u64 = 1 << 30;
/// The time of made-up questions: Wednesday, 2025-01-01 12:00 UTC.
pub const NOON_MS: u64 = 1_735_732_800_000;

/// A context at [`NOON_MS`], seed and sequence 0.
pub fn context() -> Context {
    Context { decision: "d_test".into(), now_ms: NOON_MS, seed: 0, sequence: 0 }
}

/// A label.
pub fn label(key: &str, value: &str) -> Label {
    Label { key: key.to_owned().into(), value: value.to_owned().into() }
}

/// A ready base with 128 slots and an image of 40 GiB.
pub fn base(id: &str, image: &str, datastore: &str, deltas: u32) -> Base {
    Base {
        id: id.to_owned().into(),
        image: image.to_owned().into(),
        datastore: datastore.to_owned().into(),
        state: BaseState::Ready,
        deltas,
        delta_limit: 128,
        size: 40 * GIB,
        delta_bytes: u64::from(deltas) * GIB,
        created_ms: NOON_MS - 86_400_000,
        labels: Labels::default(),
    }
}

/// An inventory, built piece by piece.
#[derive(Debug, Clone, Default)]
pub struct InventoryBuilder(Inventory);

/// An empty inventory.
pub fn inventory() -> InventoryBuilder {
    InventoryBuilder(Inventory { revision: 1, ..Inventory::default() })
}

impl InventoryBuilder {
    /// Adds an online datastore of 1 TiB with so many GiB free.
    #[must_use]
    pub fn datastore(mut self, id: &str, free_gib: u64) -> Self {
        self.0.datastores.push(Datastore {
            id: id.to_owned().into(),
            health: Health::Online,
            capacity: 1024 * GIB,
            free: free_gib * GIB,
            reserved: 0,
            bases: 0,
            clones: 0,
            pool_clones: 0,
            latency_us: None,
            labels: Labels::default(),
        });
        self
    }

    /// Changes the last datastore.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Datastore)) -> Self {
        change(self.0.datastores.last_mut().expect("a datastore comes first"));
        self
    }

    /// Gives the last datastore a label.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn labelled(self, key: &str, value: &str) -> Self {
        self.with(|datastore| datastore.labels.to_mut().push(label(key, value)))
    }

    /// Adds a ready base.
    #[must_use]
    pub fn base(mut self, id: &str, image: &str, datastore: &str, deltas: u32) -> Self {
        self.0.bases.push(base(id, image, datastore, deltas));
        self
    }

    /// The inventory.
    pub fn build(self) -> Inventory {
        self.0
    }
}

/// Asks where an ephemeral clone `c1` of no pool goes, expected to grow to 2 GiB.
pub fn placement_request(image: &str) -> PlacementRequest {
    PlacementRequest {
        clone: "c1".into(),
        pool: String::new(),
        image: image.into(),
        size: 40 * GIB,
        lifetime: Lifetime::Ephemeral,
        expected_delta: 2 * GIB,
        count: 1,
        labels: Vec::new(),
        rejected: Vec::new(),
    }
}

/// Asks about a base after a clone was linked to it.
pub fn rollover_request(subject: Base) -> RolloverRequest {
    RolloverRequest { trigger: RolloverTrigger::DeltaAdded, subject, pending: 0, superseded: false }
}

/// A detached clone `c1` of the image `w11:1`, made a day before [`NOON_MS`], with a delta of 1 GiB.
pub fn volume(lifetime: Lifetime) -> Volume {
    Volume {
        id: "c1".into(),
        pool: String::new(),
        lifetime,
        created_ms: NOON_MS - 86_400_000,
        last_reset_ms: None,
        last_exit: Exit::Unknown,
        attached: false,
        held: false,
        delta: GIB,
        size: 40 * GIB,
        newer: None,
        labels: Vec::new(),
    }
}

/// Asks whether a clone is reset.
pub fn reset_request(event: ResetEvent, subject: Volume) -> ResetRequest {
    ResetRequest { event, subject, base: base("b1", "w11:1", "d1", 1) }
}

impl PlacementVerdict {
    /// The ids of its candidates, a new base as `+DATASTORE`; empty unless it chooses.
    pub fn ids(&self) -> Vec<String> {
        let Self::Choose(candidates) = self else { return Vec::new() };
        candidates
            .iter()
            .map(|c| match &c.target {
                Target::Base(id) => id.clone(),
                Target::NewBaseOn(id) => format!("+{id}"),
            })
            .collect()
    }
}
