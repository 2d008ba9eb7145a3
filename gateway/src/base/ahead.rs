//! Reads ahead of those who read in sequence, within bounds: a copy of a whole disk should not wait for the store once per request.
//!
//! Only reads that missed the cache come here. After three of them in a row that follow each other, what comes next is fetched as well: 512 KiB,
//! doubling up to 4 MiB while the sequence goes on. Reading ahead of everybody blindly makes boots slower, so nothing less is enough.

use clonegate_core::units::ByteRange;
use parking_lot::Mutex;

/// Sequences followed at a time; the one that was quiet longest makes room.
const SEQUENCES: usize = 8;
/// Reads that must have followed each other before the first one ahead.
const PATIENCE: u32 = 2;
const FIRST_BYTES: u64 = 512 * 1024;
const MOST_BYTES: u64 = 4 * 1024 * 1024;

#[derive(Debug, Default)]
pub(super) struct Ahead {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    sequences: [Sequence; SEQUENCES],
    clock: u64,
}

#[derive(Debug, Default, Clone, Copy)]
struct Sequence {
    /// Where the last read ended.
    next: u64,
    /// Where what was fetched ends.
    fetched: u64,
    length: u32,
    used: u64,
}

impl Ahead {
    /// Notes a read that has to wait for the store, rounded to whole chunks, and says what to fetch beyond it.
    pub(super) fn note(&self, read: ByteRange, size: u64) -> Option<ByteRange> {
        let mut state = self.state.lock();
        state.clock += 1;
        let now = state.clock;
        let follows = |one: &&mut Sequence| one.used > 0 && (one.next..=one.fetched).contains(&read.start());
        let Some(sequence) = state.sequences.iter_mut().find(follows) else {
            if let Some(oldest) = state.sequences.iter_mut().min_by_key(|one| one.used) {
                *oldest = Sequence { next: read.end(), fetched: read.end(), length: 0, used: now };
            }
            return None;
        };
        sequence.used = now;
        sequence.length += 1;
        sequence.next = read.end();
        sequence.fetched = sequence.fetched.max(read.end());
        if sequence.length < PATIENCE {
            return None;
        }
        let window = (FIRST_BYTES << (sequence.length - PATIENCE).min(8)).min(MOST_BYTES);
        // Enough is on its way; asking for a little more each time would make many small requests.
        if sequence.fetched - read.end() > window / 2 {
            return None;
        }
        let ahead = ByteRange::new(sequence.fetched, (read.end() + window).min(size));
        sequence.fetched = sequence.fetched.max(ahead.end());
        (!ahead.is_empty()).then_some(ahead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: u64 = 65536;

    #[test]
    fn only_a_sequence_is_read_ahead_of_and_only_so_far() {
        let (ahead, size) = (Ahead::default(), 64 << 20);
        let chunk = |n: u64| ByteRange::new(n * CHUNK, (n + 1) * CHUNK);
        assert_eq!(ahead.note(chunk(0), size), None);
        assert_eq!(ahead.note(chunk(1), size), None);
        // Two sequences do not disturb each other.
        assert_eq!(ahead.note(chunk(500), size), None);
        assert_eq!(ahead.note(chunk(2), size), Some(ByteRange::new(3 * CHUNK, 3 * CHUNK + FIRST_BYTES)));
        let mut at = 3 * CHUNK + FIRST_BYTES;
        for _ in 0..10 {
            let read = ByteRange::new(at, at + CHUNK);
            let fetched = ahead.note(read, size).unwrap();
            assert!(fetched.start() == read.end() && fetched.end() - read.end() <= MOST_BYTES);
            at = fetched.end();
        }
        let last = ByteRange::new(at, size);
        assert_eq!(ahead.note(last, size), None, "nothing lies beyond the end");
    }

    #[test]
    fn scattered_reads_bring_nothing_else() {
        let ahead = Ahead::default();
        let mut at = 1u64;
        for _ in 0..10_000 {
            at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let chunk = (at >> 33) % 100_000;
            assert_eq!(ahead.note(ByteRange::new(chunk * CHUNK, (chunk + 1) * CHUNK), 1 << 40), None);
        }
    }
}
