//! Making a volume need its base no more: what the base still holds is copied into the delta while the volume is in use, then one record
//! lets the base go.
//!
//! A block is copied only if, under the lock, it still comes from the base: a write that came meanwhile is never overwritten.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use clonegate_core::Result;
use clonegate_core::format::frame::BLOCK;
use clonegate_core::ids::BaseId;
use clonegate_core::units::{BLOCK_BYTES, ByteRange};

use super::core::{Core, State};
use super::plan::{Piece, plan};
use crate::device::Source;

/// Bytes of the base whose extents are asked for at a time.
const STEP_BYTES: u64 = 256 << 20;

/// What has to be in the delta before the base can be let go.
#[derive(Debug, Clone)]
pub(super) struct Needed {
    /// The base that it was read from.
    pub(super) base: BaseId,
    /// Blocks that are not zero in it: first, one past the last.
    pub(super) blocks: Vec<(u64, u64)>,
}

impl Needed {
    /// Whether the stored delta holds all of it. The first block that it does not hold otherwise.
    pub(super) fn missing(&self, state: &State) -> Option<u64> {
        for (start, end) in &self.blocks {
            let mut at = *start;
            for run in state.log.image.map.range(*start, *end) {
                if run.start > at {
                    break;
                }
                at = run.end;
            }
            if at < *end {
                return Some(at);
            }
        }
        None
    }
}

impl Core {
    /// Copies what of `range` comes from the base into the delta; says how many bytes that were. Holes of the base stay holes. `range` begins
    /// on a block.
    pub(super) async fn fill(self: &Arc<Self>, range: ByteRange) -> Result<u64> {
        range.check_within(self.record.size)?;
        self.own().await?;
        let before = plan(&self.state.read(), range);
        let Some(base) = before.base.clone() else { return Ok(0) };
        let mut fetched: Vec<(u64, Bytes)> = Vec::new();
        let mut bytes = 0;
        for piece in &before.pieces {
            let Piece::Base(of_base) = piece else { continue };
            for extent in base.extents(*of_base).await? {
                if extent.source == Source::Zero || extent.range.is_empty() {
                    continue;
                }
                let read = base.read(extent.range).await?;
                let whole = extent.range.len().next_multiple_of(BLOCK_BYTES);
                let mut blocks = BytesMut::with_capacity(usize::try_from(whole).unwrap_or(0));
                read.iter().for_each(|part| blocks.extend_from_slice(part));
                blocks.resize(blocks.len().next_multiple_of(BLOCK), 0);
                bytes += blocks.len() as u64;
                fetched.push((extent.range.start() / BLOCK_BYTES, blocks.freeze()));
            }
        }
        if fetched.is_empty() {
            return Ok(0);
        }
        let room = self.room(bytes + BLOCK_BYTES).await?;
        let _gate = self.gate.read().await;
        let mut state = self.state.write();
        self.check_owner(&state)?;
        let now = plan(&state, range);
        if now.base.as_ref().map(|base| base.id()) != Some(base.id()) {
            return Ok(0);
        }
        let mut filled = 0;
        for piece in &now.pieces {
            let Piece::Base(of_base) = piece else { continue };
            let (start, end) = (of_base.start() / BLOCK_BYTES, of_base.end().div_ceil(BLOCK_BYTES));
            for (first, blocks) in &fetched {
                let last = first + blocks.len() as u64 / BLOCK_BYTES;
                let (from, to) = (start.max(*first), end.min(last));
                if from < to {
                    let at = usize::try_from((from - first) * BLOCK_BYTES).unwrap_or(usize::MAX);
                    let length = usize::try_from((to - from) * BLOCK_BYTES).unwrap_or(0);
                    put(&mut state, from, &blocks.slice(at..at + length));
                    filled += (to - from) * BLOCK_BYTES;
                }
            }
        }
        if filled > 0 {
            self.accepted(&mut state, filled, room);
        }
        Ok(filled)
    }

    /// What of the base has to be in the delta before the base can be let go; `None` when there is no base.
    pub(super) async fn needed(self: &Arc<Self>) -> Result<Option<Needed>> {
        let Some(base) = self.state.read().base.clone() else { return Ok(None) };
        let size = base.size().min(self.record.size);
        let mut blocks: Vec<(u64, u64)> = Vec::new();
        let mut at = 0;
        while at < size {
            let step = ByteRange::new(at, size.min(at + STEP_BYTES));
            for extent in base.extents(step).await?.iter().filter(|extent| extent.source != Source::Zero) {
                let (start, end) = (extent.range.start() / BLOCK_BYTES, extent.range.end().div_ceil(BLOCK_BYTES));
                match blocks.last_mut() {
                    Some(last) if last.1 >= start => last.1 = last.1.max(end),
                    _ => blocks.push((start, end)),
                }
            }
            at = step.end();
        }
        Ok(Some(Needed { base: base.id(), blocks }))
    }
}

/// Puts whole blocks into the open batch: zeroes as zeroes, so that the delta says of every block that it has it.
fn put(state: &mut State, first: u64, blocks: &Bytes) {
    let batch = state.next_batch;
    let is_zero = |n: usize| blocks[n * BLOCK..(n + 1) * BLOCK].iter().all(|byte| *byte == 0);
    let count = blocks.len() / BLOCK;
    let mut from = 0;
    while from < count {
        let zero = is_zero(from);
        let to = (from + 1..count).find(|n| is_zero(*n) != zero).unwrap_or(count);
        let data = (!zero).then(|| blocks.slice(from * BLOCK..to * BLOCK));
        state.open.insert(first + from as u64, first + to as u64, data, batch);
        from = to;
    }
}
