//! Views of pools: clones of one template under one pattern of names, given to users.

use clonegate_core::format::catalog::Assignment;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{DurabilityView, Labels, LifetimeView, ResetRulesView};

/// How the clones of a pool are given to users.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AssignmentView {
    /// Any free one; it goes back, reset, when it is released or switched off.
    #[default]
    Floating,
    /// Always the same one.
    Dedicated,
}

impl From<AssignmentView> for Assignment {
    fn from(view: AssignmentView) -> Self {
        match view {
            AssignmentView::Floating => Self::Floating,
            AssignmentView::Dedicated => Self::Dedicated,
        }
    }
}

impl From<Assignment> for AssignmentView {
    fn from(assignment: Assignment) -> Self {
        match assignment {
            Assignment::Floating => Self::Floating,
            Assignment::Dedicated => Self::Dedicated,
        }
    }
}

/// Makes a pool and its clones.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreatePool {
    /// Its name.
    pub name: String,
    /// The template.
    pub template: String,
    /// A pinned version; the published one when absent.
    #[serde(default)]
    pub version: Option<u32>,
    /// Names of its clones, with one place for the number: `desk-{nnn}`; the pool's name and the number when absent.
    #[serde(default)]
    pub pattern: Option<String>,
    /// Clones that it has.
    pub size: u32,
    /// Clones that it may grow to, so that spares are left; `size` when absent.
    #[serde(default)]
    pub max: Option<u32>,
    /// Free clones that are kept ready.
    #[serde(default)]
    pub spares: u32,
    /// How they are given to users.
    #[serde(default)]
    pub assignment: AssignmentView,
    /// What a flush promises; `local` when absent.
    #[serde(default)]
    pub durability: Option<DurabilityView>,
    /// Whether deltas are meant to last; `ephemeral` for floating, `persistent` for dedicated when absent.
    #[serde(default)]
    pub lifetime: Option<LifetimeView>,
    /// When deltas are discarded besides.
    #[serde(default)]
    pub reset: ResetRulesView,
    /// Labels of its clones, for policies.
    #[serde(default)]
    pub labels: Labels,
}

/// Changes a pool; what is absent stays. Its clones follow.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangePool {
    /// Clones that it may grow to.
    #[serde(default)]
    pub max: Option<u32>,
    /// Free clones that are kept ready.
    #[serde(default)]
    pub spares: Option<u32>,
    /// Whether deltas are meant to last.
    #[serde(default)]
    pub lifetime: Option<LifetimeView>,
    /// When deltas are discarded besides.
    #[serde(default)]
    pub reset: Option<ResetRulesView>,
    /// Whether it takes no allocations.
    #[serde(default)]
    pub maintenance: Option<bool>,
}

/// A clone of a pool.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PoolMember {
    /// The clone.
    pub name: String,
    /// The template version that it is on.
    pub version: u32,
    /// The user that has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assigned: Option<String>,
    /// Machines that have it open here.
    pub attached: Vec<String>,
}

/// A pool.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PoolView {
    /// Nothing was made.
    #[serde(default)]
    pub dry_run: bool,
    /// Of a dry run: where its clones would go, and what space they need.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Its name.
    pub name: String,
    /// The template.
    pub template: String,
    /// A pinned version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// Names of its clones.
    pub pattern: String,
    /// Clones that it should have.
    pub size: u32,
    /// Clones that it may grow to.
    pub max: u32,
    /// Free clones that are kept ready.
    pub spares: u32,
    /// How they are given to users.
    pub assignment: AssignmentView,
    /// What a flush promises.
    pub durability: DurabilityView,
    /// Whether deltas are meant to last.
    pub lifetime: LifetimeView,
    /// When deltas are discarded besides.
    pub reset: ResetRulesView,
    /// Whether it takes no allocations.
    pub maintenance: bool,
    /// Clones that it has, or would have.
    pub clones: u32,
    /// Of these given to users.
    pub assigned: u32,
    /// Of these free.
    pub free: u32,
    /// Of these on another version than new ones would be.
    pub outdated: u32,
    /// Its clones; only when one pool is asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<PoolMember>,
    /// When it was made, milliseconds since 1970 UTC.
    pub created_ms: u64,
}

/// A clone that a user got.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Allocated {
    /// The pool.
    pub pool: String,
    /// The clone.
    pub clone: String,
    /// The user.
    pub user: String,
    /// Whether the user had it already.
    pub again: bool,
    /// Path of its bytes on this server.
    pub disk: String,
}
