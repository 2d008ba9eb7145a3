//! `clones/<clone>/seg/<e>/<n>`: blocks that were folded out of many commit records, in the order of the volume.
//!
//! An envelope with a [`SegmentRecord`], then `blocks` frames. Which block of the volume a frame holds is said by the
//! checkpoint that names the segment, and by nothing else: a segment that no checkpoint names is nothing.

use bytes::BytesMut;
use serde::{Deserialize, Serialize};

use super::envelope::{self, Kind, Record};
use super::frame::FRAME_BYTES;
use crate::error::{Error, Result};
use crate::ids::{CloneId, Epoch, Nonce};
use crate::limits::SEGMENT_BLOCKS_MAX;

/// The record before the frames.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentRecord {
    /// The volume.
    pub clone: CloneId,
    /// The epoch that made it, as in the key.
    pub epoch: Epoch,
    /// Its number in that epoch, as in the key.
    pub number: u64,
    /// Bound into every frame.
    pub nonce: Nonce,
    /// Frames.
    pub blocks: u32,
}

impl Record for SegmentRecord {
    const KIND: Kind = Kind::Segment;
    const VERSION: u16 = 1;
}

/// The beginning of a segment object, with room for its frames, which the caller appends; and where they begin.
///
/// # Errors
/// `Exhausted` when there are too many.
pub fn begin_segment(record: &SegmentRecord) -> Result<(BytesMut, u32)> {
    let object = envelope::begin(record, record.blocks as usize * FRAME_BYTES)?;
    let at = u32::try_from(object.len())
        .map_err(|_| Error::exhausted("record-too-large", "a segment of too many blocks"))?;
    Ok((object, at))
}

/// Reads the record of a segment object of `size` bytes from its beginning, and where its frames begin.
///
/// # Errors
/// `Corrupt` when it is not one, or not of this size.
pub fn decode_segment(beginning: &[u8], size: u64) -> Result<(SegmentRecord, u32)> {
    let decoded = envelope::decode_with::<SegmentRecord>(beginning)?;
    let record = decoded.record;
    if record.blocks > SEGMENT_BLOCKS_MAX {
        return Err(Error::corrupt("bad-record", format!("a segment of {} blocks", record.blocks)));
    }
    let whole = decoded.sections_at as u64 + u64::from(record.blocks) * FRAME_BYTES as u64;
    if whole != size {
        return Err(Error::corrupt("short-record", format!("{size} bytes where the record says {whole}")));
    }
    let at = u32::try_from(decoded.sections_at).map_err(|_| Error::corrupt("bad-record", "a record too long"))?;
    Ok((record, at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::frame::{self, BLOCK};

    #[test]
    fn a_segment_survives_its_bytes_and_a_wrong_size_is_found_out() {
        let record = SegmentRecord {
            clone: CloneId::from_bytes([1; 16]),
            epoch: Epoch(1),
            number: 2,
            nonce: Nonce([3; 16]),
            blocks: 2,
        };
        let (mut object, at) = begin_segment(&record).unwrap();
        frame::put(&mut object, &record.nonce, 0, &[9; 2 * BLOCK]);
        let size = object.len() as u64;
        assert_eq!(decode_segment(&object[..at as usize], size).unwrap(), (record, at));
        assert!(decode_segment(&object, size - 1).is_err());
        for flip in 0..at as usize {
            let mut bad = object.to_vec();
            bad[flip] ^= 2;
            assert!(decode_segment(&bad, size).is_err(), "byte {flip}");
        }
    }
}
