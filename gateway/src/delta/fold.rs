//! Folding: the live blocks of many small or mostly dead objects, written once more in the order of the volume.

use std::collections::HashMap;
use std::future::ready;
use std::sync::Arc;

use bytes::Bytes;
use clonegate_core::format::checkpoint::BlockObject;
use clonegate_core::format::frame::{self, BLOCK, FRAME_BYTES};
use clonegate_core::format::log::ObjectName;
use clonegate_core::format::segment::{SegmentRecord, begin_segment};
use clonegate_core::ids::Epoch;
use clonegate_core::limits::SEGMENT_BLOCKS_MAX;
use clonegate_core::units::ByteRange;
use clonegate_core::{Error, Result};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};

use super::map::{MapRun, Place};
use super::object::Object;
use super::state::LogState;
use crate::clock::Clock;
use crate::store::{PutNew, Store, keys};

/// An object of fewer frames is small: reading from many of them is slow.
const SMALL_FRAMES: u32 = 256;
/// Reads in flight.
const IN_FLIGHT: usize = 16;
/// Frames that one read takes at most (2 MiB), so that all that is on its way is half of a segment.
const SPAN_FRAMES: u32 = 512;
/// Dead frames between two runs that are read with them rather than left out (128 KiB): less than what a request costs.
const GAP_FRAMES: u32 = 32;

/// What is to be folded: runs of the map, in the order of the volume.
#[derive(Debug)]
pub struct FoldPlan {
    runs: Vec<MapRun>,
    objects: HashMap<u32, Arc<Object>>,
    blocks: u32,
}

/// A fold that is in the store.
#[derive(Debug)]
pub struct Folded {
    /// The segment.
    pub object: Arc<Object>,
    /// Runs of the map that it holds now, and from which frame on.
    pub moved: Vec<(MapRun, u32)>,
}

/// Frames of each object that the present map needs.
pub fn live_frames(state: &LogState) -> HashMap<u32, u64> {
    let mut live = HashMap::new();
    for run in state.image.map.iter() {
        if let Place::Object { object, .. } = run.place {
            *live.entry(object).or_insert(0) += run.end - run.start;
        }
    }
    live
}

/// Whether it is worth while to fold a volume that rests: more than a fifth of what it needs, and `slack` blocks, are dead.
pub fn is_wasteful(state: &LogState, slack: u64) -> bool {
    let stored: u64 = state.objects.iter().map(|(_, object)| u64::from(object.facts.frames)).sum();
    let live = state.image.map.data_blocks();
    stored > live + live / 5 + slack
}

/// What one segment can take while the volume is written, which is little, since most of what is written is soon written over: the oldest of the
/// small objects, when there are more than `small_max`, for what is left of them is likely to stay; or, when as much is dead as is live, what
/// is dead for the most part, the worst first, until that is three quarters.
pub fn plan(state: &LogState, small_max: usize) -> Option<FoldPlan> {
    let live = live_frames(state);
    let (mut small, mut sparse, mut dead) = (Vec::new(), Vec::new(), 0);
    for (index, object) in state.objects.iter() {
        let Some(&blocks) = live.get(&index) else { continue };
        let frames = u64::from(object.facts.frames);
        dead += frames - blocks.min(frames);
        if object.facts.frames < SMALL_FRAMES {
            small.push((object.facts.name, blocks, index));
        }
        if blocks * 2 < frames {
            sparse.push((blocks * 1024 / frames, blocks, frames, index));
        }
    }
    if small.len() > small_max.max(1) {
        small.sort_unstable();
        small.truncate((small.len() - small_max / 4 * 3).max(2));
        return choose(state, small.into_iter().map(|(_, blocks, index)| (blocks, index)));
    }
    let all: u64 = live.values().sum();
    if dead < all.max(u64::from(SEGMENT_BLOCKS_MAX) / 4) {
        return None;
    }
    choose(state, worst_first(sparse, dead, all / 4 * 3))
}

/// What one segment can take of a volume that rests: the objects that are dead for the most part first, until a sixth of what
/// it needs, and half of `slack` blocks, are dead at most.
pub fn plan_at_rest(state: &LogState, slack: u64) -> Option<FoldPlan> {
    let live = live_frames(state);
    let all: u64 = live.values().sum();
    let (mut candidates, mut dead) = (Vec::new(), 0);
    for (index, object) in state.objects.iter() {
        let Some(&blocks) = live.get(&index) else { continue };
        let frames = u64::from(object.facts.frames);
        if blocks < frames {
            dead += frames - blocks;
            candidates.push((blocks * 1024 / frames, blocks, frames, index));
        }
    }
    if dead <= all / 5 + slack {
        return None;
    }
    choose(state, worst_first(candidates, dead, all / 6 + slack / 2))
}

/// Of these (share that is live, live blocks, frames, index), the ones to fold so that of `dead` blocks at most `enough` are left.
fn worst_first(
    mut candidates: Vec<(u64, u64, u64, u32)>,
    mut dead: u64,
    enough: u64,
) -> impl Iterator<Item = (u64, u32)> {
    candidates.sort_unstable();
    candidates.into_iter().map_while(move |(_, blocks, frames, index)| {
        let more = dead > enough;
        dead = dead.saturating_sub(frames - blocks);
        more.then_some((blocks, index))
    })
}

/// The first of these objects, each with its live blocks, as far as one segment goes.
fn choose(state: &LogState, candidates: impl Iterator<Item = (u64, u32)>) -> Option<FoldPlan> {
    let (mut blocks, mut chosen) = (0, HashMap::new());
    for (live, index) in candidates {
        if blocks + live > u64::from(SEGMENT_BLOCKS_MAX) {
            break;
        }
        blocks += live;
        chosen.extend(state.objects.get(index).map(|object| (index, Arc::clone(object))));
    }
    let is_chosen = |run: &MapRun| matches!(run.place, Place::Object { object, .. } if chosen.contains_key(&object));
    let runs: Vec<MapRun> = state.image.map.iter().filter(is_chosen).collect();
    let blocks = u32::try_from(blocks).ok().filter(|blocks| *blocks > 0)?;
    Some(FoldPlan { runs, objects: chosen, blocks })
}

/// Blocks that a plan moves: where they lie and where they come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Move {
    /// Index of the object.
    object: u32,
    /// First frame in it.
    frame: u32,
    /// One past the last.
    end: u32,
    /// First frame in the segment.
    to: u32,
}

/// What is read of an object at once.
#[derive(Debug)]
struct Span {
    object: u32,
    first: u32,
    end: u32,
    moves: Vec<Move>,
}

/// Blocks that were read, each run with its first frame in the segment.
type Parts = Vec<(u32, Bytes)>;

/// The moves of these runs of the map, and how many blocks they are.
fn moves_of(runs: &[MapRun]) -> (Vec<Move>, u32) {
    let mut moves = Vec::with_capacity(runs.len());
    let mut to = 0u32;
    for run in runs {
        let Place::Object { object, frame: first } = run.place else { continue };
        let end = first.saturating_add(u32::try_from(run.end - run.start).unwrap_or(u32::MAX));
        for frame in (first..end).step_by(SPAN_FRAMES as usize) {
            let end = end.min(frame.saturating_add(SPAN_FRAMES));
            moves.push(Move { object, frame, end, to });
            to = to.saturating_add(end - frame);
        }
    }
    (moves, to)
}

/// The reads that bring these moves: what lies near to one another in an object is read together, and what is dead between is not, so that a fold reads
/// and holds in proportion to what lives, however large and sparse its objects are.
fn spans_of(mut moves: Vec<Move>) -> Vec<Span> {
    moves.sort_unstable();
    let mut spans: Vec<Span> = Vec::new();
    for one in moves {
        match spans.last_mut() {
            Some(span)
                if span.object == one.object
                    && one.frame <= span.end.saturating_add(GAP_FRAMES)
                    && one.end - span.first <= SPAN_FRAMES =>
            {
                span.end = span.end.max(one.end);
                span.moves.push(one);
            }
            _ => spans.push(Span { object: one.object, first: one.frame, end: one.end, moves: vec![one] }),
        }
    }
    spans
}

/// Reads what the plan says and writes the segment.
///
/// # Errors
/// `Corrupt` naming the object when a block is not what was written; what the store gives.
pub async fn fold(
    store: &Store,
    clock: &Clock,
    state: &LogState,
    plan: FoldPlan,
    epoch: Epoch,
    number: u64,
) -> Result<Folded> {
    let (moves, blocks) = moves_of(&plan.runs);
    if blocks != plan.blocks {
        return Err(Error::internal("bad-fold", format!("{blocks} blocks moved of {} planned", plan.blocks)));
    }
    let nonce = clock.nonce();
    let record = SegmentRecord { clone: state.clone, epoch, number, nonce, blocks };
    let (mut segment, frames_at) = begin_segment(&record)?;
    segment.resize(segment.len() + blocks as usize * FRAME_BYTES, 0);
    let reads: Vec<BoxFuture<'_, Result<Parts>>> = spans_of(moves)
        .into_iter()
        .map(|span| match plan.objects.get(&span.object) {
            Some(object) => read(store, Arc::clone(object), span).boxed(),
            None => ready(Err(Error::internal("bad-fold", "a run in an object that was not chosen"))).boxed(),
        })
        .collect();
    // What has come goes to its place at once, so that besides the segment only what is on its way takes memory.
    let mut reads = stream::iter(reads).buffer_unordered(IN_FLIGHT);
    let mut placed = 0;
    while let Some(parts) = reads.try_next().await? {
        for (to, part) in parts {
            let at = frames_at as usize + to as usize * FRAME_BYTES;
            let place = segment.get_mut(at..at + part.len() / BLOCK * FRAME_BYTES);
            let place = place.ok_or_else(|| Error::internal("bad-fold", "a run beyond the end of its segment"))?;
            frame::put_over(place, &nonce, to, &part);
            placed += part.len() / BLOCK;
        }
    }
    drop(reads);
    if placed != blocks as usize {
        return Err(Error::internal("bad-fold", format!("{placed} blocks read of {blocks} planned")));
    }
    let key = keys::segment(state.clone, epoch, number);
    match store.put_new_cold(&key, segment.freeze()).await? {
        PutNew::Created => {}
        PutNew::Exists(_) => {
            return Err(
                Error::conflict("taken-over", "another process writes segments of this epoch").on(key.to_string())
            );
        }
    }
    let mut next = 0u32;
    let mut moved = Vec::with_capacity(plan.runs.len());
    for run in plan.runs {
        moved.push((run, next));
        next += u32::try_from(run.end - run.start).unwrap_or(0);
    }
    let facts = BlockObject { name: ObjectName::Segment(epoch, number), nonce, frames_at, frames: blocks };
    Ok(Folded { object: Object::new(state.clone, facts), moved })
}

/// The blocks of a span that live. What is dead between them is not looked at.
async fn read(store: &Store, object: Arc<Object>, span: Span) -> Result<Parts> {
    let at = |frame: u32| u64::from(object.facts.frames_at) + u64::from(frame) * FRAME_BYTES as u64;
    let range = ByteRange::new(at(span.first), at(span.end));
    let mut again = false;
    loop {
        let frames = store.get_range(&object.key(), range, None).await?;
        let take = |one: &Move| {
            let within = |frame: u32| (frame - span.first) as usize * FRAME_BYTES;
            let part = frames.get(within(one.frame)..within(one.end));
            let part = part.ok_or_else(|| Error::corrupt("short-record", "it ends before its last block"))?;
            Ok((one.to, frame::take(&object.facts.nonce, one.frame, part)?))
        };
        match span.moves.iter().map(take).collect::<Result<Vec<_>>>() {
            Ok(parts) => return Ok(parts),
            Err(_) if !again => again = true,
            Err(error) => return Err(error.on(object.key().to_string())),
        }
    }
}

impl LogState {
    /// Takes a segment in; its index. The map does not point to it before [`LogState::adopt_runs`].
    pub fn adopt_segment(&mut self, folded: &Folded) -> u32 {
        self.objects.add(Arc::clone(&folded.object))
    }

    /// Points the map to a segment of this index, wherever it still says what it said when the fold was planned.
    pub fn adopt_runs(&mut self, index: u32, moved: &[(MapRun, u32)]) {
        for (old, first) in moved {
            let now: Vec<MapRun> = self.image.map.range(old.start, old.end).collect();
            for run in now {
                if run.place == old.place.advance(run.start - old.start) {
                    let frame = first + u32::try_from(run.start - old.start).unwrap_or(u32::MAX);
                    self.image.map.insert(run.start, run.end, Place::Object { object: index, frame });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lives_is_read_in_bounded_pieces_and_what_is_dead_between_is_not() {
        let run = |start: u64, blocks: u64, object, frame| MapRun {
            start,
            end: start + blocks,
            place: Place::Object { object, frame },
        };
        // Near to one another in another order, far away, long, and in another object.
        let runs =
            [run(0, 2, 7, 50), run(10, 1, 7, 10), run(20, 1, 7, 9000), run(30, 2000, 3, 100), run(9000, 1, 7, 11)];
        let (moves, blocks) = moves_of(&runs);
        assert_eq!(blocks, 2005);
        let spans = spans_of(moves);
        let found: Vec<_> = spans.iter().map(|span| (span.object, span.first, span.end, span.moves.len())).collect();
        let long = [(3, 100, 612, 1), (3, 612, 1124, 1), (3, 1124, 1636, 1), (3, 1636, 2100, 1)];
        assert_eq!(found, [&long[..], &[(7, 10, 12, 2), (7, 50, 52, 1), (7, 9000, 9001, 1)][..]].concat());
        // Sparse for as long as one likes.
        let runs: Vec<MapRun> = (0..10_000u32).map(|n| run(u64::from(n) * 9, 1, 1, n * 20)).collect();
        for span in spans_of(moves_of(&runs).0) {
            assert!(span.end - span.first <= SPAN_FRAMES, "{span:?}");
        }
    }
}
