//! `jobs/<job>/<n>`: the whole state number *n* of one piece of long work; the highest number is the state now.

use serde::{Deserialize, Serialize};

use super::envelope::{Kind, Record};
use crate::error::ErrorKind;
use crate::ids::{GatewayId, JobId, Nonce};

/// One state of a job. Numbers begin at 1 and have no gap; a job goes as a whole, number 1 first, when it is past its retention. Whoever
/// puts the next number has the say: a gateway that finds its number taken by another's run has lost the job and stops.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRecord {
    /// The job.
    pub id: JobId,
    /// Tells our own put from another's.
    pub nonce: Nonce,
    /// When this state was written, milliseconds since 1970 UTC.
    pub written_ms: u64,
    /// What is done, one word of the program.
    pub kind: String,
    /// What it is done to.
    pub subject: String,
    /// Who asked for it.
    pub by: String,
    /// What exactly was asked for: JSON of its kind.
    pub spec: String,
    /// Where it stands.
    pub state: JobState,
    /// Units done.
    pub done: u64,
    /// Units that there are, once known.
    pub total: Option<u64>,
    /// What is counted.
    pub unit: JobUnit,
    /// What it does now, for people.
    pub note: String,
    /// Where whoever takes it over goes on: JSON of its kind, empty at the beginning.
    pub cursor: String,
    /// Who does it.
    pub runner: Option<Runner>,
    /// How often somebody began or went on with it.
    pub attempts: u32,
    /// Somebody wants it to end.
    pub cancel: bool,
    /// When it was asked for, milliseconds since 1970 UTC.
    pub created_ms: u64,
    /// When it was begun.
    pub started_ms: Option<u64>,
    /// When it ended.
    pub ended_ms: Option<u64>,
    /// Why it failed.
    pub error: Option<JobError>,
    /// What came of it: JSON of its kind, empty before the end.
    pub result: String,
}

impl Record for JobRecord {
    const KIND: Kind = Kind::Job;
    const VERSION: u16 = 1;
}

/// The life of a job. New variants go to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// Waits for its turn.
    Queued,
    /// Is being done.
    Running,
    /// Done.
    Done,
    /// Failed.
    Failed,
    /// Ended because somebody wanted it to.
    Cancelled,
}

impl JobState {
    /// Whether nothing more happens.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

/// What the progress of a job counts. New variants go to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobUnit {
    /// Bytes.
    Bytes,
    /// Clones.
    Clones,
    /// Stored objects.
    Objects,
    /// Steps of unlike size.
    Steps,
}

/// One gateway process that does a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runner {
    /// The gateway.
    pub gateway: GatewayId,
    /// This life of its process.
    pub run: Nonce,
    /// Its host, for people.
    pub host: String,
}

/// A failure as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobError {
    /// Its kind.
    pub kind: ErrorKind,
    /// The stable code.
    pub code: String,
    /// What happened.
    pub message: String,
    /// To what.
    pub object: Option<String>,
    /// What to do.
    pub hint: Option<String>,
}
