//! Whether a clone is reset: the question and the answer.

use serde::{Deserialize, Serialize};

use super::{Base, Label, Lifetime};

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
}

/// How a machine last went down, as far as the host was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
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
