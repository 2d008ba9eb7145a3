//! Counters of the cache, spread so that cores do not fight over one cache line.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use super::ICacheStats;

const STRIPES: usize = 16;

/// Two cache lines each, so that neighbours are never prefetched together.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Stripe {
    hits: AtomicU64,
    hit_bytes: AtomicU64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    stripes: [Stripe; STRIPES],
    misses: AtomicU64,
    joins: AtomicU64,
    joined_bytes: AtomicU64,
    failures: AtomicU64,
    store_bytes: AtomicU64,
    store_requests: AtomicU64,
    evictions: AtomicU64,
}

fn stripe() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static MINE: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    MINE.with(|mine| {
        if mine.get() == usize::MAX {
            mine.set(NEXT.fetch_add(1, Relaxed) % STRIPES);
        }
        mine.get()
    })
}

impl Counters {
    pub(super) fn hit(&self, bytes: u64) {
        let stripe = &self.stripes[stripe()];
        stripe.hits.fetch_add(1, Relaxed);
        stripe.hit_bytes.fetch_add(bytes, Relaxed);
    }

    pub(super) fn miss(&self) {
        self.misses.fetch_add(1, Relaxed);
    }

    pub(super) fn join(&self) {
        self.joins.fetch_add(1, Relaxed);
    }

    pub(super) fn joined(&self, bytes: u64) {
        self.joined_bytes.fetch_add(bytes, Relaxed);
    }

    pub(super) fn failure(&self) {
        self.failures.fetch_add(1, Relaxed);
    }

    pub(super) fn store_read(&self, bytes: u64) {
        self.store_requests.fetch_add(1, Relaxed);
        self.store_bytes.fetch_add(bytes, Relaxed);
    }

    pub(super) fn eviction(&self) {
        self.evictions.fetch_add(1, Relaxed);
    }

    pub(super) fn stats(&self) -> ICacheStats {
        let sum = |of: fn(&Stripe) -> &AtomicU64| self.stripes.iter().map(|s| of(s).load(Relaxed)).sum::<u64>();
        ICacheStats {
            hits: sum(|s| &s.hits),
            misses: self.misses.load(Relaxed),
            joins: self.joins.load(Relaxed),
            failures: self.failures.load(Relaxed),
            store_bytes: self.store_bytes.load(Relaxed),
            store_requests: self.store_requests.load(Relaxed),
            spared_bytes: sum(|s| &s.hit_bytes) + self.joined_bytes.load(Relaxed),
            evictions: self.evictions.load(Relaxed),
            ..ICacheStats::default()
        }
    }
}
