//! Views of what operators do to many things at once: checks, updates, power events, data disks, capacity.

use clonegate_core::format::catalog::ResetRules;
use clonegate_core::{Error, Result};
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
    /// Objects that nothing needs any more and that their owner deletes after its grace.
    #[serde(default)]
    pub grace: u64,
    /// Blocks and chunks whose checksums were verified.
    #[serde(default)]
    pub verified: u64,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// When a clone's delta is discarded, besides what policies say. Only once the machine was seen to be switched off.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResetRulesView {
    /// So many seconds after the last reset; never when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_seconds: Option<u64>,
    /// When the delta has so many bytes; never when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_bytes: Option<u64>,
}

impl ResetRulesView {
    /// As they are stored.
    ///
    /// # Errors
    /// `Invalid` with code `bad-rule` for zeroes.
    pub fn checked(&self) -> Result<ResetRules> {
        if self.every_seconds == Some(0) || self.at_bytes == Some(0) {
            return Err(Error::invalid("bad-rule", "a rule of zero would discard everything at once")
                .hint("leave it out for never; for a reset at every power-off make the clone ephemeral"));
        }
        let every_ms = self.every_seconds.map(|seconds| seconds.saturating_mul(1000));
        Ok(ResetRules { every_ms, at_bytes: self.at_bytes })
    }
}

impl From<&ResetRules> for ResetRulesView {
    fn from(rules: &ResetRules) -> Self {
        Self { every_seconds: rules.every_ms.map(|ms| ms.div_ceil(1000)), at_bytes: rules.at_bytes }
    }
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
    /// So many go first, one by one; then it waits until it is promoted.
    #[serde(default)]
    pub canary: Option<u32>,
    /// Go on after the first ones by itself.
    #[serde(default)]
    pub promote: bool,
    /// At most so many at once; 16 when absent.
    #[serde(default)]
    pub max_unavailable: Option<u32>,
    /// Note it for each clone's next power-on.
    #[serde(default)]
    pub at_next_power_on: bool,
}

/// What an update did so far, or would do. The old deltas are kept for the undo window.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct UpdatedClones {
    /// Nothing was done.
    pub dry_run: bool,
    /// The template.
    pub template: String,
    /// The version.
    pub version: u32,
    /// `running`, `awaits-promotion`, `paused`, `stopped`, `done`, `rolling-back` or `rolled-back`; `planned` for a dry run.
    pub state: String,
    /// Clones that it is about.
    pub total: u32,
    /// Clones that are on it now, or would be; after a roll-back, those that are back.
    pub updated: Vec<String>,
    /// Clones that move when their machine is off: it has them open, or may come back to them.
    pub later: Vec<String>,
    /// Why it stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    /// Machines that have them open now.
    pub sessions: u32,
    /// Bytes of the deltas that go.
    pub delta_bytes: u64,
    /// Bytes that must be copied to datastores that do not have the version yet.
    pub copy_bytes: u64,
    /// Bases that must be made.
    pub new_bases: u32,
    /// What else is to be known.
    #[serde(default)]
    pub notes: Vec<String>,
    /// When it began, milliseconds since 1970 UTC.
    pub started_ms: u64,
}

/// What is done to an update that was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RolloutAction {
    /// Move no further clone for now.
    Pause,
    /// Go on: after a pause, a failure, or the end of the gateway that ran it.
    Resume,
    /// The first ones are good: move the others.
    Promote,
    /// Move the clones back, with what they held before.
    Rollback,
    /// End it where it is.
    Cancel,
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
    /// Nothing was done: this is what it would be.
    #[serde(default)]
    pub dry_run: bool,
    /// `attached` to a clone, `free`, or `archived`.
    pub state: String,
    /// When it was put away, milliseconds since 1970 UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archived_ms: Option<u64>,
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
    /// Space needed, bytes: a version is stored once in each datastore, however many bases there are.
    pub bytes: u64,
    /// The same if every base were a whole copy of the image, as on block storage, bytes.
    pub whole_bases_bytes: u64,
}

/// What a datastore runs out of first.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CapacityLimit {
    /// The datastore.
    pub datastore: String,
    /// Further clones with an average delta that it takes.
    pub clones: u64,
    /// Bytes free, without the reserve.
    pub free_bytes: u64,
    /// Its free space, its overcommit, or why it takes none.
    pub binds: String,
}

/// Something that is about to be full.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct AlertView {
    /// `warning` from 80 %, `critical` from 95 %.
    pub level: String,
    /// `datastore` or `clone`.
    pub kind: String,
    /// Which.
    pub name: String,
    /// Bytes used.
    pub used_bytes: u64,
    /// Bytes that there are: of a datastore without its reserve, of a clone up to its reset rule or its size.
    pub limit_bytes: u64,
    /// How full it is, percent.
    pub percent: u32,
    /// What else is to be known: who waits for room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
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
    /// What each datastore runs out of first.
    pub limits: Vec<CapacityLimit>,
    /// Measured growth of all deltas, when there are enough that are old enough, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub growth_bytes_per_day: Option<u64>,
    /// Days until the free space is used up at that growth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub days_until_full: Option<u64>,
    /// What is saved now.
    pub now: Savings,
}
