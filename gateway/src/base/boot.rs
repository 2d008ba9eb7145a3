//! The boot set: which chunks a boot touches, recorded always, replayed before they are asked for.
//!
//! Recording costs one relaxed load for a chunk that was touched before. A list has at most [`BOOT_SET_CHUNKS_MAX`] chunks, in the order
//! of first touch since the base was opened; what happens after that is no boot any more.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use clonegate_core::format::bootset;
use clonegate_core::limits::BOOT_SET_CHUNKS_MAX;
use clonegate_core::units::{ByteRange, ChunkIndex};
use clonegate_core::{ErrorKind, Result};
use futures::StreamExt;
use parking_lot::Mutex;

use super::Base;
use super::packed::Warmed;
use crate::clock::Clock;
use crate::store::{PutNew, keys};

/// Fetches of a replay under way at one time.
const IN_FLIGHT: usize = 16;
/// After so many chunks in a row that were there already, the machine is ahead of the replay, which then ends.
const OVERTAKEN_CHUNKS: u32 = 256;
/// Chunks of the largest base that is recorded (1 TiB of 64 KiB chunks, 2 MiB of bitmap).
const RECORDED_CHUNKS_MAX: u64 = 16 << 20;

/// How long a boot takes at most: what is touched later belongs to no boot.
const BOOT: Duration = Duration::from_secs(180);
/// A new boot set is written when at least one chunk in so many is new to the old one.
const NEWS_ONE_IN: usize = 16;

/// First touches of one open base.
#[derive(Debug)]
pub(super) struct Trace {
    chunk_bytes: u64,
    touched: Box<[AtomicU64]>,
    recording: AtomicBool,
    order: Mutex<Vec<ChunkIndex>>,
}

impl Trace {
    pub(super) fn new(chunks: u64, chunk_bytes: u64) -> Self {
        let recorded = chunks <= RECORDED_CHUNKS_MAX;
        let words = if recorded { usize::try_from(chunks.div_ceil(64)).unwrap_or(0) } else { 0 };
        Self {
            chunk_bytes,
            touched: (0..words).map(|_| AtomicU64::new(0)).collect(),
            recording: AtomicBool::new(recorded),
            order: Mutex::new(Vec::new()),
        }
    }

    pub(super) fn chunk_bytes(&self) -> u64 {
        self.chunk_bytes
    }

    pub(super) fn chunks_of(&self, range: ByteRange) -> std::ops::Range<u64> {
        if range.is_empty() {
            return 0..0;
        }
        range.start() / self.chunk_bytes..range.end().div_ceil(self.chunk_bytes)
    }

    /// `range` widened to whole chunks.
    pub(super) fn whole_chunks(&self, range: ByteRange) -> ByteRange {
        let chunks = self.chunks_of(range);
        ByteRange::new(chunks.start * self.chunk_bytes, chunks.end * self.chunk_bytes)
    }

    /// Notes that a machine asked for `range`.
    pub(super) fn touch(&self, range: ByteRange) {
        if !self.recording.load(Relaxed) {
            return;
        }
        for chunk in self.chunks_of(range) {
            let Some(word) = usize::try_from(chunk / 64).ok().and_then(|at| self.touched.get(at)) else { return };
            let bit = 1 << (chunk % 64);
            if word.load(Relaxed) & bit == 0 && word.fetch_or(bit, Relaxed) & bit == 0 {
                self.note(chunk);
            }
        }
    }

    fn note(&self, chunk: u64) {
        let mut order = self.order.lock();
        order.push(ChunkIndex(chunk));
        if order.len() >= BOOT_SET_CHUNKS_MAX as usize {
            self.recording.store(false, Relaxed);
        }
    }
}

impl Base {
    /// Chunks in the order in which they were first asked for since the base was opened.
    pub fn boot_trace(&self) -> Vec<ChunkIndex> {
        self.trace.order.lock().clone()
    }

    /// Replays the newest boot set in the background, and after a while writes a newer one if a boot touched what the old one does not have.
    /// Losing either costs time only, so failures are logged and not returned. Ends when the base is dropped.
    pub fn keep_boot_set(self: &Arc<Self>, clock: &Clock) {
        self.replay_boot_set();
        let (base, clock) = (Arc::downgrade(self), clock.clone());
        self.runtime.spawn(async move {
            clock.sleep(BOOT).await;
            let Some(base) = base.upgrade() else { return };
            base.trace.recording.store(false, Relaxed);
            if let Err(error) = base.save_boot_set(&clock).await {
                tracing::warn!(base = %base.id(), %error, "boot set not written");
            }
        });
    }

    /// Writes the chunks of the newest boot set and, behind them, those touched since that it does not have, as the next boot set, and
    /// deletes older ones. Says how many chunks it has; 0 when there was too little that is new, and nothing was written.
    ///
    /// # Errors
    /// `Unavailable`, `Denied`, `Exhausted` from the store.
    pub async fn save_boot_set(&self, clock: &Clock) -> Result<usize> {
        let touched = self.boot_trace();
        let mut chunks = self.load_boot_set().await?;
        let known: HashSet<ChunkIndex> = chunks.iter().copied().collect();
        let before = chunks.len();
        chunks.extend(touched.into_iter().filter(|chunk| !known.contains(chunk)));
        chunks.truncate(BOOT_SET_CHUNKS_MAX as usize);
        if (chunks.len() - before) * NEWS_ONE_IN <= before {
            return Ok(0);
        }
        let listed = self.boot_sets().await?;
        let mut number = listed.last().map_or(0, |newest| newest + 1);
        let body = bootset::encode(self.id(), clock.nonce(), clock.now_ms(), &chunks)?;
        // Other gateways may write theirs at the same time; any of them will do.
        while let PutNew::Exists(_) = self.store.put_new(&keys::boot_set(self.id(), number), body.clone()).await? {
            number += 1;
        }
        for old in listed {
            self.store.delete(&keys::boot_set(self.id(), old)).await?;
        }
        Ok(chunks.len())
    }

    /// Loads the newest boot set and fetches its chunks in the background, if there is one: a few at a time, ending when the machine is ahead
    /// of it. Losing it costs time only, so failures are logged and not returned.
    pub fn replay_boot_set(self: &Arc<Self>) {
        let base = Arc::clone(self);
        self.runtime.spawn(async move {
            match base.replay().await {
                Ok(0) => {}
                Ok(fetched) => tracing::debug!(base = %base.id(), fetched, "boot set replayed"),
                Err(error) => tracing::warn!(base = %base.id(), %error, "boot set not replayed"),
            }
        });
    }

    /// Chunks fetched. Waits for the end of the replay; see [`Base::replay_boot_set`].
    ///
    /// # Errors
    /// Those of reading the boot set or a chunk.
    pub async fn replay(&self) -> Result<u64> {
        let chunks = self.load_boot_set().await?;
        let mut known_in_a_row = 0;
        let mut fetched = 0;
        let mut warmed = futures::stream::iter(chunks).map(|chunk| self.warm(chunk.0)).buffered(IN_FLIGHT);
        while let Some(warmed) = warmed.next().await {
            match warmed? {
                Warmed::Fetched => (known_in_a_row, fetched) = (0, fetched + 1),
                Warmed::Known => known_in_a_row += 1,
            }
            if known_in_a_row >= OVERTAKEN_CHUNKS {
                break;
            }
        }
        Ok(fetched)
    }

    pub(super) async fn load_boot_set(&self) -> Result<Vec<ChunkIndex>> {
        let last = self.size().div_ceil(self.trace.chunk_bytes);
        // The newest may be damaged or just being replaced: an older one does as well.
        for number in self.boot_sets().await?.into_iter().rev() {
            let key = keys::boot_set(self.id(), number);
            let decoded = match self.store.get(&key).await {
                Ok(object) => bootset::decode(&object),
                Err(error) => Err(error),
            };
            match decoded {
                Ok((record, chunks)) if record.base == self.id() => {
                    return Ok(chunks.into_iter().filter(|chunk| chunk.0 < last).collect());
                }
                Ok(_) => tracing::warn!(%key, "the boot set of another base"),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => tracing::warn!(%key, %error, "unusable boot set"),
            }
        }
        Ok(Vec::new())
    }

    async fn boot_sets(&self) -> Result<Vec<u64>> {
        let listed = self.store.list(&keys::boot_sets(self.id())).await?;
        let mut numbers: Vec<u64> = listed.iter().filter_map(|one| one.key.parse().ok()).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }
}
