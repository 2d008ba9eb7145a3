//! Random ranges over HTTP/1.1 keep-alive connections: requests a second, and how long each took.

use std::io;
use std::time::Duration;

use clonegate_core::{Error, Result};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use url::Url;

use super::Histogram;
use crate::clock::Clock;

/// What to ask of a server.
#[derive(Debug, Clone)]
pub struct HttpLoad {
    /// The object; `http` only.
    pub url: Url,
    /// Connections, each with one request under way.
    pub connections: usize,
    /// Bytes of each range; ranges begin at multiples of it.
    pub block: u64,
    /// How long.
    pub duration: Duration,
    /// Threads that ask.
    pub threads: usize,
}

/// Most connections of one load.
pub const CONNECTIONS_MAX: usize = 10_000;
/// Longest wait for one answer; then it is an error.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest header of an answer, bytes.
const HEADER_BYTES_MAX: usize = 64 * 1024;

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub struct HttpReport {
    /// Connections.
    pub connections: usize,
    /// Bytes of each range.
    pub block: u64,
    /// Seconds from the first request to the last answer.
    pub seconds: f64,
    /// Answers that were 206 and had their length.
    pub requests: u64,
    /// Answers that were not, and connections that broke.
    pub errors: u64,
    /// Requests a second.
    pub per_second: f64,
    /// Bytes of bodies a second.
    pub bytes_per_second: f64,
    /// Half of the answers took no longer, microseconds.
    pub p50_us: f64,
    /// 99 of 100 answers took no longer, microseconds.
    pub p99_us: f64,
    /// The longest, microseconds.
    pub max_us: f64,
}

#[derive(Debug, Default)]
struct Tally {
    latencies: Histogram,
    errors: u64,
}

/// Runs a load to its end.
///
/// # Errors
/// `Invalid` for a URL that is not `http` or an object smaller than a block; `Unavailable` when the server does not answer.
pub async fn run(load: HttpLoad, clock: &Clock) -> Result<HttpReport> {
    if !(1..=CONNECTIONS_MAX).contains(&load.connections) || load.block == 0 {
        return Err(Error::invalid("bad-load", "a load takes 1 to 10,000 connections and a block size")
            .on(load.url.to_string()));
    }
    let target = Target::find(&load.url).await?;
    let blocks = target.size / load.block;
    if blocks == 0 {
        let what = format!("it has {} bytes, less than one block of {}", target.size, load.block);
        return Err(Error::invalid("bad-object", what).on(load.url.to_string()).hint("take a smaller --block"));
    }
    let block = load.block;
    let threads = load.threads.clamp(1, load.connections);
    let until = clock.instant() + load.duration;
    let started = clock.instant();
    let workers: Vec<_> = (0..threads)
        .map(|thread| {
            let own = load.connections / threads + usize::from(thread < load.connections % threads);
            let (target, clock) = (target.clone(), clock.clone());
            tokio::task::spawn_blocking(move || worker(own, &target, (block, blocks), until, &clock))
        })
        .collect();
    let mut total = Tally::default();
    for worker in workers {
        let tally =
            worker.await.map_err(|error| Error::internal("bench-died", "a load thread died").because(error))??;
        total.latencies.add(&tally.latencies);
        total.errors += tally.errors;
    }
    let seconds = (clock.instant() - started).as_secs_f64();
    let requests = total.latencies.count();
    let micros = |duration: Duration| duration.as_secs_f64() * 1e6;
    #[expect(clippy::cast_precision_loss, reason = "rates are shown with a few digits")]
    let per_second = requests as f64 / seconds;
    #[expect(clippy::cast_precision_loss, reason = "rates are shown with a few digits")]
    let bytes_per_second = per_second * load.block as f64;
    Ok(HttpReport {
        connections: load.connections,
        block: load.block,
        seconds,
        requests,
        errors: total.errors,
        per_second,
        bytes_per_second,
        p50_us: micros(total.latencies.percentile(50.0)),
        p99_us: micros(total.latencies.percentile(99.0)),
        max_us: micros(total.latencies.longest()),
    })
}

/// What is asked of which server.
#[derive(Debug, Clone)]
pub(super) struct Target {
    address: String,
    pub(super) host: String,
    pub(super) path: String,
    pub(super) size: u64,
}

impl Target {
    /// Asks how large the object is.
    pub(super) async fn find(url: &Url) -> Result<Self> {
        if url.scheme() != "http" {
            return Err(Error::invalid("bad-load", "a load takes an http URL").on(url.to_string()));
        }
        let host = url.host_str().unwrap_or_default();
        let port = url.port_or_known_default().unwrap_or(80);
        let mut target = Self {
            address: format!("{host}:{port}"),
            host: format!("{host}:{port}"),
            path: url[url::Position::BeforePath..url::Position::AfterQuery].to_owned(),
            size: 0,
        };
        let unreachable = |error: io::Error| {
            Error::unavailable("no-server", "the server does not answer").on(url.to_string()).because(error)
        };
        let mut line = Line::open(&target).await.map_err(unreachable)?;
        line.stream
            .write_all(format!("HEAD {} HTTP/1.1\r\nHost: {}\r\n\r\n", target.path, target.host).as_bytes())
            .await
            .map_err(unreachable)?;
        let (status, size) = line.head().await.map_err(unreachable)?;
        if status != 200 || size == 0 {
            let what = format!("HEAD gives {status} and {size} bytes: there is nothing to read");
            return Err(Error::invalid("bad-object", what).on(url.to_string()).hint("is the path right?"));
        }
        target.size = size;
        Ok(target)
    }
}

fn worker(connections: usize, target: &Target, blocks: (u64, u64), until: Instant, clock: &Clock) -> Result<Tally> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime =
        runtime.map_err(|error| Error::internal("no-runtime", "a load thread cannot start").because(error))?;
    runtime.block_on(async {
        let mut tasks = JoinSet::new();
        for _ in 0..connections {
            tasks.spawn(connection(target.clone(), blocks, until, clock.clone(), clock.random_u64()));
        }
        let mut total = Tally::default();
        while let Some(tally) = tasks.join_next().await {
            let tally = tally.map_err(|error| Error::internal("bench-died", "a connection died").because(error))?;
            total.latencies.add(&tally.latencies);
            total.errors += tally.errors;
        }
        Ok(total)
    })
}

async fn connection(target: Target, (block, blocks): (u64, u64), until: Instant, clock: Clock, seed: u64) -> Tally {
    let mut tally = Tally::default();
    let mut random = seed | 1;
    let mut line = None;
    let mut request = String::new();
    while clock.instant() < until {
        let open = match line.take() {
            Some(open) => Ok(open),
            None => Line::open(&target).await,
        };
        let Ok(mut open) = open else {
            tally.errors += 1;
            clock.sleep(Duration::from_millis(10)).await;
            continue;
        };
        // xorshift: the next range is not worth more.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let first = random % blocks * block;
        request.clear();
        let last = first + block - 1;
        // Writing to a String does not fail.
        let _ = std::fmt::Write::write_fmt(
            &mut request,
            format_args!(
                "GET {} HTTP/1.1\r\nHost: {}\r\nRange: bytes={first}-{last}\r\n\r\n",
                target.path, target.host
            ),
        );
        let asked = clock.instant();
        match timeout(ANSWER_TIMEOUT, open.ask(request.as_bytes(), block)).await {
            Ok(Ok(())) => {
                tally.latencies.record(clock.instant() - asked);
                line = Some(open);
            }
            Ok(Err(_)) | Err(_) => tally.errors += 1,
        }
    }
    tally
}

/// One keep-alive connection.
pub(super) struct Line {
    stream: TcpStream,
    buffer: Vec<u8>,
    filled: usize,
}

impl Line {
    pub(super) async fn open(target: &Target) -> io::Result<Self> {
        let stream = timeout(ANSWER_TIMEOUT, TcpStream::connect(&target.address)).await??;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: vec![0; 256 * 1024], filled: 0 })
    }

    /// Sends a request and takes in a 206 with a body of `length` bytes.
    pub(super) async fn ask(&mut self, request: &[u8], length: u64) -> io::Result<()> {
        self.stream.write_all(request).await?;
        let (status, size) = self.head().await?;
        if status != 206 || size != length {
            return Err(io::Error::other("not the range that was asked for"));
        }
        let mut left = usize::try_from(length).unwrap_or(usize::MAX);
        loop {
            let take = left.min(self.filled);
            left -= take;
            self.buffer.copy_within(take..self.filled, 0);
            self.filled -= take;
            if left == 0 {
                return Ok(());
            }
            self.more().await?;
        }
    }

    /// Takes in the header of an answer: its status and Content-Length.
    async fn head(&mut self) -> io::Result<(u16, u64)> {
        let end = loop {
            if let Some(end) = self.buffer[..self.filled].windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            if self.filled > HEADER_BYTES_MAX {
                return Err(io::Error::other("the header of the answer is too long"));
            }
            self.more().await?;
        };
        let head = std::str::from_utf8(&self.buffer[..end]).map_err(io::Error::other)?;
        let status = head.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0);
        let mut fields = head.split("\r\n").filter_map(|line| line.split_once(':'));
        let length = fields.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        let length = length.and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(0);
        self.buffer.copy_within(end..self.filled, 0);
        self.filled -= end;
        Ok((status, length))
    }

    async fn more(&mut self) -> io::Result<()> {
        let count = self.stream.read(&mut self.buffer[self.filled..]).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.filled += count;
        Ok(())
    }
}
