//! `bases/<base>/base`: what a base is and where its bytes are.

use serde::{Deserialize, Serialize};

use super::envelope::{Kind, Record};
use crate::ids::{BaseId, IndexId, Name, Nonce};

/// A base as stored; it never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseRecord {
    /// Its id, the same as in its key.
    pub id: BaseId,
    /// Tells our own put from another's.
    pub nonce: Nonce,
    /// Size of the image, bytes.
    pub size: u64,
    /// The template and the number of its version that this base holds.
    pub template: Name,
    /// Version number within the template, from 1.
    pub version: u32,
    /// Deltas that it takes.
    pub slots: u32,
    /// When it was made, milliseconds since 1970 UTC.
    pub created_ms: u64,
    /// Where the bytes are.
    pub data: BaseData,
}

/// Where the bytes of a base are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BaseData {
    /// In packs, by an index that bases of one version on one datastore share (so a rollover is one PUT).
    Packed {
        /// `indexes/<index>`.
        index: IndexId,
    },
    /// In somebody's raw image, by reference: never copied, never written.
    Raw {
        /// URL of the store that holds it, without the key (`s3://bucket`, `file:///dir`).
        store: String,
        /// Key of the image within that store.
        key: String,
        /// Strong ETag, pinned by `If-Match` on every read.
        etag: String,
    },
}

impl Record for BaseRecord {
    const KIND: Kind = Kind::Base;
    const VERSION: u16 = 1;
}

/// `bases/<base>/retired`: no new clone may link to this base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetiredRecord {
    /// The base.
    pub id: BaseId,
    /// When, milliseconds since 1970 UTC.
    pub retired_ms: u64,
    /// Why, for people.
    pub reason: String,
}

impl Record for RetiredRecord {
    const KIND: Kind = Kind::Retired;
    const VERSION: u16 = 1;
}
