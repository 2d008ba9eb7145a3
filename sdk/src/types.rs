//! What a policy is asked and what it answers: the same words, units and JSON as the gateway's own.
//!
//! Most mirror `wit/types.wit` field by field, so that the generated bindings read and write them directly; inventories, and what has labels, are
//! sent in a form of their own (`wire`).

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// A text of an inventory, which records may share: used as a `&str`; `"text".into()` makes one.
pub type Text = Cow<'static, str>;
/// Labels of a record of an inventory: used as a slice; `vec![label].into()` makes some, `to_mut()` changes them.
pub type Labels = Cow<'static, [Label]>;

/// Makes an enum from its number in the canonical ABI; the generated bindings call `_lift`.
macro_rules! by_number {
    ($name:ident { $first:ident $(, $rest:ident)* }) => {
        impl $name {
            #[doc(hidden)]
            pub fn _lift(number: u8) -> Self {
                $(if number == Self::$rest as u8 { return Self::$rest; })*
                Self::$first
            }
        }
    };
}

/// A key and a value that an operator gave; also how new facts reach policies within one WIT minor.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Label {
    /// The key.
    pub key: Text,
    /// The value.
    pub value: Text,
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
    /// A kind that this SDK does not know yet.
    Other(String),
}

/// A datastore as a policy sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datastore {
    /// Its name.
    pub id: Text,
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
    pub labels: Labels,
}

/// The life of a base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// A kind that this SDK does not know yet.
    Other(String),
}

/// A base as a policy sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// Its id.
    pub id: Text,
    /// The template version that it holds, `NAME:VERSION`.
    pub image: Text,
    /// The datastore that it is on.
    pub datastore: Text,
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
    pub labels: Labels,
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
#[repr(u8)]
pub enum Lifetime {
    /// Kept until someone asks for a reset.
    Persistent,
    /// Discarded at power-off or log-off.
    Ephemeral,
}

by_number!(Lifetime { Persistent, Ephemeral });

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
    /// A kind that this SDK does not know yet.
    Other(String),
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

/// What happened to a clone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResetEvent {
    /// It is about to be switched on.
    PowerOn,
    /// It was switched off.
    PowerOff,
    /// Its user logged off.
    LogOff,
    /// So many milliseconds have gone since its last reset or its creation.
    Interval(u64),
    /// Its delta has grown past this many bytes.
    SizeThreshold(u64),
    /// A version of its template was published.
    ImagePublished,
    /// A kind that this SDK does not know yet.
    Other(String),
}

/// How a machine last went down, as far as the host was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Exit {
    /// Nobody said.
    #[default]
    Unknown,
    /// It was shut down.
    Clean,
    /// It crashed.
    Crashed,
    /// It was switched off by force.
    Forced,
}

by_number!(Exit { Unknown, Clean, Crashed, Forced });

/// A template version that was published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// The version, `NAME:VERSION`.
    pub image: String,
    /// When, milliseconds since 1970 UTC.
    pub published_ms: u64,
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
    /// How the machine last went down.
    #[serde(default)]
    pub last_exit: Exit,
    /// Whether somebody has it open.
    pub attached: bool,
    /// Its delta is held for review.
    #[serde(default)]
    pub held: bool,
    /// Size of its delta, bytes.
    pub delta: u64,
    /// Size of the volume, bytes.
    pub size: u64,
    /// The published version of its template, when that is later than its base.
    #[serde(default)]
    pub newer: Option<Release>,
    /// Labels of the clone, of its pool and of its template, in this order.
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
#[repr(u8)]
pub enum ResetTiming {
    /// At once, if nobody has it open.
    Now,
    /// As soon as nobody has it open.
    WhenDetached,
}

by_number!(ResetTiming { Now, WhenDetached });

/// What a clone is reset to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum ResetOnto {
    /// Its base.
    SameBase,
    /// The newest ready base of the same template on the same datastore.
    NewestBase,
}

by_number!(ResetOnto { SameBase, NewestBase });

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

/// Keeps a delta for review.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// For how long, seconds; none: until somebody releases it.
    pub seconds: Option<u32>,
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
    /// Keep the delta, and let no other event discard it.
    Hold(Hold),
    /// Ask again after so many seconds.
    AskAgain(u32),
}

/// What kind of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum ErrorKind {
    /// The settings do not permit a decision.
    Settings,
    /// The question makes no sense.
    Input,
    /// A bug in the plugin.
    Internal,
}

by_number!(ErrorKind { Settings, Input, Internal });

/// "I could not decide": counts against the plugin, and the next in the chain is asked. Not a way to say no.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What kind.
    pub kind: ErrorKind,
    /// What happened, for people.
    pub message: String,
}
