//! From pieces to batches of whole chunks, and from a batch to frames that are ready to be stored.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use clonegate_core::Result;
use clonegate_core::format::index::Encoding;
use clonegate_core::ids::ChunkHash;
use parking_lot::Mutex;

use super::dedup::Known;
use super::source::{Piece, ReadAt};
use crate::base::frame::{Frames, Packer};

/// Bytes in a batch, the unit of work of one thread.
const BATCH_BYTES: usize = 1024 * 1024;

/// Bytes read at a time: what is read is still in the cache of the core when it is hashed and compressed.
const READ_BYTES: usize = 256 * 1024;

/// Chunks that are worked on together, ascending.
pub(super) enum Batch {
    /// They are here.
    Here(Vec<(u64, Bytes)>),
    /// They are to be read: first chunk, offset, length.
    Stored(u64, u64, usize, Arc<dyn ReadAt>),
}

/// Puts pieces together to whole chunks. Pieces come in ascending order; bytes that none of them covers are zeroes.
pub(super) struct Chunker {
    chunk_bytes: usize,
    /// The chunk that is not complete yet; bytes from its beginning.
    open: Option<(u64, BytesMut)>,
    batch: Vec<(u64, Bytes)>,
    batch_bytes: usize,
    ready: Vec<Batch>,
}

impl Chunker {
    pub(super) fn new(chunk_bytes: u32) -> Self {
        let chunk_bytes = chunk_bytes as usize;
        Self { chunk_bytes, open: None, batch: Vec::new(), batch_bytes: 0, ready: Vec::new() }
    }

    /// Takes a piece and gives the batches that are complete.
    pub(super) fn add(&mut self, piece: Piece) -> Vec<Batch> {
        match piece {
            Piece::Data(offset, bytes) => self.add_bytes(offset, bytes),
            Piece::Stored(offset, length, reader) => {
                // Aligned to chunks, and never mixed with pieces of the other kind.
                self.ready.push(Batch::Stored(offset / self.chunk_bytes as u64, offset, length, reader));
            }
            Piece::End(size) => self.end(size),
        }
        std::mem::take(&mut self.ready)
    }

    fn add_bytes(&mut self, mut offset: u64, mut bytes: Bytes) {
        let chunk_bytes = self.chunk_bytes as u64;
        while !bytes.is_empty() {
            let chunk = offset / chunk_bytes;
            let within = usize::try_from(offset % chunk_bytes).unwrap_or(0);
            if self.open.as_ref().is_some_and(|(open, _)| *open != chunk) {
                self.close();
            }
            let length = bytes.len().min(self.chunk_bytes - within);
            let part = bytes.split_to(length);
            offset += length as u64;
            if length == self.chunk_bytes {
                self.push(chunk, part);
                continue;
            }
            let (_, open) = self.open.get_or_insert_with(|| (chunk, BytesMut::with_capacity(self.chunk_bytes)));
            open.resize(within, 0);
            open.extend_from_slice(&part);
            if open.len() == self.chunk_bytes {
                self.close();
            }
        }
    }

    /// Completes the open chunk by zeroes.
    fn close(&mut self) {
        if let Some((chunk, mut bytes)) = self.open.take() {
            bytes.resize(self.chunk_bytes, 0);
            self.push(chunk, bytes.freeze());
        }
    }

    fn push(&mut self, chunk: u64, bytes: Bytes) {
        self.batch_bytes += bytes.len();
        self.batch.push((chunk, bytes));
        if self.batch_bytes >= BATCH_BYTES {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if !self.batch.is_empty() {
            self.ready.push(Batch::Here(std::mem::take(&mut self.batch)));
            self.batch_bytes = 0;
        }
    }

    fn end(&mut self, size: u64) {
        if let Some((chunk, mut bytes)) = self.open.take() {
            // The last chunk of the image is as long as the image says.
            let left = size.saturating_sub(chunk * self.chunk_bytes as u64);
            bytes.resize(usize::try_from(left).unwrap_or(usize::MAX).min(self.chunk_bytes), 0);
            self.push(chunk, bytes.freeze());
        }
        self.flush();
    }
}

/// A chunk that is not zeroes, ready to be stored.
pub(super) struct Done {
    pub(super) chunk: u64,
    pub(super) hash: ChunkHash,
    /// As it is to be stored, its checksum, and where in [`Worked::frames`]; `None` when the chunk was known already.
    pub(super) frame: Option<(Encoding, u32, Range<usize>)>,
}

/// A batch worked off.
pub(super) struct Worked {
    /// One past the last byte of the image that it covers.
    pub(super) reached: u64,
    /// Bytes of the image that were read for it.
    pub(super) read_bytes: u64,
    pub(super) done: Vec<Done>,
    pub(super) frames: Frames,
}

/// Memory of batches that were stored, for those to come: fresh memory costs a page fault for every 4 KiB.
#[derive(Default)]
pub(super) struct Spare(Mutex<Vec<Frames>>);

impl Spare {
    pub(super) fn give(&self, mut frames: Frames) {
        frames.clear();
        self.0.lock().push(frames);
    }

    fn take(&self) -> Frames {
        self.0.lock().pop().unwrap_or_default()
    }
}

/// What a working thread keeps from one batch to the next, so that it need not fetch fresh memory from the system for each.
struct Tools {
    level: i32,
    packer: Packer,
    read: Vec<u8>,
}

thread_local! {
    static TOOLS: RefCell<Option<Tools>> = const { RefCell::new(None) };
}

/// Reads what is to be read, drops zeroes, hashes, and compresses what is not known yet. Blocks; for a thread of its own.
pub(super) fn work(batch: Batch, chunk_bytes: u32, level: i32, known: &Known, spare: &Spare) -> Result<Worked> {
    TOOLS.with_borrow_mut(|tools| {
        let tools = match tools {
            Some(tools) if tools.level == level => tools,
            other => other.insert(Tools { level, packer: Packer::new(level)?, read: Vec::new() }),
        };
        work_with(tools, batch, chunk_bytes, known, spare.take())
    })
}

fn work_with(tools: &mut Tools, batch: Batch, chunk_bytes: u32, known: &Known, frames: Frames) -> Result<Worked> {
    let Tools { packer, read, .. } = tools;
    let mut worked = Worked { reached: 0, read_bytes: 0, done: Vec::new(), frames };
    let mut each = |chunk: u64, plain: &[u8]| {
        worked.read_bytes += plain.len() as u64;
        worked.reached = chunk * u64::from(chunk_bytes) + plain.len() as u64;
        if is_zero(plain) {
            return;
        }
        let hash = ChunkHash(*blake3::hash(plain).as_bytes());
        let frame = (!known.contains(&hash)).then(|| {
            let (encoding, at) = packer.pack_into(plain, &mut worked.frames);
            (encoding, crc32c::crc32c(worked.frames.get(at.clone())), at)
        });
        worked.done.push(Done { chunk, hash, frame });
    };
    match batch {
        Batch::Here(chunks) => chunks.iter().for_each(|(chunk, plain)| each(*chunk, plain)),
        Batch::Stored(first, mut offset, length, reader) => {
            let at_once = READ_BYTES.max(chunk_bytes as usize);
            read.resize(at_once, 0);
            let (mut left, mut chunks) = (length, first..);
            while left > 0 {
                let part = &mut read[..left.min(at_once)];
                reader.read_at(offset, part)?;
                for (plain, chunk) in part.chunks(chunk_bytes as usize).zip(&mut chunks) {
                    each(chunk, plain);
                }
                left -= part.len();
                offset += part.len() as u64;
            }
        }
    }
    Ok(worked)
}

/// Whether all of `bytes` are zero; as fast as memory can be compared.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    static ZEROES: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROES.len()).all(|part| part == &ZEROES[..part.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks_of(pieces: &[(u64, &[u8])], size: u64) -> Vec<(u64, Vec<u8>)> {
        let mut chunker = Chunker::new(4096);
        let mut batches = Vec::new();
        for (offset, bytes) in pieces {
            batches.extend(chunker.add(Piece::Data(*offset, Bytes::copy_from_slice(bytes))));
        }
        batches.extend(chunker.add(Piece::End(size)));
        let mut chunks = Vec::new();
        for batch in batches {
            let Batch::Here(here) = batch else { panic!("nothing is stored") };
            chunks.extend(here.into_iter().map(|(chunk, bytes)| (chunk, bytes.to_vec())));
        }
        chunks
    }

    #[test]
    fn pieces_of_any_cut_make_the_same_chunks() {
        let image: Vec<u8> = (0..20_000u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let whole: Vec<(u64, Vec<u8>)> = (0..).zip(image.chunks(4096).map(<[u8]>::to_vec)).collect();
        for cut in [1, 512, 1000, 4096, 5000, 20_000] {
            let pieces: Vec<(u64, &[u8])> =
                (0..).zip(image.chunks(cut)).map(|(n, part)| (n * cut as u64, part)).collect();
            assert_eq!(chunks_of(&pieces, 20_000), whole, "cut at {cut}");
        }
    }

    #[test]
    fn what_no_piece_covers_is_zeroes() {
        let chunks = chunks_of(&[(10, b"ab"), (4000, b"c"), (12_288, b"d")], 13_000);
        assert_eq!(
            chunks.iter().map(|(chunk, bytes)| (*chunk, bytes.len())).collect::<Vec<_>>(),
            [(0, 4096), (3, 712)]
        );
        assert_eq!((&chunks[0].1[9..13], chunks[0].1[4000]), (&b"\0ab\0"[..], b'c'));
        assert!(is_zero(&chunks[0].1[13..4000]) && is_zero(&chunks[1].1[1..]));
    }
}
