//! `template export`, `clone export`: the bytes of a disk into a file on this machine, sparse, raw or qcow2.
//!
//! The file has another name until it is whole, so an export that is cut short leaves none of the name that was asked for. All of it is of one
//! version of the disk: each range is asked for with `If-Match`.

mod qcow2;
mod raw;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::Args;
use clonegate_core::Error;
use futures::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;
use tokio::signal::unix::{SignalKind, signal};

use super::failure::Failure;
use super::image::{Bar, Format};
use super::output::{self, Form};
use super::{DryRun, Session};
use crate::import::{Progress, ProgressNow};

/// Bytes asked for at a time.
const WINDOW_BYTES: u64 = 4 << 20;
/// Requests under way.
const AT_ONCE: usize = 4;

#[derive(Debug, Args)]
pub(super) struct ExportFile {
    /// The file to make
    file: PathBuf,
    /// What it is to be; the ending of its name says it otherwise
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Replace a file of that name
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    dry_run: DryRun,
}

/// What takes the bytes, in ascending order. What is not written is zero.
trait Writer {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> std::io::Result<()>;
    /// Writes what is left and makes it durable.
    fn finish(self: Box<Self>) -> std::io::Result<()>;
}

#[derive(Debug, Deserialize)]
struct Extents {
    items: Vec<Extent>,
    next: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Extent {
    offset: u64,
    length: u64,
    source: String,
}

/// Exports `what` (`clones/NAME`, `templates/NAME` or `bases/ID`).
pub(super) async fn run(what: &str, name: &str, export: ExportFile, session: &Session) -> Result<(), Failure> {
    let format = export.format.map_or_else(|| Format::of_ending(&export.file), Ok)?;
    let client = session.client()?;
    if !export.force && export.file.exists() {
        return Err(Error::exists("file-exists", "there is such a file")
            .on(export.file.display().to_string())
            .hint("--force replaces it")
            .into());
    }
    let disk = format!("{what}/disk");
    let (size, etag) = client.head(&disk).await?;
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let mut cursor = Some(0);
    while let Some(from) = cursor {
        let query = [("limit", "10000".to_owned()), ("cursor", from.to_string())];
        let page: Extents = client.get_of(&format!("{what}/extents"), &query).await?;
        let used = page.items.iter().filter(|extent| extent.source != "zero");
        runs.extend(used.map(|extent| (extent.offset, extent.offset + extent.length)));
        cursor = page.next;
    }
    let bytes: u64 = runs.iter().map(|(from, to)| to - from).sum();
    let shown = export.file.display().to_string();
    if export.dry_run.dry_run {
        say(name, &shown, size, bytes, true, session);
        return Ok(());
    }
    let (mut interrupt, mut terminate) = (stop_signal(SignalKind::interrupt())?, stop_signal(SignalKind::terminate())?);
    let dir = export.file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = tempfile::Builder::new()
        .prefix(".clonegate-export-")
        .suffix(".partial")
        .permissions(std::fs::Permissions::from_mode(0o666))
        .tempfile_in(dir)
        .map_err(|e| cannot_write(&shown, e))?;
    let handle = file.reopen().map_err(|e| cannot_write(&shown, e))?;
    let mut writer: Box<dyn Writer> = match format {
        Format::Raw => Box::new(raw::Raw::new(handle, size).map_err(|e| cannot_write(&shown, e))?),
        Format::Qcow2 => Box::new(qcow2::Qcow2::new(handle, size).map_err(|e| cannot_write(&shown, e))?),
    };
    let bar = Bar::new();
    let windows = runs.into_iter().flat_map(|(from, to)| {
        (from..to)
            .step_by(usize::try_from(WINDOW_BYTES).unwrap_or(usize::MAX))
            .map(move |at| (at, to.min(at + WINDOW_BYTES)))
    });
    let copied = async {
        let mut parts = stream::iter(windows)
            .map(|(from, to)| {
                let (client, disk, etag) = (&client, &disk, etag.as_str());
                async move { Ok::<(u64, Bytes), Failure>((from, client.range(disk, from, to, etag).await?)) }
            })
            .buffered(AT_ONCE);
        let mut done = 0;
        while let Some((from, part)) = parts.try_next().await? {
            writer.write(from, &part).map_err(|e| cannot_write(&shown, e))?;
            done += part.len() as u64;
            bar.report(ProgressNow { done_bytes: done, total_bytes: Some(bytes), stored_bytes: done });
        }
        writer.finish().map_err(|e| cannot_write(&shown, e))?;
        Ok::<(), Failure>(())
    };
    let copied = tokio::select! {
        copied = copied => copied,
        _ = interrupt.recv() => Err(stopped(&shown)),
        _ = terminate.recv() => Err(stopped(&shown)),
    };
    bar.finish();
    // On an error the file of the other name goes when it is dropped.
    copied?;
    let kept = if export.force { file.persist(&export.file) } else { file.persist_noclobber(&export.file) };
    kept.map_err(|e| cannot_write(&shown, e.error))?;
    if let Ok(dir) = std::fs::File::open(dir) {
        drop(dir.sync_all());
    }
    say(name, &shown, size, bytes, false, session);
    Ok(())
}

fn stop_signal(kind: SignalKind) -> Result<tokio::signal::unix::Signal, Failure> {
    signal(kind).map_err(|e| Error::internal("no-signals", "signals cannot be waited for").because(e).into())
}

fn stopped(file: &str) -> Failure {
    Error::conflict("interrupted", "the export was interrupted; no file was made").on(file).into()
}

fn cannot_write(file: &str, error: std::io::Error) -> Failure {
    let full = error.kind() == std::io::ErrorKind::StorageFull;
    let error = if full {
        Error::exhausted("disk-full", "the disk is full").on(file).hint("make room, or write it elsewhere")
    } else {
        Error::unavailable("cannot-write", "it cannot be written").on(file).because(error)
    };
    error.into()
}

fn say(name: &str, file: &str, size: u64, bytes: u64, dry_run: bool, session: &Session) {
    if session.form == Form::Json {
        output::json(
            &serde_json::json!({ "dry_run": dry_run, "name": name, "file": file, "size": size, "bytes": bytes }),
        );
        return;
    }
    let would = if dry_run { "would be " } else { "" };
    output::line(&format!(
        "{name}: {would}exported to {file}, {} of {} not zero",
        output::size(bytes),
        output::size(size)
    ));
}
