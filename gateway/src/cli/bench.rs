//! `clonegate bench …`

use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, Subcommand};
use clonegate_core::Error;
use url::Url;

use super::Session;
use super::failure::Failure;
use super::output::{self, Form};
use crate::bench::http::{HttpLoad, HttpReport, run as run_http};
use crate::clock::Clock;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Random ranges over keep-alive connections, of any HTTP server
    #[command(
        after_help = "Example:\n  clonegate bench http http://127.0.0.1:8080/v1/clones/desk-001/disk --connections 16 --block 64KiB"
    )]
    Http(Http),
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

pub(super) async fn run(verb: Verb, session: &Session) -> Result<(), Failure> {
    let Verb::Http(http) = verb;
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
