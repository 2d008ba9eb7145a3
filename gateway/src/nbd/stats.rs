//! Counters of the NBD server.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters since the server began; all only grow, but `connections_open`.
#[derive(Debug, Default)]
pub struct NbdStats {
    /// Connections accepted.
    pub connections: AtomicU64,
    /// Connections open now.
    pub connections_open: AtomicU64,
    /// Connections that ended without a good-bye.
    pub connections_lost: AtomicU64,
    /// Requests read.
    pub requests: AtomicU64,
    /// Requests answered without waiting for the device.
    pub requests_inline: AtomicU64,
    /// Requests answered with an error.
    pub errors: AtomicU64,
    /// Payload bytes of reads.
    pub read_bytes: AtomicU64,
    /// Payload bytes of writes.
    pub written_bytes: AtomicU64,
}

/// What one connection counted since it last told the server: plain numbers, for the hot path.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) requests: u64,
    pub(super) inline: u64,
    pub(super) errors: u64,
    pub(super) read_bytes: u64,
    pub(super) written_bytes: u64,
}

impl Tally {
    /// Adds it to the server's counters and begins anew.
    pub(super) fn settle(&mut self, stats: &NbdStats) {
        if self.requests == 0 && self.errors == 0 && self.read_bytes == 0 {
            return;
        }
        let add = |counter: &AtomicU64, value: &mut u64| {
            if *value != 0 {
                counter.fetch_add(std::mem::take(value), Ordering::Relaxed);
            }
        };
        add(&stats.requests, &mut self.requests);
        add(&stats.requests_inline, &mut self.inline);
        add(&stats.errors, &mut self.errors);
        add(&stats.read_bytes, &mut self.read_bytes);
        add(&stats.written_bytes, &mut self.written_bytes);
    }
}
