//! `clones/<clone>/ckpt/<e>/<seq>`: the whole state of a clone after that commit record.
//!
//! ```text
//! envelope with a CheckpointRecord
//! objects   record.objects × 48 bytes   what holds blocks; crc32c in record.objects_crc
//! runs      record.runs × 16 bytes      the delta map, ascending; crc32c in record.runs_crc
//!
//! object, 48 bytes                                run, 16 bytes
//!    0  4  1: commit record, 2: segment              0  8  first block (40 bits), then first frame (24 bits)
//!    4  4  offset of its first frame                 8  4  blocks
//!    8  8  epoch                                    12  4  index into the objects; 0xffffffff: zeroes
//!   16  8  sequence or number
//!   24 16  nonce
//!   40  4  frames
//!   44  4  zero
//! ```

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::envelope::{self, Kind, Record};
use super::log::{ObjectName, Position, check_numbers};
use crate::error::{Error, Result};
use crate::ids::{BaseId, CloneId, Epoch, Name, Nonce, Sequence};
use crate::limits::{CHECKPOINT_OBJECTS_MAX, CHECKPOINT_RUNS_MAX, SEGMENT_BLOCKS_MAX, SNAPSHOTS_MAX, VOLUME_BYTES_MAX};
use crate::units::{BLOCK_BYTES, BlockIndex};

const OBJECT_BYTES: usize = 48;
const RUN_BYTES: usize = 16;
const ZERO: u32 = u32::MAX;
const BLOCK_BITS: u32 = 40;

/// A state that is kept besides the present one: the checkpoint at its position holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Its name; none for the state that the last reset or restore can be undone to.
    pub name: Option<Name>,
    /// Where it was kept: `ckpt/<e>/<seq>` of this position is its checkpoint.
    pub at: Position,
    /// Its base.
    pub base: Option<BaseId>,
    /// When it was kept, milliseconds since 1970 UTC.
    pub time_ms: u64,
    /// Until when it is kept, milliseconds since 1970 UTC; 0: until it is dropped.
    pub until_ms: u64,
}

/// The record before the tables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointRecord {
    /// The volume.
    pub clone: CloneId,
    /// The commit record that it follows, as in the key.
    pub at: Position,
    /// Tells our own put from another's.
    pub nonce: Nonce,
    /// The base under the delta.
    pub base: Option<BaseId>,
    /// Changes of the volume's bytes since it was made.
    pub change: u64,
    /// The epoch of the last of them; 0 when there was none.
    pub changed_in: Epoch,
    /// When its bytes last changed, milliseconds since 1970 UTC.
    pub modified_ms: u64,
    /// Journal entries up to this number are in the log.
    pub journal_mark: u64,
    /// Flushed writes may be missing.
    pub lost_tail: bool,
    /// Snapshots and the undo state.
    pub kept: Vec<Kept>,
    /// Entries in the object table.
    pub objects: u32,
    /// crc32c of the object table.
    pub objects_crc: u32,
    /// Entries in the run table.
    pub runs: u32,
    /// crc32c of the run table.
    pub runs_crc: u32,
}

impl Record for CheckpointRecord {
    const KIND: Kind = Kind::Checkpoint;
    const VERSION: u16 = 1;
}

/// What is known of an object that holds blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockObject {
    /// Its name.
    pub name: ObjectName,
    /// Bound into its frames.
    pub nonce: Nonce,
    /// Offset of its first frame.
    pub frames_at: u32,
    /// Frames in it.
    pub frames: u32,
}

/// A run of the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapRun {
    /// First block of the volume.
    pub start: BlockIndex,
    /// Blocks.
    pub blocks: u32,
    /// Index of the object and first frame in it; none for zeroes.
    pub place: Option<(u32, u32)>,
}

/// The checkpoint object; the counts and checksums of `record` are filled in.
///
/// # Errors
/// `Exhausted` when a table is too large.
pub fn encode_checkpoint(
    mut record: CheckpointRecord,
    objects: &[BlockObject],
    runs: impl Iterator<Item = MapRun>,
) -> Result<Bytes> {
    let full = || Error::exhausted("record-too-large", "a checkpoint of too many runs");
    let mut object_table = BytesMut::with_capacity(objects.len() * OBJECT_BYTES);
    for object in objects {
        let (kind, epoch, number) = match object.name {
            ObjectName::Log(at) => (1, at.epoch.0, at.sequence.0),
            ObjectName::Segment(epoch, number) => (2, epoch.0, number),
            ObjectName::Checkpoint(_) => {
                return Err(Error::internal("bad-object", "a checkpoint holds no blocks"));
            }
        };
        object_table.put_u32_le(kind);
        object_table.put_u32_le(object.frames_at);
        object_table.put_u64_le(epoch);
        object_table.put_u64_le(number);
        object_table.put_slice(&object.nonce.0);
        object_table.put_u32_le(object.frames);
        object_table.put_u32_le(0);
    }
    let mut run_table = BytesMut::new();
    for run in runs {
        let (object, frame) = run.place.unwrap_or((ZERO, 0));
        run_table.put_u64_le(run.start.0 | u64::from(frame) << BLOCK_BITS);
        run_table.put_u32_le(run.blocks);
        run_table.put_u32_le(object);
    }
    record.objects = u32::try_from(objects.len()).map_err(|_| full())?;
    record.runs = u32::try_from(run_table.len() / RUN_BYTES).map_err(|_| full())?;
    if record.objects > CHECKPOINT_OBJECTS_MAX || record.runs > CHECKPOINT_RUNS_MAX {
        return Err(full());
    }
    record.objects_crc = crc32c::crc32c(&object_table);
    record.runs_crc = crc32c::crc32c(&run_table);
    envelope::encode_with(&record, &[&object_table, &run_table])
}

/// Reads the record, the objects and the runs of a whole checkpoint object; the runs are ascending, do not overlap, and
/// lie in their objects, each of which has at most [`SEGMENT_BLOCKS_MAX`] frames.
///
/// # Errors
/// `Corrupt` when it is not one.
pub fn decode_checkpoint(object: &[u8]) -> Result<(CheckpointRecord, Vec<BlockObject>, Vec<MapRun>)> {
    let mut runs = Vec::new();
    let (record, objects) = decode_checkpoint_into(object, |run| runs.push(run))?;
    Ok((record, objects, runs))
}

/// The same, with each run given to `each` as it is read: a large map has millions. After an error what was given counts for nothing.
///
/// # Errors
/// `Corrupt` when it is not one.
pub fn decode_checkpoint_into(
    object: &[u8],
    mut each: impl FnMut(MapRun),
) -> Result<(CheckpointRecord, Vec<BlockObject>)> {
    let decoded = envelope::decode_with::<CheckpointRecord>(object)?;
    let record = decoded.record;
    let wrong = |what: String| Error::corrupt("bad-checkpoint", what);
    if record.objects > CHECKPOINT_OBJECTS_MAX || record.runs > CHECKPOINT_RUNS_MAX {
        return Err(wrong(format!("{} objects and {} runs", record.objects, record.runs)));
    }
    if record.kept.len() > SNAPSHOTS_MAX + 1 {
        return Err(wrong(format!("{} snapshots", record.kept.len())));
    }
    check_numbers([record.at.epoch.0, record.at.sequence.0, record.changed_in.0, record.change, record.journal_mark])?;
    check_numbers(record.kept.iter().flat_map(|kept| [kept.at.epoch.0, kept.at.sequence.0]))?;
    let objects_end = decoded.sections_at + record.objects as usize * OBJECT_BYTES;
    let runs_end = objects_end + record.runs as usize * RUN_BYTES;
    if object.len() != runs_end {
        return Err(Error::corrupt("short-record", format!("{} bytes where the record says {runs_end}", object.len())));
    }
    let (object_table, run_table) = object[decoded.sections_at..].split_at(objects_end - decoded.sections_at);
    for (what, table, stored) in [("object", object_table, record.objects_crc), ("run", run_table, record.runs_crc)] {
        let crc = crc32c::crc32c(table);
        if crc != stored {
            let text = format!("the {what} table has checksum {crc:08x}, stored {stored:08x}");
            return Err(Error::corrupt("bad-checksum", text));
        }
    }
    let objects = object_table.as_chunks::<OBJECT_BYTES>().0.iter().map(decode_object).collect::<Result<Vec<_>>>()?;
    let mut end_before = 0u64;
    for bytes in run_table.as_chunks::<RUN_BYTES>().0 {
        let head = u64::from_le_bytes(*bytes.first_chunk().unwrap_or(&[0; 8]));
        let blocks = u32_at(bytes, 8);
        let object = u32_at(bytes, 12);
        let start = head & ((1 << BLOCK_BITS) - 1);
        let end = start + u64::from(blocks);
        if blocks == 0 || start < end_before || end > VOLUME_BYTES_MAX / BLOCK_BYTES {
            return Err(wrong(format!("a run of {blocks} blocks at {start} behind {end_before}")));
        }
        end_before = end;
        let place = if object == ZERO {
            None
        } else {
            let frame = u32::try_from(head >> BLOCK_BITS).map_err(|_| wrong("a frame beyond its object".to_owned()))?;
            let holder = objects.get(object as usize).ok_or_else(|| wrong(format!("a run in object {object}")))?;
            if u64::from(frame) + u64::from(blocks) > u64::from(holder.frames) {
                return Err(wrong(format!("a run of frames beyond the {} of its object", holder.frames)));
            }
            Some((object, frame))
        };
        each(MapRun { start: BlockIndex(start), blocks, place });
    }
    Ok((record, objects))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

fn decode_object(bytes: &[u8; OBJECT_BYTES]) -> Result<BlockObject> {
    let epoch = u64_at(bytes, 8);
    let number = u64_at(bytes, 16);
    let name = match u32_at(bytes, 0) {
        1 => ObjectName::Log(Position { epoch: Epoch(epoch), sequence: Sequence(number) }),
        2 => ObjectName::Segment(Epoch(epoch), number),
        kind => return Err(Error::corrupt("bad-checkpoint", format!("an object of kind {kind}"))),
    };
    check_numbers([epoch, number])?;
    let frames = u32_at(bytes, 40);
    if frames > SEGMENT_BLOCKS_MAX {
        return Err(Error::corrupt("bad-checkpoint", format!("an object of {frames} frames, {name:?}")));
    }
    let mut nonce = [0; 16];
    nonce.copy_from_slice(&bytes[24..40]);
    Ok(BlockObject { name, nonce: Nonce(nonce), frames_at: u32_at(bytes, 4), frames })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (Bytes, Vec<BlockObject>, Vec<MapRun>) {
        let record = CheckpointRecord {
            clone: CloneId::from_bytes([1; 16]),
            at: Position::new(2, 3),
            nonce: Nonce([4; 16]),
            base: None,
            change: 5,
            changed_in: Epoch(2),
            modified_ms: 6,
            journal_mark: 7,
            lost_tail: false,
            kept: vec![Kept { name: None, at: Position::new(1, 1), base: None, time_ms: 1, until_ms: 2 }],
            objects: 0,
            objects_crc: 0,
            runs: 0,
            runs_crc: 0,
        };
        let objects = vec![
            BlockObject {
                name: ObjectName::Log(Position::new(1, 9)),
                nonce: Nonce([8; 16]),
                frames_at: 300,
                frames: 4,
            },
            BlockObject { name: ObjectName::Segment(Epoch(2), 1), nonce: Nonce([9; 16]), frames_at: 99, frames: 16384 },
        ];
        let runs = vec![
            MapRun { start: BlockIndex(1), blocks: 2, place: Some((0, 2)) },
            MapRun { start: BlockIndex(3), blocks: 1 << 31, place: None },
            MapRun { start: BlockIndex((1 << 34) - 1), blocks: 1, place: Some((1, 16383)) },
        ];
        (encode_checkpoint(record, &objects, runs.iter().copied()).unwrap(), objects, runs)
    }

    #[test]
    fn a_checkpoint_survives_its_bytes() {
        let (object, objects, runs) = sample();
        let (record, got_objects, got_runs) = decode_checkpoint(&object).unwrap();
        assert_eq!((record.objects, record.runs), (2, 3));
        assert_eq!((got_objects, got_runs), (objects, runs));
    }

    #[test]
    fn objects_of_more_frames_and_higher_numbers_than_any_are_refused() {
        let (object, objects, runs) = sample();
        let (record, ..) = decode_checkpoint(&object).unwrap();
        let refused = |record: CheckpointRecord, objects: &[BlockObject], code: &str| {
            let object = encode_checkpoint(record, objects, runs.iter().copied()).unwrap();
            assert_eq!(decode_checkpoint(&object).unwrap_err().code(), code);
        };
        let mut larger = objects.clone();
        larger[1].frames = SEGMENT_BLOCKS_MAX + 1;
        refused(record.clone(), &larger, "bad-checkpoint");
        let mut higher = objects.clone();
        higher[0].name = ObjectName::Log(Position::new(1, u64::MAX));
        refused(record.clone(), &higher, "bad-record");
        refused(CheckpointRecord { change: u64::MAX, ..record.clone() }, &objects, "bad-record");
        refused(CheckpointRecord { journal_mark: u64::MAX, ..record.clone() }, &objects, "bad-record");
        let mut kept = record.clone();
        kept.kept[0].at = Position::new(u64::MAX, 0);
        refused(kept, &objects, "bad-record");
    }

    #[test]
    fn every_flipped_byte_and_every_truncation_is_an_error() {
        let (object, ..) = sample();
        for at in 0..object.len() {
            let mut bad = object.to_vec();
            bad[at] ^= 4;
            assert!(decode_checkpoint(&bad).is_err(), "byte {at}");
            assert!(decode_checkpoint(&object[..at]).is_err(), "cut at {at}");
        }
    }
}
