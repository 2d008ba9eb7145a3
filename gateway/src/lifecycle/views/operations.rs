//! Views of what operators do to many things at once: checks, updates, power events, data disks, capacity.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::DurabilityView;

/// Something that `fsck` found.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Finding {
    /// The datastore and the object.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
    /// Whether it was mended.
    pub repaired: bool,
}

/// What `fsck` found.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct FsckReport {
    /// Clones looked at.
    pub clones: u64,
    /// Objects looked at.
    pub objects: u64,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// Moves clones to another version of their template.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateClones {
    /// The template.
    pub template: String,
    /// The version; the published one when absent.
    #[serde(default)]
    pub version: Option<u32>,
    /// Names or ids; all clones of the template when empty.
    #[serde(default)]
    pub clones: Vec<String>,
    /// Only those of this pool.
    #[serde(default)]
    pub pool: Option<String>,
    /// So many go first, one by one; a failure among them stops it.
    #[serde(default)]
    pub canary: Option<u32>,
    /// At most so many at once; 16 when absent.
    #[serde(default)]
    pub max_unavailable: Option<u32>,
    /// Note it for each clone's next power-on.
    #[serde(default)]
    pub at_next_power_on: bool,
}

/// What an update did, or would do. The old deltas are kept for the undo window.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct UpdatedClones {
    /// Nothing was done.
    pub dry_run: bool,
    /// The version.
    pub version: u32,
    /// Clones that are on it now, or would be.
    pub updated: Vec<String>,
    /// Clones that move at their next power-on, for a machine has them open.
    pub later: Vec<String>,
    /// Why it stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    /// Machines that have them open now.
    pub sessions: u32,
    /// Bytes of deltas that go, as far as they are known here.
    pub delta_bytes: u64,
}

/// Makes a template version of what a clone has become.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ToTemplate {
    /// The template; a new one, or a new version of one that is there.
    pub template: String,
    /// Whether new clones get the version at once.
    #[serde(default)]
    pub publish: bool,
    /// Whatever the sealing checks find.
    #[serde(default)]
    pub force: bool,
}

/// What happened to a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PowerEvent {
    /// It is about to be switched on.
    On,
    /// It was switched off.
    Off,
    /// Its user logged off.
    Logoff,
}

/// What a power event led to.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PowerOutcome {
    /// The clone.
    pub clone: String,
    /// `kept`, `reset`, `reset-when-detached`, `updated` or `held`.
    pub action: String,
    /// Why.
    pub reason: String,
    /// The policy that said so.
    pub by: String,
}

/// Makes a data disk.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateDisk {
    /// Its name.
    pub name: String,
    /// Size, bytes; a multiple of 512.
    pub size: u64,
    /// The datastore; the first that is online when absent.
    #[serde(default)]
    pub datastore: Option<String>,
    /// The clone that gets it.
    #[serde(default)]
    pub clone: Option<String>,
    /// It goes when that clone is deleted.
    #[serde(default)]
    pub delete_with_clone: bool,
    /// What a flush promises; `local` when absent.
    #[serde(default)]
    pub durability: Option<DurabilityView>,
}

/// A data disk.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DiskView {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
    /// Size, bytes.
    pub size: u64,
    /// The datastore that it is on.
    pub datastore: String,
    /// The clone that has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clone: Option<String>,
    /// What a flush promises.
    pub durability: DurabilityView,
    /// It goes when that clone is deleted.
    pub delete_with_clone: bool,
    /// Machines that have it open here.
    pub attached: Vec<String>,
    /// Bytes written to it, when it is open here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<u64>,
    /// Path of its bytes on this server.
    pub disk: String,
    /// When it was made, milliseconds since 1970 UTC.
    pub created_ms: u64,
}

/// Asks how much space clones need.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct CapacityQuery {
    /// The template.
    pub template: String,
    /// How many.
    pub clones: u32,
    /// Average delta, bytes; measured or usual ones when absent.
    pub average: Option<u64>,
    /// Two versions are there at once while an update is staged.
    pub staged_update: bool,
}

/// One case of an estimate.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CapacityLine {
    /// `minimum`, `average …` or `maximum`.
    pub case: String,
    /// Delta of a clone, bytes.
    pub delta_bytes: u64,
    /// Space needed, bytes.
    pub bytes: u64,
}

/// What linked cloning saves now.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct Savings {
    /// Clones that there are.
    pub clones: u32,
    /// What full clones of the same sizes would take, bytes.
    pub full_clones_bytes: u64,
    /// What the datastores hold, bytes.
    pub stored_bytes: u64,
    /// The difference, percent of full clones.
    pub saved_percent: u32,
}

/// How much space clones need.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CapacityView {
    /// The template version, `NAME:VERSION`.
    pub template: String,
    /// How many.
    pub clones: u32,
    /// Bases that they need.
    pub bases: u32,
    /// What full clones would take, bytes.
    pub full_clones_bytes: u64,
    /// Bytes free in the datastores that can take clones.
    pub free_bytes: u64,
    /// The cases.
    pub lines: Vec<CapacityLine>,
    /// Which limit is met first.
    pub binds: String,
    /// What is saved now.
    pub now: Savings,
}
