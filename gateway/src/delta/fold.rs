//! Folding: the live blocks of many small or mostly dead objects, written once more in the order of the volume.

use std::collections::{BTreeMap, HashMap};
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
    let mut wanted: BTreeMap<u32, (u32, u32)> = BTreeMap::new();
    for run in &plan.runs {
        if let Place::Object { object, frame } = run.place {
            let end = frame + u32::try_from(run.end - run.start).unwrap_or(u32::MAX);
            let hull = wanted.entry(object).or_insert((frame, end));
            *hull = (hull.0.min(frame), hull.1.max(end));
        }
    }
    type Fetched = Result<(u32, (u32, Bytes))>;
    let reads: Vec<BoxFuture<'_, Fetched>> = wanted
        .iter()
        .filter_map(|(index, (first, end))| {
            let object = Arc::clone(plan.objects.get(index)?);
            let (index, first, end) = (*index, *first, *end);
            Some(async move { Ok((index, (first, read(store, &object, first, end).await?))) }.boxed())
        })
        .collect();
    let bytes: HashMap<u32, (u32, Bytes)> = stream::iter(reads).buffered(IN_FLIGHT).try_collect().await?;
    let nonce = clock.nonce();
    let record = SegmentRecord { clone: state.clone, epoch, number, nonce, blocks: plan.blocks };
    let (mut segment, frames_at) = begin_segment(&record)?;
    let mut moved = Vec::with_capacity(plan.runs.len());
    let mut next = 0u32;
    for run in &plan.runs {
        let Place::Object { object, frame } = run.place else { continue };
        let blocks = u32::try_from(run.end - run.start).unwrap_or(u32::MAX);
        let part = bytes.get(&object).and_then(|(first, bytes)| {
            let from = (frame - first) as usize * BLOCK;
            bytes.get(from..from + blocks as usize * BLOCK)
        });
        let part = part.ok_or_else(|| Error::internal("bad-fold", "a run outside of what was read"))?;
        frame::put(&mut segment, &nonce, next, part);
        moved.push((*run, next));
        next += blocks;
    }
    if next != plan.blocks {
        return Err(Error::internal("bad-fold", format!("{next} blocks moved of {} planned", plan.blocks)));
    }
    let object = segment.freeze();
    let key = keys::segment(state.clone, epoch, number);
    match store.put_new_cold(&key, object).await? {
        PutNew::Created => {}
        PutNew::Exists(_) => {
            return Err(
                Error::conflict("taken-over", "another process writes segments of this epoch").on(key.to_string())
            );
        }
    }
    let facts = BlockObject { name: ObjectName::Segment(epoch, number), nonce, frames_at, frames: next };
    Ok(Folded { object: Object::new(state.clone, facts), moved })
}

async fn read(store: &Store, object: &Object, first: u32, end: u32) -> Result<Bytes> {
    let at = |frame: u32| u64::from(object.facts.frames_at) + u64::from(frame) * FRAME_BYTES as u64;
    let range = ByteRange::new(at(first), at(end));
    let mut again = false;
    loop {
        let frames = store.get_range(&object.key(), range, None).await?;
        match frame::take(&object.facts.nonce, first, &frames) {
            Ok(bytes) => return Ok(bytes),
            Err(_) if !again => again = true,
            Err(error) => return Err(error.on(object.key().to_string())),
        }
    }
}

impl LogState {
    /// Points the map to a segment, wherever it still says what it said when the fold was planned.
    pub fn adopt_fold(&mut self, folded: &Folded) {
        let index = self.objects.add(Arc::clone(&folded.object));
        for (old, first) in &folded.moved {
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
