//! Blocks read back from the store: a bounded cache of the deltas' own, so that one clone's delta never flushes the iCache.
//!
//! A line that is missing is fetched by a task of its own, once however many ask for it meanwhile: whoever goes away harms nobody.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::ready;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use clonegate_core::format::frame::{self, BLOCK, FRAME_BYTES};
use clonegate_core::units::ByteRange;
use clonegate_core::{Error, ErrorKind, Result};
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::object::Object;
use crate::device::Segments;
use crate::store::Store;

/// Frames of one cache line.
pub const LINE_FRAMES: u32 = 16;
/// Frames that one request fetches at most (1 MiB).
const FETCH_FRAMES: u32 = 256;

type LineId = (u64, u32);
/// A fetch under way: the first frame, and the blocks from there on.
type Flight = Shared<BoxFuture<'static, Result<(u32, Bytes)>>>;

#[derive(Clone)]
struct ByBytes;

impl Weighter<LineId, Bytes> for ByBytes {
    fn weight(&self, _: &LineId, line: &Bytes) -> u64 {
        line.len() as u64 + 64
    }
}

/// See the module. Shared by all volumes of a gateway.
pub struct DeltaCache {
    lines: Cache<LineId, Bytes, ByBytes>,
    /// Lines that are on their way.
    flights: Mutex<HashMap<LineId, Flight>>,
    /// The runtime that store IO runs on.
    handle: Handle,
}

/// Lines of an object that are being fetched; when it is dropped, for whatever reason, they are no more.
struct Landing {
    cache: Arc<DeltaCache>,
    object: u64,
    lines: Range<u32>,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut flights = self.cache.flights.lock();
        let landed: Vec<Option<Flight>> = self.lines.clone().map(|line| flights.remove(&(self.object, line))).collect();
        drop(flights);
        drop(landed);
    }
}

impl std::fmt::Debug for DeltaCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DeltaCache({} lines, {} bytes)", self.lines.len(), self.lines.weight())
    }
}

impl DeltaCache {
    /// A cache of so many bytes, which fetches on the runtime `handle`.
    pub fn new(capacity_bytes: u64, handle: Handle) -> Arc<Self> {
        let line = u64::from(LINE_FRAMES) * BLOCK as u64;
        let items = usize::try_from((capacity_bytes / line).max(16)).unwrap_or(usize::MAX);
        let lines = Cache::with_weighter(items, capacity_bytes, ByBytes);
        Arc::new(Self { lines, flights: Mutex::default(), handle })
    }

    /// Bytes in it now.
    pub fn bytes(&self) -> u64 {
        self.lines.weight()
    }

    /// Appends `from..to`, bytes of the plain blocks of `object`, when all of it is here; otherwise appends nothing.
    pub fn try_read(&self, object: &Object, from: u64, to: u64, out: &mut Segments) -> bool {
        let before = out.len();
        let line_bytes = u64::from(LINE_FRAMES) * BLOCK as u64;
        let mut at = from;
        while at < to {
            let Ok(line) = u32::try_from(at / line_bytes) else { return false };
            let begin = u64::from(line) * line_bytes;
            let part = self.lines.get(&(object.uid, line)).and_then(|bytes| part(&bytes, at - begin, to - begin));
            let Some(part) = part else {
                out.truncate(before);
                return false;
            };
            at += part.len() as u64;
            out.push(part);
        }
        true
    }

    /// As [`DeltaCache::try_read`], and when it is not here, but in the memory of a store that is a directory, from there:
    /// only the blocks that are asked for, and without keeping them twice.
    pub fn try_now(&self, store: &Store, object: &Object, from: u64, to: u64, out: &mut Segments) -> bool {
        if self.try_read(object, from, to, out) {
            return true;
        }
        let block = BLOCK as u64;
        let (first, end) = (from / block, to.div_ceil(block));
        let (Ok(first), Ok(end)) = (u32::try_from(first), u32::try_from(end)) else { return false };
        if end > object.facts.frames || end - first > LINE_FRAMES {
            return false;
        }
        let Some(frames) = store.get_range_now(&object.key(), frames_at(object, first, end)) else { return false };
        // What is damaged is for the slow way to fetch again and to tell.
        let Ok(bytes) = frame::take(&object.facts.nonce, first, &frames) else { return false };
        let begin = u64::from(first) * block;
        let Some(part) = part(&bytes, from - begin, to - begin) else { return false };
        out.push(part);
        true
    }

    /// Reads `from..to`, bytes of the plain blocks of `object`, through the cache.
    ///
    /// # Errors
    /// `Corrupt` with code `bad-block` when a block is not what was written, also when fetched again; what the store gives.
    pub async fn read(self: &Arc<Self>, store: &Store, object: &Arc<Object>, from: u64, to: u64) -> Result<Segments> {
        let mut out = Segments::new();
        let block = BLOCK as u64;
        let mut at = from;
        while at < to {
            let one = (at / block + 1) * block;
            if self.try_read(object, at, one.min(to), &mut out) {
                at = one.min(to);
                continue;
            }
            let (first, bytes) = self.join_or_fetch(store, object, at, to)?.await?;
            let begin = u64::from(first) * block;
            let part = part(&bytes, at - begin, to - begin).ok_or_else(|| past_end(object))?;
            at += part.len() as u64;
            out.push(part);
        }
        Ok(out)
    }

    /// What brings the line that holds the byte `from`: the fetch that has it under way, or a new one of this and the next lines up to `to`, as
    /// far as one request goes and nobody else has them.
    fn join_or_fetch(self: &Arc<Self>, store: &Store, object: &Arc<Object>, from: u64, to: u64) -> Result<Flight> {
        let line = |at: u64| u32::try_from(at / (u64::from(LINE_FRAMES) * BLOCK as u64)).map_err(|_| past_end(object));
        let first = line(from)?;
        let most = object.facts.frames.div_ceil(LINE_FRAMES).min(first.saturating_add(FETCH_FRAMES / LINE_FRAMES));
        let most = most.min(line(to - 1)? + 1);
        if first >= most {
            return Err(past_end(object));
        }
        let (answer, answered) = oneshot::channel();
        let flight: Flight = answered.map(|answer| answer.unwrap_or_else(|_| Err(stopping()))).boxed().shared();
        let mut end = first;
        let mut flights = self.flights.lock();
        for line in first..most {
            let id = (object.uid, line);
            let Entry::Vacant(free) = flights.entry(id) else { break };
            // It may have come since it was looked for: then it is not asked for again.
            if let Some(there) = self.lines.get(&id) {
                if line == first {
                    return Ok(ready(Ok((first * LINE_FRAMES, there))).boxed().shared());
                }
                break;
            }
            free.insert(flight.clone());
            end = line + 1;
        }
        if end == first {
            return flights.get(&(object.uid, first)).cloned().ok_or_else(|| past_end(object));
        }
        drop(flights);
        // From here on they are ours to give back.
        let landing = Landing { cache: Arc::clone(self), object: object.uid, lines: first..end };
        let (store, object) = (store.clone(), Arc::clone(object));
        self.handle.spawn(async move {
            let frames = (first * LINE_FRAMES)..(end * LINE_FRAMES).min(object.facts.frames);
            let fetched = landing.cache.fetch(&store, &object, frames).await;
            drop(landing);
            // Those who asked may all have gone away.
            let _ = answer.send(fetched);
        });
        Ok(flight)
    }

    /// Fetches frames that begin a line, and keeps them.
    async fn fetch(&self, store: &Store, object: &Object, frames: Range<u32>) -> Result<(u32, Bytes)> {
        let (first, end) = (frames.start, frames.end);
        let bytes = match self.fetch_once(store, object, first, end).await {
            // It may have been damaged on the way: once more, then it is an error.
            Err(error) if error.kind() == ErrorKind::Corrupt => self.fetch_once(store, object, first, end).await,
            fetched => fetched,
        };
        let bytes = bytes?;
        for (index, line) in (first..end).step_by(LINE_FRAMES as usize).enumerate() {
            let begin = index * LINE_FRAMES as usize * BLOCK;
            let stop = (begin + LINE_FRAMES as usize * BLOCK).min(bytes.len());
            // A copy, so that a line never holds more memory than it is counted for.
            self.lines.insert((object.uid, line / LINE_FRAMES), Bytes::copy_from_slice(&bytes[begin..stop]));
        }
        Ok((first, bytes))
    }

    async fn fetch_once(&self, store: &Store, object: &Object, first: u32, end: u32) -> Result<Bytes> {
        let frames = store.get_range(&object.key(), frames_at(object, first, end), None).await?;
        frame::take(&object.facts.nonce, first, &frames)
            .map_err(|e| e.on(object.key().to_string()).hint("run `clonegate fsck`; the other blocks are unharmed"))
    }
}

/// Where frames lie in their object.
fn frames_at(object: &Object, first: u32, end: u32) -> ByteRange {
    let at = |frame: u32| u64::from(object.facts.frames_at) + u64::from(frame) * FRAME_BYTES as u64;
    ByteRange::new(at(first), at(end))
}

fn part(bytes: &Bytes, from: u64, to: u64) -> Option<Bytes> {
    let from = usize::try_from(from).ok()?;
    let to = usize::try_from(to).unwrap_or(usize::MAX).min(bytes.len());
    (from < to).then(|| bytes.slice(from..to))
}

fn stopping() -> Error {
    Error::unavailable("stopping", "the gateway is stopping")
}

fn past_end(object: &Object) -> Error {
    Error::internal("bad-map", "a run beyond the end of its object").on(object.key().to_string())
}
