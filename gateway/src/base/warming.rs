//! Fetching into memory what machines are about to ask for, when somebody says so.

use clonegate_core::Result;
use clonegate_core::units::ByteRange;
use std::collections::BTreeSet;

use super::{Base, Data};
use crate::device::Source;
use crate::icache::Asker;

/// Most bytes of one piece: as much as one GET brings.
const PIECE_BYTES: u64 = super::fetch::RUN_BYTES_MAX;

/// One piece to fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Where.
    pub range: ByteRange,
    /// Bytes of it that are stored; the others are zero and take no memory.
    pub stored: u64,
}

impl Base {
    /// What of this base boots touch, neighbours merged, first to last; empty when no machine has booted from it.
    ///
    /// # Errors
    /// Those of reading its boot set.
    pub async fn boot_pieces(&self) -> Result<Vec<Piece>> {
        let chunk_bytes = self.trace.chunk_bytes();
        let mut chunks: BTreeSet<u64> = self.load_boot_set().await?.into_iter().map(|chunk| chunk.0).collect();
        chunks.extend(self.boot_trace().into_iter().map(|chunk| chunk.0));
        let mut ranges: Vec<ByteRange> = Vec::new();
        for chunk in chunks {
            let (start, end) = (chunk * chunk_bytes, ((chunk + 1) * chunk_bytes).min(self.size()));
            match ranges.last_mut() {
                Some(last) if last.end() == start && end - last.start() <= PIECE_BYTES => {
                    *last = ByteRange::new(last.start(), end);
                }
                _ if start < end => ranges.push(ByteRange::new(start, end)),
                _ => {}
            }
        }
        self.pieces(ranges).await
    }

    /// All of this base that is not zero.
    ///
    /// # Errors
    /// Those of reading its index.
    pub async fn all_pieces(&self) -> Result<Vec<Piece>> {
        let mut ranges = Vec::new();
        let mut at = 0;
        while at < self.size() {
            let end = (at + PIECE_BYTES).min(self.size());
            ranges.push(ByteRange::new(at, end));
            at = end;
        }
        self.pieces(ranges).await
    }

    async fn pieces(&self, ranges: Vec<ByteRange>) -> Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        for range in ranges {
            let extents = self.extents_for(range, Asker::Warming).await?;
            let stored = extents.iter().filter(|e| e.source != Source::Zero).map(|e| e.range.len()).sum();
            if stored > 0 {
                pieces.push(Piece { range, stored });
            }
        }
        Ok(pieces)
    }

    /// Fetches what of a piece is not in memory. It is no read of a machine: no boot set is made of it, and no statistics of demand.
    ///
    /// # Errors
    /// As [`Base::read`].
    pub async fn fetch_piece(&self, piece: Piece) -> Result<()> {
        match &self.data {
            Data::Packed(packed) => packed.read(piece.range, Asker::Warming).await.map(drop),
            Data::Raw(raw) => raw.read(piece.range, Asker::Warming).await.map(drop),
        }
    }
}
