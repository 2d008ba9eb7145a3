//! Keeps base chunks in memory, loading each missing one once however many ask.
//!
//! The cache is keyed by content ([`LineKey`]), so clones, bases and template versions that share a chunk share its line. It holds whole
//! lines as [`Bytes`]; a reader gets a reference-counted slice and nothing is copied. A missing line is fetched by a task of its own
//! (see [`flight`]), so a reader that goes away harms nobody, and errors are never cached. Losing the cache costs time only.

mod counters;
mod flight;

use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

use bytes::Bytes;
use clonegate_core::limits::{CHUNK_BYTES, CHUNK_BYTES_MAX};
use clonegate_core::{Error, Result};
use futures::FutureExt;
use quick_cache::sync::Cache;
use quick_cache::{OptionsBuilder, Weighter};
use tokio::runtime::Handle;

use counters::Counters;
use flight::Flights;
pub use flight::{Claim, Pending};

/// What one entry weighs besides its bytes: the key, the handle, the two tables' slots and the allocation's head.
pub const LINE_OVERHEAD_BYTES: u64 = 192;
/// Lines of the usual size that each shard must take; with fewer, quick_cache refuses entries silently.
const SHARD_LINES_MIN: u64 = 8;

/// Identity of a line: the blake3 hash of a chunk, or something equally unlikely to collide.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct LineKey(pub [u8; 32]);

impl Hash for LineKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.0);
    }
}

impl fmt::Debug for LineKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in &self.0[..8] {
            write!(f, "{byte:02x}")?;
        }
        f.write_str("…")
    }
}

/// What the cache did since it was made, and what it holds now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct ICacheStats {
    /// Lines found in memory.
    pub hits: u64,
    /// Lines that had to be fetched.
    pub misses: u64,
    /// Requests that waited for a fetch already under way.
    pub joins: u64,
    /// Fetches that failed.
    pub failures: u64,
    /// Bytes fetched from stores, as stored.
    pub store_bytes: u64,
    /// GETs sent to stores.
    pub store_requests: u64,
    /// Plain bytes of lines handed out without a fetch of their own (hits and joins).
    pub spared_bytes: u64,
    /// Lines dropped to make room.
    pub evictions: u64,
    /// Lines in memory.
    pub entries: u64,
    /// Bytes in memory, [`LINE_OVERHEAD_BYTES`] for each line included; never above `capacity_bytes`.
    pub resident_bytes: u64,
    /// Most bytes in memory.
    pub capacity_bytes: u64,
    /// Fetches under way.
    pub in_flight: u64,
}

/// On whose behalf a line is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asker {
    /// A machine reads: it is counted, and lines that are asked for again stay.
    Machine,
    /// It is fetched before machines ask: neither the statistics of demand nor the order of eviction know of it.
    Warming,
}

/// What asking for a line gave.
#[derive(Debug)]
pub enum Lookup {
    /// It is in memory.
    Hit(Bytes),
    /// Somebody is fetching it.
    Join(Pending),
    /// The caller is to fetch it: fulfil the claim in a task that nobody can cancel.
    Lead(Claim, Pending),
}

/// The cache. Share it by `Arc`.
pub struct ICache {
    lines: Arc<Lines>,
    flights: Flights,
}

struct Lines {
    cache: Cache<LineKey, Bytes, LineWeight, KeyHash, CountEvictions>,
    counters: Arc<Counters>,
}

impl Lines {
    /// A line that is in memory.
    fn find(&self, key: &LineKey, asker: Asker) -> Option<Bytes> {
        match asker {
            Asker::Machine => {
                let line = self.cache.get(key)?;
                self.counters.hit(line.len() as u64);
                Some(line)
            }
            Asker::Warming => self.cache.peek(key),
        }
    }
}

impl ICache {
    /// A cache of at most `capacity_bytes`, [`LINE_OVERHEAD_BYTES`] for each line included. With less than a few lines nothing is kept,
    /// which costs time only.
    pub fn new(capacity_bytes: u64) -> Arc<Self> {
        let line = u64::from(CHUNK_BYTES) + LINE_OVERHEAD_BYTES;
        // A shard must take several of the largest lines, or those would never be kept.
        let largest = u64::from(CHUNK_BYTES_MAX) + LINE_OVERHEAD_BYTES;
        let cores = std::thread::available_parallelism().map_or(4, usize::from);
        let shards_max = usize::try_from(capacity_bytes / (SHARD_LINES_MIN * largest)).unwrap_or(usize::MAX).max(1);
        let mut shards = (cores * 4).next_power_of_two();
        while shards > shards_max {
            shards /= 2;
        }
        let counters = Arc::new(Counters::default());
        let options = OptionsBuilder::new()
            .shards(shards)
            .estimated_items_capacity(usize::try_from(capacity_bytes / line).unwrap_or(usize::MAX).max(1))
            .weight_capacity(capacity_bytes)
            // A line is kept for good once it was asked for twice; a scan passes through the other fifth.
            .hot_allocation(0.8)
            .build()
            .expect("all required options are set above");
        let cache = Cache::with_options(options, LineWeight, KeyHash, CountEvictions(Arc::clone(&counters)));
        debug_assert!(
            cache.num_shards() == 1 || cache.shard_capacity() >= SHARD_LINES_MIN * largest,
            "a shard too small for its lines keeps none of them"
        );
        Arc::new(Self { lines: Arc::new(Lines { cache, counters }), flights: Flights::default() })
    }

    /// The line, when it is in memory. The hot path: no allocation.
    pub fn get(&self, key: &LineKey) -> Option<Bytes> {
        self.lines.find(key, Asker::Machine)
    }

    /// The line, when it is in memory, without counting it as a read: for lines that are no data, as index pages.
    pub fn get_uncounted(&self, key: &LineKey) -> Option<Bytes> {
        self.lines.cache.get(key)
    }

    /// The right to fetch a line that nobody asked for yet, unless it is in memory or on its way.
    pub fn begin_quietly(&self, key: LineKey) -> Option<Claim> {
        if self.lines.cache.contains_key(&key) {
            return None;
        }
        match self.flights.join_or_lead(key, &self.lines, Asker::Warming) {
            Lookup::Lead(claim, _) => Some(claim),
            Lookup::Hit(_) | Lookup::Join(_) => None,
        }
    }

    /// Whether the line is in memory or on its way; changes no statistics and no order of eviction.
    pub fn is_known(&self, key: &LineKey) -> bool {
        self.lines.cache.contains_key(key) || self.flights.contains(key)
    }

    /// Asks for a line. At most one caller leads at any time, however many ask.
    pub fn begin(&self, key: LineKey, asker: Asker) -> Lookup {
        if let Some(line) = self.lines.find(&key, asker) {
            return Lookup::Hit(line);
        }
        let lookup = self.flights.join_or_lead(key, &self.lines, asker);
        match (&lookup, asker) {
            (Lookup::Hit(_), _) | (_, Asker::Warming) => {}
            (Lookup::Join(_), Asker::Machine) => self.lines.counters.join(),
            (Lookup::Lead(..), Asker::Machine) => self.lines.counters.miss(),
        }
        lookup
    }

    /// The line, fetched by `fetch` when it is missing and nobody is fetching it. `fetch` runs as a task on `runtime`: dropping the
    /// returned future stops neither it nor those who wait with it.
    ///
    /// # Errors
    /// Those of the fetch, for everybody who waited; they are not kept. `Internal` with code `fetch-died` when it panicked.
    pub async fn get_or_fetch<F>(&self, key: LineKey, runtime: &Handle, fetch: F) -> Result<Bytes>
    where
        F: Future<Output = Result<Bytes>> + Send + 'static,
    {
        match self.begin(key, Asker::Machine) {
            Lookup::Hit(line) => Ok(line),
            Lookup::Join(pending) => pending.await,
            Lookup::Lead(claim, pending) => {
                // A panic drops the claim, which wakes everybody with an error.
                runtime.spawn(async move {
                    let fetched = std::panic::AssertUnwindSafe(fetch).catch_unwind().await;
                    claim.fulfil(fetched.unwrap_or_else(|_| Err(fetch_died())));
                });
                pending.await
            }
        }
    }

    /// Counts one GET of `bytes` sent to a store on behalf of the cache.
    pub fn count_store_read(&self, bytes: u64) {
        self.lines.counters.store_read(bytes);
    }

    /// Forgets every line; fetches under way go on.
    pub fn clear(&self) {
        self.lines.cache.clear();
    }

    /// What it did and holds.
    pub fn stats(&self) -> ICacheStats {
        let cache = &self.lines.cache;
        ICacheStats {
            entries: cache.len() as u64,
            resident_bytes: cache.weight(),
            capacity_bytes: cache.capacity(),
            in_flight: self.flights.count(),
            ..self.lines.counters.stats()
        }
    }
}

impl fmt::Debug for ICache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ICache").field(&self.stats()).finish()
    }
}

fn fetch_died() -> Error {
    Error::internal("fetch-died", "the task that fetched this chunk died").hint("read it again; if it stays, report it")
}

#[derive(Clone)]
struct LineWeight;

impl Weighter<LineKey, Bytes> for LineWeight {
    fn weight(&self, _key: &LineKey, line: &Bytes) -> u64 {
        line.len() as u64 + LINE_OVERHEAD_BYTES
    }
}

#[derive(Clone)]
struct CountEvictions(Arc<Counters>);

impl quick_cache::Lifecycle<LineKey, Bytes> for CountEvictions {
    // Evicted lines are collected here and freed after the shard's lock is given back.
    type RequestState = smallvec::SmallVec<[Bytes; 2]>;

    fn on_evict(&self, state: &mut Self::RequestState, _key: LineKey, line: Bytes) {
        self.0.eviction();
        state.push(line);
    }
}

/// Mixes all 32 bytes of a key. Keys are hashes themselves or hold one, so this need not resist an adversary, but it must not
/// look at a part only: raw lines differ in their last bytes alone.
#[derive(Debug, Clone, Default)]
pub(crate) struct KeyHash;

impl BuildHasher for KeyHash {
    type Hasher = KeyHasher;
    fn build_hasher(&self) -> KeyHasher {
        KeyHasher(0)
    }
}

/// See [`KeyHash`].
#[derive(Debug)]
pub(crate) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.write_u64(u64::from_le_bytes(*word));
        }
        for byte in rest {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word ^ 0x9e37_79b9_7f4a_7c15) * 0xd6e8_feb8_6659_fd93_u128;
        #[expect(clippy::cast_possible_truncation, reason = "the two halves of a folded product")]
        let folded = (product as u64) ^ ((product >> 64) as u64);
        self.0 = folded;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests;
