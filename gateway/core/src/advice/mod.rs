//! What the control layer asks a policy, and what a policy may answer.
//!
//! These are the host's own types; the policy host turns them into the WIT package `clonegate:policy` and back.
//! [`builtin`] holds the rules that stand when no plugin has an opinion, [`check`] what every answer must satisfy, and
//! [`Question`] and [`Answer`] take the three kinds together.

pub mod builtin;
pub mod check;
mod placement;
mod question;
mod reset;
mod rollover;

pub use placement::{Candidate, Deferral, PlacementRequest, PlacementVerdict, Rejection, Target};
pub use question::{Answer, Question, Slot};
pub use reset::{
    Exit, Hold, Release, ResetEvent, ResetOnto, ResetPlan, ResetRequest, ResetTiming, ResetVerdict, Volume,
};
pub use rollover::{RolloverRequest, RolloverTrigger, RolloverVerdict, Successor};

use serde::{Deserialize, Serialize};

/// A key and a value that an operator gave; also how new facts reach policies within one WIT minor.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Label {
    /// The key.
    pub key: String,
    /// The value.
    pub value: String,
}

/// Stands in for clock and randomness in a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// Names this decision in the audit log.
    pub decision: String,
    /// The time of the decision, milliseconds since 1970 UTC.
    pub now_ms: u64,
    /// For ties.
    pub seed: u64,
    /// Decisions of this slot before this one.
    pub sequence: u64,
}

/// Whether a datastore can be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// Answers.
    Online,
    /// Answers slowly or with errors.
    Degraded,
    /// Takes no new clones, by an operator's order.
    Maintenance,
    /// Does not answer.
    Offline,
}

/// A datastore as a policy sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datastore {
    /// Its name.
    pub id: String,
    /// Whether it can be used.
    pub health: Health,
    /// Bytes that it may hold.
    pub capacity: u64,
    /// Bytes still free.
    pub free: u64,
    /// Bytes promised to clones and not yet written.
    pub reserved: u64,
    /// Bases on it, of all images.
    pub bases: u32,
    /// Clones on it, of all images.
    pub clones: u32,
    /// Clones on it of the pool that is asked about; 0 when it is about none.
    #[serde(default)]
    pub pool_clones: u32,
    /// Recent mean latency of its store, microseconds.
    pub latency_us: Option<u32>,
    /// Labels.
    pub labels: Vec<Label>,
}

/// The life of a base.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BaseState {
    /// Being copied.
    Preparing,
    /// Takes clones.
    Ready,
    /// Takes no more clones.
    Sealed,
    /// Goes when its last clone goes.
    Retiring,
    /// Could not be made.
    Failed,
}

/// A base as a policy sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// Its id.
    pub id: String,
    /// The template version that it holds, `NAME:VERSION`.
    pub image: String,
    /// The datastore that it is on.
    pub datastore: String,
    /// Its state.
    pub state: BaseState,
    /// Slots taken.
    pub deltas: u32,
    /// Slots that it has.
    pub delta_limit: u32,
    /// Size of the image, bytes.
    pub size: u64,
    /// Sum of its deltas, bytes.
    pub delta_bytes: u64,
    /// When it was made, milliseconds since 1970 UTC.
    pub created_ms: u64,
    /// Labels.
    pub labels: Vec<Label>,
}

/// One consistent view of the datastores and of the bases of the requested image.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Inventory {
    /// Names this view in the audit log.
    pub revision: u64,
    /// All datastores.
    pub datastores: Vec<Datastore>,
    /// The bases of the image in question.
    pub bases: Vec<Base>,
}

/// Whether a clone's delta is meant to last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lifetime {
    /// Kept until someone asks for a reset.
    Persistent,
    /// Discarded at power-off or log-off.
    Ephemeral,
}
