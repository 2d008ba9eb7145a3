//! Frames of a pack: packs plain bytes, and unpacks stored bytes that are checked before and after.

use std::cell::RefCell;

use bytes::Bytes;
use clonegate_core::format::index::{Encoding, FrameRef};
use clonegate_core::ids::ChunkHash;
use clonegate_core::{Error, Result};

/// A frame is stored compressed when that saves at least one part in this many: unpacking costs time on every cold read.
const WORTH_ONE_IN: usize = 16;

/// Packs frames; keeps its workspace from one to the next.
pub struct Packer {
    compressor: zstd::bulk::Compressor<'static>,
    scratch: Vec<u8>,
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
        Ok(Self { compressor, scratch: Vec::new() })
    }

    /// `plain` as it is to be stored: compressed when that pays.
    pub fn pack(&mut self, plain: &[u8]) -> (Encoding, Vec<u8>) {
        let most = plain.len() - plain.len() / WORTH_ONE_IN;
        self.scratch.clear();
        self.scratch.reserve(most);
        // A destination too small is an error here, and one of the cases in which it does not pay.
        match self.compressor.compress_to_buffer(plain, &mut self.scratch) {
            Ok(length) if length > 0 && length < most => (Encoding::Zstd, self.scratch.clone()),
            _ => (Encoding::Raw, plain.to_vec()),
        }
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
