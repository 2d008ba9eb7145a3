//! `clonegate bench …`

use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, Subcommand};
use clonegate_core::Error;
use clonegate_core::nbd::Style;
use url::Url;

use super::Session;
use super::failure::Failure;
use super::output::{self, Form};
use crate::bench::http::{HttpLoad, HttpReport, run as run_http};
use crate::clock::Clock;
use crate::nbd::bench::Load;
use crate::nbd::client::NbdUri;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Random ranges over keep-alive connections, of any HTTP server
    #[command(
        after_help = "Example:\n  clonegate bench http http://127.0.0.1:8080/v1/clones/desk-001/disk --connections 16 --block 64KiB"
    )]
    Http(Http),
    /// Reads and writes with many requests under way, of any NBD server
    #[command(
        after_help = "Example:\n  clonegate bench nbd nbd://127.0.0.1:10809/desk-001 --depth 32 --block 4KiB\n  clonegate bench nbd nbd://127.0.0.1:10809/desk-001 --write 100 --flush-every 32"
    )]
    Nbd(Nbd),
}

#[derive(Debug, Args)]
pub(super) struct Http {
    /// What to read
    url: Url,
    /// Connections, each with one request under way
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Size of a range
    #[arg(long, default_value = "4KiB")]
    block: ByteSize,
    /// How long
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    time: Duration,
    /// Threads that ask
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

#[derive(Debug, Args)]
pub(super) struct Nbd {
    /// What to read; connections are spread over all that are given
    #[arg(required = true)]
    urls: Vec<NbdUri>,
    /// Connections
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Requests under way on each
    #[arg(long, default_value_t = 32)]
    depth: usize,
    /// Size of a request
    #[arg(long, default_value = "4KiB")]
    block: ByteSize,
    /// Of 100 requests so many write: what is there is lost
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
    write: u8,
    /// A flush after so many writes of a connection; 0 is never
    #[arg(long, default_value_t = 0)]
    flush_every: u32,
    /// One after another instead of anywhere
    #[arg(long)]
    sequential: bool,
    /// How long
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    time: Duration,
}

pub(super) async fn run(verb: Verb, session: &Session) -> Result<(), Failure> {
    match verb {
        Verb::Http(http) => bench_http(http, session).await,
        Verb::Nbd(nbd) => bench_nbd(nbd, session).await,
    }
}

async fn bench_nbd(nbd: Nbd, session: &Session) -> Result<(), Failure> {
    let load = Load {
        targets: nbd.urls,
        style: Style::Structured,
        connections: nbd.connections,
        depth: nbd.depth,
        block_bytes: u32::try_from(nbd.block.as_u64()).unwrap_or(u32::MAX),
        write_percent: nbd.write,
        sequential: nbd.sequential,
        region: None,
        flush_every: nbd.flush_every,
        duration: nbd.time,
        seed: 1,
    };
    let report = load.run().await?;
    match session.form {
        Form::Json => output::json(&report),
        Form::Table => output::facts(&[
            ("requests", format!("{} in {:.1} s, {} failed", report.requests, report.seconds, report.errors)),
            ("rate", format!("{:.0} requests/s, {:.1} MB/s", report.requests_per_second, report.megabytes_per_second)),
            (
                "latency",
                format!("p50 {:.0} µs, p99 {:.0} µs, longest {:.0} µs", report.p50_us, report.p99_us, report.max_us),
            ),
        ]),
    }
    Ok(())
}

async fn bench_http(http: Http, session: &Session) -> Result<(), Failure> {
    let url = http.url.to_string();
    let load = HttpLoad {
        url: http.url,
        connections: http.connections,
        block: http.block.as_u64(),
        duration: http.time,
        threads: http.threads,
    };
    let report = run_http(load, &Clock::system()).await?;
    match session.form {
        Form::Json => output::json(&report),
        Form::Table => show(&report),
    }
    if report.requests == 0 {
        let error = Error::unavailable("no-answers", "not one request was answered").on(url);
        return Err(error.hint("read it once with curl to see what is wrong").into());
    }
    Ok(())
}

fn show(report: &HttpReport) {
    let rate = format!("{:.1} MB/s", report.bytes_per_second / 1e6);
    output::facts(&[
        ("connections", report.connections.to_string()),
        ("range", output::size(report.block)),
        ("requests", format!("{} in {:.1} s, {} failed", report.requests, report.seconds, report.errors)),
        ("rate", format!("{:.0} requests/s, {rate}", report.per_second)),
        (
            "latency",
            format!("p50 {:.0} µs, p99 {:.0} µs, longest {:.0} µs", report.p50_us, report.p99_us, report.max_us),
        ),
    ]);
}
