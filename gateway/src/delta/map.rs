//! The delta map: which blocks of a volume lie where in the store. Twelve bytes a run, cheap to clone.
//!
//! Runs are kept in leaves of at most [`LEAF_RUNS`], behind a sorted vector of first blocks. A clone shares the leaves
//! until one side changes them, so that a snapshot costs a vector of pointers. An empty map owns nothing.
//!
//! A lookup in a large map is as slow as its misses of the processor's caches, so there is a sample of the first blocks, and of the runs of
//! each leaf in its head: two small searches that stay in the near caches, then the head, then one window of runs, whose lines are fetched
//! together because its comparisons do not wait for each other.

use std::sync::Arc;

use clonegate_core::limits::SEGMENT_BLOCKS_MAX;

const LEAF_RUNS: usize = 256;
/// Leaves grow by this many runs, so that little room is unused.
const LEAF_GROW: usize = 32;
/// Runs of a leaf between two samples.
const WINDOW: usize = 16;
/// Samples of a leaf.
const SAMPLES: usize = LEAF_RUNS / WINDOW - 1;
/// First blocks of leaves between two samples.
const KEY_WINDOW: usize = 64;
const ZERO: u32 = u32::MAX;
const FRAME_BITS: u32 = 14;
/// A run's first block is kept relative to its leaf in 32 bits; beyond this a new leaf begins.
const LEAF_SPAN: u64 = 1 << 31;
/// Longest run of zeroes, blocks; a longer one is several.
const ZERO_BLOCKS_MAX: u64 = 1 << 30;

const _: () = assert!(SEGMENT_BLOCKS_MAX as u64 <= 1 << FRAME_BITS, "frame and length fit one word");

/// Where a run of blocks lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: they are zero.
    Zero,
    /// In the object of this index, from this frame on.
    Object {
        /// Index into the objects of the volume.
        object: u32,
        /// First frame.
        frame: u32,
    },
}

impl Place {
    /// The place of the block `blocks` further on.
    #[must_use]
    pub fn advance(self, blocks: u64) -> Self {
        match self {
            Self::Zero => Self::Zero,
            Self::Object { object, frame } => {
                Self::Object { object, frame: frame.saturating_add(u32::try_from(blocks).unwrap_or(u32::MAX)) }
            }
        }
    }
}

/// A run of blocks with one place, half-open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapRun {
    /// First block.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// Where the first lies; the others follow it.
    pub place: Place,
}

/// `start` relative to the leaf, the object, and frame and length (or the length alone, for zeroes), less one.
#[derive(Debug, Clone, Copy)]
struct Packed {
    start: u32,
    object: u32,
    extra: u32,
}

impl Packed {
    fn new(base: u64, run: MapRun) -> Self {
        let start = low32(run.start - base);
        let length = low32(run.end - run.start - 1);
        match run.place {
            Place::Zero => Self { start, object: ZERO, extra: length },
            Place::Object { object, frame } => Self { start, object, extra: frame << FRAME_BITS | length },
        }
    }

    fn blocks(self) -> u64 {
        let length = if self.object == ZERO { self.extra } else { self.extra & ((1 << FRAME_BITS) - 1) };
        u64::from(length) + 1
    }

    fn unpack(self, base: u64) -> MapRun {
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

#[derive(Debug, Clone)]
struct Leaf {
    base: u64,
    runs: Vec<Packed>,
    /// Where the runs `WINDOW`, `2 * WINDOW`, … start; more than any start where there are none.
    samples: [u32; SAMPLES],
}

impl Leaf {
    fn new(base: u64, runs: Vec<Packed>) -> Self {
        let mut leaf = Self { base, runs, samples: [u32::MAX; SAMPLES] };
        leaf.resample(0);
        leaf
    }

    /// Takes the samples again, after the runs from `from` on have changed.
    fn resample(&mut self, from: usize) {
        for (n, sample) in self.samples.iter_mut().enumerate().skip((from / WINDOW).saturating_sub(1)) {
            *sample = self.runs.get((n + 1) * WINDOW).map_or(u32::MAX, |run| run.start);
        }
    }

    /// The first run that ends after `block`.
    fn first_after(&self, block: u64) -> usize {
        let Some(relative) = block.checked_sub(self.base) else { return 0 };
        let relative = low32(relative.min(u64::from(u32::MAX - 1)));
        let window = self.samples.iter().map(|sample| usize::from(*sample <= relative)).sum::<usize>() * WINDOW;
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

    fn get(&self, index: usize) -> Option<MapRun> {
        self.runs.get(index).map(|run| run.unpack(self.base))
    }
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct BlockMap {
    /// First block that each leaf answers for; the first is 0.
    keys: Vec<u64>,
    /// Every [`KEY_WINDOW`]th of them, from the first on.
    tops: Vec<u64>,
    leaves: Vec<Arc<Leaf>>,
    runs: usize,
    data_blocks: u64,
}

impl BlockMap {
    /// An empty map.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether it says nothing of any block.
    pub fn is_empty(&self) -> bool {
        self.runs == 0
    }

    /// Runs in it.
    pub fn len(&self) -> usize {
        self.runs
    }

    /// Blocks that lie in objects.
    pub fn data_blocks(&self) -> u64 {
        self.data_blocks
    }

    /// Bytes of memory that it owns, shared leaves included.
    pub fn memory(&self) -> usize {
        let leaves: usize =
            self.leaves.iter().map(|l| l.runs.capacity() * size_of::<Packed>() + size_of::<Leaf>() + 16).sum();
        leaves + (self.keys.capacity() + self.tops.capacity() + self.leaves.capacity()) * 8
    }

    /// The leaf that answers for `block`. The map is not empty of leaves.
    fn leaf_of(&self, block: u64) -> usize {
        let window = self.tops.partition_point(|&key| key <= block).saturating_sub(1) * KEY_WINDOW;
        let end = self.keys.len().min(window + KEY_WINDOW);
        let keys = self.keys.get(window..end).unwrap_or_default();
        (window + keys.partition_point(|&key| key <= block)).saturating_sub(1)
    }

    /// After the keys from `from` on have changed.
    fn resample(&mut self, from: usize) {
        let from = from / KEY_WINDOW;
        self.tops.truncate(from);
        self.tops.extend(self.keys.iter().skip(from * KEY_WINDOW).step_by(KEY_WINDOW));
    }

    /// The run that holds `block`.
    pub fn get(&self, block: u64) -> Option<MapRun> {
        let leaf = self.leaves.get(self.leaf_of(block))?;
        leaf.get(leaf.first_after(block)).filter(|run| run.start <= block)
    }

    /// The runs that touch `start..end`, ascending, cut to it.
    pub fn range(&self, start: u64, end: u64) -> Range<'_> {
        let leaf = self.leaf_of(start);
        let index = self.leaves.get(leaf).map_or(0, |l| l.first_after(start));
        Range { map: self, leaf, index, start, end }
    }

    /// All runs, ascending.
    pub fn iter(&self) -> Range<'_> {
        self.range(0, u64::MAX)
    }

    /// Puts `start..end` at `place`.
    pub fn insert(&mut self, start: u64, end: u64, place: Place) {
        let step = match place {
            Place::Zero => ZERO_BLOCKS_MAX,
            Place::Object { .. } => u64::from(SEGMENT_BLOCKS_MAX),
        };
        let mut at = start;
        while at < end {
            let part = (end - at).min(step);
            self.insert_one(MapRun { start: at, end: at + part, place: place.advance(at - start) });
            at += part;
        }
    }

    fn insert_one(&mut self, run: MapRun) {
        if self.leaves.is_empty() {
            self.keys.push(0);
            self.leaves.push(Arc::new(Leaf::new(0, Vec::new())));
            self.resample(0);
        }
        let mut first = self.leaf_of(run.start);
        if run.start - self.leaves[first].base >= LEAF_SPAN {
            first = self.split_far(first, run);
        }
        if let Place::Object { .. } = run.place {
            self.data_blocks += run.end - run.start;
        }
        // The leaf that takes the run.
        let right = self.place_in(first, run);
        // Leaves behind it that the run covers, wholly or at their beginning.
        let mut last = first + 1;
        while last < self.leaves.len() && self.keys[last] < run.end {
            if self.cut_beginning(last, run.end) {
                last += 1;
            } else {
                self.keys[last] = run.end;
                self.resample(last);
                break;
            }
        }
        if last > first + 1 {
            self.keys.drain(first + 1..last);
            self.leaves.drain(first + 1..last);
            self.resample(first + 1);
        }
        if let Some(right) = right {
            self.add_right(first, right);
        }
        self.split_full(first);
    }

    /// A new leaf behind leaf `at`, for a run that is too far from its base.
    fn split_far(&mut self, at: usize, run: MapRun) -> usize {
        // What leaf `at` holds from the run on has to move too, and what reaches into it has to be cut there.
        let leaf = Arc::make_mut(&mut self.leaves[at]);
        let from = leaf.runs.partition_point(|r| leaf.base + u64::from(r.start) < run.start);
        let moved: Vec<MapRun> = leaf.runs[from..].iter().map(|r| r.unpack(leaf.base)).collect();
        leaf.runs.truncate(from);
        let mut key = run.start;
        let mut runs = Vec::with_capacity(moved.len() + 1);
        if let Some(reaching) = leaf.runs.last().map(|r| r.unpack(leaf.base)).filter(|r| r.end > run.start) {
            leaf.runs.pop();
            leaf.runs.push(Packed::new(leaf.base, MapRun { end: run.start, ..reaching }));
            let place = reaching.place.advance(run.start - reaching.start);
            runs.push(Packed::new(run.start, MapRun { start: run.start, end: reaching.end, place }));
            self.runs += 1;
        }
        if let Some(next) = self.keys.get(at + 1) {
            key = key.min(*next);
        }
        leaf.resample(from.saturating_sub(1));
        runs.extend(moved.iter().map(|r| Packed::new(run.start, *r)));
        self.keys.insert(at + 1, key);
        self.leaves.insert(at + 1, Arc::new(Leaf::new(run.start, runs)));
        self.resample(at + 1);
        at + 1
    }

    /// Replaces what leaf `at` holds of the run's range by the run, merged with neighbours that continue it. Gives back
    /// the rest of a run that it split, when that reaches beyond it.
    fn place_in(&mut self, at: usize, run: MapRun) -> Option<MapRun> {
        let leaf = Arc::make_mut(&mut self.leaves[at]);
        let base = leaf.base;
        let low = leaf.first_after(run.start);
        let mut high = low;
        let mut left = None;
        let mut right = None;
        while let Some(old) = leaf.get(high).filter(|old| old.start < run.end) {
            if old.start < run.start {
                left = Some(MapRun { end: run.start, ..old });
            }
            if old.end > run.end {
                right = Some(MapRun { start: run.end, place: old.place.advance(run.end - old.start), ..old });
            }
            let lost = old.end.min(run.end) - old.start.max(run.start);
            if let Place::Object { .. } = old.place {
                self.data_blocks -= lost;
            }
            high += 1;
        }
        let before = leaf.runs.len();
        let mut merged = run;
        let mut low = low;
        match left {
            Some(piece) => {
                if let Some(whole) = join(piece, merged) {
                    merged = whole;
                    left = None;
                }
            }
            None => {
                if let Some(whole) = low.checked_sub(1).and_then(|i| leaf.get(i)).and_then(|l| join(l, merged)) {
                    merged = whole;
                    low -= 1;
                }
            }
        }
        if right.is_none() {
            if let Some(whole) = leaf.get(high).and_then(|next| join(merged, next)) {
                merged = whole;
                high += 1;
            }
        } else if let Some(whole) = right.and_then(|piece| join(merged, piece)) {
            merged = whole;
            right = None;
        }
        if high - low == 1 && left.is_none() {
            leaf.runs[low] = Packed::new(base, merged);
        } else {
            let new = left.into_iter().chain([merged]).map(|r| Packed::new(base, r));
            if leaf.runs.len() + 2 > leaf.runs.capacity() {
                leaf.runs.reserve_exact(LEAF_GROW);
            }
            leaf.runs.splice(low..high, new);
        }
        leaf.resample(low);
        let after = leaf.runs.len();
        self.runs = self.runs + after - before;
        right
    }

    /// Puts back the rest of a split run, right behind the run that split it.
    fn add_right(&mut self, at: usize, right: MapRun) {
        let leaf = Arc::make_mut(&mut self.leaves[at]);
        let index = leaf.runs.partition_point(|r| leaf.base + u64::from(r.start) < right.start);
        if leaf.runs.len() == leaf.runs.capacity() {
            leaf.runs.reserve_exact(LEAF_GROW);
        }
        let packed = Packed::new(leaf.base, right);
        leaf.runs.insert(index, packed);
        leaf.resample(index);
        self.runs += 1;
    }

    /// Drops what leaf `at` holds before `end`; says whether nothing is left.
    fn cut_beginning(&mut self, at: usize, end: u64) -> bool {
        let leaf = Arc::make_mut(&mut self.leaves[at]);
        let mut cut = 0;
        let mut rest = None;
        while let Some(old) = leaf.get(cut).filter(|old| old.start < end) {
            if let Place::Object { .. } = old.place {
                let lost = old.end.min(end) - old.start;
                self.data_blocks -= lost;
            }
            if old.end > end {
                rest = Some(MapRun { start: end, place: old.place.advance(end - old.start), ..old });
            }
            cut += 1;
        }
        let before = leaf.runs.len();
        let base = leaf.base;
        leaf.runs.splice(..cut, rest.map(|r| Packed::new(base, r)));
        leaf.resample(0);
        self.runs = self.runs + leaf.runs.len() - before;
        leaf.runs.is_empty()
    }

    fn split_full(&mut self, at: usize) {
        if self.leaves[at].runs.len() <= LEAF_RUNS {
            return;
        }
        let leaf = Arc::make_mut(&mut self.leaves[at]);
        // A leaf that grew at its end is likely to go on doing so: leave it nearly full.
        let next_key = self.keys.get(at + 1).copied();
        let middle = if next_key.is_none() { LEAF_RUNS - LEAF_GROW / 2 } else { LEAF_RUNS / 2 };
        let runs: Vec<Packed> = leaf.runs[middle..].to_vec();
        leaf.runs.truncate(middle);
        leaf.runs.shrink_to(middle + LEAF_GROW / 2);
        leaf.resample(middle);
        let key = leaf.base + u64::from(runs[0].start);
        let leaf = Leaf::new(leaf.base, runs);
        self.keys.insert(at + 1, key);
        self.leaves.insert(at + 1, Arc::new(leaf));
        self.resample(at + 1);
    }
}

/// Makes a map of runs that come in order, as a checkpoint has them: nothing is looked for.
#[derive(Debug, Default)]
pub struct Loader {
    map: BlockMap,
    /// The leaf that is being filled: its base and runs.
    base: u64,
    runs: Vec<Packed>,
}

impl Loader {
    /// Appends a run behind all others.
    pub fn push(&mut self, run: MapRun) {
        let full = self.runs.len() >= LEAF_RUNS - LEAF_GROW || run.start - self.base >= LEAF_SPAN;
        if full {
            self.end_leaf();
            self.base = run.start;
        }
        if self.runs.is_empty() {
            self.runs.reserve_exact(LEAF_RUNS - LEAF_GROW);
        }
        if let Place::Object { .. } = run.place {
            self.map.data_blocks += run.end - run.start;
        }
        self.runs.push(Packed::new(self.base, run));
    }

    /// The first leaf answers from block 0 on, though it may hold nothing.
    fn end_leaf(&mut self) {
        let mut runs = std::mem::take(&mut self.runs);
        runs.shrink_to_fit();
        self.map.runs += runs.len();
        self.map.keys.push(self.base);
        self.map.leaves.push(Arc::new(Leaf::new(self.base, runs)));
    }

    /// The map of all that was appended.
    #[must_use]
    pub fn finish(mut self) -> BlockMap {
        if !self.runs.is_empty() {
            self.end_leaf();
        }
        self.map.resample(0);
        self.map
    }
}

/// One run out of two, when the second continues the first in volume and object.
fn join(a: MapRun, b: MapRun) -> Option<MapRun> {
    let blocks = a.end - a.start;
    let fits = match a.place {
        Place::Zero => ZERO_BLOCKS_MAX,
        Place::Object { .. } => u64::from(SEGMENT_BLOCKS_MAX),
    };
    (a.end == b.start && a.place.advance(blocks) == b.place && blocks + (b.end - b.start) <= fits)
        .then_some(MapRun { end: b.end, ..a })
}

/// Runs of a map within a range. See [`BlockMap::range`].
#[derive(Debug)]
pub struct Range<'a> {
    map: &'a BlockMap,
    leaf: usize,
    index: usize,
    start: u64,
    end: u64,
}

impl Iterator for Range<'_> {
    type Item = MapRun;

    fn next(&mut self) -> Option<MapRun> {
        loop {
            let leaf = self.map.leaves.get(self.leaf)?;
            let Some(run) = leaf.get(self.index) else {
                self.leaf += 1;
                self.index = 0;
                continue;
            };
            self.index += 1;
            if run.start >= self.end {
                return None;
            }
            let start = run.start.max(self.start);
            let place = run.place.advance(start - run.start);
            return Some(MapRun { start, end: run.end.min(self.end), place });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn place(object: u32, frame: u32) -> Place {
        Place::Object { object, frame }
    }

    #[test]
    fn a_run_that_goes_on_is_one_run() {
        let mut map = BlockMap::new();
        for block in 0..100 {
            map.insert(1000 + block, 1001 + block, place(1, block as u32));
        }
        assert_eq!(map.len(), 1);
        assert_eq!(map.get(1099), Some(MapRun { start: 1000, end: 1100, place: place(1, 0) }));
        assert_eq!(map.get(1100), None);
    }

    #[test]
    fn two_tebibytes_of_zeroes_are_one_run_and_empty_the_rest() {
        let mut map = BlockMap::new();
        for block in 0..10_000u64 {
            map.insert(block * 7, block * 7 + 1, place(0, (block % 16_000) as u32));
        }
        assert_eq!(map.data_blocks(), 10_000);
        map.insert(0, 1 << 29, Place::Zero);
        assert_eq!((map.len(), map.data_blocks()), (1, 0));
        assert!(map.memory() < 4096 + 8 * 256 * 2, "{}", map.memory());
    }

    #[test]
    fn random_blocks_cost_at_most_sixteen_bytes_each() {
        let mut map = BlockMap::new();
        let mut x = 1u64;
        for n in 0..200_000u32 {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let block = (x >> 33) % (100 << 18);
            map.insert(block, block + 1, place(n / 2000, n % 2000));
        }
        let each = map.memory() as f64 / map.len() as f64;
        assert!(each <= 16.0, "{each} bytes");
    }

    #[derive(Debug, Clone)]
    struct Step {
        start: u64,
        blocks: u64,
        place: Option<(u32, u32)>,
    }

    fn steps(spread: u64) -> impl Strategy<Value = Vec<Step>> {
        let one = (0..200u64, 1..40u64, proptest::option::weighted(0.8, (0..4u32, 0..50u32))).prop_map(
            move |(start, blocks, place)| Step { start: start * spread, blocks: blocks * spread.min(64), place },
        );
        proptest::collection::vec(one, 1..400)
    }

    fn check(steps: &[Step]) {
        let mut map = BlockMap::new();
        let mut model = std::collections::BTreeMap::new();
        for step in steps {
            let at = step.place.map_or(Place::Zero, |(object, frame)| place(object, frame));
            map.insert(step.start, step.start + step.blocks, at);
            for block in 0..step.blocks {
                model.insert(step.start + block, at.advance(block));
            }
        }
        let flat: std::collections::BTreeMap<u64, Place> =
            map.iter().flat_map(|r| (r.start..r.end).map(move |b| (b, r.place.advance(b - r.start)))).collect();
        assert_eq!(flat, model);
        assert_eq!(map.iter().count(), map.len());
        let data = model.values().filter(|p| matches!(p, Place::Object { .. })).count();
        assert_eq!(map.data_blocks(), data as u64);
        let sampled: Vec<u64> = map.keys.iter().step_by(KEY_WINDOW).copied().collect();
        assert_eq!(map.tops, sampled);
        for leaf in &map.leaves {
            assert_eq!(leaf.samples, Leaf::new(leaf.base, leaf.runs.clone()).samples);
        }
        for (block, at) in model.iter().step_by(7) {
            let run = map.get(*block).expect("a block that was put");
            assert_eq!(run.place.advance(block - run.start), *at);
        }
        for block in 0..model.keys().last().map_or(0, |last| last + 2) {
            assert_eq!(map.get(block).is_some(), model.contains_key(&block), "block {block}");
        }
        let mut again = Loader::default();
        map.iter().for_each(|run| again.push(run));
        let again = again.finish();
        let sampled: Vec<u64> = again.keys.iter().step_by(KEY_WINDOW).copied().collect();
        assert_eq!(again.tops, sampled);
        for (block, _) in model.iter().step_by(11) {
            assert_eq!(again.get(*block), map.get(*block));
        }
        assert!(again.iter().eq(map.iter()));
        assert_eq!(again.data_blocks(), map.data_blocks());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn it_is_what_a_plain_map_of_blocks_is(steps in steps(1)) { check(&steps) }

        #[test]
        fn also_over_many_leaves(steps in steps(61)) { check(&steps) }
    }

    #[test]
    fn runs_tebibytes_apart_are_kept_apart() {
        let mut map = BlockMap::new();
        for n in (0..1000u64).rev() {
            let block = (n * 17_179_869) % (1 << 34);
            map.insert(block, block + 1, place(0, (n % 9) as u32));
        }
        for n in 0..1000u64 {
            assert_eq!(map.get((n * 17_179_869) % (1 << 34)).expect("it was put").place, place(0, (n % 9) as u32));
        }
        assert_eq!(map.len(), 1000);
    }
}
