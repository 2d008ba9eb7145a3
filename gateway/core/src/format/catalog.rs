//! `catalog/<noun>/<name>.<n>`: the whole state of one named thing; the highest number is the state now.

use serde::{Deserialize, Serialize};

use super::base::BaseData;
use super::clone::CloneRecord;
use super::envelope::{Kind, Record};
use crate::advice::{Label, Lifetime};
use crate::ids::{GatewayId, IdentityId, Name, Nonce};

/// One state of one named thing. Numbers begin at 1, are given without a gap and never twice, so a number says the same to
/// every gateway for ever.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogRecord {
    /// Tells our own put from another's.
    pub nonce: Nonce,
    /// When it was written, milliseconds since 1970 UTC.
    pub written_ms: u64,
    /// The state.
    pub entry: Entry,
}

impl Record for CatalogRecord {
    const KIND: Kind = Kind::CatalogEntry;
    const VERSION: u16 = 1;
}

/// The state of a named thing. New variants go to the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    clippy::large_enum_variant,
    reason = "an entry is decoded, looked at and kept in a map; boxes would be in every match"
)]
pub enum Entry {
    /// There is nothing of this name (any more).
    Deleted,
    /// A datastore.
    Datastore(DatastoreEntry),
    /// A template.
    Template(TemplateEntry),
    /// A linked or full clone.
    Clone(CloneEntry),
    /// A data disk.
    Disk(DiskEntry),
    /// A pool.
    Pool(PoolEntry),
    /// The newest update of a template's clones.
    Rollout(RolloutEntry),
    /// What new clones of a template get as their identity.
    IdentityDefault(IdentityDefaultEntry),
    /// A data disk that was put away then, milliseconds since 1970 UTC.
    ArchivedDisk(DiskEntry, u64),
}

/// A type of thing that has names of its own.
pub trait Noun: Clone + PartialEq + Send + Sync + 'static {
    /// The word in keys and URLs, singular.
    const NOUN: &'static str;
    /// The error code for a name that there is not.
    const UNKNOWN: &'static str;
    /// Wraps it.
    fn into_entry(self) -> Entry;
    /// Unwraps it; `None` when the entry is another noun or a tombstone.
    fn from_entry(entry: Entry) -> Option<Self>;
}

macro_rules! nouns {
    ($($variant:ident($state:ident) = $noun:literal;)*) => {$(
        impl Noun for $state {
            const NOUN: &'static str = $noun;
            const UNKNOWN: &'static str = concat!("unknown-", $noun);
            fn into_entry(self) -> Entry {
                Entry::$variant(self)
            }
            fn from_entry(entry: Entry) -> Option<Self> {
                if let Entry::$variant(state) = entry { Some(state) } else { None }
            }
        }
    )*};
}

nouns! {
    Datastore(DatastoreEntry) = "datastore";
    Template(TemplateEntry) = "template";
    Clone(CloneEntry) = "clone";
    Pool(PoolEntry) = "pool";
    Rollout(RolloutEntry) = "rollout";
    IdentityDefault(IdentityDefaultEntry) = "identity-default";
}

/// The words of all nouns.
pub const NOUNS: [&str; 7] = [
    DatastoreEntry::NOUN,
    TemplateEntry::NOUN,
    CloneEntry::NOUN,
    DiskEntry::NOUN,
    PoolEntry::NOUN,
    RolloutEntry::NOUN,
    IdentityDefaultEntry::NOUN,
];

/// A disk is one of two entries, so that those written before there were archives are read as they are.
impl Noun for DiskEntry {
    const NOUN: &'static str = "disk";
    const UNKNOWN: &'static str = "unknown-disk";
    fn into_entry(self) -> Entry {
        match self.archived_ms {
            Some(at) => Entry::ArchivedDisk(self, at),
            None => Entry::Disk(self),
        }
    }
    fn from_entry(entry: Entry) -> Option<Self> {
        match entry {
            Entry::Disk(disk) => Some(disk),
            Entry::ArchivedDisk(disk, at) => Some(Self { archived_ms: Some(at), ..disk }),
            _ => None,
        }
    }
}

/// A datastore as all gateways of the home know it. Credentials are never stored: they come from each gateway's configuration or environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatastoreEntry {
    /// The URL of its root; the same for all gateways.
    pub url: String,
    /// Endpoint of the service, when it is not the usual one.
    pub endpoint: Option<String>,
    /// Region.
    pub region: Option<String>,
    /// Whether the bucket is part of the path.
    pub path_style: bool,
    /// One gateway, ever: its store does not honour put-if-absent.
    pub exclusive: bool,
    /// Bytes that it may hold; `None` when nobody said.
    pub capacity: Option<u64>,
    /// Whether unwritten bytes take no space; linked clones need it.
    pub thin: bool,
    /// Takes no new clones.
    pub maintenance: bool,
    /// Bytes kept free for deltas that are there already.
    pub reserve: u64,
    /// How many times its capacity may be promised, percent (400 is four times).
    pub overcommit_percent: u32,
    /// Labels, for policies.
    pub labels: Vec<Label>,
    /// When it was added, milliseconds since 1970 UTC.
    pub created_ms: u64,
}

/// The life of a template version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VersionState {
    /// Not checked yet.
    Draft,
    /// Checked; can be published.
    Sealed,
    /// Going: no new base may be made of it.
    Deleting,
}

/// A golden image: its versions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateEntry {
    /// One line for people.
    pub description: String,
    /// Versions, oldest first.
    pub versions: Vec<TemplateVersion>,
    /// The version that new clones get.
    pub published: Option<u32>,
    /// The versions that were published before, oldest first; `rollback` goes back along it.
    pub history: Vec<u32>,
    /// The number of the next version; numbers are not used again.
    pub next_version: u32,
    /// So many versions that no clone needs are kept; older ones go when another is published.
    pub keep_versions: Option<u32>,
    /// When it was made, milliseconds since 1970 UTC.
    pub created_ms: u64,
}

impl TemplateEntry {
    /// The version of this number, unless it is going.
    pub fn version(&self, number: u32) -> Option<&TemplateVersion> {
        self.versions.iter().find(|v| v.number == number && v.state != VersionState::Deleting)
    }
}

/// One sealed copy of a golden image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateVersion {
    /// From 1 within the template.
    pub number: u32,
    /// Its life.
    pub state: VersionState,
    /// Size, bytes; a multiple of 512.
    pub size: u64,
    /// Its bytes. A base belongs to this version if, and only if, it has the same.
    pub data: BaseData,
    /// Deltas that each of its bases takes.
    pub slots: u32,
    /// The datastore it was imported to.
    pub datastore: Name,
    /// The version it was made from.
    pub parent: Option<u32>,
    /// Where it came from: a file name, a URL or `clone NAME`.
    pub origin: String,
    /// Bytes that the import stored.
    pub stored_bytes: u64,
    /// Bytes of it that are not zero.
    pub used_bytes: u64,
    /// When it was made, milliseconds since 1970 UTC.
    pub created_ms: u64,
    /// What the sealing checks found, one sentence each.
    pub findings: Vec<String>,
}

/// When a clone's delta is discarded, beyond what a reset policy says.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ResetRules {
    /// So long after the last reset, milliseconds.
    pub every_ms: Option<u64>,
    /// When the delta passes so many bytes.
    pub at_bytes: Option<u64>,
}

/// A clone by name. It holds the volume's record too, so that opening it asks for nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneEntry {
    /// The volume, as in its slot.
    pub record: CloneRecord,
    /// The datastore of its base and delta.
    pub datastore: Name,
    /// The template version whose base it is on, or that it was made from.
    pub template: Name,
    /// Number of that version.
    pub version: u32,
    /// Whether its delta is meant to last.
    pub lifetime: Lifetime,
    /// The pool that it belongs to.
    pub pool: Option<Name>,
    /// Labels, for policies.
    pub labels: Vec<Label>,
    /// Why nothing may be discarded, when somebody holds it.
    pub hold: Option<String>,
    /// When the hold ends by itself, milliseconds since 1970 UTC.
    pub hold_until_ms: Option<u64>,
    /// When its delta is discarded.
    pub reset: ResetRules,
    /// When it was last reset, milliseconds since 1970 UTC.
    pub last_reset_ms: Option<u64>,
    /// The version that it moves to at its next power-on.
    pub pending_version: Option<u32>,
    /// Where its last update took it from.
    pub moved_from: Option<MovedFrom>,
    /// A machine had it open when its gateway stopped, and has not been switched off since.
    pub left_running: bool,
    /// The user that a pool gave it to.
    pub assigned: Option<String>,
    /// What makes this machine itself.
    pub identity: Option<IdentityEntry>,
}

/// Where an update took a clone from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovedFrom {
    /// The template.
    pub template: Name,
    /// The version.
    pub version: u32,
    /// When, milliseconds since 1970 UTC.
    pub at_ms: u64,
}

/// Which identity a machine has. A clone without one has what follows from its name and id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityEntry {
    /// Counts the instance-ids; the instance-id is the clone's id and this.
    pub generation: u32,
    /// The object that holds it.
    pub record: IdentityId,
}

/// What new clones of the template of this name get as their identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityDefaultEntry {
    /// The object that holds it.
    pub record: IdentityId,
}

/// A data disk by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskEntry {
    /// The volume.
    pub record: CloneRecord,
    /// The datastore that it is on.
    pub datastore: Name,
    /// The clone that it belongs to now.
    pub attached_to: Option<Name>,
    /// Deleted together with that clone.
    pub delete_with_clone: bool,
    /// When it was put away, milliseconds since 1970 UTC; stored beside it, as [`Entry::ArchivedDisk`].
    #[serde(skip)]
    pub archived_ms: Option<u64>,
}

/// How the machines of a pool are given to users.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Assignment {
    /// Any free one; it goes back, reset, when released.
    Floating,
    /// Always the same one.
    Dedicated,
}

/// A pool: clones of one template under one pattern.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolEntry {
    /// The template.
    pub template: Name,
    /// A pinned version; otherwise the published one.
    pub version: Option<u32>,
    /// Names of its clones, with one `{n}` or `{nnn}`.
    pub pattern: String,
    /// Clones that it should have.
    pub size: u32,
    /// Clones that it may grow to, so that spares are left.
    pub max: u32,
    /// Free clones that `allocate` leaves ready.
    pub spares: u32,
    /// How its machines are given to users.
    pub assignment: Assignment,
    /// What its clones are made with.
    pub durability: super::clone::Durability,
    /// Whether deltas are meant to last.
    pub lifetime: Lifetime,
    /// When deltas are discarded.
    pub reset: ResetRules,
    /// Labels of its clones.
    pub labels: Vec<Label>,
    /// Takes no allocations.
    pub maintenance: bool,
    /// When it was made, milliseconds since 1970 UTC.
    pub created_ms: u64,
}

/// How far an update of many clones is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RolloutState {
    /// Its gateway moves clones.
    Running,
    /// The first ones are moved; somebody has to say that they are good.
    AwaitsPromotion,
    /// Somebody stopped it for a while.
    Paused,
    /// A clone could not be moved.
    Stopped,
    /// All are moved, or noted for their next power-on.
    Done,
    /// Clones are moved back to where they were.
    RollingBack,
    /// They are.
    RolledBack,
}

/// The newest update of the clones of one template; its name is the template's. There is one at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutEntry {
    /// Names this run; whoever resumes gives it a new one, and the former runner stops.
    pub run: Nonce,
    /// The gateway that runs it.
    pub gateway: GatewayId,
    /// How far it is.
    pub state: RolloutState,
    /// The version that clones move to.
    pub version: u32,
    /// Names of the clones; all of the template when empty.
    pub clones: Vec<Name>,
    /// Only those of this pool.
    pub pool: Option<Name>,
    /// So many go first.
    pub canary: u32,
    /// At most so many at once.
    pub max_unavailable: u32,
    /// Only noted, for each clone's next power-on.
    pub at_next_power_on: bool,
    /// Somebody said that the first ones are good, or nobody has to.
    pub promoted: bool,
    /// Clones that it is about.
    pub total: u32,
    /// Of these moved.
    pub moved: u32,
    /// Of these noted for their next power-on.
    pub later: u32,
    /// Why it stopped.
    pub failed: Option<String>,
    /// When it began, milliseconds since 1970 UTC.
    pub started_ms: u64,
    /// When it last changed its state.
    pub changed_ms: u64,
}
