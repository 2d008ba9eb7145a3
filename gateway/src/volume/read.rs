//! Reading: a plan under the lock, then bytes from wherever the plan says, without the lock.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use clonegate_core::units::{BLOCK_BYTES, ByteRange};
use clonegate_core::{Error, ErrorKind, Result};

use futures::{FutureExt, StreamExt, TryStreamExt, stream};

use super::core::{Core, Role};
use super::plan::{Piece, Plan, plan};
use crate::delta::Engine;
use crate::delta::cache::LINE_FRAMES;
use crate::delta::object::Object;
use crate::device::{Extent, Segments, Source, zeroes};
use crate::store::Store;

/// Bytes that are fetched ahead of a sequential reader.
const READAHEAD_BYTES: u64 = 1 << 20;
/// Pieces that are fetched side by side.
const IN_FLIGHT: usize = 16;
/// Times that a read is begun anew because objects were collected under it.
const ATTEMPTS: u32 = 4;

impl Core {
    /// See [`crate::device::Device::try_read`].
    pub(super) fn try_read(self: &Arc<Self>, range: ByteRange) -> Option<Segments> {
        let face = self.face.load();
        if range.end() > self.record.size || !self.is_fresh() {
            return None;
        }
        if face.pristine {
            let mut out = Segments::new();
            return match &face.base {
                None => {
                    zeroes(&mut out, range.len());
                    Some(out)
                }
                Some(base) if range.end() <= base.size() => base.try_read(range),
                Some(_) => self.try_plan(range),
            };
        }
        drop(face);
        self.try_plan(range)
    }

    fn try_plan(&self, range: ByteRange) -> Option<Segments> {
        let plan = plan(&self.state.read(), range);
        try_gather(&self.engine, &self.store, &plan, range.len())
    }

    /// Reads `range` of one version.
    pub(super) async fn read(self: &Arc<Self>, range: ByteRange) -> Result<Segments> {
        range.check_within(self.record.size)?;
        self.refresh_if_stale().await?;
        if let Some(there) = self.try_read(range) {
            self.note_read(range);
            return Ok(there);
        }
        let (_, out) = self.fetch_now(range).await?;
        self.note_read(range);
        Ok(out)
    }

    /// The bytes of `range` of one moment, and where they were found.
    pub(super) async fn fetch_now(self: &Arc<Self>, range: ByteRange) -> Result<(Plan, Segments)> {
        let mut attempt = 0;
        loop {
            let plan = plan(&self.state.read(), range);
            match gather(&self.engine, &self.store, &plan, range.len()).await {
                // Folded and collected since it was planned: it lies elsewhere now. A reader has to look where.
                Err(error) if error.kind() == ErrorKind::NotFound && attempt < ATTEMPTS => {
                    attempt += 1;
                    if matches!(self.state.read().role, Role::Reader) {
                        self.refresh().await?;
                    }
                }
                Err(error) if error.kind() == ErrorKind::NotFound => return Err(gone(error)),
                Err(error) => return Err(error),
                Ok(out) => return Ok((plan, out)),
            }
        }
    }

    /// Remembers where a read ended, and fetches on from there when the reader goes straight ahead.
    fn note_read(self: &Arc<Self>, range: ByteRange) {
        let before = self.read_end.swap(range.end(), Ordering::Relaxed);
        if before != range.start() || range.start() == 0 {
            self.ahead_end.store(0, Ordering::Relaxed);
            return;
        }
        // What was begun for an earlier read of the same row is not begun again, and not for every small read a little more.
        let to = (range.end() + READAHEAD_BYTES).min(self.record.size);
        let begun = self.ahead_end.load(Ordering::Relaxed).clamp(range.end(), to);
        if to == begun || (begun > range.end() && to - begun < READAHEAD_BYTES / 2) {
            return;
        }
        self.ahead_end.store(to, Ordering::Relaxed);
        let ahead = ByteRange::new(begun, to);
        let mut ahead = plan(&self.state.read(), ahead);
        ahead.pieces.retain(|piece| match piece {
            Piece::Object { object, from, .. } => {
                !self.engine.cache.try_read(object, *from, *from + 1, &mut Segments::new())
            }
            _ => false,
        });
        if ahead.pieces.is_empty() {
            return;
        }
        let core = Arc::clone(self);
        // An error is for the read that needs it to tell.
        self.engine.handle.spawn(async move { fetch_ahead(&core.engine, &core.store, &ahead).await.ok() });
    }

    /// See [`crate::device::Device::extents`].
    pub(super) async fn extents(self: &Arc<Self>, range: ByteRange) -> Result<Vec<Extent>> {
        range.check_within(self.record.size)?;
        self.refresh_if_stale().await?;
        let plan = plan(&self.state.read(), range);
        extents_of(&plan, range).await
    }

    /// See [`crate::device::Device::prefetch`].
    pub(super) async fn prefetch(self: &Arc<Self>, range: ByteRange) -> Result<()> {
        range.check_within(self.record.size)?;
        let plan = plan(&self.state.read(), range);
        fetch_ahead(&self.engine, &self.store, &plan).await
    }
}

/// The bytes of a plan, when all of them are in memory.
pub(super) fn try_gather(engine: &Engine, store: &Store, plan: &Plan, length: u64) -> Option<Segments> {
    let mut out = Segments::new();
    let mut planned = 0;
    for piece in &plan.pieces {
        planned += piece.len();
        match piece {
            Piece::Memory(bytes) => out.push(bytes.clone()),
            Piece::Zero(length) => zeroes(&mut out, *length),
            Piece::Base(range) => out.extend(plan.base.as_ref()?.try_read(*range)?),
            Piece::Object { object, from, to } => {
                if !engine.cache.try_now(store, object, *from, *to, &mut out) {
                    return None;
                }
            }
        }
    }
    (planned == length).then_some(out)
}

/// The bytes of a plan; what has to be fetched is fetched side by side.
pub(super) async fn gather(engine: &Arc<Engine>, store: &Store, plan: &Plan, length: u64) -> Result<Segments> {
    let planned: u64 = plan.pieces.iter().map(Piece::len).sum();
    if planned != length {
        return Err(Error::internal("bad-plan", format!("{planned} bytes planned of {length}")));
    }
    if let [piece] = plan.pieces.as_slice() {
        return fetch(engine, store, plan, piece).await;
    }
    let reads: Vec<_> = plan.pieces.iter().map(|piece| fetch(engine, store, plan, piece).boxed()).collect();
    let mut out = Segments::new();
    let mut parts = stream::iter(reads).buffered(IN_FLIGHT);
    while let Some(part) = parts.try_next().await? {
        out.extend(part);
    }
    Ok(out)
}

/// The bytes of one piece of a plan.
async fn fetch(engine: &Arc<Engine>, store: &Store, plan: &Plan, piece: &Piece) -> Result<Segments> {
    let mut out = Segments::new();
    match piece {
        Piece::Memory(bytes) => out.push(bytes.clone()),
        Piece::Zero(length) => zeroes(&mut out, *length),
        Piece::Base(range) => match &plan.base {
            Some(base) => return base.read(*range).await,
            None => return Err(Error::internal("bad-plan", "a piece of a base that is not there")),
        },
        Piece::Object { object, from, to } => {
            if engine.cache.try_read(object, *from, *to, &mut out) {
                return Ok(out);
            }
            return engine.cache.read(store, object, *from, *to).await;
        }
    }
    Ok(out)
}

/// Where the bytes of a plan come from; neighbours of one source are merged.
pub(super) async fn extents_of(plan: &Plan, range: ByteRange) -> Result<Vec<Extent>> {
    let mut out: Vec<Extent> = Vec::new();
    let mut at = range.start();
    for piece in &plan.pieces {
        let range = ByteRange::new(at, at + piece.len());
        at = range.end();
        let source = match piece {
            Piece::Memory(_) | Piece::Object { .. } => Source::Delta,
            Piece::Zero(_) => Source::Zero,
            Piece::Base(range) => {
                if let Some(base) = &plan.base {
                    base.extents(*range).await?.into_iter().for_each(|extent| extent.append_to(&mut out));
                }
                continue;
            }
        };
        Extent { range, source }.append_to(&mut out);
    }
    Ok(out)
}

/// Fetches what a plan says into the caches.
pub(super) async fn fetch_ahead(engine: &Engine, store: &Store, plan: &Plan) -> Result<()> {
    let pieces = joined(&plan.pieces);
    let fetches: Vec<_> = pieces.iter().map(|piece| fetch_piece_ahead(engine, store, plan, piece).boxed()).collect();
    stream::iter(fetches).buffer_unordered(IN_FLIGHT).try_collect().await
}

/// The pieces that have to be fetched, in their order; those of one object that are of the same or the next line of the cache as one, so that what
/// lies in turns in several objects takes few requests.
fn joined(pieces: &[Piece]) -> Vec<Piece> {
    const LINE: u64 = LINE_FRAMES as u64 * BLOCK_BYTES;
    let mut parts: Vec<(usize, &Arc<Object>, u64, u64)> = Vec::new();
    let mut out: Vec<(usize, Piece)> = Vec::new();
    for (place, piece) in pieces.iter().enumerate() {
        match piece {
            Piece::Object { object, from, to } => parts.push((place, object, *from, *to)),
            Piece::Base(_) => out.push((place, piece.clone())),
            Piece::Memory(_) | Piece::Zero(_) => {}
        }
    }
    parts.sort_unstable_by_key(|(_, object, from, _)| (object.uid, *from));
    let near = |a: &(usize, &Arc<Object>, u64, u64), b: &(usize, &Arc<Object>, u64, u64)| {
        a.1.uid == b.1.uid && b.2 / LINE <= a.3.saturating_sub(1) / LINE + 1
    };
    for row in parts.chunk_by(near) {
        let (Some((_, object, from, _)), Some(to)) = (row.first(), row.iter().map(|part| part.3).max()) else {
            continue;
        };
        let place = row.iter().map(|part| part.0).min().unwrap_or(0);
        out.push((place, Piece::Object { object: Arc::clone(object), from: *from, to }));
    }
    out.sort_unstable_by_key(|(place, _)| *place);
    out.into_iter().map(|(_, piece)| piece).collect()
}

async fn fetch_piece_ahead(engine: &Engine, store: &Store, plan: &Plan, piece: &Piece) -> Result<()> {
    match (piece, &plan.base) {
        (Piece::Base(range), Some(base)) => base.prefetch(*range).await,
        (Piece::Object { object, from, to }, _) => engine.cache.read(store, object, *from, *to).await.map(drop),
        _ => Ok(()),
    }
}

pub(super) fn gone(error: Error) -> Error {
    let object = error.object().unwrap_or_default().to_owned();
    Error::corrupt("missing-object", "an object that the volume needs is gone")
        .on(object)
        .hint("run `clonegate fsck`; other clones are unharmed")
}

pub(super) fn stopping() -> Error {
    Error::unavailable("stopping", "the gateway is stopping")
}
