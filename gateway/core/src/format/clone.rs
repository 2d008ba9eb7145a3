//! What a clone is, as stored: in its slot (`bases/<base>/slots/<n>`) and, when it has no base, in `clones/<clone>/clone`.

use serde::{Deserialize, Serialize};

use super::envelope::{Kind, Record};
use crate::ids::{BaseId, CloneId, Name, Nonce};

/// What a flush promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Nothing survives: the delta is gone with the gateway process.
    Ephemeral,
    /// Synced to the journal on the gateway's disk; in the store at most a second later, in order.
    #[default]
    Local,
    /// In the store.
    Object,
}

/// What kind of volume it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeKind {
    /// Base and delta.
    LinkedClone,
    /// A volume that needs no base.
    FullClone,
    /// A persistent thin volume of a clone.
    DataDisk,
}

/// The immutable facts of one volume. The slot carries them, so a linked clone is two PUTs:
/// its slot in the datastore and its name in the catalog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneRecord {
    /// Its id.
    pub id: CloneId,
    /// Tells our own put from another's.
    pub nonce: Nonce,
    /// The name that it was created under.
    pub name: Name,
    /// What it is.
    pub kind: VolumeKind,
    /// Size, bytes; a multiple of 512.
    pub size: u64,
    /// The base that it was born on; none for a volume without one.
    pub base: Option<BaseId>,
    /// Its slot of that base.
    pub slot: u32,
    /// What a flush promises.
    pub durability: Durability,
    /// When it was made, milliseconds since 1970 UTC.
    pub created_ms: u64,
}

/// `clones/<clone>/deleted`: nobody opens or claims the volume in this datastore any more. Put before anything of it is removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletedRecord {
    /// The volume.
    pub id: CloneId,
    /// Tells our own put from another's.
    pub nonce: Nonce,
    /// When, milliseconds since 1970 UTC.
    pub deleted_ms: u64,
    /// The datastore that it is on now, when it was moved.
    pub moved_to: Option<Name>,
}

impl Record for DeletedRecord {
    const KIND: Kind = Kind::CloneDeleted;
    const VERSION: u16 = 1;
}

impl Record for CloneRecord {
    const KIND: Kind = Kind::Clone;
    const VERSION: u16 = 1;
}
