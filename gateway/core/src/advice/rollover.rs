//! Whether a base needs a successor: the question and the answer.

use serde::{Deserialize, Serialize};

use super::Base;

/// Why rollover is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RolloverTrigger {
    /// A clone was linked to the base.
    DeltaAdded,
    /// A timer.
    Periodic,
    /// Free space of its datastore changed much.
    SpaceChanged,
    /// A new version of its template was published.
    ImagePublished,
}

/// Asks whether a base needs a successor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloverRequest {
    /// Why it is asked.
    pub trigger: RolloverTrigger,
    /// The base in question.
    pub subject: Base,
    /// Clones of its image that are ordered and not yet made.
    #[serde(default)]
    pub pending: u32,
    /// A later version of its template is published.
    #[serde(default)]
    pub superseded: bool,
}

/// Where the next base goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Successor {
    /// Datastores, best first; empty: where the old base is.
    pub datastores: Vec<String>,
    /// Why, for people.
    pub reason: String,
}

/// Says whether a base needs a successor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RolloverVerdict {
    /// Ask the next one.
    NoOpinion,
    /// Takes more clones.
    Keep,
    /// Takes no more clones, and no successor is made.
    Seal(String),
    /// Make a successor now; the base takes clones until it is ready.
    Prepare(Successor),
    /// Seal at once and make a successor.
    RollOver(Successor),
    /// Seal, and remove when its last clone has gone.
    Retire(String),
}
