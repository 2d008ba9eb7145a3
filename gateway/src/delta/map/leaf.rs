//! A leaf of the delta map: a few hundred runs of twelve bytes, and a head that tells which of them to look at.

use std::sync::Arc;

use clonegate_core::limits::SEGMENT_BLOCKS_MAX;

use super::{MapRun, Place};

/// Most runs of a leaf.
pub(super) const LEAF_RUNS: usize = (SAMPLES + 1) * WINDOW;
/// Leaves grow by this many runs, so that little room is unused.
pub(super) const LEAF_GROW: usize = 32;
/// Runs of a leaf between two samples.
const WINDOW: usize = 16;
/// Samples of a leaf: as many as fit a line of the cache beside its base.
const SAMPLES: usize = 14;
const ZERO: u32 = u32::MAX;
const FRAME_BITS: u32 = 14;

const _: () = assert!(SEGMENT_BLOCKS_MAX as u64 <= 1 << FRAME_BITS, "frame and length fit one word");

/// `start` relative to the leaf, the object, and frame and length (or the length alone, for zeroes), less one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packed {
    pub(super) start: u32,
    object: u32,
    extra: u32,
}

impl Packed {
    /// Fills room that holds no run.
    pub(super) const NONE: Self = Self { start: u32::MAX, object: ZERO, extra: 0 };

    pub(super) fn new(base: u64, run: MapRun) -> Self {
        let start = low32(run.start - base);
        let length = low32(run.end - run.start - 1);
        match run.place {
            Place::Zero => Self { start, object: ZERO, extra: length },
            Place::Object { object, frame } => Self { start, object, extra: frame << FRAME_BITS | length },
        }
    }

    pub(super) fn blocks(self) -> u64 {
        let length = if self.object == ZERO { self.extra } else { self.extra & ((1 << FRAME_BITS) - 1) };
        u64::from(length) + 1
    }

    pub(super) fn unpack(self, base: u64) -> MapRun {
        let start = base + u64::from(self.start);
        let place = if self.object == ZERO {
            Place::Zero
        } else {
            Place::Object { object: self.object, frame: self.extra >> FRAME_BITS }
        };
        MapRun { start, end: start + self.blocks(), place }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "leaves and runs are bounded so that these fit")]
fn low32(value: u64) -> u32 {
    debug_assert!(u32::try_from(value).is_ok(), "a run or leaf longer than its bounds");
    value as u32
}

/// What a lookup has to know of a leaf before it looks at its runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(align(64))]
pub(super) struct Head {
    /// The starts of its runs are relative to this block.
    pub(super) base: u64,
    /// Where the runs `WINDOW`, `2 * WINDOW`, … start; more than any start where there are none.
    samples: [u32; SAMPLES],
}

impl Head {
    pub(super) fn new(base: u64, runs: &[Packed]) -> Self {
        let mut head = Self { base, samples: [u32::MAX; SAMPLES] };
        head.resample(runs, 0);
        head
    }

    /// Takes the samples again, after the runs from `from` on have changed.
    pub(super) fn resample(&mut self, runs: &[Packed], from: usize) {
        for (n, sample) in self.samples.iter_mut().enumerate().skip((from / WINDOW).saturating_sub(1)) {
            *sample = runs.get((n + 1) * WINDOW).map_or(u32::MAX, |run| run.start);
        }
    }
}

/// The runs of a leaf, shared until they are changed, with some room behind them. Beside the pointer only their number: to look at them takes one
/// access to memory.
#[derive(Debug, Clone)]
pub(super) struct Runs {
    pub(super) slots: Arc<[Packed]>,
    pub(super) len: usize,
}

impl Runs {
    pub(super) fn new(runs: Vec<Packed>) -> Self {
        Self { len: runs.len(), slots: runs.into() }
    }

    pub(super) fn as_slice(&self) -> &[Packed] {
        self.slots.get(..self.len).unwrap_or_default()
    }

    /// Replaces the runs `low..high`.
    pub(super) fn splice(&mut self, low: usize, high: usize, new: &[Packed]) {
        let len = self.len - (high - low) + new.len();
        let end = low + new.len();
        if len > self.slots.len() {
            let old = self.as_slice();
            let mut slots = Vec::with_capacity(len + LEAF_GROW);
            for part in [&old[..low], new, &old[high..]] {
                slots.extend_from_slice(part);
            }
            slots.resize(len + LEAF_GROW, Packed::NONE);
            self.slots = slots.into();
        } else {
            let slots = Arc::make_mut(&mut self.slots);
            if end != high {
                slots.copy_within(high..self.len, end);
            }
            slots[low..end].copy_from_slice(new);
        }
        self.len = len;
    }

    /// Cuts off the runs from `len` on, and most of the room that they leave.
    pub(super) fn truncate(&mut self, len: usize) {
        let mut slots = Vec::with_capacity(len + LEAF_GROW / 2);
        slots.extend_from_slice(&self.as_slice()[..len]);
        slots.resize(len + LEAF_GROW / 2, Packed::NONE);
        *self = Self { slots: slots.into(), len };
    }
}

/// A leaf to look at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Leaf<'a> {
    pub(super) head: &'a Head,
    pub(super) runs: &'a [Packed],
}

impl Leaf<'_> {
    /// The first run that ends after `block`.
    pub(super) fn first_after(self, block: u64) -> usize {
        let Some(relative) = block.checked_sub(self.head.base) else { return 0 };
        let relative = low32(relative.min(u64::from(u32::MAX - 1)));
        let window = self.head.samples.iter().map(|sample| usize::from(*sample <= relative)).sum::<usize>() * WINDOW;
        // The last one may hold more, for as long as a leaf is too full.
        let end = if window == SAMPLES * WINDOW { self.runs.len() } else { self.runs.len().min(window + WINDOW) };
        let runs = self.runs.get(window..end).unwrap_or_default();
        // No search: each comparison would wait for the memory of the one before.
        let at = window + runs.iter().map(|run| usize::from(run.start <= relative)).sum::<usize>();
        match at.checked_sub(1).and_then(|before| self.runs.get(before)) {
            Some(run) if u64::from(run.start) + run.blocks() > u64::from(relative) => at - 1,
            _ => at,
        }
    }

    pub(super) fn get(self, index: usize) -> Option<MapRun> {
        self.runs.get(index).map(|run| run.unpack(self.head.base))
    }
}

/// A leaf to change.
#[derive(Debug)]
pub(super) struct LeafMut<'a> {
    pub(super) head: &'a mut Head,
    pub(super) runs: &'a mut Runs,
}

impl LeafMut<'_> {
    pub(super) fn look(&self) -> Leaf<'_> {
        Leaf { head: self.head, runs: self.runs.as_slice() }
    }

    pub(super) fn splice(&mut self, low: usize, high: usize, new: &[Packed]) {
        self.runs.splice(low, high, new);
        self.head.resample(self.runs.as_slice(), low);
    }

    pub(super) fn truncate(&mut self, len: usize) {
        self.runs.truncate(len);
        self.head.resample(self.runs.as_slice(), len);
    }
}
