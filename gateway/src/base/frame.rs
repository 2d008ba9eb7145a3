//! Frames of a pack: packs plain bytes, and unpacks stored bytes that are checked before and after.

use std::cell::RefCell;
use std::ops::Range;

use bytes::Bytes;
use clonegate_core::format::index::{Encoding, FrameRef};
use clonegate_core::ids::ChunkHash;
use clonegate_core::{Error, Result};

/// A frame is stored compressed when that saves at least one part in this many: unpacking costs time on every cold read.
const WORTH_ONE_IN: usize = 16;

/// Packs frames; keeps its workspace from one to the next.
pub struct Packer {
    compressor: zstd::bulk::Compressor<'static>,
}

impl Packer {
    /// A packer of the given zstd level.
    ///
    /// # Errors
    /// `Invalid` with code `bad-compression-level`.
    pub fn new(level: i32) -> Result<Self> {
        let wrong = |e| Error::invalid("bad-compression-level", format!("zstd takes no level {level}")).because(e);
        let mut compressor = zstd::bulk::Compressor::new(level).map_err(wrong)?;
        // The length is in the index already.
        compressor.include_contentsize(false).map_err(wrong)?;
        Ok(Self { compressor })
    }

    /// `plain` as it is to be stored: compressed when that pays.
    pub fn pack(&mut self, plain: &[u8]) -> (Encoding, Vec<u8>) {
        let mut frames = Frames::default();
        let (encoding, at) = self.pack_into(plain, &mut frames);
        (encoding, frames.get(at).to_vec())
    }

    /// The same, behind the frames that are there already; gives where.
    pub fn pack_into(&mut self, plain: &[u8], frames: &mut Frames) -> (Encoding, Range<usize>) {
        let most = plain.len() - plain.len() / WORTH_ONE_IN;
        let start = frames.used;
        let room = frames.room(plain.len());
        // A destination too small is an error here, and one of the cases in which it does not pay.
        let (encoding, length) = match self.compressor.compress_to_buffer(plain, &mut room[..most]) {
            Ok(length) if length > 0 && length < most => (Encoding::Zstd, length),
            _ => {
                room.copy_from_slice(plain);
                (Encoding::Raw, plain.len())
            }
        };
        frames.used = start + length;
        (encoding, start..frames.used)
    }
}

/// Frames one behind the other, in memory that serves again after [`Frames::clear`].
#[derive(Debug, Default)]
pub struct Frames {
    /// As long as it ever was; only the first `used` bytes are frames.
    bytes: Vec<u8>,
    used: usize,
}

impl Frames {
    /// Forgets the frames and keeps the memory.
    pub const fn clear(&mut self) {
        self.used = 0;
    }

    /// The bytes of a frame; none of them if it is not there.
    pub fn get(&self, at: Range<usize>) -> &[u8] {
        self.bytes[..self.used].get(at).unwrap_or_default()
    }

    fn room(&mut self, length: usize) -> &mut [u8] {
        let end = self.used + length;
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        &mut self.bytes[self.used..end]
    }
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Packer")
    }
}

thread_local! {
    static UNPACKER: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

/// The plain bytes of a frame, in memory of their own and of exactly `plain_len` bytes.
///
/// # Errors
/// `Corrupt` with code `bad-chunk` when the stored bytes fail their checksum, do not unpack to that length or, with a `hash`, are
/// other bytes than it names.
pub fn unpack(stored: &[u8], frame: &FrameRef, plain_len: usize, hash: Option<&ChunkHash>) -> Result<Bytes> {
    if stored.len() != frame.length as usize {
        return Err(bad(format!("{} bytes are stored where {} belong", stored.len(), frame.length)));
    }
    let crc = crc32c::crc32c(stored);
    if crc != frame.crc {
        return Err(bad(format!("the stored bytes have checksum {crc:08x}, the index says {:08x}", frame.crc)));
    }
    let plain = match frame.encoding {
        Encoding::Raw => stored.to_vec(),
        Encoding::Zstd => inflate(stored, plain_len)?,
    };
    if plain.len() != plain_len {
        return Err(bad(format!("it unpacks to {} bytes where {plain_len} belong", plain.len())));
    }
    if let Some(hash) = hash
        && blake3::hash(&plain).as_bytes() != &hash.0
    {
        return Err(bad("the plain bytes are not the ones that the index names".to_owned()));
    }
    Ok(Bytes::from(plain))
}

fn inflate(stored: &[u8], plain_len: usize) -> Result<Vec<u8>> {
    let failed = |e| bad("it does not unpack".to_owned()).because(e);
    UNPACKER.with_borrow_mut(|unpacker| {
        let unpacker = match unpacker {
            Some(unpacker) => unpacker,
            None => unpacker.insert(zstd::bulk::Decompressor::new().map_err(failed)?),
        };
        unpacker.decompress(stored, plain_len).map_err(failed)
    })
}

fn bad(message: String) -> Error {
    Error::corrupt("bad-chunk", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame_of(encoding: Encoding, stored: &[u8]) -> FrameRef {
        let length = u32::try_from(stored.len()).unwrap();
        FrameRef { pack: 0, offset: 0, length, crc: crc32c::crc32c(stored), encoding }
    }

    fn noise(length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().update(b"noise").finalize_xof().fill(&mut bytes);
        bytes
    }

    #[test]
    fn compression_is_kept_only_when_it_pays() {
        let mut packer = Packer::new(1).unwrap();
        let (encoding, stored) = packer.pack(&b"text ".repeat(10_000));
        assert!(encoding == Encoding::Zstd && stored.len() < 1000);
        assert_eq!(packer.pack(&noise(65536)), (Encoding::Raw, noise(65536)));
        assert_eq!(packer.pack(&[1, 2, 3]).0, Encoding::Raw);
    }

    #[test]
    fn frames_lie_one_behind_the_other_and_their_memory_serves_again() {
        let (mut packer, mut frames) = (Packer::new(1).unwrap(), Frames::default());
        let plains = [b"text ".repeat(10_000), noise(4096), vec![7; 4096], noise(65536), vec![1]];
        for _ in 0..2 {
            let packed: Vec<_> = plains.iter().map(|plain| packer.pack_into(plain, &mut frames)).collect();
            for ((encoding, at), plain) in packed.into_iter().zip(&plains) {
                let stored = frames.get(at).to_vec();
                assert_eq!((encoding, &stored), (packer.pack(plain).0, &packer.pack(plain).1));
                assert_eq!(unpack(&stored, &frame_of(encoding, &stored), plain.len(), None).unwrap(), plain);
            }
            let held = frames.bytes.len();
            frames.clear();
            assert!(frames.get(0..1).is_empty() && frames.bytes.len() == held);
        }
    }

    #[test]
    fn every_flip_and_cut_of_a_frame_is_told() {
        let mut packer = Packer::new(3).unwrap();
        for plain in [b"some text, some text".repeat(20), noise(600)] {
            let hash = ChunkHash(*blake3::hash(&plain).as_bytes());
            let (encoding, stored) = packer.pack(&plain);
            let frame = frame_of(encoding, &stored);
            assert_eq!(unpack(&stored, &frame, plain.len(), Some(&hash)).unwrap(), plain);
            assert!(unpack(&stored, &frame, plain.len() + 1, None).is_err());
            assert!(unpack(&stored, &frame, plain.len() - 1, None).is_err());
            for at in 0..stored.len() {
                assert!(unpack(&stored[..at], &frame, plain.len(), Some(&hash)).is_err());
                for bit in 0..8 {
                    let mut bad = stored.clone();
                    bad[at] ^= 1 << bit;
                    assert_eq!(unpack(&bad, &frame, plain.len(), Some(&hash)).unwrap_err().code(), "bad-chunk");
                    // Were the checksum right as well, the hash would still tell.
                    let forged = unpack(&bad, &frame_of(encoding, &bad), plain.len(), Some(&hash));
                    assert!(forged.is_err() || forged.unwrap() == plain);
                }
            }
        }
    }
}
