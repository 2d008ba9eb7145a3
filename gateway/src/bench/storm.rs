//! A boot storm: many machines begin at the same time, and each reads what a boot reads, one range after the other, over a connection of
//! its own. What counts is when the last one is through.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::Duration;

use clonegate_core::{Error, Result};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use url::Url;

use super::Histogram;
use super::http::{ANSWER_TIMEOUT, CONNECTIONS_MAX, Line, Target};
use crate::clock::Clock;

/// Longest trace, reads.
const READS_MAX: usize = 1 << 20;
/// Largest single read, bytes.
const READ_BYTES_MAX: u64 = 64 << 20;
/// Reads of the made-up boot follow each other in runs of at most so many.
const RUN_READS: u64 = 32;
const SECTOR: u64 = 512;

/// One read of a boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Read {
    /// The first byte.
    pub offset: u64,
    /// How many.
    pub length: u64,
}

/// What a storm is.
#[derive(Debug, Clone)]
pub struct StormLoad {
    /// The disk of each machine, in turn; `http` only.
    pub urls: Vec<Url>,
    /// How many machines.
    pub machines: usize,
    /// What each reads, in this order.
    pub trace: Trace,
}

/// What a machine reads.
#[derive(Debug, Clone)]
pub enum Trace {
    /// What was written down of a real boot.
    Recorded(Vec<Read>),
    /// A made-up boot of so many bytes: the start of the disk, then runs of small and large reads all over it. The same for all machines.
    MadeUp(u64),
}

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub struct StormReport {
    /// Machines that began.
    pub machines: usize,
    /// Those that read all of it.
    pub finished: usize,
    /// Reads of each.
    pub reads: usize,
    /// Bytes of each.
    pub bytes: u64,
    /// Seconds until the first was through.
    pub first_s: f64,
    /// Seconds until half of them were.
    pub p50_s: f64,
    /// Seconds until all of them were.
    pub last_s: f64,
    /// Bytes a second, of all together.
    pub bytes_per_second: f64,
    /// Half of the answers took no longer, microseconds.
    pub p50_us: f64,
    /// 99 of 100 answers took no longer, microseconds.
    pub p99_us: f64,
    /// Why machines did not come through, the first reason of all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// Reads a trace: a line for each read, offset and length in bytes; `#` begins a comment.
///
/// # Errors
/// `Invalid` with code `bad-trace` naming the line.
pub fn parse_trace(text: &str) -> Result<Vec<Read>> {
    let mut reads = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let wrong = |why: &str| {
            Error::invalid("bad-trace", format!("line {}: {why}", number + 1))
                .hint("a line is OFFSET LENGTH, in bytes, as 1048576 4096")
        };
        let mut words = line.split_whitespace().map(str::parse::<u64>);
        let (Some(Ok(offset)), Some(Ok(length)), None) = (words.next(), words.next(), words.next()) else {
            return Err(wrong("it is not two numbers"));
        };
        if !(1..=READ_BYTES_MAX).contains(&length) || offset.checked_add(length).is_none() {
            return Err(wrong("a read has 1 byte to 64 MiB"));
        }
        if reads.len() == READS_MAX {
            return Err(wrong("that are too many reads"));
        }
        reads.push(Read { offset, length });
    }
    if reads.is_empty() { Err(Error::invalid("bad-trace", "it has no reads")) } else { Ok(reads) }
}

/// A boot that nobody recorded, the same for every machine and every run: a loader and its kernel from the start of the disk, then runs of
/// reads of 4 to 128 KiB anywhere.
fn made_up(size: u64, bytes: u64) -> Vec<Read> {
    let mut reads = Vec::new();
    let mut left = bytes.min(size).max(SECTOR.min(size));
    let push = |reads: &mut Vec<Read>, offset: u64, length: u64| {
        let length = length.min(size - offset);
        reads.push(Read { offset, length });
        length
    };
    let mut at = 0;
    while at < (left / 4).min(size) && reads.len() < READS_MAX {
        at += push(&mut reads, at, 64 << 10);
    }
    left = left.saturating_sub(at);
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    while left > 0 && reads.len() < READS_MAX {
        let mut at = next() % size / 4096 * 4096;
        let length = 4096_u64 << (next() % 6);
        for _ in 0..=next() % RUN_READS {
            if left == 0 || at >= size {
                break;
            }
            let read = push(&mut reads, at, length.min(left));
            at += read;
            left -= read;
        }
    }
    reads
}

/// Runs a storm to its end.
///
/// # Errors
/// `Invalid` for URLs that are not `http`, and for a trace that passes the end of a disk; `Unavailable` when the server does not answer.
pub async fn run(load: StormLoad, clock: &Clock) -> Result<StormReport> {
    if load.urls.is_empty() || !(1..=CONNECTIONS_MAX).contains(&load.machines) {
        return Err(Error::invalid("bad-load", "a storm takes a URL and 1 to 10,000 machines"));
    }
    let mut targets = HashMap::new();
    for url in load.urls.iter().take(load.machines) {
        if !targets.contains_key(url) {
            targets.insert(url, Target::find(url).await?);
        }
    }
    let size = targets.values().map(|target| target.size).min().unwrap_or(0);
    let trace = match load.trace {
        Trace::Recorded(trace) => trace,
        Trace::MadeUp(bytes) => made_up(size, bytes),
    };
    if let Some(beyond) = trace.iter().find(|read| read.offset + read.length > size) {
        let what =
            format!("a read of {} bytes at {} passes the end of a disk of {size} bytes", beyond.length, beyond.offset);
        return Err(Error::invalid("beyond-end", what).hint("take the trace of this disk, or a smaller one"));
    }
    let (trace, count): (std::sync::Arc<[Read]>, usize) = (trace.into(), load.machines);
    let begun = clock.instant();
    let mut machines = JoinSet::new();
    for number in 0..count {
        let Some(target) = load.urls.get(number % load.urls.len()).and_then(|url| targets.get(url)) else { continue };
        machines.spawn(machine(target.clone(), std::sync::Arc::clone(&trace), begun, clock.clone()));
    }
    let (mut through, mut latencies, mut failure) = (Histogram::default(), Histogram::default(), None);
    let mut first: Option<Duration> = None;
    while let Some(ended) = machines.join_next().await {
        let ended = ended.map_err(|error| Error::internal("bench-died", "a machine died").because(error))?;
        latencies.add(&ended.latencies);
        match ended.through {
            Ok(after) => {
                first = Some(first.map_or(after, |first| first.min(after)));
                through.record(after);
            }
            Err(why) => failure = failure.or(Some(why)),
        }
    }
    let bytes: u64 = trace.iter().map(|read| read.length).sum();
    let last = through.longest().as_secs_f64();
    let micros = |duration: Duration| duration.as_secs_f64() * 1e6;
    #[expect(clippy::cast_precision_loss, reason = "rates are shown with a few digits")]
    let all = (bytes * through.count()) as f64;
    Ok(StormReport {
        machines: count,
        finished: usize::try_from(through.count()).unwrap_or(usize::MAX),
        reads: trace.len(),
        bytes,
        first_s: first.unwrap_or_default().as_secs_f64(),
        p50_s: through.percentile(50.0).as_secs_f64(),
        last_s: last,
        bytes_per_second: if last > 0.0 { all / last } else { 0.0 },
        p50_us: micros(latencies.percentile(50.0)),
        p99_us: micros(latencies.percentile(99.0)),
        failure,
    })
}

struct Ended {
    latencies: Histogram,
    through: std::result::Result<Duration, String>,
}

/// One boot. A connection that breaks ends it: a boot loader does not go on either.
async fn machine(target: Target, trace: std::sync::Arc<[Read]>, begun: Instant, clock: Clock) -> Ended {
    let mut latencies = Histogram::default();
    let booted = async {
        let mut line = Line::open(&target).await.map_err(|error| error.to_string())?;
        let mut request = String::new();
        for read in trace.iter() {
            request.clear();
            let last = read.offset + read.length - 1;
            // Writing to a String does not fail.
            let _ = write!(
                request,
                "GET {} HTTP/1.1\r\nHost: {}\r\nRange: bytes={}-{last}\r\n\r\n",
                target.path, target.host, read.offset
            );
            let asked = clock.instant();
            match timeout(ANSWER_TIMEOUT, line.ask(request.as_bytes(), read.length)).await {
                Ok(Ok(())) => latencies.record(clock.instant() - asked),
                Ok(Err(error)) => return Err(error.to_string()),
                Err(_) => return Err(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs())),
            }
        }
        Ok(clock.instant() - begun)
    };
    let through = booted.await;
    Ended { latencies, through }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_two_numbers_a_line() {
        let read = |offset, length| Read { offset, length };
        assert_eq!(
            parse_trace("0 512\n# the kernel\n1048576 65536 # all of it\n\n").unwrap(),
            [read(0, 512), read(1 << 20, 1 << 16)]
        );
        for wrong in ["", "# nothing", "5", "1 2 3", "a b", "0 0", "-1 4", "18446744073709551615 1", "0 99999999999"] {
            assert_eq!(parse_trace(wrong).unwrap_err().code(), "bad-trace", "{wrong:?}");
        }
        assert!(parse_trace("0 512\nx").unwrap_err().message().contains("line 2"));
    }

    #[test]
    fn a_made_up_boot_is_within_the_disk_and_always_the_same() {
        for size in [1, 512, 4096, 65_537, 1 << 20, 10 << 30] {
            for bytes in [1, 4096, 1 << 20, 64 << 20] {
                let reads = made_up(size, bytes);
                assert!(
                    !reads.is_empty() && reads.iter().all(|r| r.length > 0 && r.offset + r.length <= size),
                    "{size} {bytes}"
                );
                assert_eq!(reads, made_up(size, bytes));
            }
        }
        let total: u64 = made_up(10 << 30, 64 << 20).iter().map(|read| read.length).sum();
        assert_eq!(total, 64 << 20);
    }
}
