//! `clonegate bench …`

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, Subcommand};
use clonegate_core::Error;
use clonegate_core::nbd::Style;
use url::Url;

use super::Session;
use super::client::Client;
use super::failure::Failure;
use super::output::{self, Form};
use crate::bench::http::{HttpLoad, HttpReport, run as run_http};
use crate::bench::storm::{Read, StormLoad, StormReport, Trace, parse_trace, run as run_storm};
use crate::clock::Clock;
use crate::lifecycle::views::CacheView;
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
    /// Many machines that boot at the same time: each reads what a boot reads, and the last one counts
    #[command(
        after_help = "Examples:\n  clonegate bench storm 'http://127.0.0.1:8080/v1/clones/desk-{nnn}/disk' --machines 100\n  clonegate bench storm http://127.0.0.1:8080/v1/clones/desk-001/disk --machines 20 --trace boot.trace"
    )]
    Storm(Storm),
}

#[derive(Debug, Args)]
pub(super) struct Storm {
    /// What machines read, in turn; {nnn} becomes the number of the machine
    #[arg(required = true)]
    urls: Vec<String>,
    /// How many boot
    #[arg(long, default_value_t = 16)]
    machines: usize,
    /// What each reads: a file with a line OFFSET LENGTH for each read. A made-up boot otherwise
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Bytes that the made-up boot reads
    #[arg(long, default_value = "64MiB", conflicts_with = "trace")]
    bytes: ByteSize,
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
        Verb::Storm(storm) => bench_storm(storm, session).await,
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

async fn bench_storm(storm: Storm, session: &Session) -> Result<(), Failure> {
    let trace = match &storm.trace {
        None => Trace::MadeUp(storm.bytes.as_u64()),
        Some(file) => Trace::Recorded(read_trace(file)?),
    };
    let urls = disks(&storm.urls, storm.machines)?;
    let origin = urls.first().map(|url| url[..url::Position::BeforePath].to_owned()).unwrap_or_default();
    let load = StormLoad { urls, machines: storm.machines, trace };
    // A gateway of ours says what it asked of its stores; another server does not.
    let cache = async || -> Option<CacheView> {
        let client = Client::new(&origin, session.token.clone(), session.ca.as_deref()).ok()?;
        client.get("cache").await.ok()
    };
    let before = cache().await;
    let report = run_storm(load, &Clock::system()).await?;
    let from_store = before.zip(cache().await).map(|(b, a)| a.store_bytes.saturating_sub(b.store_bytes));
    match session.form {
        Form::Json => {
            let mut report = serde_json::to_value(&report).unwrap_or_default();
            report["store_bytes"] = from_store.into();
            output::json(&report);
        }
        Form::Table => show_storm(&report, from_store),
    }
    match report.failure {
        None => Ok(()),
        Some(why) => {
            let what = format!(
                "{} of {} machines did not come through: {why}",
                report.machines - report.finished,
                report.machines
            );
            Err(Error::unavailable("not-through", what).on(origin).into())
        }
    }
}

fn show_storm(report: &StormReport, from_store: Option<u64>) {
    let mut facts = vec![
        ("machines", format!("{} of {} came through", report.finished, report.machines)),
        ("each read", format!("{} in {} reads", output::size(report.bytes), report.reads)),
        ("first after", format!("{:.3} s", report.first_s)),
        ("half after", format!("{:.3} s", report.p50_s)),
        ("all after", format!("{:.3} s", report.last_s)),
        ("together", format!("{:.1} MB/s", report.bytes_per_second / 1e6)),
        ("one read", format!("p50 {:.0} µs, p99 {:.0} µs", report.p50_us, report.p99_us)),
    ];
    facts.extend(from_store.map(|bytes| ("from the store", output::size(bytes))));
    output::facts(&facts);
}

fn read_trace(file: &Path) -> clonegate_core::Result<Vec<Read>> {
    let text = std::fs::read_to_string(file).map_err(|e| {
        Error::not_found("no-trace", "the trace cannot be read").on(file.display().to_string()).because(e)
    })?;
    parse_trace(&text).map_err(|e| e.on(file.display().to_string()))
}

/// The disks of so many machines: `{nnn}` in a URL is the number of the machine.
fn disks(urls: &[String], machines: usize) -> clonegate_core::Result<Vec<Url>> {
    let mut disks = Vec::new();
    for (number, url) in (1..=machines).zip(urls.iter().cycle()) {
        let text = match url.split_once('{').and_then(|(head, rest)| Some((head, rest.split_once('}')?))) {
            Some((head, (letters, tail))) if !letters.is_empty() && letters.bytes().all(|b| b == b'n') => {
                format!("{head}{number:0width$}{tail}", width = letters.len())
            }
            _ => url.clone(),
        };
        let parsed = Url::parse(&text).map_err(|e| {
            Error::invalid("bad-url", format!("it is no URL: {e}")).on(text.clone()).hint("write http://HOST:PORT/PATH")
        })?;
        disks.push(parsed);
    }
    Ok(disks)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_machine_has_the_disk_of_its_number() {
        let disks = |urls: &[&str], machines| {
            let urls: Vec<String> = urls.iter().map(|url| (*url).to_owned()).collect();
            super::disks(&urls, machines).map(|all| all.iter().map(Url::to_string).collect::<Vec<_>>())
        };
        assert_eq!(disks(&["http://a/d-{nnn}/disk"], 2).unwrap(), ["http://a/d-001/disk", "http://a/d-002/disk"]);
        assert_eq!(disks(&["http://a/x"], 5).unwrap(), ["http://a/x"; 5]);
        assert_eq!(disks(&["http://a/{n}", "http://a/y"], 3).unwrap(), ["http://a/1", "http://a/y", "http://a/3"]);
        assert_eq!(disks(&["nonsense"], 1).unwrap_err().code(), "bad-url");
    }
}
