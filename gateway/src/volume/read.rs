//! Reading: a plan under the lock, then bytes from wherever the plan says, without the lock.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use clonegate_core::units::ByteRange;
use clonegate_core::{Error, ErrorKind, Result};

use super::core::{Core, Role};
use super::plan::{Piece, Plan, plan};
use crate::device::{Extent, Segments, Source, zeroes};

/// Bytes that are fetched ahead of a sequential reader.
const READAHEAD_BYTES: u64 = 1 << 20;
/// Times that a read is begun anew because objects were collected under it.
const ATTEMPTS: u32 = 4;

impl Core {
    /// See [`crate::device::Device::try_read`].
    pub(super) fn try_read(&self, range: ByteRange) -> Option<Segments> {
        let face = self.face.load();
        if face.reader && self.is_stale() {
            return None;
        }
        if range.end() > self.record.size {
            return None;
        }
        let mut out = Segments::new();
        if face.pristine {
            return match &face.base {
                None => {
                    zeroes(&mut out, range.len());
                    Some(out)
                }
                Some(base) if range.end() <= base.size() => base.try_read(range),
                Some(_) => self.try_plan(range, out),
            };
        }
        drop(face);
        self.try_plan(range, out)
    }

    fn try_plan(&self, range: ByteRange, mut out: Segments) -> Option<Segments> {
        let plan = plan(&self.state.read(), range);
        let mut length = 0;
        for piece in &plan.pieces {
            length += piece.len();
            match piece {
                Piece::Memory(bytes) => out.push(bytes.clone()),
                Piece::Zero(length) => zeroes(&mut out, *length),
                Piece::Base(range) => out.extend(plan.base.as_ref()?.try_read(*range)?),
                Piece::Object { object, from, to } => {
                    if !self.engine.cache.try_read(object, *from, *to, &mut out) {
                        return None;
                    }
                }
            }
        }
        (length == range.len()).then_some(out)
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
            match self.fetch(&plan, range.len()).await {
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

    /// The bytes of a plan.
    pub(super) async fn fetch(self: &Arc<Self>, plan: &Plan, length: u64) -> Result<Segments> {
        let mut out = Segments::new();
        let mut planned = 0;
        for piece in &plan.pieces {
            planned += piece.len();
            match piece {
                Piece::Memory(bytes) => out.push(bytes.clone()),
                Piece::Zero(length) => zeroes(&mut out, *length),
                Piece::Base(range) => match &plan.base {
                    Some(base) => out.extend(base.read(*range).await?),
                    None => return Err(Error::internal("bad-plan", "a piece of a base that is not there")),
                },
                Piece::Object { object, from, to } => {
                    if self.engine.cache.try_read(object, *from, *to, &mut out) {
                        continue;
                    }
                    // A task of its own, on the runtime that store IO runs on: the asker may go away.
                    let (core, object, from, to) = (Arc::clone(self), Arc::clone(object), *from, *to);
                    let task = self
                        .engine
                        .handle
                        .spawn(async move { core.engine.cache.read(&core.store, &object, from, to).await });
                    out.extend(task.await.map_err(|_| stopping())??);
                }
            }
        }
        if planned != length {
            return Err(Error::internal("bad-plan", format!("{planned} bytes planned of {length}"))
                .on(self.record.name.to_string()));
        }
        Ok(out)
    }

    /// Remembers where a read ended, and fetches on from there when the reader goes straight ahead.
    fn note_read(self: &Arc<Self>, range: ByteRange) {
        let before = self.read_end.swap(range.end(), Ordering::Relaxed);
        if before != range.start() || range.start() == 0 {
            return;
        }
        let ahead = ByteRange::new(range.end(), (range.end() + READAHEAD_BYTES).min(self.record.size));
        let plan = plan(&self.state.read(), ahead);
        let missing: Vec<Piece> = plan
            .pieces
            .into_iter()
            .filter(|piece| match piece {
                Piece::Object { object, from, .. } => {
                    !self.engine.cache.try_read(object, *from, from + 1, &mut Segments::new())
                }
                _ => false,
            })
            .collect();
        // Only when the reader has come to the last that is there: not for every small read within it.
        if !missing.first().is_some_and(|piece| matches!(piece, Piece::Object { .. })) || missing.len() > 64 {
            return;
        }
        let core = Arc::clone(self);
        self.engine.handle.spawn(async move {
            for piece in missing {
                if let Piece::Object { object, from, to } = piece
                    && core.engine.cache.read(&core.store, &object, from, to).await.is_err()
                {
                    return;
                }
            }
        });
    }

    /// See [`crate::device::Device::extents`].
    pub(super) async fn extents(self: &Arc<Self>, range: ByteRange) -> Result<Vec<Extent>> {
        range.check_within(self.record.size)?;
        self.refresh_if_stale().await?;
        let plan = plan(&self.state.read(), range);
        let mut out: Vec<Extent> = Vec::new();
        let mut at = range.start();
        let push = |out: &mut Vec<Extent>, start: u64, end: u64, source: Source| match out.last_mut() {
            Some(last) if last.source == source && last.range.end() == start => {
                last.range = ByteRange::new(last.range.start(), end);
            }
            _ => out.push(Extent { range: ByteRange::new(start, end), source }),
        };
        for piece in &plan.pieces {
            let end = at + piece.len();
            match piece {
                Piece::Memory(_) | Piece::Object { .. } => push(&mut out, at, end, Source::Delta),
                Piece::Zero(_) => push(&mut out, at, end, Source::Zero),
                Piece::Base(range) => {
                    if let Some(base) = &plan.base {
                        for extent in base.extents(*range).await? {
                            push(&mut out, extent.range.start(), extent.range.end(), extent.source);
                        }
                    }
                }
            }
            at = end;
        }
        Ok(out)
    }

    /// See [`crate::device::Device::prefetch`].
    pub(super) async fn prefetch(self: &Arc<Self>, range: ByteRange) -> Result<()> {
        range.check_within(self.record.size)?;
        let plan = plan(&self.state.read(), range);
        for piece in &plan.pieces {
            match (piece, &plan.base) {
                (Piece::Base(range), Some(base)) => base.prefetch(*range).await?,
                (Piece::Object { object, from, to }, _) => {
                    self.engine.cache.read(&self.store, object, *from, *to).await?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn gone(error: Error) -> Error {
    let object = error.object().unwrap_or_default().to_owned();
    Error::corrupt("missing-object", "an object that the volume needs is gone")
        .on(object)
        .hint("run `clonegate fsck`; other clones are unharmed")
}

pub(super) fn stopping() -> Error {
    Error::unavailable("stopping", "the gateway is stopping")
}
