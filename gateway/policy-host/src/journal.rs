//! Decisions on disk: JSON lines in numbered segments, compressed when full, the oldest removed when there are too many bytes.
//!
//! Recording never delays a decision: records go to a thread of their own by a bounded queue, and when that is full they are
//! counted as lost. Each start begins a segment of its own, so that what a crash tore stays the end of its segment.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use clonegate_core::advice::Slot;
use clonegate_core::{Error, Result};
use parking_lot::Mutex;

use crate::record::Record;

/// Decisions of each slot that are kept in memory, for the replay before an install.
pub const KEPT: usize = 200;
/// Bytes of JSON in a segment before it is compressed.
const SEGMENT_BYTES: u64 = 4 << 20;
/// What a segment counts for at least, however short it is: many short ones are bounded too. Bytes.
const SEGMENT_BYTES_MIN: u64 = 4 << 10;
/// Longest line that is read back, bytes.
const LINE_BYTES_MAX: usize = 4 << 20;
const QUEUE: usize = 4096;
const FLUSH: Duration = Duration::from_millis(500);
const ZSTD_LEVEL: i32 = 6;

/// The last decisions in memory, and all that fit on disk.
#[derive(Debug)]
pub struct Journal {
    recent: Mutex<HashMap<Slot, VecDeque<Arc<Record>>>>,
    writer: Option<SyncSender<Message>>,
    lost: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Message {
    Record(Arc<Record>),
    Flush(SyncSender<()>),
}

impl Journal {
    /// Keeps decisions in memory only.
    pub fn in_memory() -> Self {
        Self { recent: Mutex::default(), writer: None, lost: Arc::default() }
    }

    /// Keeps at most so many bytes of decisions in a directory, which is made; reads back the last ones.
    ///
    /// # Errors
    /// `decisions-directory` (unavailable) when the directory cannot be used.
    pub fn open(directory: &Path, bytes_max: u64) -> Result<Self> {
        let failed = |e| {
            Error::unavailable("decisions-directory", "decisions cannot be recorded")
                .on(directory.display().to_string())
                .because(e)
        };
        fs::create_dir_all(directory).map_err(failed)?;
        let mut journal = Self::in_memory();
        for segment in segments(directory).map_err(failed)?.iter().rev().take(2).rev() {
            // What cannot be read back is only missing from the replay before an install.
            let _ = read_segment(&segment.path, &mut |record, _| {
                journal.remember(&Arc::new(record));
                true
            });
        }
        let (sender, receiver) = sync_channel(QUEUE);
        let mut disk = Disk {
            directory: directory.to_owned(),
            bytes_max,
            open: None,
            next: next_number(directory).map_err(failed)?,
        };
        let lost = Arc::clone(&journal.lost);
        std::thread::Builder::new()
            .name("policy-journal".into())
            .spawn(move || disk.run(&receiver, &lost))
            .map_err(failed)?;
        journal.writer = Some(sender);
        Ok(journal)
    }

    pub(crate) fn add(&self, record: &Arc<Record>) {
        self.remember(record);
        if let Some(writer) = &self.writer
            && writer.try_send(Message::Record(Arc::clone(record))).is_err()
        {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn remember(&self, record: &Arc<Record>) {
        let mut recent = self.recent.lock();
        let records = recent.entry(record.question.slot()).or_default();
        if records.len() == KEPT {
            records.pop_front();
        }
        records.push_back(Arc::clone(record));
    }

    /// The last decisions of a slot, oldest first.
    pub fn recent(&self, slot: Slot) -> Vec<Arc<Record>> {
        self.recent.lock().get(&slot).map(|records| records.iter().cloned().collect()).unwrap_or_default()
    }

    /// Decisions that were not written: the disk is too slow or full.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Waits until everything recorded so far is in the files.
    pub fn flush(&self) {
        let Some(writer) = &self.writer else { return };
        let (done, wait) = sync_channel(1);
        if writer.send(Message::Flush(done)).is_ok() {
            let _ = wait.recv_timeout(Duration::from_secs(10));
        }
    }
}

struct Disk {
    directory: PathBuf,
    bytes_max: u64,
    open: Option<(PathBuf, BufWriter<File>, u64)>,
    next: u64,
}

impl Disk {
    fn run(&mut self, messages: &Receiver<Message>, lost: &AtomicU64) {
        if let Err(e) = self.tidy() {
            tracing::warn!(error = %e, "old decisions were not tidied");
        }
        loop {
            match messages.recv_timeout(FLUSH) {
                Ok(Message::Record(record)) => {
                    if let Err(e) = self.write(&record) {
                        lost.fetch_add(1, Ordering::Relaxed);
                        tracing::warn!(error = %e, "a decision was not recorded");
                        self.open = None;
                    }
                }
                Ok(Message::Flush(done)) => {
                    self.flush();
                    let _ = done.try_send(());
                }
                Err(RecvTimeoutError::Timeout) => self.flush(),
                Err(RecvTimeoutError::Disconnected) => return self.flush(),
            }
        }
    }

    fn flush(&mut self) {
        if let Some((path, file, _)) = &mut self.open
            && let Err(e) = file.flush()
        {
            tracing::warn!(error = %e, path = %path.display(), "decisions were not recorded");
        }
    }

    fn write(&mut self, record: &Record) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        if self.open.is_none() {
            let path = self.directory.join(format!("{:010}.jsonl", self.next));
            self.next += 1;
            let file = OpenOptions::new().create(true).append(true).open(&path)?;
            self.open = Some((path, BufWriter::new(file), 0));
        }
        let Some((_, file, bytes)) = &mut self.open else { return Ok(()) };
        file.write_all(&line)?;
        *bytes += u64::try_from(line.len()).unwrap_or(u64::MAX);
        if *bytes < SEGMENT_BYTES {
            return Ok(());
        }
        file.flush()?;
        if let Some((path, _, _)) = self.open.take() {
            compress(&path)?;
        }
        self.prune()
    }

    /// Does what the gateway before did not come to: compresses its open segment, and removes what is too much.
    fn tidy(&self) -> std::io::Result<()> {
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            if path.to_string_lossy().ends_with(".zst.partial") {
                fs::remove_file(path)?;
            }
        }
        for segment in segments(&self.directory)?.iter().filter(|s| s.path.extension().is_some_and(|e| e == "jsonl")) {
            compress(&segment.path)?;
        }
        self.prune()
    }

    fn prune(&self) -> std::io::Result<()> {
        let segments = segments(&self.directory)?;
        let counts = |segment: &Segment| segment.bytes.max(SEGMENT_BYTES_MIN);
        let mut total: u64 = segments.iter().map(counts).sum();
        for segment in segments.iter().take(segments.len().saturating_sub(1)) {
            if total <= self.bytes_max {
                break;
            }
            fs::remove_file(&segment.path)?;
            total -= counts(segment);
        }
        Ok(())
    }
}

/// Writes the compressed segment beside the plain one, then removes that: a crash leaves at most both, and the plain one is read.
fn compress(path: &Path) -> std::io::Result<()> {
    let (partial, done) = (path.with_extension("zst.partial"), path.with_extension("jsonl.zst"));
    zstd::stream::copy_encode(File::open(path)?, File::create(&partial)?, ZSTD_LEVEL)?;
    fs::rename(&partial, &done)?;
    fs::remove_file(path)
}

struct Segment {
    number: u64,
    path: PathBuf,
    bytes: u64,
}

/// The segments of a directory, oldest first; a plain one hides its compressed copy.
fn segments(directory: &Path) -> std::io::Result<Vec<Segment>> {
    let mut found: Vec<Segment> = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let stem = name.strip_suffix(".jsonl").or_else(|| name.strip_suffix(".jsonl.zst"));
        let Some(number) = stem.and_then(|stem| stem.parse().ok()) else { continue };
        found.push(Segment { number, path: entry.path(), bytes: entry.metadata()?.len() });
    }
    // "jsonl" sorts before "jsonl.zst" by length of the extension.
    found.sort_by_key(|s| (s.number, s.path.as_os_str().len()));
    found.dedup_by_key(|s| s.number);
    Ok(found)
}

fn next_number(directory: &Path) -> std::io::Result<u64> {
    Ok(segments(directory)?.last().map_or(0, |s| s.number + 1))
}

/// The newest decisions that are wanted, as lines, oldest first: at most `limit`, and at most `bytes_max` bytes of them. Reads no more of the
/// files than it needs. A damaged segment is left away, with a warning: the others are still good.
///
/// # Errors
/// `decisions-directory` (unavailable).
pub(crate) fn newest(
    directory: &Path,
    limit: usize,
    bytes_max: usize,
    wanted: &dyn Fn(&Record) -> Wanted,
) -> Result<Vec<Vec<u8>>> {
    let segments = segments(directory).map_err(|e| unreadable(directory, e))?;
    // The lines of each segment in turn, the newest segment first.
    let (mut found, mut count, mut bytes) = (Vec::new(), 0, 0);
    for segment in segments.iter().rev() {
        let mut lines: VecDeque<Vec<u8>> = VecDeque::new();
        let (mut here, mut cut, mut too_old) = (0, false, false);
        let read = read_segment(&segment.path, &mut |record, line| {
            match wanted(&record) {
                Wanted::Yes => {
                    here += line.len();
                    lines.push_back(line.to_vec());
                    while count + lines.len() > limit || (bytes + here > bytes_max && !lines.is_empty()) {
                        here -= lines.pop_front().map_or(0, |line| line.len());
                        cut = true;
                    }
                }
                Wanted::No => {}
                Wanted::TooOld => too_old = true,
            }
            true
        });
        if let Err(e) = read {
            tracing::warn!(error = %e, "recorded decisions are damaged; the others are read");
        }
        count += lines.len();
        bytes += here;
        found.push(lines);
        if cut || too_old || count >= limit {
            break;
        }
    }
    Ok(found.into_iter().rev().flatten().collect())
}

/// Whether a decision is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    Yes,
    No,
    /// No, and no older one either.
    TooOld,
}

fn unreadable(path: &Path, e: std::io::Error) -> Error {
    Error::unavailable("decisions-directory", "recorded decisions cannot be read")
        .on(path.display().to_string())
        .because(e)
}

/// Reads recorded decisions of a file (`.jsonl`, `.jsonl.zst`) or of a directory of segments, oldest first, until `each` says
/// false. A torn last line, as a crash leaves it, is left away, and so are empty lines.
///
/// # Errors
/// `bad-records` (invalid) with file and line; `no-records` (not found); `decisions-directory` (unavailable).
pub fn read(path: &Path, mut each: impl FnMut(Record) -> bool) -> Result<()> {
    let files = match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => {
            segments(path).map_err(|e| unreadable(path, e))?.into_iter().map(|s| s.path).collect()
        }
        Ok(_) => vec![path.to_owned()],
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(
                Error::not_found("no-records", "there are no recorded decisions").on(path.display().to_string())
            );
        }
        Err(e) => return Err(unreadable(path, e)),
    };
    for file in files {
        if !read_segment(&file, &mut |record, _| each(record))? {
            break;
        }
    }
    Ok(())
}

/// Opens a segment; none when it was removed meanwhile because there were too many.
fn open(path: &Path) -> std::io::Result<Option<Box<dyn BufRead>>> {
    // It may also have been compressed since it was listed.
    for path in [path.to_owned(), path.with_extension("jsonl.zst")] {
        match File::open(&path) {
            Ok(file) if path.extension().is_some_and(|e| e == "zst") => {
                return Ok(Some(Box::new(BufReader::new(zstd::stream::read::Decoder::new(file)?))));
            }
            Ok(file) => return Ok(Some(Box::new(BufReader::new(file)))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(None)
}

/// Gives each record with its line, until `each` says false; says whether it never did.
fn read_segment(path: &Path, each: &mut dyn FnMut(Record, &[u8]) -> bool) -> Result<bool> {
    let bad = |line: usize, what: String| {
        Error::invalid("bad-records", format!("line {line}: {what}")).on(path.display().to_string())
    };
    let Some(mut reader) = open(path).map_err(|e| bad(0, e.to_string()))? else { return Ok(true) };
    for number in 1.. {
        let mut line = Vec::new();
        let limit = u64::try_from(LINE_BYTES_MAX).unwrap_or(u64::MAX);
        let read = std::io::Read::take(&mut reader, limit).read_until(b'\n', &mut line);
        read.map_err(|e| bad(number, e.to_string()))?;
        if line.is_empty() {
            break;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let whole = line.ends_with(b"\n");
        match serde_json::from_slice(&line) {
            Ok(record) => {
                if !each(record, &line) {
                    return Ok(false);
                }
            }
            Err(_) if !whole && line.len() < LINE_BYTES_MAX => break,
            Err(e) => return Err(bad(number, e.to_string())),
        }
    }
    Ok(true)
}
