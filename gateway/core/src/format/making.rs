//! `making/<id>/<n>`: that an image is being made, by whom, and what of it may be in the datastore before an index names it.

use serde::{Deserialize, Serialize};

use super::envelope::{self, Kind, Record};
use crate::error::Result;
use crate::ids::{GatewayId, IndexId, Nonce, PackId};

/// State number *n* of one image that is being made; the highest number is the state now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MakingRecord {
    /// The index that will name its packs.
    pub index: IndexId,
    /// Tells our own put from another's.
    pub nonce: Nonce,
    /// Who makes it, or removes what is left of it.
    pub maker: Option<Maker>,
    /// It is not made any more: what was put of it is being removed, and nobody may count on it.
    pub removing: bool,
    /// Packs that may have been put so far, [`MAKING_PACKS_MAX`](crate::limits::MAKING_PACKS_MAX) at most.
    pub packs: Vec<PackId>,
}

/// One life of one gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Maker {
    /// The gateway.
    pub gateway: GatewayId,
    /// This life of its process.
    pub run: Nonce,
}

impl Record for MakingRecord {
    const KIND: Kind = Kind::Making;
    const VERSION: u16 = 1;
}

/// Bytes of the nonce that alone was written before there was a record.
const NONCE_BYTES: usize = 16;

impl MakingRecord {
    /// Reads one; `None` when it is a bare nonce, and so not known whose.
    ///
    /// # Errors
    /// Those of [`envelope::decode`].
    pub fn decode(object: &[u8]) -> Result<Option<Self>> {
        if object.len() == NONCE_BYTES {
            return Ok(None);
        }
        envelope::decode(object).map(Some)
    }
}
