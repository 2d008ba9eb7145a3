//! The operator's part: over REST.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use clonegate_core::Error;
use serde_json::Value;

use super::local::{read, since_ms};
use crate::cli::Session;
use crate::cli::client::Body;
use crate::cli::failure::Failure;
use crate::cli::output::{self, Form};

/// Largest component that is sent, bytes; the gateway takes less.
const FILE_BYTES_MAX: u64 = 32 << 20;
/// Decisions that a replay asks the gateway for.
const DECISIONS_MAX: usize = 10_000;

pub(super) async fn install(
    file: &Path,
    name: Option<String>,
    accept_differences: bool,
    dry_run: bool,
    session: &Session,
) -> Result<(), Failure> {
    let component = read(file, FILE_BYTES_MAX)?;
    let mut query: Vec<(&str, String)> = name.map(|name| ("name", name)).into_iter().collect();
    query.extend([("accept_differences", accept_differences.to_string()), ("dry_run", dry_run.to_string())]);
    let sent = session.client()?.upload("plugins", &query, component.into()).await;
    let report: Value = sent.map_err(|failure| failure.about(file))?;
    if session.form == Form::Json {
        output::json(&report);
        return Ok(());
    }
    let (name, version) = (text(&report["name"]), text(&report["info"]["version"]));
    let replay = &report["replay"];
    let done = match (dry_run, report["changed"].as_bool()) {
        (true, _) => "would be installed",
        (false, Some(true)) => "installed",
        (false, _) => "was installed already",
    };
    output::line(&format!("{name} {version} {done}"));
    output::line(&format!("{} recorded decisions asked again, {} different", replay["asked"], replay["different"]));
    Ok(())
}

pub(super) async fn list(session: &Session) -> Result<(), Failure> {
    let plugins: Vec<Value> = session.client()?.get("plugins").await?;
    if session.form == Form::Json {
        output::json(&plugins);
        return Ok(());
    }
    let rows: Vec<_> = plugins
        .iter()
        .map(|p| {
            let links: &[Value] = p["links"].as_array().map_or(&[], Vec::as_slice);
            let slots: Vec<_> = links.iter().map(|l| text(&l["slot"])).collect();
            let sum = |key: &str| links.iter().filter_map(|l| l[key].as_u64()).sum::<u64>().to_string();
            vec![
                text(&p["name"]),
                text(&p["info"]["version"]),
                text(&p["state"]),
                if slots.is_empty() { "-".into() } else { slots.join(",") },
                sum("asked"),
                sum("failed"),
                problem(p, links),
            ]
        })
        .collect();
    output::table(&["NAME", "VERSION", "STATE", "ASKED FOR", "CALLS", "FAILED", "PROBLEM"], &rows);
    Ok(())
}

pub(super) async fn rollback(name: &str, dry_run: bool, session: &Session) -> Result<(), Failure> {
    let path = format!("plugins/{}/rollback", session.segment(name));
    let info: Value = session.client()?.post(&path, &[("dry_run", dry_run.to_string())], &Value::Null).await?;
    if session.form == Form::Json {
        output::json(&info);
        return Ok(());
    }
    let done = if dry_run { "would be" } else { "is" };
    output::line(&format!("{name}: {} {done} at work again", text(&info["version"])));
    Ok(())
}

pub(super) async fn remove(name: &str, dry_run: bool, session: &Session) -> Result<(), Failure> {
    let path = format!("plugins/{}", session.segment(name));
    session.client()?.send(reqwest::Method::DELETE, &path, &[("dry_run", dry_run.to_string())], Body::None).await?;
    if session.form == Form::Json {
        output::json(&serde_json::json!({ "name": name, "removed": !dry_run }));
        return Ok(());
    }
    output::line(&format!("{name}: {}", if dry_run { "can be removed" } else { "removed" }));
    Ok(())
}

pub(super) async fn decisions(
    slot: Option<String>,
    since: Option<Duration>,
    limit: usize,
    session: &Session,
) -> Result<(), Failure> {
    let mut query = vec![("since_ms", since_ms(since).to_string()), ("limit", limit.to_string())];
    query.extend(slot.map(|slot| ("slot", slot)));
    let lines = session.client()?.send(reqwest::Method::GET, "decisions", &query, Body::None).await?;
    // Standard output is a file of records: none is an empty one.
    match String::from_utf8_lossy(&lines).trim_end() {
        "" => output::aside("no decision is recorded that fits"),
        lines => output::line(lines),
    }
    Ok(())
}

/// The gateway's recorded decisions in a file that goes when it is dropped.
pub(super) async fn recorded(session: &Session, since: Option<Duration>) -> Result<tempfile::NamedTempFile, Failure> {
    let query = [("since_ms", since_ms(since).to_string()), ("limit", DECISIONS_MAX.to_string())];
    let lines = session.client()?.send(reqwest::Method::GET, "decisions", &query, Body::None).await?;
    let failed = |e| Error::unavailable("cannot-write", "recorded decisions cannot be kept for the replay").because(e);
    let mut file = tempfile::Builder::new().suffix(".jsonl").tempfile().map_err(failed)?;
    file.write_all(&lines).map_err(failed)?;
    Ok(file)
}

/// What is wrong with a plugin, else with a place of it in a chain.
fn problem(plugin: &Value, links: &[Value]) -> String {
    let place = || links.iter().find(|l| !l["problem"].is_null());
    match (&plugin["problem"], place()) {
        (Value::Null, Some(link)) => format!("{}: {}", text(&link["slot"]), text(&link["problem"])),
        (problem, _) => text(problem),
    }
}

/// A value for people; `-` for none.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
