//! What a journal held when its gateway stopped.
//!
//! A crash tears the end of a journal: what was written and never synced may be there in any part. That is no damage, for nobody was told
//! that it is flushed; an entry says up to where its file was synced when it was written, and what is broken behind that is the torn end. What
//! is broken before it was acknowledged: then the volume that it is of is said to have lost writes, and all others go on.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use clonegate_core::format::envelope;
use clonegate_core::format::journal::{
    ENTRIES_AT, ENTRY_ALIGN, Entry, JournalEntryRecord, JournalSegmentRecord, MARK_BYTES, decode_entry, entry_bytes,
};
use clonegate_core::ids::{CloneId, Nonce};
use clonegate_core::{Error, Result};

use super::file::{number_of, path_of};
use super::{BatchAt, io_error};

/// A claim this much younger than a damaged journal file is of a life that began after the damage, milliseconds: the file's own time may be
/// older than its last entry.
const CLAIM_SLACK_MS: u64 = 60_000;

/// Where an entry lies. They sort as they were written: by epoch, and in that by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EntryRef {
    pub(super) at: BatchAt,
    pub(super) file: u64,
    offset: u64,
    pub(super) bytes: u64,
}

/// A file that was there at start.
#[derive(Debug)]
pub(super) struct FoundFile {
    pub(super) file: File,
    /// Volumes with entries in it, whole or broken.
    pub(super) clones: Vec<CloneId>,
    /// It holds broken entries of which nobody knows whose they are: it is kept until an operator takes it away.
    pub(super) riddle: bool,
}

/// Entries that were synced and can no longer be read.
#[derive(Debug, Default)]
pub(super) struct Damage {
    /// Of volumes that are known: the number of the batch, and where it was.
    of: HashMap<CloneId, Vec<(u64, String)>>,
    /// Of any volume that was claimed before this time, milliseconds since 1970 UTC, and where.
    riddle: Option<(u64, String)>,
}

impl Damage {
    /// Where the journal is damaged in what it may have held of a volume behind batch `mark`, when that was claimed at this time.
    pub(super) fn befalls(&self, clone: CloneId, mark: u64, claimed_ms: u64) -> Option<String> {
        let known = self.of.get(&clone).and_then(|broken| broken.iter().find(|(number, _)| *number > mark));
        let riddle = self.riddle.as_ref().filter(|(before, _)| claimed_ms <= *before).map(|(_, place)| place);
        known.map(|(_, place)| place).or(riddle).cloned()
    }

    pub(super) fn is_known_of(&self, clone: CloneId) -> bool {
        self.of.contains_key(&clone)
    }

    pub(super) fn clones(&self) -> impl Iterator<Item = CloneId> {
        self.of.keys().copied()
    }

    pub(super) fn forget(&mut self, clone: CloneId) {
        self.of.remove(&clone);
    }
}

/// What [`scan`] found.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    pub(super) files: BTreeMap<u64, FoundFile>,
    pub(super) entries: HashMap<CloneId, Vec<EntryRef>>,
    pub(super) damage: Damage,
}

/// Reads all files of a journal. What is broken in them is no error: see [`Damage`].
///
/// # Errors
/// What reading the directory and its files gives.
pub(super) fn scan(directory: &Path, journal: Nonce) -> Result<Recovered> {
    let mut recovered = Recovered::default();
    let mut newest_ms = 0;
    let listed = std::fs::read_dir(directory).map_err(|e| io_error(directory, e))?;
    for entry in listed {
        let entry = entry.map_err(|e| io_error(directory, e))?;
        let Some(n) = entry.file_name().to_str().and_then(number_of) else { continue };
        let path = path_of(directory, n);
        let opened = File::options().read(true).write(true).open(&path).map_err(|e| io_error(&path, e))?;
        let bytes = Bytes::from(std::fs::read(&path).map_err(|e| io_error(&path, e))?);
        let mut found = FoundFile { file: opened, clones: Vec::new(), riddle: false };
        if let Some(generation) = generation(&bytes, journal) {
            let walked = walk(&bytes, generation);
            newest_ms = newest_ms.max(walked.newest_ms).max(modified_ms(&found.file));
            recovered.take(n, &path, walked, &mut found);
        }
        recovered.files.insert(n, found);
    }
    if let Some((before_ms, _)) = &mut recovered.damage.riddle {
        *before_ms = newest_ms.saturating_add(CLAIM_SLACK_MS);
    }
    for entries in recovered.entries.values_mut() {
        put_in_order(entries);
    }
    Ok(recovered)
}

/// Sorts entries. One that was about to move to another file may be in both.
pub(super) fn put_in_order(entries: &mut Vec<EntryRef>) {
    entries.sort_unstable();
    entries.dedup_by_key(|entry| entry.at);
}

/// The entries of all volumes in a file that this process has written. One that cannot be read is missing among them.
///
/// # Errors
/// What reading the file gives.
pub(super) fn entries(directory: &Path, journal: Nonce, n: u64) -> Result<Vec<(CloneId, EntryRef)>> {
    let path = path_of(directory, n);
    let bytes = Bytes::from(std::fs::read(&path).map_err(|e| io_error(&path, e))?);
    let Some(generation) = generation(&bytes, journal) else { return Ok(Vec::new()) };
    let mut entries = walk(&bytes, generation).entries;
    entries.iter_mut().for_each(|(_, place)| place.file = n);
    Ok(entries)
}

/// Those of one volume in several files.
///
/// # Errors
/// As [`entries`].
pub(super) fn entries_of(directory: &Path, journal: Nonce, files: &[u64], clone: CloneId) -> Result<Vec<EntryRef>> {
    let mut of_clone = Vec::new();
    for n in files {
        let all = entries(directory, journal, *n)?;
        of_clone.extend(all.into_iter().filter(|(of, _)| *of == clone).map(|(_, place)| place));
    }
    Ok(of_clone)
}

impl Recovered {
    fn take(&mut self, n: u64, path: &Path, walked: Walked, found: &mut FoundFile) {
        // What lies behind the torn end was synced as little as what is torn.
        let torn = walked.holes.iter().map(|hole| hole.at).find(|at| *at >= walked.synced).unwrap_or(u64::MAX);
        for (clone, mut place) in walked.entries.into_iter().filter(|(_, place)| place.offset < torn) {
            place.file = n;
            self.entries.entry(clone).or_default().push(place);
            found.note(clone);
        }
        for hole in walked.holes.into_iter().filter(|hole| hole.at < walked.synced) {
            let place = format!("{} at {}", path.display(), hole.at);
            tracing::error!(%place, volume = ?hole.of.map(|(clone, _)| clone),
                "the journal is damaged: a flushed write may be lost, and its volume waits for an operator's yes");
            match hole.of {
                Some((clone, number)) => {
                    self.damage.of.entry(clone).or_default().push((number, place));
                    found.note(clone);
                }
                None => {
                    found.riddle = true;
                    self.damage.riddle.get_or_insert((0, place));
                }
            }
        }
    }
}

impl FoundFile {
    fn note(&mut self, clone: CloneId) {
        if !self.clones.contains(&clone) {
            self.clones.push(clone);
        }
    }
}

fn modified_ms(file: &File) -> u64 {
    let modified = file.metadata().and_then(|meta| meta.modified()).ok();
    let since = modified.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Whose entries the file holds; `None` when it holds none.
fn generation(bytes: &Bytes, journal: Nonce) -> Option<u64> {
    let head = bytes.get(..usize::try_from(ENTRIES_AT).unwrap_or(4096).min(bytes.len())).unwrap_or_default();
    match envelope::decode_with::<JournalSegmentRecord>(head) {
        Ok(head) if head.record.journal == journal => Some(head.record.generation).filter(|g| *g > 0),
        Ok(_) => None,
        // The head was never finished, and then nothing follows; or it is damaged, and the entries say themselves what they are. Those of
        // an earlier use of the file are in the log already, which says so when they are looked at.
        Err(_) => {
            let mut at = Some(ENTRIES_AT).filter(|at| *at < bytes.len() as u64);
            while let Some(here) = at {
                let rest = bytes.slice(usize::try_from(here).unwrap_or(usize::MAX)..);
                if let Ok(entry) = decode_entry(&rest) {
                    return Some(entry.record.generation);
                }
                at = next_magic(bytes, here + ENTRY_ALIGN);
            }
            None
        }
    }
}

/// A place where an entry should be and none can be read.
struct Hole {
    at: u64,
    /// The volume and the batch, when that much can be read.
    of: Option<(CloneId, u64)>,
}

/// What a file holds.
#[derive(Default)]
struct Walked {
    entries: Vec<(CloneId, EntryRef)>,
    holes: Vec<Hole>,
    /// Up to where it was synced for certain.
    synced: u64,
    newest_ms: u64,
}

fn walk(bytes: &Bytes, generation: u64) -> Walked {
    let mut walked = Walked::default();
    let mut at = ENTRIES_AT;
    while at < bytes.len() as u64 {
        let rest = bytes.slice(usize::try_from(at).unwrap_or(usize::MAX)..);
        match decode_entry(&rest) {
            Ok(Entry { record, bytes, .. }) if record.generation == generation => {
                walked.synced = walked.synced.max(record.synced);
                if record.is_mark() {
                    at += bytes;
                    continue;
                }
                walked.newest_ms = walked.newest_ms.max(record.time_ms);
                // A file that was cut may end before the zeroes that fill an entry.
                let there = bytes.min(rest.len() as u64);
                let batch = BatchAt { epoch: record.epoch, number: record.number };
                walked.entries.push((record.clone, EntryRef { at: batch, file: 0, offset: at, bytes: there }));
                at += bytes;
            }
            _ if is_lost_mark(&rest, generation) => at += MARK_BYTES,
            _ => {
                // When its record can be read, it says whose it is and where the next begins: nothing is looked for in a guest's bytes.
                let head = envelope::decode_with::<JournalEntryRecord>(&rest).ok();
                let head = head.filter(|head| head.record.generation == generation);
                let next = match &head {
                    Some(head) => entry_bytes(head.sections_at, &head.record).map(|length| at + length),
                    None => next_magic(bytes, at + ENTRY_ALIGN),
                };
                walked.holes.push(Hole { at, of: head.map(|head| (head.record.clone, head.record.number)) });
                match next {
                    Some(next) => at = next,
                    None => break,
                }
            }
        }
    }
    walked
}

/// Whether a mark was here: it is shorter than any batch, so an entry that begins so soon tells. Nobody's write is lost with it.
fn is_lost_mark(rest: &Bytes, generation: u64) -> bool {
    let behind = usize::try_from(MARK_BYTES).ok().filter(|at| *at < rest.len()).map(|at| rest.slice(at..));
    behind.is_some_and(|behind| {
        envelope::decode_with::<JournalEntryRecord>(&behind).is_ok_and(|head| head.record.generation == generation)
    })
}

fn next_magic(bytes: &Bytes, from: u64) -> Option<u64> {
    let from = usize::try_from(from).ok()?;
    let rest = bytes.get(from..)?;
    let (words, _) = rest.as_chunks::<8>();
    words.iter().position(|word| *word == envelope::MAGIC).map(|index| (from + index * 8) as u64)
}

/// Reads entries back.
pub(super) fn read(directory: &Path, refs: &[EntryRef]) -> Result<Vec<Entry>> {
    let mut entries = Vec::with_capacity(refs.len());
    let mut open: Option<(u64, File)> = None;
    for place in refs {
        let path = path_of(directory, place.file);
        let file = match open.take() {
            Some((n, file)) if n == place.file => file,
            _ => File::open(&path).map_err(|e| io_error(&path, e))?,
        };
        let mut bytes = vec![0; usize::try_from(place.bytes).unwrap_or(0)];
        file.read_exact_at(&mut bytes, place.offset).map_err(|e| io_error(&path, e))?;
        entries.push(decode_entry(&Bytes::from(bytes)).map_err(|e: Error| e.on(path.display().to_string()))?);
        open = Some((place.file, file));
    }
    Ok(entries)
}
