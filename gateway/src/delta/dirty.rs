//! Blocks that were accepted and are not in the store yet: runs in memory, the newest write of each block.

use std::collections::BTreeMap;

use bytes::Bytes;
use clonegate_core::format::frame::BLOCK;
use clonegate_core::format::log::Run;
use clonegate_core::units::BlockIndex;

/// A run of blocks with its bytes; `None` is zeroes.
#[derive(Debug, Clone)]
struct Piece {
    end: u64,
    batch: u64,
    data: Option<Bytes>,
}

/// A run of [`Dirty::range`], cut to the range that was asked for.
#[derive(Debug, Clone)]
pub struct DirtyRun {
    /// First block.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// The bytes; `None` is zeroes.
    pub data: Option<Bytes>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Dirty {
    pieces: BTreeMap<u64, Piece>,
}

fn cut(data: &Option<Bytes>, from: u64, to: u64) -> Option<Bytes> {
    let bytes = |blocks: u64| usize::try_from(blocks).unwrap_or(usize::MAX).saturating_mul(BLOCK);
    data.as_ref().map(|data| data.slice(bytes(from)..bytes(to)))
}

impl Dirty {
    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Its runs.
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Puts `start..end`, written in `batch`, over what was there. `data` holds all of its blocks.
    pub fn insert(&mut self, start: u64, end: u64, data: Option<Bytes>, batch: u64) {
        self.clear(start, end, u64::MAX);
        self.pieces.insert(start, Piece { end, batch, data });
    }

    /// Drops what `start..end` holds of batches up to `newest`.
    pub fn clear(&mut self, start: u64, end: u64, newest: u64) {
        if let Some((&at, piece)) = self.pieces.range_mut(..start).next_back()
            && piece.end > start
            && piece.batch <= newest
        {
            let whole_end = piece.end;
            let (data, batch) = (piece.data.clone(), piece.batch);
            piece.end = start;
            piece.data = cut(&data, 0, start - at);
            if whole_end > end {
                let data = cut(&data, end - at, whole_end - at);
                self.pieces.insert(end, Piece { end: whole_end, batch, data });
                return;
            }
        }
        let mut from = start;
        while let Some((&at, piece)) = self.pieces.range(from..end).next() {
            from = at + 1;
            if piece.batch > newest {
                continue;
            }
            if let Some(piece) = self.pieces.remove(&at)
                && piece.end > end
            {
                let data = cut(&piece.data, end - at, piece.end - at);
                self.pieces.insert(end, Piece { data, ..piece });
            }
        }
    }

    /// The runs that touch `start..end`, ascending, cut to it.
    pub fn range(&self, start: u64, end: u64) -> impl Iterator<Item = DirtyRun> + '_ {
        let before = self.pieces.range(..start).next_back().filter(|(_, piece)| piece.end > start);
        before.into_iter().chain(self.pieces.range(start..end)).map(move |(&at, piece)| {
            let (from, to) = (at.max(start), piece.end.min(end));
            DirtyRun { start: from, end: to, data: cut(&piece.data, from - at, to - at) }
        })
    }

    /// Takes everything, as the runs of a batch.
    pub fn take(&mut self) -> Vec<Run> {
        std::mem::take(&mut self.pieces)
            .into_iter()
            .map(|(at, piece)| Run { start: BlockIndex(at), blocks: piece.end - at, data: piece.data })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Step = (u64, u64, bool, u8);

    fn check(steps: &[Step]) {
        let mut dirty = Dirty::default();
        let mut model: BTreeMap<u64, (u64, Option<u8>)> = BTreeMap::new();
        for (batch, &(start, blocks, clear, fill)) in steps.iter().enumerate() {
            let (batch, end) = (batch as u64, start + blocks);
            if clear {
                let newest = batch / 2;
                dirty.clear(start, end, newest);
                model.retain(|block, (b, _)| !(start..end).contains(block) || *b > newest);
                continue;
            }
            let fill = (fill != 0).then_some(fill);
            let data = fill.map(|f| Bytes::from(vec![f; blocks as usize * BLOCK]));
            dirty.insert(start, end, data, batch);
            model.extend((start..end).map(|block| (block, (batch, fill))));
        }
        let flat = |runs: Vec<DirtyRun>| -> Vec<(u64, Option<u8>)> {
            let each = |run: DirtyRun| {
                if let Some(data) = &run.data {
                    assert_eq!(data.len() as u64, (run.end - run.start) * BLOCK as u64);
                }
                (run.start..run.end).map(move |b| (b, run.data.as_ref().map(|d| d[(b - run.start) as usize * BLOCK])))
            };
            runs.into_iter().flat_map(each).collect()
        };
        let all: Vec<_> = model.iter().map(|(b, (_, f))| (*b, *f)).collect();
        assert_eq!(flat(dirty.range(0, 1000).collect()), all);
        let some: Vec<_> = all.iter().filter(|(b, _)| (13..37).contains(b)).copied().collect();
        assert_eq!(flat(dirty.range(13, 37).collect()), some);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn it_is_what_a_plain_map_of_blocks_is(
            steps in proptest::collection::vec((0..60u64, 1..12u64, proptest::bool::weighted(0.2), 0..4u8), 1..60)
        ) {
            check(&steps);
        }
    }
}
