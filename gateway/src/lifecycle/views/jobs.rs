//! Views of jobs.

use clonegate_core::format::job::{JobState, JobUnit};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{DurabilityView, Labels, ListQuery, Touched};

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum JobStateView {
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

impl JobStateView {
    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing more happens.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

impl From<JobState> for JobStateView {
    fn from(state: JobState) -> Self {
        match state {
            JobState::Queued => Self::Queued,
            JobState::Running => Self::Running,
            JobState::Done => Self::Done,
            JobState::Failed => Self::Failed,
            JobState::Cancelled => Self::Cancelled,
        }
    }
}

/// What the progress of a job counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum JobUnitView {
    /// Bytes.
    Bytes,
    /// Clones.
    Clones,
    /// Stored objects.
    Objects,
    /// Steps of unlike size.
    Steps,
}

impl From<JobUnit> for JobUnitView {
    fn from(unit: JobUnit) -> Self {
        match unit {
            JobUnit::Bytes => Self::Bytes,
            JobUnit::Clones => Self::Clones,
            JobUnit::Objects => Self::Objects,
            JobUnit::Steps => Self::Steps,
        }
    }
}

/// Why a job failed, in the words of a problem.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct JobErrorView {
    /// The kind of problem.
    pub kind: String,
    /// The stable code.
    pub code: String,
    /// What happened.
    pub detail: String,
    /// To what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// One piece of long work.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct JobView {
    /// Its id.
    pub id: String,
    /// What is done.
    pub kind: String,
    /// What it is done to.
    pub subject: String,
    /// Who asked for it.
    pub by: String,
    /// Where it stands.
    pub state: JobStateView,
    /// Units done; as of at most ten seconds ago when another gateway does it.
    pub done: u64,
    /// Units that there are, once known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// What is counted.
    pub unit: JobUnitView,
    /// What it does now.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// What of it waits for room in a store; known on the gateway that does it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits: Option<String>,
    /// The host of the gateway that does it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// How often somebody began or went on with it.
    pub attempts: u32,
    /// Somebody wants it to end, and it is about to.
    #[serde(default)]
    pub cancelling: bool,
    /// When it was asked for, milliseconds since 1970 UTC.
    pub created_ms: u64,
    /// When it was begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_ms: Option<u64>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<u64>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<JobErrorView>,
    /// What came of it, as its kind says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub result: Option<serde_json::Value>,
}

/// Which jobs to list.
#[derive(Debug, Clone, Default)]
pub struct ListJobs {
    /// Which part.
    pub list: ListQuery,
    /// Only those of this subject.
    pub subject: Option<String>,
    /// Only those that are not over.
    pub under_way: bool,
}

/// Makes a full clone.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateFullClone {
    /// Its name.
    pub name: String,
    /// The template.
    pub template: String,
    /// The version; the published one when absent.
    #[serde(default)]
    pub version: Option<u32>,
    /// The datastore; that of the version when absent.
    #[serde(default)]
    pub datastore: Option<String>,
    /// What a flush promises; `local` when absent.
    #[serde(default)]
    pub durability: Option<DurabilityView>,
    /// Labels.
    #[serde(default)]
    pub labels: Labels,
}

/// Empties a datastore, or a part of it, onto another.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rebalance {
    /// The other datastore.
    pub to: String,
    /// At most so many clones; all that nobody has open when absent.
    #[serde(default)]
    pub clones: Option<u32>,
}

/// Fetches bases into the iCache of the gateway that is asked. Without templates and bases, one of each published version.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WarmCache {
    /// Templates whose published version is meant.
    #[serde(default)]
    pub templates: Vec<String>,
    /// Ids of bases.
    #[serde(default)]
    pub bases: Vec<String>,
    /// All that is not zero, instead of what boots touch.
    #[serde(default)]
    pub whole: bool,
}

/// What came of a request for long work.
#[derive(Debug, Clone)]
pub enum Started {
    /// Nothing was done; this is what it would touch.
    Would(Touched),
    /// The job.
    Job(Box<JobView>),
}

/// One entry of the audit log.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AuditView {
    /// Its place in the log.
    pub id: String,
    /// When, milliseconds since 1970 UTC.
    pub at_ms: u64,
    /// Who: the name of a token, the address of a peer, or `gateway` for what it did by itself.
    pub by: String,
    /// What: noun and verb.
    pub action: String,
    /// To what.
    pub object: String,
    /// `ok`, or the code of the error.
    pub outcome: String,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The policy that decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// The gateway that noted it.
    pub gateway: String,
}

/// Which entries of the audit log to list.
#[derive(Debug, Clone, Default)]
pub struct ListAudit {
    /// Which part.
    pub list: ListQuery,
    /// Only what was done to this.
    pub object: Option<String>,
    /// Only this action.
    pub action: Option<String>,
}
