//! The delta map: which blocks of a volume lie where in the store. Twelve bytes a run, cheap to clone.
//!
//! Runs are kept in leaves of at most [`LEAF_RUNS`], behind a sorted vector of first blocks. A clone shares the leaves
//! until one side changes them, so that a snapshot costs their heads and pointers. An empty map owns nothing.
//!
//! A lookup in a large map is as slow as its misses of the processor's caches, so there is a sample of the first blocks, and of the runs of
//! each leaf in its head. The heads lie side by side, each in one line of the cache: two small searches that stay in the near caches, then the
//! head, then one window of runs, whose lines are fetched together because its comparisons do not wait for each other.

mod leaf;

use clonegate_core::limits::SEGMENT_BLOCKS_MAX;

use self::leaf::{Head, LEAF_GROW, LEAF_RUNS, Leaf, LeafMut, Packed, Runs};

/// First blocks of leaves between two samples.
const KEY_WINDOW: usize = 64;
/// A run's first block is kept relative to its leaf in 32 bits; beyond this a new leaf begins.
const LEAF_SPAN: u64 = 1 << 31;
/// Longest run of zeroes, blocks; a longer one is several.
const ZERO_BLOCKS_MAX: u64 = 1 << 30;

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

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct BlockMap {
    /// First block that each leaf answers for; the first is 0.
    keys: Vec<u64>,
    /// Every [`KEY_WINDOW`]th of them, from the first on.
    tops: Vec<u64>,
    heads: Vec<Head>,
    leaves: Vec<Runs>,
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
        let slots: usize = self.leaves.iter().map(|runs| size_of_val(&*runs.slots) + 2 * size_of::<usize>()).sum();
        let keys = (self.keys.capacity() + self.tops.capacity()) * size_of::<u64>();
        slots + keys + self.heads.capacity() * size_of::<Head>() + self.leaves.capacity() * size_of::<Runs>()
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

    fn leaf(&self, at: usize) -> Option<Leaf<'_>> {
        Some(Leaf { head: self.heads.get(at)?, runs: self.leaves.get(at)?.as_slice() })
    }

    /// The run that holds `block`.
    pub fn get(&self, block: u64) -> Option<MapRun> {
        let leaf = self.leaf(self.leaf_of(block))?;
        leaf.get(leaf.first_after(block)).filter(|run| run.start <= block)
    }

    /// The runs that touch `start..end`, ascending, cut to it.
    pub fn range(&self, start: u64, end: u64) -> Range<'_> {
        let leaf = self.leaf_of(start);
        let index = self.leaf(leaf).map_or(0, |l| l.first_after(start));
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
            self.insert_leaf(0, 0, 0, Vec::new());
        }
        let mut first = self.leaf_of(run.start);
        if run.start - self.heads[first].base >= LEAF_SPAN {
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
            self.heads.drain(first + 1..last);
            self.leaves.drain(first + 1..last);
            self.give_back_room();
            self.resample(first + 1);
        }
        if let Some(right) = right {
            self.add_right(first, right);
        }
        self.split_full(first);
    }

    /// After a discard of nearly everything.
    fn give_back_room(&mut self) {
        let left = 2 * self.leaves.len();
        if 2 * left < self.leaves.capacity() {
            self.keys.shrink_to(left);
            self.heads.shrink_to(left);
            self.leaves.shrink_to(left);
        }
    }

    fn insert_leaf(&mut self, at: usize, key: u64, base: u64, runs: Vec<Packed>) {
        self.keys.insert(at, key);
        self.heads.insert(at, Head::new(base, &runs));
        self.leaves.insert(at, Runs::new(runs));
        self.resample(at);
    }

    /// A new leaf behind leaf `at`, for a run that is too far from its base.
    fn split_far(&mut self, at: usize, run: MapRun) -> usize {
        // What leaf `at` holds from the run on has to move too, and what reaches into it has to be cut there.
        let mut leaf = LeafMut { head: &mut self.heads[at], runs: &mut self.leaves[at] };
        let base = leaf.head.base;
        let there = leaf.runs.as_slice();
        let from = there.partition_point(|r| base + u64::from(r.start) < run.start);
        let moved: Vec<MapRun> = there[from..].iter().map(|r| r.unpack(base)).collect();
        let reaching = there[..from].last().map(|r| r.unpack(base)).filter(|r| r.end > run.start);
        leaf.truncate(from);
        let mut key = run.start;
        let mut runs = Vec::with_capacity(moved.len() + 1);
        if let Some(reaching) = reaching {
            leaf.splice(from - 1, from, &[Packed::new(base, MapRun { end: run.start, ..reaching })]);
            let place = reaching.place.advance(run.start - reaching.start);
            runs.push(Packed::new(run.start, MapRun { start: run.start, end: reaching.end, place }));
            self.runs += 1;
        }
        if let Some(next) = self.keys.get(at + 1) {
            key = key.min(*next);
        }
        runs.extend(moved.iter().map(|r| Packed::new(run.start, *r)));
        self.insert_leaf(at + 1, key, run.start, runs);
        at + 1
    }

    /// Replaces what leaf `at` holds of the run's range by the run, merged with neighbours that continue it. Gives back
    /// the rest of a run that it split, when that reaches beyond it.
    fn place_in(&mut self, at: usize, run: MapRun) -> Option<MapRun> {
        let mut leaf = LeafMut { head: &mut self.heads[at], runs: &mut self.leaves[at] };
        let base = leaf.head.base;
        let there = leaf.look();
        let low = there.first_after(run.start);
        let mut high = low;
        let mut left = None;
        let mut right = None;
        while let Some(old) = there.get(high).filter(|old| old.start < run.end) {
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
        let before = there.runs.len();
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
                if let Some(whole) = low.checked_sub(1).and_then(|i| there.get(i)).and_then(|l| join(l, merged)) {
                    merged = whole;
                    low -= 1;
                }
            }
        }
        if right.is_none() {
            if let Some(whole) = there.get(high).and_then(|next| join(merged, next)) {
                merged = whole;
                high += 1;
            }
        } else if let Some(whole) = right.and_then(|piece| join(merged, piece)) {
            merged = whole;
            right = None;
        }
        let merged = Packed::new(base, merged);
        match left {
            Some(left) => leaf.splice(low, high, &[Packed::new(base, left), merged]),
            None => leaf.splice(low, high, &[merged]),
        }
        let after = leaf.runs.len;
        self.runs = self.runs + after - before;
        right
    }

    /// Puts back the rest of a split run, right behind the run that split it.
    fn add_right(&mut self, at: usize, right: MapRun) {
        let mut leaf = LeafMut { head: &mut self.heads[at], runs: &mut self.leaves[at] };
        let base = leaf.head.base;
        let index = leaf.runs.as_slice().partition_point(|r| base + u64::from(r.start) < right.start);
        leaf.splice(index, index, &[Packed::new(base, right)]);
        self.runs += 1;
    }

    /// Drops what leaf `at` holds before `end`; says whether nothing is left.
    fn cut_beginning(&mut self, at: usize, end: u64) -> bool {
        let mut leaf = LeafMut { head: &mut self.heads[at], runs: &mut self.leaves[at] };
        let there = leaf.look();
        let mut cut = 0;
        let mut rest = None;
        while let Some(old) = there.get(cut).filter(|old| old.start < end) {
            if let Place::Object { .. } = old.place {
                let lost = old.end.min(end) - old.start;
                self.data_blocks -= lost;
            }
            if old.end > end {
                rest = Some(MapRun { start: end, place: old.place.advance(end - old.start), ..old });
            }
            cut += 1;
        }
        let (before, base) = (there.runs.len(), there.head.base);
        match rest {
            Some(rest) => leaf.splice(0, cut, &[Packed::new(base, rest)]),
            None => leaf.splice(0, cut, &[]),
        }
        let left = leaf.runs.len;
        self.runs = self.runs + left - before;
        left == 0
    }

    fn split_full(&mut self, at: usize) {
        if self.leaves[at].len <= LEAF_RUNS {
            return;
        }
        // A leaf that grew at its end is likely to go on doing so: leave it nearly full.
        let grows = at + 1 == self.leaves.len();
        let middle = if grows { LEAF_RUNS - LEAF_GROW / 2 } else { LEAF_RUNS / 2 };
        let mut leaf = LeafMut { head: &mut self.heads[at], runs: &mut self.leaves[at] };
        let runs: Vec<Packed> = leaf.runs.as_slice()[middle..].to_vec();
        leaf.truncate(middle);
        let base = leaf.head.base;
        let key = base + runs.first().map_or(0, |run| u64::from(run.start));
        self.insert_leaf(at + 1, key, base, runs);
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
    /// Appends a run behind all others. One that lies in an object is not longer than an object has frames.
    pub fn push(&mut self, run: MapRun) {
        let mut rest = run;
        while rest.place == Place::Zero && rest.end - rest.start > ZERO_BLOCKS_MAX {
            let cut = rest.start + ZERO_BLOCKS_MAX;
            self.push_one(MapRun { end: cut, ..rest });
            rest.start = cut;
        }
        self.push_one(rest);
    }

    fn push_one(&mut self, run: MapRun) {
        let full = self.runs.len() >= LEAF_RUNS - LEAF_GROW || run.start - self.base >= LEAF_SPAN;
        if full {
            self.end_leaf();
            self.base = run.start;
        }
        if let Place::Object { .. } = run.place {
            self.map.data_blocks += run.end - run.start;
        }
        self.runs.push(Packed::new(self.base, run));
    }

    /// The first leaf answers from block 0 on, though it may hold nothing.
    fn end_leaf(&mut self) {
        let runs = &self.runs;
        self.map.runs += runs.len();
        self.map.keys.push(self.base);
        self.map.heads.push(Head::new(self.base, runs));
        self.map.leaves.push(Runs { slots: runs.as_slice().into(), len: runs.len() });
        self.runs.clear();
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
            let leaf = self.map.leaf(self.leaf)?;
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
        for (head, runs) in map.heads.iter().zip(&map.leaves) {
            assert_eq!(*head, Head::new(head.base, runs.as_slice()));
        }
        assert_eq!((map.heads.len(), map.keys.len()), (map.leaves.len(), map.leaves.len()));
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
    fn zeroes_that_a_checkpoint_has_as_one_long_run_can_be_cut_anywhere() {
        let mut loader = Loader::default();
        let (start, end) = (5, 5 + u64::from(u32::MAX));
        loader.push(MapRun { start, end, place: Place::Zero });
        let mut map = loader.finish();
        for block in [6, (1 << 31) + 7, end - 2] {
            map.insert(block, block + 1, place(0, 3));
            assert_eq!(map.get(block).expect("it was put").place, place(0, 3));
        }
        for block in [5, 7, 1 << 31, (1 << 31) + 8, end - 1] {
            assert_eq!(map.get(block).expect("zeroes").place, Place::Zero, "block {block}");
        }
        assert_eq!((map.get(4), map.get(end), map.data_blocks()), (None, None, 3));
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
