//! `bases/<base>/bootset/<n>`: which chunks a boot of this base touches, in the order of first touch.
//!
//! ```text
//! envelope  BootSetRecord
//! count×8   chunk numbers, u64 little-endian; their crc32c is in the record
//! ```

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::envelope::{self, Kind, Record};
use crate::error::{Error, Result};
use crate::ids::{BaseId, Nonce};
use crate::limits::BOOT_SET_CHUNKS_MAX;
use crate::units::ChunkIndex;

/// The head of a boot set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootSetRecord {
    /// The base.
    pub base: BaseId,
    /// Tells our own put from another's.
    pub nonce: Nonce,
    /// When it was written, milliseconds since 1970 UTC.
    pub written_ms: u64,
    /// Chunks in the list, at most [`BOOT_SET_CHUNKS_MAX`].
    pub count: u32,
    /// CRC32C of the list.
    pub list_crc: u32,
}

impl Record for BootSetRecord {
    const KIND: Kind = Kind::BootSet;
    const VERSION: u16 = 1;
}

/// The object of a boot set; chunks past [`BOOT_SET_CHUNKS_MAX`] are left out.
///
/// # Errors
/// `Exhausted` when the record does not encode, which cannot happen at this size.
pub fn encode(base: BaseId, nonce: Nonce, written_ms: u64, chunks: &[ChunkIndex]) -> Result<Bytes> {
    let chunks = &chunks[..chunks.len().min(BOOT_SET_CHUNKS_MAX as usize)];
    let mut list = BytesMut::with_capacity(chunks.len() * 8);
    for chunk in chunks {
        list.put_u64_le(chunk.0);
    }
    let count = u32::try_from(chunks.len()).unwrap_or(BOOT_SET_CHUNKS_MAX);
    let record = BootSetRecord { base, nonce, written_ms, count, list_crc: crc32c::crc32c(&list) };
    envelope::encode_with(&record, &[&list])
}

/// Reads the object of a boot set.
///
/// # Errors
/// `Corrupt` when it contradicts itself.
pub fn decode(object: &[u8]) -> Result<(BootSetRecord, Vec<ChunkIndex>)> {
    let decoded = envelope::decode_with::<BootSetRecord>(object)?;
    let list = &object[decoded.sections_at..];
    let record = decoded.record;
    if record.count > BOOT_SET_CHUNKS_MAX || list.len() != record.count as usize * 8 {
        return Err(bad(format!("a list of {} bytes for {} chunks", list.len(), record.count)));
    }
    if crc32c::crc32c(list) != record.list_crc {
        return Err(bad("the list fails its checksum".to_owned()));
    }
    let (words, _) = list.as_chunks::<8>();
    Ok((record, words.iter().map(|word| ChunkIndex(u64::from_le_bytes(*word))).collect()))
}

fn bad(message: String) -> Error {
    Error::corrupt("bad-boot-set", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_set_survives_its_bytes_and_nothing_else_passes() {
        let chunks = [ChunkIndex(9), ChunkIndex(0), ChunkIndex(u64::MAX)];
        let base = BaseId::from_bytes([1; 16]);
        let object = encode(base, Nonce([2; 16]), 3, &chunks).unwrap();
        let (record, read) = decode(&object).unwrap();
        assert_eq!((record.base, record.written_ms, read.as_slice()), (base, 3, chunks.as_slice()));
        for at in 0..object.len() {
            for bit in 0..8 {
                let mut bad = object.to_vec();
                bad[at] ^= 1 << bit;
                assert!(decode(&bad).is_err(), "byte {at} bit {bit}");
            }
            assert!(decode(&object[..at]).is_err(), "cut at {at}");
        }
    }
}
