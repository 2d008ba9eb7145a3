//! Where the bytes of a range are at one moment: dirty memory over stored delta over base.

use std::sync::Arc;

use bytes::Bytes;
use clonegate_core::units::{BLOCK_BYTES, ByteRange};
use smallvec::SmallVec;

use super::base::BaseRead;
use super::core::State;
use crate::delta::dirty::Dirty;
use crate::delta::map::{BlockMap, Place};
use crate::delta::object::{Object, Objects};

/// Bytes of the volume, in order, with one source.
#[derive(Debug, Clone)]
pub(super) enum Piece {
    /// In memory.
    Memory(Bytes),
    /// This many zeroes.
    Zero(u64),
    /// This range of the base.
    Base(ByteRange),
    /// `from..to` of the plain blocks of an object.
    Object {
        /// The object.
        object: Arc<Object>,
        /// First byte.
        from: u64,
        /// One past the last.
        to: u64,
    },
}

impl Piece {
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::Zero(length) => *length,
            Self::Base(range) => range.len(),
            Self::Object { from, to, .. } => to - from,
        }
    }

    /// Whether both are the same bytes for certain, by where they lie.
    pub(super) fn same_source(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Memory(a), Self::Memory(b)) => a.as_ptr() == b.as_ptr() && a.len() == b.len(),
            (Self::Zero(a), Self::Zero(b)) => a == b,
            (Self::Base(a), Self::Base(b)) => a == b,
            (Self::Object { object: a, from, to }, Self::Object { object: b, from: f, to: t }) => {
                a.facts.name == b.facts.name && from == f && to == t
            }
            _ => false,
        }
    }
}

/// The pieces of a range, and the base that they speak of.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) pieces: SmallVec<[Piece; 4]>,
    pub(super) base: Option<Arc<dyn BaseRead>>,
}

/// What bytes are planned from.
#[derive(Debug, Clone, Copy)]
pub(super) struct View<'a> {
    /// Accepted writes, the newer first; none for a snapshot.
    pub(super) dirty: Option<(&'a Dirty, &'a Dirty)>,
    pub(super) map: &'a BlockMap,
    pub(super) objects: &'a Objects,
    pub(super) base: Option<&'a Arc<dyn BaseRead>>,
}

struct Builder<'a> {
    view: View<'a>,
    range: ByteRange,
    pieces: SmallVec<[Piece; 4]>,
}

fn to_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

impl Builder<'_> {
    /// The bytes of blocks `start..end` that are asked for, relative to the first of the blocks.
    fn clip(&self, start: u64, end: u64) -> (u64, u64) {
        let first = start * BLOCK_BYTES;
        let from = self.range.start().max(first);
        let to = self.range.end().min(end * BLOCK_BYTES);
        (from - first, to.max(from) - first)
    }

    fn memory(&mut self, start: u64, end: u64, data: Option<Bytes>) {
        let (from, to) = self.clip(start, end);
        self.pieces.push(match data {
            Some(data) => Piece::Memory(data.slice(to_usize(from)..to_usize(to))),
            None => Piece::Zero(to - from),
        });
    }

    fn open(&mut self, start: u64, end: u64) {
        let Some((open, _)) = self.view.dirty else { return self.stored(start, end) };
        let mut at = start;
        for run in open.range(start, end) {
            self.sealed(at, run.start);
            self.memory(run.start, run.end, run.data);
            at = run.end;
        }
        self.sealed(at, end);
    }

    fn sealed(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let Some((_, sealed)) = self.view.dirty else { return self.stored(start, end) };
        let mut at = start;
        for run in sealed.range(start, end) {
            self.stored(at, run.start);
            self.memory(run.start, run.end, run.data);
            at = run.end;
        }
        self.stored(at, end);
    }

    fn stored(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let mut at = start;
        for run in self.view.map.range(start, end) {
            self.base(at, run.start);
            let (from, to) = self.clip(run.start, run.end);
            match run.place {
                Place::Zero => self.pieces.push(Piece::Zero(to - from)),
                Place::Object { object, frame } => {
                    let first = u64::from(frame) * BLOCK_BYTES;
                    if let Some(object) = self.view.objects.get(object) {
                        self.pieces.push(Piece::Object {
                            object: Arc::clone(object),
                            from: first + from,
                            to: first + to,
                        });
                    }
                }
            }
            at = run.end;
        }
        self.base(at, end);
    }

    fn base(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let (from, to) = self.clip(start, end);
        let (from, to) = (start * BLOCK_BYTES + from, start * BLOCK_BYTES + to);
        let size = self.view.base.map_or(0, |base| base.size());
        let edge = to.min(size).max(from);
        if from < edge {
            self.pieces.push(Piece::Base(ByteRange::new(from, edge)));
        }
        if edge < to {
            self.pieces.push(Piece::Zero(to - edge));
        }
    }
}

/// Where the bytes of `range` are now.
pub(super) fn plan(state: &State, range: ByteRange) -> Plan {
    let log = &state.log;
    let dirty = Some((&state.open, &state.sealed));
    plan_of(View { dirty, map: &log.image.map, objects: &log.objects, base: state.base.as_ref() }, range)
}

/// Where the bytes of `range` are in what is looked at.
pub(super) fn plan_of(view: View<'_>, range: ByteRange) -> Plan {
    if range.is_empty() {
        return Plan::default();
    }
    let mut builder = Builder { view, range, pieces: SmallVec::new() };
    builder.open(range.start() / BLOCK_BYTES, range.end().div_ceil(BLOCK_BYTES));
    Plan { pieces: builder.pieces, base: view.base.cloned() }
}
