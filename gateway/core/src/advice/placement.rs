//! Where a clone goes: the question and the answer.

use serde::{Deserialize, Serialize};

use super::{Label, Lifetime};

/// Where a clone may go.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// Link to this base.
    Base(String),
    /// Make a base on this datastore, then link to it.
    NewBaseOn(String),
}

/// A place and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// The place.
    pub target: Target,
    /// Why, for people.
    pub reason: String,
}

/// A place that the host could not use, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejection {
    /// The place.
    pub target: Target,
    /// Why not.
    pub why: String,
}

/// Asks where a clone goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementRequest {
    /// Name of the clone.
    pub clone: String,
    /// Name of its pool, empty when it is in none.
    pub pool: String,
    /// The template version, `NAME:VERSION`.
    pub image: String,
    /// Size of the image, bytes.
    #[serde(default)]
    pub size: u64,
    /// Whether its delta is meant to last.
    pub lifetime: Lifetime,
    /// Bytes that its delta is expected to grow to.
    pub expected_delta: u64,
    /// Clones still to be made by the same order, this one counted.
    #[serde(default = "one")]
    pub count: u32,
    /// Labels of the clone, of its pool and of its template, in this order.
    pub labels: Vec<Label>,
    /// Candidates of an earlier answer that the host could not use.
    pub rejected: Vec<Rejection>,
}

const fn one() -> u32 {
    1
}

/// Not now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deferral {
    /// When it may be tried again, seconds.
    pub seconds: u32,
    /// Why, for people; reaches the caller.
    pub reason: String,
}

/// Says where a clone goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PlacementVerdict {
    /// Ask the next one.
    NoOpinion,
    /// Best first; the host takes the first that holds.
    Choose(Vec<Candidate>),
    /// Nothing is permitted; the text reaches the caller.
    Refuse(String),
    /// Nothing is permitted now; the text reaches the caller.
    Defer(Deferral),
}
