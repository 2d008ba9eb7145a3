//! Accepting writes: whole blocks go in as they are, the edges of others are read and filled first.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use clonegate_core::format::clone::Durability;
use clonegate_core::format::frame::BLOCK;
use clonegate_core::ids::Epoch;
use clonegate_core::limits::COMMIT_EXTENTS_MAX;
use clonegate_core::units::{BLOCK_BYTES, ByteRange};
use clonegate_core::{Error, Result};
use tokio::time::Instant;

use super::core::{Core, Role, State};
use super::plan::{Piece, Plan, plan};
use super::room::{Room, held};
use crate::device::{Version, WriteOptions};

/// A batch of this many bytes is closed and sent on its way.
pub(super) const BATCH_BYTES: u64 = 4 << 20;
/// And one of this many runs: a commit and an entry of the journal have room for them, also when some are cut in two.
const BATCH_RUNS: usize = COMMIT_EXTENTS_MAX / 4;
/// Writes this small are copied, so that they do not hold on to a larger buffer that they came in.
const COPY_BYTES: usize = 16 * 1024;

/// A block that is written in part: what it held before.
struct Edge {
    block: ByteRange,
    plan: Plan,
    bytes: Bytes,
}

fn to_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

impl Core {
    /// Blocks that `range` covers in part, first and last; the end of the volume counts as the end of its last block.
    fn edges(&self, range: ByteRange) -> impl Iterator<Item = ByteRange> {
        let block = |at: u64| {
            let start = at / BLOCK_BYTES * BLOCK_BYTES;
            ByteRange::new(start, (start + BLOCK_BYTES).min(self.record.size))
        };
        let covers = move |b: &ByteRange| range.start() <= b.start() && b.end() <= range.end();
        let first = block(range.start());
        let last = block(range.end().saturating_sub(1));
        let second = (last != first).then_some(last);
        [Some(first), second].into_iter().flatten().filter(move |b| !covers(b))
    }

    /// See [`crate::device::Device::write`].
    pub(super) async fn write(self: &Arc<Self>, offset: u64, data: Bytes, options: WriteOptions) -> Result<()> {
        let range = ByteRange::at(offset, data.len() as u64)?;
        range.check_within(self.record.size)?;
        self.own().await?;
        if range.is_empty() {
            self.check_version(&self.state.read(), options.expect)?;
        } else {
            let room = self.room(held(range)).await?;
            let _gate = self.gate.read().await;
            self.accept(range, &data, options.expect, room).await?;
        }
        if options.fua { self.flush().await } else { Ok(()) }
    }

    /// Writes when everything that it needs is in memory, there is room, and we are the owner.
    pub(super) fn try_write(self: &Arc<Self>, offset: u64, data: &Bytes) -> Option<Result<()>> {
        let range = ByteRange::at(offset, data.len() as u64).ok()?;
        if range.end() > self.record.size || range.is_empty() {
            return None;
        }
        let _gate = self.gate.try_read().ok()?;
        let room = self.try_room(held(range))?;
        let mut state = self.state.write();
        if !matches!(state.role, Role::Owner) {
            return None;
        }
        let mut edges = Vec::new();
        for block in self.edges(range) {
            let plan = plan(&state, block);
            let bytes = in_memory(&plan)?;
            edges.push(Edge { block, plan, bytes });
        }
        self.put(&mut state, range, data, &edges, room);
        Some(Ok(()))
    }

    async fn accept(
        self: &Arc<Self>,
        range: ByteRange,
        data: &Bytes,
        expect: Option<Version>,
        room: Room,
    ) -> Result<()> {
        let mut edges: Vec<Edge> = Vec::new();
        loop {
            {
                let mut state = self.state.write();
                self.check_owner(&state)?;
                self.check_version(&state, expect)?;
                if self.fresh_edges(&state, range, &mut edges) {
                    self.put(&mut state, range, data, &edges, room);
                    return Ok(());
                }
            }
            // Read what the edges held, without the lock; it is looked at again when the lock is held.
            edges.clear();
            for block in self.edges(range) {
                let (plan, bytes) = self.fetch_now(block).await?;
                edges.push(Edge { block, plan, bytes: join(&bytes) });
            }
        }
    }

    /// Whether what was read of the edges is still what is there. What is in memory is taken from there.
    fn fresh_edges(&self, state: &State, range: ByteRange, edges: &mut Vec<Edge>) -> bool {
        for (index, block) in self.edges(range).enumerate() {
            let now = plan(state, block);
            if let Some(bytes) = in_memory(&now) {
                let edge = Edge { block, plan: now, bytes };
                match edges.get_mut(index) {
                    Some(place) => *place = edge,
                    None => edges.push(edge),
                }
                continue;
            }
            let same = edges.get(index).is_some_and(|edge| {
                let same_base = match (&edge.plan.base, &now.base) {
                    (Some(a), Some(b)) => a.id() == b.id(),
                    (None, None) => true,
                    _ => false,
                };
                let (a, b) = (&edge.plan.pieces, &now.pieces);
                same_base && a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.same_source(b))
            });
            if !same {
                return false;
            }
        }
        true
    }

    /// Puts a write into the open batch.
    fn put(self: &Arc<Self>, state: &mut State, range: ByteRange, data: &Bytes, edges: &[Edge], room: Room) {
        let batch = state.next_batch;
        let mut from = range.start();
        let mut to = range.end();
        for edge in edges {
            let part = range.intersect(edge.block);
            let mut block = BytesMut::zeroed(BLOCK);
            block[..edge.bytes.len()].copy_from_slice(&edge.bytes);
            let at = to_usize(part.start() - edge.block.start());
            let source = to_usize(part.start() - range.start());
            let length = to_usize(part.len());
            block[at..at + length].copy_from_slice(&data[source..source + length]);
            let index = edge.block.start() / BLOCK_BYTES;
            state.open.insert(index, index + 1, Some(block.freeze()), batch);
            if edge.block.start() <= range.start() {
                from = from.max(edge.block.end());
            }
            if edge.block.end() >= range.end() {
                to = to.min(edge.block.start().max(range.start()));
            }
        }
        if from < to {
            let mut whole = data.slice(to_usize(from - range.start())..to_usize(to - range.start()));
            let ragged = whole.len() % BLOCK;
            if ragged != 0 {
                // The last block of a volume whose size is no multiple of the block.
                let mut filled = BytesMut::zeroed(whole.len() + BLOCK - ragged);
                filled[..whole.len()].copy_from_slice(&whole);
                whole = filled.freeze();
            } else if whole.len() <= COPY_BYTES {
                whole = Bytes::copy_from_slice(&whole);
            }
            state.open.insert(from / BLOCK_BYTES, to.div_ceil(BLOCK_BYTES), Some(whole), batch);
        }
        self.accepted(state, held(range), room);
    }

    /// Counts an accepted change and wakes the committer when it has something to do. `bytes` are those of all blocks that it holds: by
    /// them it is decided what fits into one record.
    pub(super) fn accepted(self: &Arc<Self>, state: &mut State, bytes: u64, room: Room) {
        state.mark.set(true);
        state.open_bytes += bytes;
        state.open_room.add(room);
        let full = state.open_bytes >= self.batch_bytes() || state.open.len() >= BATCH_RUNS;
        // A batch that is full may become several commits. Each has a number that nobody was told: the bytes in between are of no moment
        // that there was.
        let change = state.version.change + 1 + if full { 1 + (bytes >> 20) } else { 0 };
        let epoch = state.log.at.map_or(Epoch(0), |at| at.epoch);
        state.version = Version { life: super::own::life(&self.record, epoch), change };
        state.modified_ms = self.engine.clock.now_ms();
        if state.open_since.is_none() {
            state.open_since = Some(Instant::now());
            self.publish(state);
            // To set its timer; with batches waiting it has one already.
            if state.queue.is_empty() {
                self.wake.notify_one();
            }
        }
        if full {
            self.seal(state);
            self.wake.notify_one();
        }
    }

    /// A batch of so many bytes is closed. An `ephemeral` volume keeps its batches for as long as there is room, so larger
    /// ones, in which more is overwritten, cost nobody any time.
    fn batch_bytes(&self) -> u64 {
        match self.mode {
            Durability::Ephemeral => (self.engine.settings.dirty_bytes_per_volume / 4).max(BATCH_BYTES),
            Durability::Local | Durability::Object => BATCH_BYTES,
        }
    }

    /// See [`crate::device::Device::write_zeroes`].
    pub(super) async fn write_zeroes(self: &Arc<Self>, range: ByteRange, fua: bool) -> Result<()> {
        range.check_within(self.record.size)?;
        self.own().await?;
        if !range.is_empty() {
            let room = self.room(2 * BLOCK_BYTES).await?;
            let _gate = self.gate.read().await;
            self.accept_zeroes(range, room).await?;
        }
        if fua { self.flush().await } else { Ok(()) }
    }

    async fn accept_zeroes(self: &Arc<Self>, range: ByteRange, room: Room) -> Result<()> {
        let mut edges: Vec<Edge> = Vec::new();
        loop {
            {
                let mut state = self.state.write();
                self.check_owner(&state)?;
                if self.fresh_edges(&state, range, &mut edges) {
                    let batch = state.next_batch;
                    let (mut first, mut end) = (range.start() / BLOCK_BYTES, range.end().div_ceil(BLOCK_BYTES));
                    for edge in &edges {
                        let part = range.intersect(edge.block);
                        let mut block = BytesMut::zeroed(BLOCK);
                        block[..edge.bytes.len()].copy_from_slice(&edge.bytes);
                        let at = to_usize(part.start() - edge.block.start());
                        block[at..at + to_usize(part.len())].fill(0);
                        let index = edge.block.start() / BLOCK_BYTES;
                        state.open.insert(index, index + 1, Some(block.freeze()), batch);
                        if index == first {
                            first += 1;
                        } else {
                            end -= 1;
                        }
                    }
                    if first < end {
                        state.open.insert(first, end, None, batch);
                    }
                    self.accepted(&mut state, edges.len() as u64 * BLOCK_BYTES, room);
                    return Ok(());
                }
            }
            edges.clear();
            for block in self.edges(range) {
                let (plan, bytes) = self.fetch_now(block).await?;
                edges.push(Edge { block, plan, bytes: join(&bytes) });
            }
        }
    }

    pub(super) fn check_owner(&self, state: &State) -> Result<()> {
        match &state.role {
            Role::Owner => Ok(()),
            Role::Dead(error) => Err(error.clone()),
            Role::Reader => {
                Err(Error::internal("not-owner", "a write before ownership").on(self.record.name.to_string()))
            }
        }
    }

    fn check_version(&self, state: &State, expect: Option<Version>) -> Result<()> {
        match expect {
            Some(version) if version != state.version => {
                Err(Error::conflict("version-changed", "its bytes changed since that version")
                    .on(self.record.name.to_string())
                    .hint("read it again and decide anew"))
            }
            _ => Ok(()),
        }
    }
}

/// The bytes of a plan that needs no reading, up to a block of them.
fn in_memory(plan: &Plan) -> Option<Bytes> {
    let mut out = BytesMut::new();
    for piece in &plan.pieces {
        match piece {
            Piece::Memory(bytes) => out.extend_from_slice(bytes),
            Piece::Zero(length) => out.resize(out.len() + to_usize(*length), 0),
            Piece::Base(_) | Piece::Object { .. } => return None,
        }
    }
    Some(out.freeze())
}

fn join(segments: &[Bytes]) -> Bytes {
    match segments {
        [one] => one.clone(),
        many => many.concat().into(),
    }
}
