//! `exclusive`: which gateway alone uses a datastore whose put-if-absent does not work between gateways.

use serde::{Deserialize, Serialize};

use super::envelope::{Kind, Record};
use crate::ids::{GatewayId, Nonce};

/// The owner of an exclusive datastore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExclusiveOwner {
    /// The gateway's lasting identity.
    pub gateway: GatewayId,
    /// Tells our own put from another's.
    pub nonce: Nonce,
    /// Name of its host, for people.
    pub host: String,
    /// When it took the datastore, milliseconds since 1970 UTC.
    pub claimed_ms: u64,
}

impl Record for ExclusiveOwner {
    const KIND: Kind = Kind::ExclusiveOwner;
    const VERSION: u16 = 1;
}
