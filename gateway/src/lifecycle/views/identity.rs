//! Views of what makes machines themselves.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use crate::identity::{HostKeys, IdentityFormat, IdentitySpec, InterfaceSpec, NetworkSpec, UserSpec, WindowsSpec};

/// What an identity shows instead of a password hash, and takes for the one that is stored.
pub const STORED: &str = "stored";

/// Gives a machine its identity.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SetIdentity {
    /// All that is said about it; what is left out is as usual, not as it was.
    pub spec: IdentitySpec,
    /// Make it a new machine too: a guest takes most changes only then.
    pub renew: bool,
}

/// Makes a machine a new one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RenewIdentity {
    /// Those who know the machine by its SSH host key go on knowing it.
    pub keep_host_keys: bool,
    /// Another MAC address, too, unless the spec says which.
    pub new_mac: bool,
}

/// The identity of a clone. Private keys are not shown, password hashes as `stored`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IdentityView {
    /// Nothing was done.
    pub dry_run: bool,
    /// The clone.
    pub clone: String,
    /// Host name.
    pub hostname: String,
    /// Changes when, and only when, the guest is to take itself for a new machine.
    pub instance_id: String,
    /// Counts the instance-ids.
    pub generation: u32,
    /// MAC address of its first card.
    pub mac: String,
    /// machine-id.
    pub machine_id: String,
    /// Public SSH host key; absent when the machine makes its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh_host_key: Option<String>,
    /// Fingerprint of that key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// `derived` from the clone's id and name, or stored `encrypted` or `plain`.
    pub kept: String,
    /// What was said about it.
    pub spec: IdentitySpec,
    /// Path of the identity disk on this server.
    pub disk: String,
    /// Path of the cloud-init seed on this server.
    pub seed: String,
    /// When it was last changed, milliseconds since 1970 UTC.
    pub changed_ms: u64,
    /// What else is to be known, one sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// The identity that new clones of a template get.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateIdentityView {
    /// Nothing was done.
    pub dry_run: bool,
    /// The template.
    pub template: String,
    /// Stored `encrypted` or `plain`; `none` when new clones get what follows from their id and name.
    pub kept: String,
    /// What was said about it.
    pub spec: IdentitySpec,
    /// When it was last changed, milliseconds since 1970 UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_ms: Option<u64>,
}
