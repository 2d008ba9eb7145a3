//! What the control layer asks a policy, and what a policy may answer.
//!
//! These are the host's own types; the policy host turns them into the WIT package `clonegate:policy` and back.
//! [`builtin`] holds the rules that stand when no plugin has an opinion.

pub mod builtin;

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
    /// Whether its delta is meant to last.
    pub lifetime: Lifetime,
    /// Bytes that its delta is expected to grow to.
    pub expected_delta: u64,
    /// Labels of the clone.
    pub labels: Vec<Label>,
    /// Candidates of an earlier answer that the host could not use.
    pub rejected: Vec<Rejection>,
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
}

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
}

/// What happened to a clone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResetEvent {
    /// It was switched off.
    PowerOff,
    /// Its user logged off.
    LogOff,
    /// So many milliseconds have gone since its last reset or its creation.
    Interval(u64),
    /// Its delta has grown past this many bytes.
    SizeThreshold(u64),
}

/// A clone as a reset policy sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Name of the clone.
    pub id: String,
    /// Name of its pool, empty when it is in none.
    pub pool: String,
    /// Whether its delta is meant to last.
    pub lifetime: Lifetime,
    /// When it was made, milliseconds since 1970 UTC.
    pub created_ms: u64,
    /// When it was last reset.
    pub last_reset_ms: Option<u64>,
    /// Whether somebody has it open.
    pub attached: bool,
    /// Size of its delta, bytes.
    pub delta: u64,
    /// Size of the volume, bytes.
    pub size: u64,
    /// Labels.
    pub labels: Vec<Label>,
}

/// Asks whether a clone is to be reset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetRequest {
    /// What happened.
    pub event: ResetEvent,
    /// The clone.
    pub subject: Volume,
    /// Its base.
    pub base: Base,
}

/// When a delta goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResetTiming {
    /// At once, if nobody has it open.
    Now,
    /// As soon as nobody has it open.
    WhenDetached,
}

/// What a clone is reset to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResetOnto {
    /// Its base.
    SameBase,
    /// The newest ready base of the same template on the same datastore.
    NewestBase,
}

/// How a delta is discarded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetPlan {
    /// When.
    pub timing: ResetTiming,
    /// Onto what.
    pub onto: ResetOnto,
    /// Why, for people.
    pub reason: String,
}

/// Says whether a clone is reset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResetVerdict {
    /// Ask the next one.
    NoOpinion,
    /// Keep the delta.
    Keep,
    /// Discard the delta.
    Discard(ResetPlan),
    /// Ask again after so many seconds.
    AskAgain(u32),
}
