//! `identities/<identity>`: what makes one machine itself, or what new machines of a template get. Immutable: a change is a new object,
//! then a catalog entry that names it, then the old object is deleted, so that old secrets do not stay.

use serde::{Deserialize, Serialize};

use super::envelope::{Kind, Record};

/// How the body of an identity is encrypted: ChaCha20-Poly1305 with a key from the gateways' configuration. The associated data are
/// the bytes of the owner, so that one machine's secrets cannot be put under another's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// Which key: the first bytes of a hash of it.
    pub key: [u8; 8],
    /// The nonce of this body; never used twice with one key.
    pub nonce: [u8; 12],
}

/// One identity as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityRecord {
    /// Whose it is: `clone <id>` or `template <name>`.
    pub owner: String,
    /// When it was written, milliseconds since 1970 UTC.
    pub written_ms: u64,
    /// How the body is encrypted; plain when absent.
    pub sealed: Option<Sealed>,
    /// JSON: the spec and what was generated for it.
    pub body: Vec<u8>,
}

impl Record for IdentityRecord {
    const KIND: Kind = Kind::Identity;
    const VERSION: u16 = 1;
}
