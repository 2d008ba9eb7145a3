//! The outer frame of every stored record: magic, kind, version, length, checksum.
//!
//! ```text
//! offset  bytes  field
//!      0      8  magic "CLONEGT1"
//!      8      2  kind      (little-endian, as all numbers)
//!     10      2  version   of this kind
//!     12      4  length    of the record, bytes
//!     16      4  crc32c    over bytes 8..16 and the record
//!     20      4  zero
//!     24      n  record    bincode, fixed-width integers
//!   24+n      …  sections  described by the record, checksummed by it
//! ```
//!
//! The checksum is verified before bincode sees a byte, and bincode is called nowhere else.

use bincode::Options;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::limits::RECORD_BYTES_MAX;

/// First bytes of every object that is a record.
pub const MAGIC: [u8; 8] = *b"CLONEGT1";
/// Bytes before the record.
pub const HEADER_BYTES: usize = 24;
/// From so many bytes on it matters where an object lies in memory.
const LARGE_BYTES: usize = 256 * 1024;
const PAGE: usize = 4096;

/// What a record is. Numbers are never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
#[expect(missing_docs, reason = "each variant is the record type of the same name")]
pub enum Kind {
    Base = 1,
    Index = 2,
    BootSet = 3,
    Clone = 4,
    Retired = 5,
    Epoch = 6,
    Commit = 7,
    Segment = 8,
    Checkpoint = 9,
    Identity = 10,
    JournalSegment = 11,
    JournalEntry = 12,
    CloneDeleted = 13,
    JournalOwner = 14,
    Making = 15,
    CatalogEntry = 20,
    Job = 21,
    Decision = 22,
    Audit = 23,
    Probe = 30,
    ExclusiveOwner = 31,
}

/// A type that is stored as a record of one kind.
pub trait Record: Serialize + DeserializeOwned {
    /// The kind in the envelope.
    const KIND: Kind;
    /// The version that this code writes. Older ones are read by [`Record::upgrade`].
    const VERSION: u16;

    /// Reads a record of an older version.
    ///
    /// # Errors
    /// `Unsupported` when the version is not known, which is the default.
    fn upgrade(version: u16, _record: &[u8]) -> Result<Self> {
        Err(Error::unsupported(
            "unknown-version",
            format!("a {:?} record of version {version}; this program reads up to {}", Self::KIND, Self::VERSION),
        )
        .hint("it was written by a newer clonegate: upgrade this one"))
    }
}

fn codec() -> impl Options {
    bincode::DefaultOptions::new()
        .with_fixint_encoding()
        .with_little_endian()
        .with_limit(RECORD_BYTES_MAX as u64)
        .reject_trailing_bytes()
}

/// Decodes the bare bincode of a record; for [`Record::upgrade`] of older versions.
///
/// # Errors
/// `Corrupt` with code `bad-record`.
pub fn decode_bare<T: DeserializeOwned>(record: &[u8]) -> Result<T> {
    codec().deserialize(record).map_err(|e| Error::corrupt("bad-record", format!("the record does not decode: {e}")))
}

/// The record in its envelope.
///
/// # Errors
/// `Exhausted` when it would be larger than [`RECORD_BYTES_MAX`].
pub fn encode<T: Record>(record: &T) -> Result<Bytes> {
    encode_with(record, &[])
}

/// The record in its envelope, followed by its sections.
///
/// # Errors
/// `Exhausted` when the record would be larger than [`RECORD_BYTES_MAX`].
pub fn encode_with<T: Record>(record: &T, sections: &[&[u8]]) -> Result<Bytes> {
    let mut out = begin(record, sections.iter().map(|s| s.len()).sum())?;
    for section in sections {
        out.put_slice(section);
    }
    Ok(out.freeze())
}

/// The record in its envelope, with room for so many bytes of sections, which the caller appends. For sections that are
/// large and made on the way: they are never copied.
///
/// # Errors
/// `Exhausted` when the record would be larger than [`RECORD_BYTES_MAX`].
pub fn begin<T: Record>(record: &T, sections_bytes: usize) -> Result<BytesMut> {
    let body = codec()
        .serialize(record)
        .map_err(|e| Error::exhausted("record-too-large", format!("a {:?} record does not encode: {e}", T::KIND)))?;
    let length = u32::try_from(body.len())
        .map_err(|_| Error::exhausted("record-too-large", format!("a {:?} record of {} bytes", T::KIND, body.len())))?;
    let mut out = room(HEADER_BYTES + body.len() + sections_bytes);
    out.put_slice(&MAGIC);
    out.put_u16_le(T::KIND as u16);
    out.put_u16_le(T::VERSION);
    out.put_u32_le(length);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&out[8..16]), &body);
    out.put_u32_le(crc);
    out.put_u32_le(0);
    out.put_slice(&body);
    Ok(out)
}

/// Empty memory for an object of so many bytes. That of a large one begins on a page, so that it can be written past the page cache from where it is.
fn room(bytes: usize) -> BytesMut {
    if bytes < LARGE_BYTES {
        return BytesMut::with_capacity(bytes);
    }
    let mut out = BytesMut::with_capacity(bytes + PAGE);
    let skip = out.as_ptr().align_offset(PAGE).min(PAGE);
    out.put_bytes(0, skip);
    out.advance(skip);
    out
}

/// How many bytes the record takes behind the header.
///
/// # Errors
/// `Exhausted` when it would be larger than [`RECORD_BYTES_MAX`].
pub fn body_len<T: Record>(record: &T) -> Result<usize> {
    let length = codec()
        .serialized_size(record)
        .map_err(|e| Error::exhausted("record-too-large", format!("a {:?} record does not encode: {e}", T::KIND)))?;
    usize::try_from(length).map_err(|e| Error::exhausted("record-too-large", "a record too long").because(e))
}

/// A decoded record and where its sections begin.
#[derive(Debug)]
pub struct Decoded<T> {
    /// The record.
    pub record: T,
    /// Offset of the first byte after the record, from the beginning of the object.
    pub sections_at: usize,
}

/// Reads a record that must be the whole object.
///
/// # Errors
/// As [`decode_with`]; also `Corrupt` when bytes follow.
pub fn decode<T: Record>(object: &[u8]) -> Result<T> {
    let decoded = decode_with(object)?;
    if decoded.sections_at != object.len() {
        return Err(corrupt(
            "trailing-bytes",
            format!("{} bytes after the record", object.len() - decoded.sections_at),
        ));
    }
    Ok(decoded.record)
}

/// Reads a record at the beginning of `object`.
///
/// # Errors
/// `Corrupt` when it is short, is not a record of this kind, or fails its checksum;
/// `Unsupported` when its version is unknown.
pub fn decode_with<T: Record>(object: &[u8]) -> Result<Decoded<T>> {
    let header = Header::parse(object)?;
    if header.kind != T::KIND as u16 {
        return Err(corrupt("wrong-kind", format!("a record of kind {} where {:?} belongs", header.kind, T::KIND)));
    }
    let end = HEADER_BYTES + header.length;
    let Some(body) = object.get(HEADER_BYTES..end) else {
        return Err(corrupt("short-record", format!("{} bytes where the record needs {end}", object.len())));
    };
    let crc = crc32c::crc32c_append(crc32c::crc32c(&object[8..16]), body);
    if crc != header.crc {
        return Err(corrupt("bad-checksum", format!("checksum {crc:08x}, stored {:08x}", header.crc)));
    }
    let record = if header.version == T::VERSION { decode_bare(body)? } else { T::upgrade(header.version, body)? };
    Ok(Decoded { record, sections_at: end })
}

/// How many bytes from the beginning of an object hold the header and the record, read from its first
/// [`HEADER_BYTES`]; for reading a record by range before its sections.
///
/// # Errors
/// `Corrupt` when they are no header.
pub fn record_end(header: &[u8]) -> Result<usize> {
    Ok(HEADER_BYTES + Header::parse(header)?.length)
}

struct Header {
    kind: u16,
    version: u16,
    length: usize,
    crc: u32,
}

impl Header {
    fn parse(object: &[u8]) -> Result<Self> {
        let Some(head) = object.first_chunk::<HEADER_BYTES>() else {
            return Err(corrupt("short-record", format!("{} bytes are no record", object.len())));
        };
        if head[..8] != MAGIC {
            return Err(corrupt("bad-magic", "it does not begin as a clonegate record".to_owned()));
        }
        if head[20..24] != [0; 4] {
            return Err(corrupt("bad-header", "reserved bytes are not zero".to_owned()));
        }
        let length = u32::from_le_bytes([head[12], head[13], head[14], head[15]]) as usize;
        if length > RECORD_BYTES_MAX {
            return Err(corrupt("bad-header", format!("a record of {length} bytes; the most is {RECORD_BYTES_MAX}")));
        }
        Ok(Self {
            kind: u16::from_le_bytes([head[8], head[9]]),
            version: u16::from_le_bytes([head[10], head[11]]),
            length,
            crc: u32::from_le_bytes([head[16], head[17], head[18], head[19]]),
        })
    }
}

fn corrupt(code: &'static str, message: String) -> Error {
    Error::corrupt(code, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Sample {
        number: u64,
        text: String,
    }

    impl Record for Sample {
        const KIND: Kind = Kind::Probe;
        const VERSION: u16 = 1;
    }

    fn sample() -> Sample {
        Sample { number: 7, text: "seven".into() }
    }

    #[test]
    fn a_large_object_begins_on_a_page_and_is_never_moved() {
        for sections in [0, LARGE_BYTES, (4 << 20) + 4, 8 << 20] {
            let record = sample();
            let mut object = begin(&record, sections).unwrap();
            let (at, head) = (object.as_ptr(), object.to_vec());
            object.put_bytes(7, sections);
            assert_eq!(object.as_ptr(), at, "{sections}: its memory was too small");
            let object = object.freeze();
            assert_eq!(object.as_ptr(), at);
            assert!(sections < LARGE_BYTES || at.align_offset(PAGE) == 0, "{sections}");
            assert_eq!((&object[..head.len()], object.len()), (&head[..], head.len() + sections));
        }
    }

    #[test]
    fn a_record_survives_its_bytes_with_sections() {
        let object = encode_with(&sample(), &[b"abc", b"de"]).unwrap();
        let decoded = decode_with::<Sample>(&object).unwrap();
        assert_eq!(decoded.record, sample());
        assert_eq!(&object[decoded.sections_at..], b"abcde");
        assert_eq!(record_end(&object[..HEADER_BYTES]).unwrap(), decoded.sections_at);
        assert_eq!(decode::<Sample>(&object).unwrap_err().code(), "trailing-bytes");
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_an_error() {
        let object = encode(&sample()).unwrap();
        for at in 0..object.len() {
            for bit in 0..8 {
                let mut bad = object.to_vec();
                bad[at] ^= 1 << bit;
                assert!(decode::<Sample>(&bad).is_err(), "byte {at} bit {bit}");
            }
            assert!(decode::<Sample>(&object[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_newer_version_is_refused_and_says_so() {
        let mut object = encode(&sample()).unwrap().to_vec();
        object[10] = 9;
        let crc = crc32c::crc32c_append(crc32c::crc32c(&object[8..16]), &object[HEADER_BYTES..]);
        object[16..20].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(decode::<Sample>(&object).unwrap_err().code(), "unknown-version");
    }
}
