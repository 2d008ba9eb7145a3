//! Typed identifiers and names, and their one textual form.
//!
//! An id is a prefix, an underscore and 26 characters of lower-case base 32 (Crockford) over 16 random bytes:
//! `c_0a1b…`. A name never contains an underscore, so a text is an id or a name and never both.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Result};
use crate::limits;

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const DIGITS: usize = 26;

/// What an identifier identifies; gives the prefix of its text.
pub trait IdKind {
    /// The prefix before the underscore.
    const PREFIX: &'static str;
}

macro_rules! id_kinds {
    ($($(#[$doc:meta])* $kind:ident, $alias:ident, $prefix:literal;)*) => {$(
        #[doc = concat!("Marks ids with the prefix `", $prefix, "_`.")]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $kind {}
        impl IdKind for $kind { const PREFIX: &'static str = $prefix; }
        $(#[$doc])* pub type $alias = Id<$kind>;
    )*};
}

id_kinds! {
    /// A clone, a full clone or a data disk: any volume with a log of its own.
    CloneKind, CloneId, "c";
    /// A base: a read-only copy of one template version on one datastore.
    BaseKind, BaseId, "b";
    /// A chunk index, shared by the bases that roll over from each other.
    IndexKind, IndexId, "i";
    /// A pack of chunks.
    PackKind, PackId, "p";
    /// What makes one machine itself, as stored.
    IdentityKind, IdentityId, "y";
    /// One running gateway process.
    GatewayKind, GatewayId, "g";
    /// A policy decision.
    DecisionKind, DecisionId, "d";
    /// A job.
    JobKind, JobId, "j";
    /// A snapshot of a clone.
    SnapshotKind, SnapshotId, "s";
}

/// A 128-bit identifier of one kind.
pub struct Id<K> {
    bytes: [u8; 16],
    kind: PhantomData<fn() -> K>,
}

impl<K> Id<K> {
    /// The id over these bytes, which should be random.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self { bytes, kind: PhantomData }
    }

    /// The bytes.
    pub const fn bytes(&self) -> &[u8; 16] {
        &self.bytes
    }
}

impl<K> Clone for Id<K> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<K> Copy for Id<K> {}
impl<K> PartialEq for Id<K> {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}
impl<K> Eq for Id<K> {}
impl<K> PartialOrd for Id<K> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<K> Ord for Id<K> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.bytes.cmp(&other.bytes)
    }
}
impl<K> std::hash::Hash for Id<K> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.bytes.hash(state);
    }
}

impl<K: IdKind> fmt::Display for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = u128::from_be_bytes(self.bytes);
        let mut text = [0u8; DIGITS];
        for (position, digit) in text.iter_mut().enumerate() {
            let shift = 5 * (DIGITS - 1 - position);
            *digit = ALPHABET[((value >> shift) & 31) as usize];
        }
        write!(f, "{}_{}", K::PREFIX, std::str::from_utf8(&text).unwrap_or_default())
    }
}

impl<K: IdKind> fmt::Debug for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<K: IdKind> FromStr for Id<K> {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::invalid(
                "bad-id",
                format!("{text:?} is not an id of the form {}_ and {DIGITS} characters", K::PREFIX),
            )
            .hint("copy it from the list")
        };
        let digits = text.strip_prefix(K::PREFIX).and_then(|rest| rest.strip_prefix('_')).ok_or_else(wrong)?;
        if digits.len() != DIGITS {
            return Err(wrong());
        }
        let mut value: u128 = 0;
        for (position, digit) in digits.bytes().enumerate() {
            let five = ALPHABET.iter().position(|&a| a == digit).ok_or_else(wrong)? as u128;
            // 26 digits carry 130 bits: the first may use only three of its five.
            if position == 0 && five > 7 {
                return Err(wrong());
            }
            value = (value << 5) | five;
        }
        Ok(Self::from_bytes(value.to_be_bytes()))
    }
}

impl<K: IdKind> Serialize for Id<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { self.bytes.serialize(serializer) }
    }
}

impl<'de, K: IdKind> Deserialize<'de> for Id<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
        } else {
            <[u8; 16]>::deserialize(deserializer).map(Self::from_bytes)
        }
    }
}

/// A name that a user gives: 1 to 63 of `a-z 0-9 . -`, first and last a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Name(String);

impl Name {
    /// Checks and takes `text`.
    ///
    /// # Errors
    /// `Invalid` with code `bad-name`.
    pub fn new(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        let right = text.len() <= limits::NAME_BYTES_MAX
            && edge(text.chars().next())
            && edge(text.chars().next_back())
            && text.chars().all(inner)
            && !text.contains("..");
        if right {
            return Ok(Self(text));
        }
        let shown: String = text.chars().take(limits::NAME_BYTES_MAX + 1).collect();
        Err(Error::invalid("bad-name", format!("{shown:?} is not a valid name"))
            .hint("use 1 to 63 of a-z, 0-9, '-' and '.', beginning and ending with a letter or digit"))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Name {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        Self::new(text)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// Random bytes that tell our own write from another's when a put-if-absent finds something there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Nonce(pub [u8; 16]);

impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// One period of ownership of a volume by one gateway; each open makes the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch(pub u64);

/// The number of a commit record within its epoch, from 0 without a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Sequence(pub u64);

/// The blake3 hash of a chunk's plain bytes: its identity in packs and caches.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChunkHash(pub [u8; 32]);

impl fmt::Debug for ChunkHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in &self.0[..8] {
            write!(f, "{byte:02x}")?;
        }
        f.write_str("…")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_its_text() {
        for bytes in [[0; 16], [255; 16], *b"0123456789abcdef"] {
            let id = CloneId::from_bytes(bytes);
            assert_eq!(id.to_string().parse::<CloneId>().unwrap(), id);
        }
        assert_eq!(CloneId::from_bytes([255; 16]).to_string(), "c_7zzzzzzzzzzzzzzzzzzzzzzzzz");
    }

    #[test]
    fn a_text_that_is_no_id_is_refused() {
        for text in [
            "",
            "c_",
            "b_00000000000000000000000000",
            "c_0000000000000000000000000",
            "c_80000000000000000000000000",
            "c_0000000000000000000000000U",
        ] {
            assert_eq!(text.parse::<CloneId>().unwrap_err().code(), "bad-id", "{text}");
        }
    }

    #[test]
    fn names_are_checked() {
        for good in ["a", "desktop-001", "win11.23h2", "0"] {
            assert!(Name::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a/b", "..", "a..b", "é", &"a".repeat(64)] {
            assert_eq!(Name::new(bad).unwrap_err().code(), "bad-name", "{bad}");
        }
    }
}
