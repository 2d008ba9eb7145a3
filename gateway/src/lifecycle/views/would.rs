//! Changes that answer with what they made; here they are asked only what they would touch.

use clonegate_core::advice::Lifetime;

use super::{
    AddDatastore, ChangePool, ImportTemplate, PowerEvent, ReferenceTemplate, ResetRulesView, RolloutAction, ToTemplate,
};

/// A change that is only to be tried.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the fields are those of the change itself")]
pub enum Would {
    /// Adds a datastore.
    AddDatastore(AddDatastore),
    /// Lets a datastore take no new clones, or again.
    Maintenance { datastore: String, on: bool },
    /// Imports an image that is uploaded.
    Import(ImportTemplate),
    /// Refers to an image in a store.
    Reference(ReferenceTemplate),
    /// Publishes a version.
    Publish { template: String, version: Option<u32> },
    /// Publishes the version before.
    RollBack { template: String },
    /// Seals a draft.
    Seal { template: String, version: Option<u32>, force: bool },
    /// Makes a template version of a clone.
    ToTemplate { clone: String, request: ToTemplate },
    /// Keeps the state of a clone.
    Snapshot { clone: String, snapshot: String },
    /// Gives a snapshot up.
    DropSnapshot { clone: String, snapshot: String },
    /// Tells a power event.
    Power { clone: String, event: PowerEvent },
    /// Holds a clone, or lets it go.
    Hold { clone: String, why: Option<String> },
    /// Says how long a delta is to last.
    Lifetime { clone: String, lifetime: Option<Lifetime>, rules: Option<ResetRulesView> },
    /// Changes a pool.
    ChangePool { pool: String, change: ChangePool },
    /// Gives a user a clone.
    Allocate { pool: String, user: String },
    /// Pauses, resumes, promotes, rolls back or ends an update.
    Steer { template: String, action: RolloutAction },
}
