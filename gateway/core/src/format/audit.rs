//! `audit/<day>/<…>`: who did what to which object, and why; written once, never changed.

use serde::{Deserialize, Serialize};

use super::envelope::{Kind, Record};
use crate::ids::{GatewayId, Nonce};

/// One object of the audit log: what one gateway noted together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// The gateway.
    pub gateway: GatewayId,
    /// Tells our own put from another's.
    pub nonce: Nonce,
    /// When it was written, milliseconds since 1970 UTC.
    pub written_ms: u64,
    /// In the order in which they happened.
    pub entries: Vec<AuditEntry>,
}

impl Record for AuditRecord {
    const KIND: Kind = Kind::Audit;
    const VERSION: u16 = 1;
}

/// One thing that was done, or refused.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AuditEntry {
    /// When, milliseconds since 1970 UTC.
    pub at_ms: u64,
    /// Who: the name of a token, the address of a peer, or `gateway` for what it did by itself.
    pub by: String,
    /// What: noun and verb, as `clone reset`.
    pub action: String,
    /// To what.
    pub object: String,
    /// `ok`, or the code of the error.
    pub outcome: String,
    /// Why: what the policy, the operator or the rule said.
    pub reason: String,
    /// The policy that decided, where one did.
    pub policy: String,
}
