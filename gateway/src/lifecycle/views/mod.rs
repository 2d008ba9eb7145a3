//! What the control interface takes and gives, as JSON: the same types for REST, the OpenAPI document and the command line.

mod identity;
mod jobs;
mod labels;
mod operations;
mod pools;
mod would;

use clonegate_core::advice::{Label, Lifetime};
use clonegate_core::format::clone::Durability;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

pub use identity::*;
pub use jobs::*;
pub use labels::*;
pub use operations::*;
pub use pools::*;
pub use would::Would;

/// Labels as people write them.
pub type Labels = BTreeMap<String, String>;

/// Labels as they are stored.
pub fn to_labels(labels: &Labels) -> Vec<Label> {
    labels.iter().map(|(key, value)| Label { key: key.clone(), value: value.clone() }).collect()
}

/// Labels as they are shown.
pub fn from_labels(labels: &[Label]) -> Labels {
    labels.iter().map(|l| (l.key.clone(), l.value.clone())).collect()
}

/// One page of a list.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// The items, by name.
    pub items: Vec<T>,
    /// Give this as `cursor` for the next page; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Which part of a list.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ListQuery {
    /// Most items; 100 when absent, at most 10,000.
    pub limit: Option<usize>,
    /// The `next` of the page before.
    pub cursor: Option<String>,
}

/// What a delta is expected to last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LifetimeView {
    /// Kept until someone asks for a reset.
    Persistent,
    /// Discarded at power-off or log-off.
    Ephemeral,
}

impl From<LifetimeView> for Lifetime {
    fn from(view: LifetimeView) -> Self {
        match view {
            LifetimeView::Persistent => Self::Persistent,
            LifetimeView::Ephemeral => Self::Ephemeral,
        }
    }
}

impl From<Lifetime> for LifetimeView {
    fn from(lifetime: Lifetime) -> Self {
        match lifetime {
            Lifetime::Persistent => Self::Persistent,
            Lifetime::Ephemeral => Self::Ephemeral,
        }
    }
}

/// What a flush promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DurabilityView {
    /// Nothing survives the gateway process.
    Ephemeral,
    /// Synced to the journal on the gateway's disk; in the store at most a second later.
    Local,
    /// In the store.
    Object,
}

impl From<DurabilityView> for Durability {
    fn from(view: DurabilityView) -> Self {
        match view {
            DurabilityView::Ephemeral => Self::Ephemeral,
            DurabilityView::Local => Self::Local,
            DurabilityView::Object => Self::Object,
        }
    }
}

impl From<Durability> for DurabilityView {
    fn from(durability: Durability) -> Self {
        match durability {
            Durability::Ephemeral => Self::Ephemeral,
            Durability::Local => Self::Local,
            Durability::Object => Self::Object,
        }
    }
}

/// Adds a datastore.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddDatastore {
    /// Its name.
    pub name: String,
    /// `file:///dir`, `s3://bucket/prefix`, `gs://…`, `az://…`.
    pub url: String,
    /// Endpoint of the service, when it is not the usual one.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// Region.
    #[serde(default)]
    pub region: Option<String>,
    /// Whether the bucket is part of the path.
    #[serde(default)]
    pub path_style: bool,
    /// One gateway, ever: the store does not honour put-if-absent.
    #[serde(default)]
    pub exclusive: bool,
    /// Bytes that it may hold.
    #[serde(default)]
    pub capacity: Option<u64>,
    /// Whether unwritten bytes take no space (the default); linked clones need it.
    #[serde(default)]
    pub thin: Option<bool>,
    /// Bytes kept free for deltas that are there already.
    #[serde(default)]
    pub reserve: u64,
    /// How many times its capacity may be promised, percent; 0 means the default, 400.
    #[serde(default)]
    pub overcommit_percent: u32,
    /// Labels, for policies.
    #[serde(default)]
    pub labels: Labels,
}

/// A datastore.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DatastoreView {
    /// Its name.
    pub name: String,
    /// The URL of its root.
    pub url: String,
    /// `online`, `maintenance` or `offline`.
    pub health: String,
    /// Why it is offline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Bytes that it may hold.
    pub capacity: Option<u64>,
    /// Bytes free, as far as this can be known.
    pub free: Option<u64>,
    /// Whether unwritten bytes take no space.
    pub thin: bool,
    /// One gateway, ever.
    pub exclusive: bool,
    /// Bytes kept free for deltas that are there already.
    #[serde(default)]
    pub reserve: u64,
    /// How many times its capacity may be promised, percent.
    #[serde(default)]
    pub overcommit_percent: u32,
    /// What its clones may grow to, bytes.
    #[serde(default)]
    pub promised: u64,
    /// Who waits for room on it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<String>,
    /// Bases on it.
    pub bases: u32,
    /// Clones on it.
    pub clones: u32,
    /// Labels.
    pub labels: Labels,
    /// When it was added, milliseconds since 1970 UTC.
    pub created_ms: u64,
}

/// Describes an image that is about to be imported.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportTemplate {
    /// The template; a new one, or a new version of one that is there.
    pub name: String,
    /// The datastore; the first that is online when absent.
    #[serde(default)]
    pub datastore: Option<String>,
    /// One line for people.
    #[serde(default)]
    pub description: Option<String>,
    /// Where it came from, for people: a file name.
    #[serde(default)]
    pub origin: Option<String>,
    /// Whether new clones get this version at once. Absent: only if it is the first.
    #[serde(default)]
    pub publish: Option<bool>,
    /// Deltas that a base of it takes; 128 when absent.
    #[serde(default)]
    pub slots: Option<u32>,
    /// Neither look into it nor seal it: it can be published when it is sealed.
    #[serde(default)]
    pub draft: bool,
    /// Seal it whatever the checks find.
    #[serde(default)]
    pub force: bool,
}

/// Makes a template of an image that lies in a store already, without a copy.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReferenceTemplate {
    /// The template; a new one, or a new version of one that is there.
    pub name: String,
    /// The datastore that keeps the base record and the deltas; the first that is online when absent.
    #[serde(default)]
    pub datastore: Option<String>,
    /// One line for people.
    #[serde(default)]
    pub description: Option<String>,
    /// Whether new clones get this version at once. Absent: only if it is the first.
    #[serde(default)]
    pub publish: Option<bool>,
    /// Deltas that a base of it takes; 128 when absent.
    #[serde(default)]
    pub slots: Option<u32>,
    /// Neither look into it nor seal it: it can be published when it is sealed.
    #[serde(default)]
    pub draft: bool,
    /// Seal it whatever the checks find.
    #[serde(default)]
    pub force: bool,
    /// The raw image: `s3://bucket/key.raw`, `file:///dir/image.raw`.
    pub url: String,
}

/// A template version.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct VersionView {
    /// Its number.
    pub number: u32,
    /// `draft`, `sealed` or `published`.
    pub state: String,
    /// Size, bytes.
    pub size: u64,
    /// `packed` or `raw` (by reference).
    pub kind: String,
    /// The datastore it was imported to.
    pub datastore: String,
    /// The version it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<u32>,
    /// Where it came from.
    pub origin: String,
    /// Bytes that the import stored.
    pub stored_bytes: u64,
    /// Bytes of it that are not zero.
    pub used_bytes: u64,
    /// Bases of it.
    pub bases: u32,
    /// Clones on those.
    pub clones: u32,
    /// What the sealing checks found.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<String>,
    /// When it was made, milliseconds since 1970 UTC.
    pub created_ms: u64,
}

/// A template.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TemplateView {
    /// Its name.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// The version that new clones get.
    pub published: Option<u32>,
    /// Its versions, oldest first.
    pub versions: Vec<VersionView>,
    /// When it was made, milliseconds since 1970 UTC.
    pub created_ms: u64,
}

/// A base.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct BaseView {
    /// Its id.
    pub id: String,
    /// The template.
    pub template: String,
    /// The version that it holds.
    pub version: u32,
    /// The datastore that it is on.
    pub datastore: String,
    /// `ready`, `full`, `retired` or `orphan` (its template version is gone).
    pub state: String,
    /// Size, bytes.
    pub size: u64,
    /// `packed` or `raw` (by reference).
    pub kind: String,
    /// Slots that it has.
    pub slots: u32,
    /// Slots taken.
    pub taken: u32,
    /// When it was made, milliseconds since 1970 UTC.
    pub created_ms: u64,
}

/// Creates clones.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateClones {
    /// The name; with a `count`, a pattern like `desk-{nnn}` or a stem (`desk` makes `desk-001`, …).
    pub name: String,
    /// The template.
    pub template: String,
    /// Its version; the published one when absent.
    #[serde(default)]
    pub version: Option<u32>,
    /// How many; absent for one clone of exactly this name.
    #[serde(default)]
    pub count: Option<u32>,
    /// The first number; 1 when absent.
    #[serde(default)]
    pub first: Option<u32>,
    /// What a flush promises; `local` when absent.
    #[serde(default)]
    pub durability: Option<DurabilityView>,
    /// Whether deltas are meant to last; `persistent` when absent.
    #[serde(default)]
    pub lifetime: Option<LifetimeView>,
    /// When deltas are discarded besides what policies say; only once the machine is off.
    #[serde(default)]
    pub reset: ResetRulesView,
    /// Bytes that a delta is expected to grow to; 5 GiB or half the image when absent, whichever is less.
    #[serde(default)]
    pub expected_delta: Option<u64>,
    /// Labels, for policies.
    #[serde(default)]
    pub labels: Labels,
    /// What makes each a machine of its own; what the template says when absent.
    #[serde(default)]
    pub identity: Option<IdentitySpec>,
}

/// A clone.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CloneView {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
    /// `linked` or `full`.
    pub kind: String,
    /// The template.
    pub template: String,
    /// The version that it is on.
    pub version: u32,
    /// The datastore of its base and delta.
    pub datastore: String,
    /// Its base.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// Its slot of that base.
    pub slot: u32,
    /// Size, bytes.
    pub size: u64,
    /// What a flush promises.
    pub durability: DurabilityView,
    /// Whether its delta is meant to last.
    pub lifetime: LifetimeView,
    /// Its pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Labels.
    pub labels: Labels,
    /// Machines that have it open here, for reading or writing.
    pub attached: Vec<String>,
    /// Bytes of its delta, when it is open here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delta_bytes: Option<u64>,
    /// Why nothing may be discarded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<String>,
    /// The version that it moves to at its next power-on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending_version: Option<u32>,
    /// Why that came to nothing when it was last tried here; it is tried again at the next power-off or power-on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending_failed: Option<String>,
    /// When its delta is discarded, besides what policies say.
    #[serde(default)]
    pub reset: ResetRulesView,
    /// Why its machine may be running though nothing is attached here: nothing is discarded by itself then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub may_run: Option<String>,
    /// The version that its last update took it from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved_from: Option<u32>,
    /// Flushed writes of a lost gateway may be missing, which an operator accepted; known when it is open here.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lost_tail: bool,
    /// Path of its bytes on this server.
    pub disk: String,
    /// When it was made, milliseconds since 1970 UTC.
    pub created_ms: u64,
    /// When it was last reset, milliseconds since 1970 UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_reset_ms: Option<u64>,
}

/// Where a group of clones goes, and why.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PlacementView {
    /// The datastore.
    pub datastore: String,
    /// The base; absent when one is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// Clones that go there.
    pub clones: u32,
    /// The policy that said so.
    pub by: String,
    /// Its reason.
    pub reason: String,
}

/// What a change touches: done, or only planned with `dry_run`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct Touched {
    /// Nothing was done.
    pub dry_run: bool,
    /// Names of the things.
    pub names: Vec<String>,
    /// Machines that have them open now.
    pub sessions: u32,
    /// Bytes that go.
    pub bytes: u64,
    /// What else is to be known, one sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// What `clone create` did, or would do.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CreatedClones {
    /// Nothing was done.
    pub dry_run: bool,
    /// The clones; empty with `dry_run`.
    pub clones: Vec<CloneView>,
    /// Their names.
    pub names: Vec<String>,
    /// Where they went, or would go.
    pub placements: Vec<PlacementView>,
    /// Bases that were made on the way.
    pub new_bases: u32,
    /// Bytes that have to be copied first, to datastores that lack the image.
    #[serde(default)]
    pub copy_bytes: u64,
    /// Bytes that they take when all of them is written.
    #[serde(default)]
    pub most_bytes: u64,
}

/// Counters of the iCache.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct CacheView {
    /// Bytes that it may hold.
    pub capacity: u64,
    /// Bytes that it holds.
    pub used: u64,
    /// Lines that it holds.
    pub lines: u64,
    /// Reads that found their line.
    pub hits: u64,
    /// Reads that did not.
    pub misses: u64,
    /// Reads that waited for a fetch of somebody else.
    pub joins: u64,
    /// Bytes fetched from stores.
    pub store_bytes: u64,
    /// Bytes handed out without a fetch of their own.
    #[serde(default)]
    pub spared_bytes: u64,
}

/// A snapshot of a clone.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SnapshotView {
    /// The clone.
    pub clone: String,
    /// Its name.
    pub name: String,
}

/// A snapshot that a clone has.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct KeptSnapshot {
    /// Its name.
    pub name: String,
    /// When it was made, milliseconds since 1970 UTC.
    pub made_ms: u64,
    /// The base under it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// Its name as an NBD export, read-only.
    pub export: String,
    /// Path of its bytes on this server.
    pub disk: String,
}

/// Items of a page when nobody says.
const PAGE_USUAL: usize = 100;
/// Most items of a page.
const PAGE_MAX: usize = 10_000;

/// The page of `all` (in the order of their names) that a query asks for.
pub(super) fn page<T>(all: Vec<T>, query: &ListQuery, name: impl Fn(&T) -> &str) -> Page<T> {
    let limit = query.limit.unwrap_or(PAGE_USUAL).clamp(1, PAGE_MAX);
    let after = |item: &T| query.cursor.as_deref().is_none_or(|cursor| name(item) > cursor);
    let mut items: Vec<T> = all.into_iter().filter(after).take(limit + 1).collect();
    let more = items.len() > limit;
    items.truncate(limit);
    let next = items.last().filter(|_| more).map(|item| name(item).to_owned());
    Page { items, next }
}

impl<T> Page<T> {
    /// The page with each item turned into another.
    pub(super) fn map<U>(self, turn: impl FnMut(T) -> U) -> Page<U> {
        Page { items: self.items.into_iter().map(turn).collect(), next: self.next }
    }
}
