//! `clones/<clone>/epoch/<e>` and `clones/<clone>/log/<e>/<seq>`: who owned a volume when, and every change to it.
//!
//! ```text
//! commit record object
//!   envelope with a CommitRecord
//!   extent table   record.extents × 16 bytes, crc32c in record.table_crc
//!   frames         record.blocks × 4100 bytes, see `frame`
//!
//! extent, 16 bytes
//!   0  8  first block of the volume
//!   8  4  length, blocks, at least 1
//!  12  4  index of its first frame in this object; 0xffffffff: the blocks are zero
//! ```
//!
//! The table stands before the frames, so that a replay reads the beginning of each record only.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::envelope::{self, Kind, Record};
use super::frame::{self, FRAME_BYTES};
use crate::error::{Error, Result};
use crate::ids::{BaseId, CloneId, Epoch, GatewayId, Name, Nonce, Sequence};
use crate::limits::{COMMIT_EXTENTS_MAX, LOG_NUMBER_MAX, SEGMENT_BLOCKS_MAX, UNLINK_OBJECTS_MAX, VOLUME_BYTES_MAX};
use crate::units::{BLOCK_BYTES, BlockIndex};

/// Bytes of an extent in a table.
pub const EXTENT_BYTES: usize = 16;
const ZERO: u32 = u32::MAX;
/// Longest extent, blocks; a longer run of zeroes is several.
pub const EXTENT_BLOCKS_MAX: u64 = 1 << 31;

/// A place in the log of a clone. Ordered as the changes were made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// The epoch.
    pub epoch: Epoch,
    /// The record within it.
    pub sequence: Sequence,
}

impl Position {
    /// `epoch`, `sequence`.
    pub const fn new(epoch: u64, sequence: u64) -> Self {
        Self { epoch: Epoch(epoch), sequence: Sequence(sequence) }
    }

    /// The next record of the same epoch.
    #[must_use]
    pub const fn next(self) -> Self {
        Self::new(self.epoch.0, self.sequence.0 + 1)
    }
}

/// `clones/<clone>/epoch/<e>`: a gateway means to own the volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// The volume.
    pub clone: CloneId,
    /// The epoch, as in the key.
    pub epoch: Epoch,
    /// Tells our own put from another's.
    pub nonce: Nonce,
    /// Who claims it.
    pub gateway: GatewayId,
    /// The journal that flushed writes of this epoch may be in before they are in the log; none when there is no journal.
    pub journal: Option<Nonce>,
    /// When, milliseconds since 1970 UTC; for people.
    pub claimed_ms: u64,
}

impl Record for EpochRecord {
    const KIND: Kind = Kind::Epoch;
    const VERSION: u16 = 1;
}

/// An object that holds blocks, by what its key says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ObjectName {
    /// A commit record.
    Log(Position),
    /// Folded data, `seg/<epoch>/<number>`.
    Segment(Epoch, u64),
    /// A checkpoint.
    Checkpoint(Position),
}

/// What a commit record does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// First record of an epoch: every older epoch is closed.
    Open {
        /// Who opened it.
        gateway: GatewayId,
        /// Flushed writes of the epoch before may be missing, and an operator said that this is accepted.
        lost_tail: bool,
        /// The delta begins empty (`ephemeral`).
        fresh: bool,
    },
    /// Blocks were written or zeroed, as the extents say.
    Data,
    /// The state before this record is kept under a name.
    Snapshot {
        /// The name; a snapshot of the same name is replaced.
        name: Name,
    },
    /// A snapshot is given up.
    DropSnapshot {
        /// The name.
        name: Name,
    },
    /// The volume is what a snapshot says.
    Restore {
        /// The snapshot.
        name: Name,
        /// Until when the state before can be had back, milliseconds since 1970 UTC; 0: not at all.
        undo_until_ms: u64,
    },
    /// The delta is dropped; the volume is the base of this record.
    Reset {
        /// Until when the state before can be had back, milliseconds since 1970 UTC; 0: not at all.
        undo_until_ms: u64,
    },
    /// The last reset or restore is taken back.
    Undo,
    /// These objects are about to be deleted. That this record could be made is the proof that the gateway may.
    Unlink {
        /// At most [`UNLINK_OBJECTS_MAX`].
        objects: Vec<ObjectName>,
    },
    /// Last record of an epoch: its owner has put everything into the log and gone.
    Close,
    /// Last record of an epoch, planted by the owner of a newer one. What lies behind it never happened.
    Poison {
        /// The newer epoch.
        by: Epoch,
    },
    /// The delta holds all that the base held; the volume is without one from here on, and a reset before it can no longer be undone.
    Promote,
}

/// `clones/<clone>/log/<e>/<seq>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitRecord {
    /// The volume.
    pub clone: CloneId,
    /// Epoch and sequence, as in the key.
    pub at: Position,
    /// Tells our own put from another's; also bound into every frame.
    pub nonce: Nonce,
    /// The base under the delta after this record.
    pub base: Option<BaseId>,
    /// Changes of the volume's bytes since it was made, this record's included.
    pub change: u64,
    /// When, milliseconds since 1970 UTC.
    pub time_ms: u64,
    /// Journal entries of this volume up to this number are in the log.
    pub journal_mark: u64,
    /// Records of this epoch below this number were in the store when this one was made: one that is missing was taken away.
    pub settled: Sequence,
    /// What it does.
    pub what: Change,
    /// Extents in the table.
    pub extents: u32,
    /// Frames behind the table.
    pub blocks: u32,
    /// crc32c of the table.
    pub table_crc: u32,
}

impl Record for CommitRecord {
    const KIND: Kind = Kind::Commit;
    const VERSION: u16 = 1;
}

/// A run of blocks in a commit record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogExtent {
    /// First block of the volume.
    pub start: BlockIndex,
    /// Blocks.
    pub blocks: u32,
    /// Its first frame; none for zeroes.
    pub frame: Option<u32>,
}

/// A run of blocks to be committed: `None` is zeroes, otherwise the bytes of all blocks.
#[derive(Debug, Clone)]
pub struct Run {
    /// First block of the volume.
    pub start: BlockIndex,
    /// Blocks.
    pub blocks: u64,
    /// The bytes, `blocks` × 4096 of them.
    pub data: Option<Bytes>,
}

/// The object of a commit: `record` with its counts filled in, the table and the frames. Also says where its frames begin.
///
/// # Errors
/// `Exhausted` when there are more extents than a record takes.
pub fn encode_commit(mut record: CommitRecord, runs: &[Run]) -> Result<(Bytes, Vec<LogExtent>, u32)> {
    let mut extents = Vec::with_capacity(runs.len());
    let mut blocks = 0u32;
    for run in runs {
        if run.data.is_some() {
            let count = u32::try_from(run.blocks).map_err(|_| too_many())?;
            extents.push(LogExtent { start: run.start, blocks: count, frame: Some(blocks) });
            blocks = blocks.checked_add(count).ok_or_else(too_many)?;
            continue;
        }
        let mut at = run.start.0;
        let end = at + run.blocks;
        while at < end {
            let part = (end - at).min(EXTENT_BLOCKS_MAX);
            let count = u32::try_from(part).map_err(|_| too_many())?;
            extents.push(LogExtent { start: BlockIndex(at), blocks: count, frame: None });
            at += part;
        }
    }
    if extents.len() > COMMIT_EXTENTS_MAX {
        return Err(too_many());
    }
    let table = encode_extents(&extents);
    record.extents = u32::try_from(extents.len()).map_err(|_| too_many())?;
    record.blocks = blocks;
    record.table_crc = crc32c::crc32c(&table);
    // Frames go to their place at once: a record is megabytes, and a copy of it costs as much as its checksums.
    let mut object = envelope::begin(&record, table.len() + blocks as usize * FRAME_BYTES)?;
    object.extend_from_slice(&table);
    let frames_at = u32::try_from(object.len()).map_err(|_| too_many())?;
    let mut next = 0u32;
    for run in runs {
        if let Some(data) = &run.data {
            frame::put(&mut object, &record.nonce, next, data);
            next += u32::try_from(run.blocks).map_err(|_| too_many())?;
        }
    }
    Ok((object.freeze(), extents, frames_at))
}

/// Refuses numbers that no log comes to: what follows them would not be a number.
pub(super) fn check_numbers(numbers: impl IntoIterator<Item = u64>) -> Result<()> {
    match numbers.into_iter().find(|number| *number > LOG_NUMBER_MAX) {
        Some(number) => Err(Error::corrupt("bad-record", format!("the number {number}, which no log comes to"))),
        None => Ok(()),
    }
}

fn too_many() -> Error {
    Error::exhausted("record-too-large", "a commit of more blocks than a record takes")
}

/// A table of extents as bytes.
pub fn encode_extents(extents: &[LogExtent]) -> Bytes {
    let mut table = BytesMut::with_capacity(extents.len() * EXTENT_BYTES);
    for extent in extents {
        table.put_u64_le(extent.start.0);
        table.put_u32_le(extent.blocks);
        table.put_u32_le(extent.frame.unwrap_or(ZERO));
    }
    table.freeze()
}

/// The extents of a table, each checked to lie in a volume and in `frames` frames.
///
/// # Errors
/// `Corrupt` with code `bad-extent`.
pub fn decode_extents(table: &[u8], frames: u32) -> Result<Vec<LogExtent>> {
    let wrong = |what: &str| Error::corrupt("bad-extent", format!("an extent {what}"));
    let mut extents = Vec::with_capacity(table.len() / EXTENT_BYTES);
    for bytes in table.chunks_exact(EXTENT_BYTES) {
        let (start, rest) = bytes.split_at(8);
        let start = u64::from_le_bytes(start.try_into().map_err(|_| wrong("is cut off"))?);
        let blocks = u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]);
        let at = u32::from_le_bytes([rest[4], rest[5], rest[6], rest[7]]);
        let frame = (at != ZERO).then_some(at);
        if blocks == 0 {
            return Err(wrong("is empty"));
        }
        if u64::from(blocks) > EXTENT_BLOCKS_MAX {
            return Err(wrong("is longer than any that is written"));
        }
        if start.checked_add(u64::from(blocks)).is_none_or(|end| end > VOLUME_BYTES_MAX / BLOCK_BYTES) {
            return Err(wrong("lies outside of any volume"));
        }
        if frame.is_some_and(|first| first.checked_add(blocks).is_none_or(|end| end > frames)) {
            return Err(wrong("names frames that are not there"));
        }
        extents.push(LogExtent { start: BlockIndex(start), blocks, frame });
    }
    Ok(extents)
}

/// The beginning of a commit record, decoded.
#[derive(Debug)]
pub struct CommitHead {
    /// The record.
    pub record: CommitRecord,
    /// Its extents.
    pub extents: Vec<LogExtent>,
    /// Offset of its first frame in the object.
    pub frames_at: u32,
}

/// What the beginning of a commit record holds.
#[derive(Debug)]
pub enum Head {
    /// All that is needed.
    Whole(CommitHead),
    /// The table goes on: this many bytes from the beginning are needed.
    Needs(u64),
}

/// Decodes the record and the table from the first bytes of a commit object of `size` bytes.
///
/// # Errors
/// `Corrupt` when it is not one, or not of this size.
pub fn decode_head(beginning: &[u8], size: u64) -> Result<Head> {
    let end = envelope::record_end(beginning)?;
    if beginning.len() < end {
        return if (end as u64) <= size && (beginning.len() as u64) < size {
            Ok(Head::Needs(end as u64 + EXTENT_BYTES as u64))
        } else {
            Err(Error::corrupt("short-record", format!("{size} bytes where the record needs {end}")))
        };
    }
    let decoded = envelope::decode_with::<CommitRecord>(beginning)?;
    let record = decoded.record;
    if record.extents as usize > COMMIT_EXTENTS_MAX {
        return Err(Error::corrupt("bad-extent", format!("a record of {} extents", record.extents)));
    }
    if record.blocks > SEGMENT_BLOCKS_MAX {
        return Err(Error::corrupt("bad-record", format!("a record of {} blocks", record.blocks)));
    }
    let at = record.at;
    check_numbers([at.epoch.0, at.sequence.0, record.settled.0, record.change, record.journal_mark])?;
    if matches!(&record.what, Change::Unlink { objects } if objects.len() > UNLINK_OBJECTS_MAX) {
        return Err(Error::corrupt("bad-record", "an unlink of more objects than one takes"));
    }
    let table_end = decoded.sections_at + record.extents as usize * EXTENT_BYTES;
    let whole = table_end as u64 + u64::from(record.blocks) * FRAME_BYTES as u64;
    if whole != size {
        return Err(Error::corrupt("short-record", format!("{size} bytes where the record says {whole}")));
    }
    let Some(table) = beginning.get(decoded.sections_at..table_end) else {
        return Ok(Head::Needs(table_end as u64));
    };
    let crc = crc32c::crc32c(table);
    if crc != record.table_crc {
        return Err(Error::corrupt(
            "bad-checksum",
            format!("the extent table has checksum {crc:08x}, stored {:08x}", record.table_crc),
        ));
    }
    let extents = decode_extents(table, record.blocks)?;
    let frames_at = u32::try_from(table_end).map_err(|_| too_many())?;
    Ok(Head::Whole(CommitHead { record, extents, frames_at }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(what: Change) -> CommitRecord {
        CommitRecord {
            clone: CloneId::from_bytes([1; 16]),
            at: Position::new(2, 3),
            nonce: Nonce([4; 16]),
            base: Some(BaseId::from_bytes([5; 16])),
            change: 6,
            time_ms: 7,
            journal_mark: 8,
            settled: Sequence(2),
            what,
            extents: 0,
            blocks: 0,
            table_crc: 0,
        }
    }

    fn runs() -> Vec<Run> {
        vec![
            Run { start: BlockIndex(9), blocks: 2, data: Some(Bytes::from(vec![0xab; 8192])) },
            Run { start: BlockIndex(1 << 30), blocks: 1 << 32, data: None },
        ]
    }

    #[test]
    fn a_commit_survives_its_bytes_and_its_head_is_enough() {
        let (object, extents, frames_at) = encode_commit(record(Change::Data), &runs()).unwrap();
        let size = object.len() as u64;
        let Head::Needs(more) = decode_head(&object[..40], size).unwrap() else { panic!("40 bytes are not enough") };
        let mut needed = usize::try_from(more).unwrap();
        let head = loop {
            match decode_head(&object[..needed], size).unwrap() {
                Head::Whole(head) => break head,
                Head::Needs(more) => needed = usize::try_from(more).unwrap(),
            }
        };
        assert_eq!(head.extents, extents);
        assert_eq!(extents.len(), 3, "zeroes longer than an extent are two");
        assert_eq!(head.frames_at, frames_at);
        let data = frame::take(&head.record.nonce, 0, &object[frames_at as usize..]).unwrap();
        assert_eq!(data, vec![0xab; 8192]);
    }

    #[test]
    fn every_flipped_byte_and_every_truncation_of_the_head_is_an_error() {
        let (object, _, frames_at) = encode_commit(record(Change::Data), &runs()).unwrap();
        let size = object.len() as u64;
        for at in 0..frames_at as usize {
            let mut bad = object.to_vec();
            bad[at] ^= 0x20;
            assert!(decode_head(&bad, size).is_err(), "byte {at}");
        }
        for cut in 0..object.len() {
            assert!(decode_head(&object[..cut], cut as u64).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn a_record_of_more_blocks_or_higher_numbers_than_any_is_refused() {
        let refused = |record: CommitRecord| {
            let size = |record: &CommitRecord, at: usize| at as u64 + u64::from(record.blocks) * FRAME_BYTES as u64;
            let object = envelope::encode(&record).unwrap();
            let error = decode_head(&object, size(&record, object.len())).unwrap_err();
            assert_eq!(error.code(), "bad-record", "{record:?}");
        };
        let good = || record(Change::Data);
        refused(CommitRecord { blocks: SEGMENT_BLOCKS_MAX + 1, ..good() });
        refused(CommitRecord { change: u64::MAX, ..good() });
        refused(CommitRecord { journal_mark: LOG_NUMBER_MAX + 1, ..good() });
        refused(CommitRecord { settled: Sequence(u64::MAX), ..good() });
        refused(CommitRecord { at: Position::new(u64::MAX, 0), ..good() });
    }

    #[test]
    fn an_extent_outside_of_volume_or_record_is_refused() {
        let table = |start, blocks, frame| encode_extents(&[LogExtent { start: BlockIndex(start), blocks, frame }]);
        assert!(decode_extents(&table(0, 2, Some(0)), 2).is_ok());
        assert!(decode_extents(&table(0, 1 << 31, None), 0).is_ok());
        let longer = table(0, (1 << 31) + 1, None);
        for bad in [table(0, 0, None), table(u64::MAX, 1, None), table(1 << 34, 1, None), table(0, 3, Some(0)), longer]
        {
            assert_eq!(decode_extents(&bad, 2).unwrap_err().code(), "bad-extent");
        }
    }
}
