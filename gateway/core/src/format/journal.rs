//! The journal on a gateway's disk: flushed writes of all its `local` clones until they are in the store.
//!
//! ```text
//! file, of a fixed size, used again when nothing in it is needed any more
//!   0     envelope with a JournalSegmentRecord, filled to 4096 with zeroes
//!   4096  entries, one behind the other, each on a multiple of 8
//!   …     zeroes, or entries of an older generation
//!
//! entry
//!   envelope with a JournalEntryRecord
//!   extent table   record.extents × 16 bytes, as in a commit record
//!   blocks         record.blocks × 4096 bytes
//!                  crc32c of table and blocks in record.body_crc
//! ```
//!
//! An entry of another generation than its file's is a leftover. The first entry that does not decode is the end, unless
//! a later one says that the place was synced before it: then the journal is damaged. A *mark* is an entry of no batch: it says
//! that alone, of the group before it, when no other group follows at once.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::envelope::{self, Kind, Record};
use super::frame::BLOCK;
use super::log::{EXTENT_BYTES, LogExtent, Run, decode_extents, encode_extents};
use crate::error::{Error, Result};
use crate::ids::{CloneId, Epoch, Nonce};
use crate::limits::COMMIT_EXTENTS_MAX;

/// Where the entries of a file begin.
pub const ENTRIES_AT: u64 = 4096;
/// Bytes of a mark: less than any batch takes.
pub const MARK_BYTES: u64 = 104;
/// Entries begin on multiples of this.
pub const ENTRY_ALIGN: u64 = 8;

/// The beginning of a journal file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalSegmentRecord {
    /// The journal that the file belongs to.
    pub journal: Nonce,
    /// Names this use of the file; drawn at random. 0: the file holds nothing.
    pub generation: u64,
}

impl Record for JournalSegmentRecord {
    const KIND: Kind = Kind::JournalSegment;
    const VERSION: u16 = 1;
}

/// `owner`: whose journal a directory holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalOwnerRecord {
    /// Names the journal; claims of epochs say it.
    pub journal: Nonce,
    /// Whose it is: the gateway's id.
    pub owner: String,
}

impl Record for JournalOwnerRecord {
    const KIND: Kind = Kind::JournalOwner;
    const VERSION: u16 = 1;
}

/// One batch of writes of one clone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalEntryRecord {
    /// The generation of the file that it was written to.
    pub generation: u64,
    /// The bytes of this file before this offset were synced when the entry was written.
    pub synced: u64,
    /// The volume.
    pub clone: CloneId,
    /// The epoch it was accepted in.
    pub epoch: Epoch,
    /// Its number among the batches of this volume; grows by one with each, over all epochs.
    pub number: u64,
    /// Changes of the volume's bytes, this batch's included.
    pub change: u64,
    /// When, milliseconds since 1970 UTC.
    pub time_ms: u64,
    /// Extents in the table.
    pub extents: u32,
    /// Blocks behind it.
    pub blocks: u32,
    /// crc32c of table and blocks.
    pub body_crc: u32,
}

impl Record for JournalEntryRecord {
    const KIND: Kind = Kind::JournalEntry;
    const VERSION: u16 = 1;
}

impl JournalEntryRecord {
    /// A mark: everything before `synced` was synced.
    pub const fn mark(generation: u64, synced: u64) -> Self {
        Self {
            generation,
            synced,
            clone: CloneId::from_bytes([0; 16]),
            epoch: Epoch(0),
            number: 0,
            change: 0,
            time_ms: 0,
            extents: 0,
            blocks: 0,
            body_crc: 0,
        }
    }

    /// Whether it is a mark. Batches are numbered from 1.
    pub const fn is_mark(&self) -> bool {
        self.number == 0 && self.extents == 0
    }
}

/// The extent table of an entry, and the blocks behind it.
fn table_of(runs: &[Run]) -> Result<(Vec<LogExtent>, u32)> {
    let full = || Error::exhausted("record-too-large", "a journal entry of too many blocks");
    let mut extents = Vec::with_capacity(runs.len());
    let mut blocks = 0u32;
    for run in runs {
        let mut at = run.start.0;
        let end = at + run.blocks;
        while at < end {
            let part = u32::try_from((end - at).min(super::log::EXTENT_BLOCKS_MAX)).map_err(|_| full())?;
            let frame = run.data.is_some().then_some(blocks);
            extents.push(LogExtent { start: crate::units::BlockIndex(at), blocks: part, frame });
            if run.data.is_some() {
                blocks = blocks.checked_add(part).ok_or_else(full)?;
            }
            at += u64::from(part);
        }
    }
    if extents.len() > COMMIT_EXTENTS_MAX {
        return Err(full());
    }
    Ok((extents, blocks))
}

/// Appends an entry to `out`, filled to [`ENTRY_ALIGN`]. Its blocks are copied once.
///
/// # Errors
/// `Exhausted` when it is too large; then nothing was appended.
pub fn append_entry(out: &mut Vec<u8>, mut record: JournalEntryRecord, runs: &[Run]) -> Result<()> {
    let (extents, blocks) = table_of(runs)?;
    let table = encode_extents(&extents);
    let data = || runs.iter().filter_map(|run| run.data.as_ref());
    record.extents =
        u32::try_from(extents.len()).map_err(|_| Error::exhausted("record-too-large", "too many extents"))?;
    record.blocks = blocks;
    record.body_crc = data().fold(crc32c::crc32c(&table), |crc, data| crc32c::crc32c_append(crc, data));
    let head = envelope::encode(&record)?;
    out.reserve(head.len() + table.len() + blocks as usize * BLOCK + 8);
    let begin = out.len();
    out.extend_from_slice(&head);
    out.extend_from_slice(&table);
    data().for_each(|data| out.extend_from_slice(data));
    let length = out.len() - begin;
    out.resize(begin + length.next_multiple_of(8), 0);
    Ok(())
}

/// The bytes of an entry, filled to [`ENTRY_ALIGN`].
///
/// # Errors
/// `Exhausted` when it is too large.
pub fn encode_entry(record: JournalEntryRecord, runs: &[Run]) -> Result<Bytes> {
    let mut out = Vec::new();
    append_entry(&mut out, record, runs)?;
    Ok(out.into())
}

/// Bytes of the whole entry, whose table begins `sections_at` bytes behind its beginning; `None` when no entry is so large.
pub fn entry_bytes(sections_at: usize, record: &JournalEntryRecord) -> Option<u64> {
    let table = (record.extents as usize).checked_mul(EXTENT_BYTES)?;
    let blocks = (record.blocks as usize).checked_mul(BLOCK)?;
    let end = sections_at.checked_add(table)?.checked_add(blocks)?;
    Some((end as u64).next_multiple_of(ENTRY_ALIGN))
}

/// An entry, decoded.
#[derive(Debug)]
pub struct Entry {
    /// The record.
    pub record: JournalEntryRecord,
    /// What was written.
    pub runs: Vec<Run>,
    /// Bytes that it takes in the file.
    pub bytes: u64,
}

/// Reads the entry at the beginning of `file`, the rest of a journal file.
///
/// # Errors
/// `Corrupt` when there is none, which is how a journal ends.
pub fn decode_entry(file: &Bytes) -> Result<Entry> {
    let decoded = envelope::decode_with::<JournalEntryRecord>(file)?;
    let record = decoded.record;
    let cut = || Error::corrupt("short-record", "a journal entry that is cut off");
    let table_bytes = (record.extents as usize).checked_mul(EXTENT_BYTES).ok_or_else(cut)?;
    let block_bytes = (record.blocks as usize).checked_mul(BLOCK).ok_or_else(cut)?;
    let blocks_at = decoded.sections_at.checked_add(table_bytes).ok_or_else(cut)?;
    let end = blocks_at.checked_add(block_bytes).ok_or_else(cut)?;
    let body = file.get(decoded.sections_at..end).ok_or_else(cut)?;
    let crc = crc32c::crc32c(body);
    if crc != record.body_crc {
        return Err(Error::corrupt("bad-checksum", format!("checksum {crc:08x}, stored {:08x}", record.body_crc)));
    }
    let runs = decode_extents(&body[..table_bytes], record.blocks)?
        .into_iter()
        .map(|extent| {
            let data = extent.frame.map(|first| {
                let from = blocks_at + first as usize * BLOCK;
                file.slice(from..from + extent.blocks as usize * BLOCK)
            });
            Run { start: extent.start, blocks: u64::from(extent.blocks), data }
        })
        .collect();
    Ok(Entry { record, runs, bytes: (end as u64).next_multiple_of(ENTRY_ALIGN) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::BlockIndex;
    use bytes::{BufMut, BytesMut};

    fn sample() -> (JournalEntryRecord, Bytes) {
        let record = JournalEntryRecord {
            generation: 1,
            synced: 4096,
            clone: CloneId::from_bytes([1; 16]),
            epoch: Epoch(2),
            number: 3,
            change: 4,
            time_ms: 5,
            extents: 0,
            blocks: 0,
            body_crc: 0,
        };
        let runs = [
            Run { start: BlockIndex(7), blocks: 1, data: Some(Bytes::from(vec![3; BLOCK])) },
            Run { start: BlockIndex(9), blocks: 1 << 32, data: None },
        ];
        let bytes = encode_entry(record.clone(), &runs).unwrap();
        (record, bytes)
    }

    #[test]
    fn an_entry_survives_its_bytes() {
        let (record, bytes) = sample();
        assert_eq!(bytes.len() % 8, 0);
        let mut file = BytesMut::from(&bytes[..]);
        file.put_bytes(0, 100);
        let entry = decode_entry(&file.freeze()).unwrap();
        assert_eq!(entry.bytes, bytes.len() as u64);
        assert_eq!((entry.record.number, entry.record.clone), (record.number, record.clone));
        assert_eq!(entry.runs.len(), 3);
        assert_eq!(entry.runs[0].data.as_deref(), Some(&[3; BLOCK][..]));
    }

    #[test]
    fn a_mark_survives_its_bytes_and_is_shorter_than_any_batch() {
        let bytes = encode_entry(JournalEntryRecord::mark(7, 8192), &[]).unwrap();
        let mark = decode_entry(&bytes).unwrap();
        assert_eq!(mark.record, JournalEntryRecord::mark(7, 8192));
        assert!(mark.record.is_mark() && mark.bytes == MARK_BYTES && bytes.len() as u64 == MARK_BYTES);
        let zeroes = [Run { start: BlockIndex(0), blocks: 1, data: None }];
        let least = encode_entry(JournalEntryRecord { number: 1, ..mark.record }, &zeroes).unwrap();
        assert!(least.len() > bytes.len() && !decode_entry(&least).unwrap().record.is_mark());
    }

    #[test]
    fn every_flipped_byte_and_every_truncation_is_an_error() {
        let (record, bytes) = sample();
        let fill = bytes.len() - decode_entry(&bytes).map(|_| 7).unwrap_or(0);
        for at in 0..fill {
            let mut bad = bytes.to_vec();
            bad[at] ^= 1;
            assert!(decode_entry(&Bytes::from(bad)).is_err(), "byte {at} of entry {}", record.number);
            assert!(decode_entry(&bytes.slice(..at)).is_err(), "cut at {at}");
        }
    }
}
