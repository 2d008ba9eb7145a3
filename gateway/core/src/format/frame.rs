//! A 4 KiB block as it lies in a commit record or a segment: its bytes, then a checksum that binds them to their place.
//!
//! ```text
//! offset  bytes  field
//!      0   4096  the block
//!   4096      4  crc32c over the nonce of the object, the index of the frame in it (u32) and the block
//! ```
//!
//! The checksum stands beside the block, so that one ranged read brings both, and it covers object and index, so that
//! the right bytes from the wrong place are found out too.

use bytes::{BufMut, Bytes, BytesMut};

use crate::error::{Error, Result};
use crate::ids::Nonce;
use crate::units::BLOCK_BYTES;

/// Bytes of a block in memory.
#[expect(clippy::cast_possible_truncation, reason = "4096 fits any usize")]
pub const BLOCK: usize = BLOCK_BYTES as usize;
/// Bytes of a frame: the block and its checksum.
pub const FRAME_BYTES: usize = BLOCK + 4;

fn seed(nonce: &Nonce) -> u32 {
    crc32c::crc32c(&nonce.0)
}

fn check_of(seed: u32, index: u32, block: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(seed, &index.to_le_bytes()), block)
}

/// Appends `data`, whole blocks, as the frames `first..` of the object with this nonce. A last part that is shorter than a
/// block is filled with zeroes.
pub fn put(out: &mut BytesMut, nonce: &Nonce, first: u32, data: &[u8]) {
    let seed = seed(nonce);
    out.reserve(data.len().div_ceil(BLOCK) * FRAME_BYTES);
    let mut index = first;
    for block in data.chunks(BLOCK) {
        let at = out.len();
        out.put_slice(block);
        out.put_bytes(0, BLOCK - block.len());
        let check = check_of(seed, index, &out[at..at + BLOCK]);
        out.put_u32_le(check);
        index = index.wrapping_add(1);
    }
}

/// Writes `data`, whole blocks, as the frames `first..` of the object with this nonce over `out`, which is as long as these frames are.
pub fn put_over(out: &mut [u8], nonce: &Nonce, first: u32, data: &[u8]) {
    let seed = seed(nonce);
    let mut index = first;
    for (frame, block) in out.chunks_exact_mut(FRAME_BYTES).zip(data.chunks_exact(BLOCK)) {
        let (place, check) = frame.split_at_mut(BLOCK);
        place.copy_from_slice(block);
        check.copy_from_slice(&check_of(seed, index, block).to_le_bytes());
        index = index.wrapping_add(1);
    }
}

/// The blocks of `frames`, which are the frames `first..` of the object with this nonce, each verified.
///
/// # Errors
/// `Corrupt` with code `bad-block` when one is not what was written, or with `short-record` when one is cut off.
pub fn take(nonce: &Nonce, first: u32, frames: &[u8]) -> Result<Bytes> {
    if !frames.len().is_multiple_of(FRAME_BYTES) {
        return Err(Error::corrupt("short-record", format!("{} bytes are no whole frames", frames.len())));
    }
    let seed = seed(nonce);
    let mut out = BytesMut::with_capacity(frames.len() / FRAME_BYTES * BLOCK);
    let mut index = first;
    for frame in frames.chunks_exact(FRAME_BYTES) {
        let (block, stored) = frame.split_at(BLOCK);
        let check = check_of(seed, index, block);
        let stored = u32::from_le_bytes([stored[0], stored[1], stored[2], stored[3]]);
        if check != stored {
            return Err(Error::corrupt(
                "bad-block",
                format!("block {index} has checksum {check:08x}, stored {stored:08x}"),
            ));
        }
        out.put_slice(block);
        index = index.wrapping_add(1);
    }
    Ok(out.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: Nonce = Nonce([7; 16]);

    fn frames() -> BytesMut {
        let mut out = BytesMut::new();
        put(&mut out, &NONCE, 3, &[1; BLOCK]);
        put(&mut out, &NONCE, 4, &[2; 100]);
        out
    }

    #[test]
    fn blocks_survive_their_frames_and_the_last_is_filled_with_zeroes() {
        let blocks = take(&NONCE, 3, &frames()).unwrap();
        assert_eq!(&blocks[..BLOCK], &[1; BLOCK]);
        assert_eq!(&blocks[BLOCK..BLOCK + 100], &[2; 100]);
        assert!(blocks[BLOCK + 100..].iter().all(|&b| b == 0));
    }

    #[test]
    fn frames_that_are_put_over_others_are_those_that_are_appended() {
        let mut out = vec![9; 3 * FRAME_BYTES];
        put_over(&mut out[FRAME_BYTES..], &NONCE, 3, &[[1; BLOCK], [2; BLOCK]].concat());
        let mut appended = BytesMut::new();
        put(&mut appended, &NONCE, 3, &[[1; BLOCK], [2; BLOCK]].concat());
        assert_eq!(out[FRAME_BYTES..], appended[..]);
        assert!(out[..FRAME_BYTES].iter().all(|&b| b == 9));
    }

    #[test]
    fn right_bytes_from_the_wrong_place_are_found_out() {
        assert_eq!(take(&NONCE, 2, &frames()).unwrap_err().code(), "bad-block");
        assert_eq!(take(&Nonce([8; 16]), 3, &frames()).unwrap_err().code(), "bad-block");
        assert_eq!(take(&NONCE, 3, &frames()[1..]).unwrap_err().code(), "short-record");
    }

    #[test]
    fn every_flipped_byte_is_found_out() {
        let whole = frames();
        for at in 0..whole.len() {
            let mut bad = whole.clone();
            bad[at] ^= 0x10;
            assert!(take(&NONCE, 3, &bad).is_err(), "byte {at}");
        }
    }
}
