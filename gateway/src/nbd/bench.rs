//! A load generator for any NBD server: requests per second, and how long they take.

use std::collections::HashMap;
use std::time::Duration;

use clonegate_core::limits::NBD_PAYLOAD_BYTES_MAX;
use clonegate_core::nbd::{Command, Style};
use clonegate_core::units::ByteRange;
use clonegate_core::{Error, Result};
use tokio::time::Instant;

use super::client::{Connection, NbdUri, Wish};

/// What to do to a server.
#[derive(Debug, Clone)]
pub struct Load {
    /// One address for each export; connections are spread over them.
    pub targets: Vec<NbdUri>,
    /// Headers and replies.
    pub style: Style,
    /// Connections in all.
    pub connections: usize,
    /// Requests in flight on each.
    pub depth: usize,
    /// Bytes of each request.
    pub block_bytes: u32,
    /// Of 100 requests so many write.
    pub write_percent: u8,
    /// One after another instead of anywhere.
    pub sequential: bool,
    /// Bytes that are touched; all when `None`.
    pub region: Option<ByteRange>,
    /// After the answer to each so many-th write of a connection comes a flush in its place, and the write counts when that is answered;
    /// 0 is never.
    pub flush_every: u32,
    /// How long.
    pub duration: Duration,
    /// Equal seeds make equal requests.
    pub seed: u64,
}

/// What came of it.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Report {
    /// Reads and writes that were answered well; flushes are not counted by themselves.
    pub requests: u64,
    /// Requests that were answered with an error.
    pub errors: u64,
    /// Payload bytes of both directions.
    pub bytes: u64,
    /// How long it took, seconds.
    pub seconds: f64,
    /// Requests per second.
    pub requests_per_second: f64,
    /// Payload, 10^6 bytes a second.
    pub megabytes_per_second: f64,
    /// Microseconds that half of the requests took at most.
    pub p50_us: f64,
    /// Microseconds that 99 of 100 requests took at most.
    pub p99_us: f64,
    /// Microseconds that the slowest took at most.
    pub max_us: f64,
}

/// Counts durations in steps of about 3 percent.
#[derive(Debug)]
struct Histogram {
    counts: Vec<u64>,
}

/// Steps for each doubling.
const STEPS: usize = 32;

impl Histogram {
    fn new() -> Self {
        Self { counts: vec![0; 64 * STEPS] }
    }

    fn add(&mut self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX).max(STEPS as u64);
        let doublings = nanos.ilog2();
        let within = usize::try_from((nanos >> (doublings - STEPS.ilog2())) & (STEPS as u64 - 1)).unwrap_or(0);
        self.counts[doublings as usize * STEPS + within] += 1;
    }

    fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(mine, theirs)| *mine += theirs);
    }

    /// Microseconds that `share` of all took at most.
    fn percentile(&self, share: f64) -> f64 {
        let total: u64 = self.counts.iter().sum();
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen > 0 && as_f64(seen) >= as_f64(total) * share {
                let doubling = 2f64.powi(i32::try_from(index / STEPS).unwrap_or(0));
                return doubling * (1.0 + as_f64((index % STEPS) as u64 + 1) / as_f64(STEPS as u64)) / 1000.0;
            }
        }
        0.0
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of a measurement; the loss is far below its noise")]
fn as_f64(value: u64) -> f64 {
    value as f64
}

/// A sequence of offsets and choices that a seed repeats (splitmix64).
#[derive(Debug)]
struct Choices(u64);

impl Choices {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[derive(Debug)]
struct Count {
    requests: u64,
    errors: u64,
    bytes: u64,
    took: Histogram,
}

/// A read or write on its way.
struct Begun {
    at: Instant,
    /// Whether a flush follows when it is answered.
    flush: bool,
}

impl Load {
    /// Runs it.
    ///
    /// # Errors
    /// `Invalid` for loads that cannot be; otherwise those of the connection that failed first.
    pub async fn run(&self) -> Result<Report> {
        if self.block_bytes > NBD_PAYLOAD_BYTES_MAX {
            return Err(Error::invalid("bad-load", "a request is at most 32 MiB"));
        }
        if self.targets.is_empty() || self.connections == 0 || self.depth == 0 || self.block_bytes == 0 {
            return Err(Error::invalid(
                "bad-load",
                "targets, connections, depth and block size are to be at least one",
            ));
        }
        let mut open = Vec::new();
        for number in 0..self.connections {
            let wish = Wish { style: self.style, ..Wish::default() };
            open.push(Connection::open(&self.targets[number % self.targets.len()], &wish).await?);
        }
        let begin = Instant::now();
        let tasks: Vec<_> = open
            .into_iter()
            .zip(0..)
            .map(|(connection, number)| {
                let load = self.clone();
                tokio::spawn(async move { load.drive(connection, number, begin + load.duration).await })
            })
            .collect();
        let mut all = Count { requests: 0, errors: 0, bytes: 0, took: Histogram::new() };
        for task in tasks {
            let count = task
                .await
                .map_err(|error| Error::internal("task-died", "a connection's task died").because(error))??;
            all.requests += count.requests;
            all.errors += count.errors;
            all.bytes += count.bytes;
            all.took.merge(&count.took);
        }
        let seconds = begin.elapsed().as_secs_f64();
        Ok(Report {
            requests: all.requests,
            errors: all.errors,
            bytes: all.bytes,
            seconds,
            requests_per_second: as_f64(all.requests) / seconds,
            megabytes_per_second: as_f64(all.bytes) / seconds / 1e6,
            p50_us: all.took.percentile(0.5),
            p99_us: all.took.percentile(0.99),
            max_us: all.took.percentile(1.0),
        })
    }

    async fn drive(&self, mut connection: Connection, number: u64, end: Instant) -> Result<Count> {
        let block = u64::from(self.block_bytes);
        let region = self.region.unwrap_or(ByteRange::new(0, connection.size()));
        region.check_within(connection.size())?;
        let blocks = region.len() / block;
        if blocks == 0 {
            return Err(Error::invalid("bad-load", "the region is smaller than a request"));
        }
        let mut choices = Choices(self.seed.wrapping_add(number.wrapping_mul(0x1000_0000_01b3)));
        let payload: Vec<u8> = (0..self.block_bytes).map(|_| choices.next().to_le_bytes()[0]).collect();
        let mut count = Count { requests: 0, errors: 0, bytes: 0, took: Histogram::new() };
        let mut begun: HashMap<u64, Begun> = HashMap::with_capacity(self.depth);
        let (mut position, mut writes) = (number * blocks / self.connections.max(1) as u64, 0u32);
        loop {
            let now = Instant::now();
            while now < end && connection.in_flight() < self.depth {
                let index = if self.sequential { position % blocks } else { choices.next() % blocks };
                position += 1;
                let offset = region.start() + index * block;
                let (cookie, flush) = if choices.next() % 100 < u64::from(self.write_percent) {
                    writes = writes.wrapping_add(1);
                    let flush = self.flush_every > 0 && writes.is_multiple_of(self.flush_every);
                    (connection.queue(Command::Write, 0, offset, block, &payload), flush)
                } else {
                    (connection.queue(Command::Read, 0, offset, block, &[]), false)
                };
                begun.insert(cookie, Begun { at: now, flush });
            }
            if connection.in_flight() == 0 {
                connection.disconnect().await?;
                return Ok(count);
            }
            connection.send().await?;
            let mut next = Some(connection.receive().await?);
            while let Some(response) = next {
                next = connection.take_received()?;
                let Some(request) = begun.remove(&response.cookie) else { continue };
                if response.errno != 0 {
                    count.errors += 1;
                } else if request.flush {
                    // A flush covers what was answered before it is sent.
                    let cookie = connection.queue(Command::Flush, 0, 0, 0, &[]);
                    begun.insert(cookie, Begun { flush: false, ..request });
                } else {
                    count.requests += 1;
                    count.bytes += block;
                    count.took.add(request.at.elapsed());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_right_to_a_few_percent() {
        let mut histogram = Histogram::new();
        (1..=1000).for_each(|micros| histogram.add(Duration::from_micros(micros)));
        for (share, expect) in [(0.5, 500.0), (0.99, 990.0), (1.0, 1000.0)] {
            let got = histogram.percentile(share);
            assert!((got / expect - 1.0).abs() < 0.04, "{share}: {got}");
        }
        assert_eq!(Histogram::new().percentile(0.5), 0.0);
    }
}
