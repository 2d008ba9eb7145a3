//! Appending groups of batches, and using files again when the store has what they hold.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use clonegate_core::format::journal::{ENTRIES_AT, JournalEntryRecord, append_entry, encode_entry};
use clonegate_core::ids::{CloneId, Nonce};
use clonegate_core::{Error, Result};
use tokio::time::Instant;

use super::recover::FoundFile;
use super::{BatchAt, JournalSettings, Submission, file, io_error};
use crate::clock::Clock;

/// Files that are kept for later use.
const SPARE_FILES: usize = 4;
/// A group is written in pieces of at most this, so that its buffer stays small.
const GROUP_BYTES: usize = 8 << 20;
/// After no file could be made, for want of room mostly, none is tried for so long: meanwhile flushes wait for the store.
const BARREN: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Used {
    pub(super) file: File,
    /// The newest batch of each clone in it.
    pub(super) newest: HashMap<CloneId, BatchAt>,
    /// Clones whose entries were found in it at start, and are not resolved.
    pub(super) found: Vec<CloneId>,
    /// It holds broken entries of nobody knows whom, and stays as it is.
    pub(super) riddle: bool,
    /// How often it was read to see whether little of it is still needed.
    pub(super) looks: u32,
}

/// A file that is made while there is room in the current one, so that no flush waits for its zeroes.
type Ahead = JoinHandle<std::io::Result<(u64, File)>>;

/// The files of a journal.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) settings: JournalSettings,
    pub(super) id: Nonce,
    /// Of the current file; drawn at random, so that leftovers of any earlier use never look like entries of this one.
    pub(super) generation: u64,
    clock: Clock,
    next_number: u64,
    pub(super) current: Option<(u64, Used)>,
    at: u64,
    pub(super) synced: u64,
    /// The end of the last mark, or where the entries begin.
    marked: u64,
    pub(super) full: BTreeMap<u64, Used>,
    spare: Vec<(u64, File)>,
    ahead: Option<Ahead>,
    /// Until when no file is made, because the last attempt failed.
    barren: Option<Instant>,
    /// Those who read files without holding them all: nothing moves meanwhile.
    pub(super) readers: usize,
    /// A group could not be written, and it was said.
    troubled: bool,
    /// What is about to be written; kept for its memory.
    pub(super) buffer: Vec<u8>,
    /// Batches of each clone up to this one are in the store, or given up.
    pub(super) released: HashMap<CloneId, BatchAt>,
    /// Batches that could not be journaled: until the store has them, later ones of the clone must not be either.
    failed: HashMap<CloneId, BatchAt>,
}

impl Files {
    pub(super) fn new(settings: JournalSettings, id: Nonce, clock: Clock, found: BTreeMap<u64, FoundFile>) -> Self {
        let next_number = found.keys().next_back().map_or(0, |n| n + 1);
        let mut full = BTreeMap::new();
        let mut spare = Vec::new();
        for (n, found) in found {
            let cut = !settings.inline && found.file.metadata().is_ok_and(|meta| meta.len() < settings.file_bytes);
            if !found.clones.is_empty() || found.riddle {
                let (file, found, riddle) = (found.file, found.clones, found.riddle);
                full.insert(n, Used { file, newest: HashMap::new(), found, riddle, looks: 0 });
            } else if cut {
                // It was being made when the process ended.
                remove(&settings, n);
            } else {
                spare.push((n, found.file));
            }
        }
        Self {
            settings,
            id,
            generation: 0,
            clock,
            next_number,
            current: None,
            at: 0,
            synced: 0,
            marked: 0,
            full,
            spare,
            ahead: None,
            barren: None,
            readers: 0,
            troubled: false,
            buffer: Vec::new(),
            released: HashMap::new(),
            failed: HashMap::new(),
        }
    }

    /// Writes and syncs a group, and tells everyone how it went.
    pub(super) fn append(&mut self, group: Vec<Submission>) {
        let mut accepted = Vec::with_capacity(group.len());
        for submission in group {
            let clone = submission.clone;
            if let Some(failed) = self.failed.get(&clone) {
                if self.released.get(&clone).is_none_or(|released| released < failed) {
                    self.failed.insert(clone, submission.at);
                    let error = Error::unavailable("journal-io", "an earlier batch is not in the journal");
                    (submission.done)(Err(error.on(self.settings.path.display().to_string())));
                    continue;
                }
                self.failed.remove(&clone);
            }
            accepted.push(submission);
        }
        if accepted.is_empty() {
            return;
        }
        match self.write(&accepted) {
            Ok(()) => {
                if std::mem::take(&mut self.troubled) {
                    tracing::info!(path = %self.settings.path.display(), "the journal can be written again");
                }
                accepted.into_iter().for_each(|submission| (submission.done)(Ok(())));
                self.make_ahead();
            }
            Err(error) => {
                if !std::mem::replace(&mut self.troubled, true) {
                    tracing::warn!(%error, "the journal cannot be written: flushes wait for the store until it can");
                }
                self.buffer.clear();
                // What of the file is on the disk is not known: it is not written any more.
                if let Some((n, used)) = self.current.take() {
                    self.full.insert(n, used);
                }
                for submission in accepted {
                    self.failed.insert(submission.clone, submission.at);
                    (submission.done)(Err(error.clone()));
                }
            }
        }
    }

    fn write(&mut self, group: &[Submission]) -> Result<()> {
        let path = self.settings.path.clone();
        let failed = |e: std::io::Error| io_error(&path, e);
        for submission in group {
            let before = self.buffer.len();
            self.encode(submission)?;
            let end = self.at + self.buffer.len() as u64;
            if self.current.is_none() || (end > self.settings.file_bytes && self.at + before as u64 > ENTRIES_AT) {
                self.buffer.truncate(before);
                self.write_out().map_err(&failed)?;
                self.sync().map_err(&failed)?;
                self.mark();
                self.next_file().map_err(&failed)?;
                self.thin_out()?;
                self.encode(submission)?;
            }
            if let Some((_, used)) = &mut self.current {
                used.newest.insert(submission.clone, submission.at);
            }
            if self.buffer.len() > GROUP_BYTES {
                self.write_out().map_err(&failed)?;
            }
        }
        self.write_out().map_err(&failed)?;
        self.sync().map_err(&failed)
    }

    /// Appends the entry of a batch to what is about to be written.
    fn encode(&mut self, submission: &Submission) -> Result<()> {
        let record = JournalEntryRecord {
            generation: self.generation,
            synced: self.synced,
            clone: submission.clone,
            epoch: submission.at.epoch,
            number: submission.at.number,
            change: submission.change,
            time_ms: submission.time_ms,
            extents: 0,
            blocks: 0,
            body_crc: 0,
        };
        append_entry(&mut self.buffer, record, &submission.runs)
    }

    pub(super) fn write_out(&mut self) -> std::io::Result<()> {
        if let Some((_, used)) = &self.current {
            if self.settings.full.load(Ordering::Relaxed) {
                // As far as there was room.
                used.file.write_all_at(&self.buffer[..self.buffer.len() / 2], self.at)?;
                return Err(std::io::ErrorKind::StorageFull.into());
            }
            used.file.write_all_at(&self.buffer, self.at)?;
            self.at += self.buffer.len() as u64;
        }
        self.buffer.clear();
        if self.buffer.capacity() > GROUP_BYTES {
            self.buffer = Vec::new();
        }
        Ok(())
    }

    pub(super) fn sync(&mut self) -> std::io::Result<()> {
        if let Some((_, used)) = &self.current {
            if !self.settings.inline {
                used.file.sync_data()?;
            }
            self.synced = self.at;
        }
        Ok(())
    }

    /// Notes behind the last group that it was synced, so that damage in it is not taken for a torn end. The note itself is not
    /// synced: the next group syncs it, or the kernel does within half a minute; a process that is killed leaves it behind at once.
    pub(super) fn mark(&mut self) {
        let Some((n, used)) = &self.current else { return };
        if self.at == self.marked || self.synced < self.at || self.settings.full.load(Ordering::Relaxed) {
            return;
        }
        let marked = encode_entry(JournalEntryRecord::mark(self.generation, self.synced), &[])
            .map_err(std::io::Error::other)
            .and_then(|mark| used.file.write_all_at(&mark, self.at).map(|()| mark.len() as u64));
        match marked {
            Ok(length) => {
                self.at += length;
                self.marked = self.at;
            }
            // What is there of it is written over by the next group.
            Err(error) => tracing::debug!(file = n, %error, "a journal file could not be marked as synced"),
        }
    }

    fn next_file(&mut self) -> std::io::Result<()> {
        if let Some((n, used)) = self.current.take() {
            self.full.insert(n, used);
            self.recycle();
        }
        let (n, file) = match self.spare.pop() {
            Some(spare) => spare,
            None => self.new_file()?,
        };
        self.generation = self.clock.random_u64() | 1;
        // Synced before any entry: an old head over new entries would look like damage.
        let begun = file::write_head(&file, self.id, self.generation).and_then(|()| match self.settings.inline {
            true => Ok(()),
            false => file.sync_data(),
        });
        if let Err(error) = begun {
            remove(&self.settings, n);
            return Err(error);
        }
        self.at = ENTRIES_AT;
        self.synced = ENTRIES_AT;
        self.marked = ENTRIES_AT;
        self.current = Some((n, Used { file, newest: HashMap::new(), found: Vec::new(), riddle: false, looks: 0 }));
        Ok(())
    }

    fn new_file(&mut self) -> std::io::Result<(u64, File)> {
        let now = self.clock.instant();
        if self.barren.is_some_and(|until| now < until) {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        let made = match self.ahead.take().map(JoinHandle::join) {
            Some(Ok(Ok(made))) => Ok(made),
            _ => make(&self.settings, self.next_number),
        };
        self.next_number += 1;
        self.barren = made.is_err().then(|| now + BARREN);
        made
    }

    /// Begins to make the next file when the current one is half full and none is ready.
    fn make_ahead(&mut self) {
        let half = self.at * 2 > self.settings.file_bytes;
        if self.settings.inline || !half || !self.spare.is_empty() || self.ahead.is_some() || self.barren.is_some() {
            return;
        }
        let (settings, n) = (self.settings.clone(), self.next_number);
        let spawned = std::thread::Builder::new().name("journal-file".to_owned()).spawn(move || make(&settings, n));
        self.ahead = spawned.ok();
    }

    pub(super) fn release(&mut self, batches: HashMap<CloneId, BatchAt>) {
        for (clone, upto) in batches {
            let released = self.released.entry(clone).or_insert(upto);
            *released = (*released).max(upto);
        }
        if !self.full.is_empty() {
            self.recycle();
        }
    }

    pub(super) fn forget_found(&mut self, clone: CloneId) {
        for (n, used) in &mut self.full {
            used.found.retain(|c| *c != clone);
            if used.found.is_empty() && !used.riddle && used.newest.is_empty() {
                // What was given up must not come back after a power cut; what was stored is known by the log.
                let emptied = file::write_head(&used.file, self.id, 0).and_then(|()| match self.settings.inline {
                    true => Ok(()),
                    false => used.file.sync_data(),
                });
                if let Err(error) = emptied {
                    tracing::warn!(file = n, %error, "a journal file could not be marked as empty");
                }
            }
        }
        self.recycle();
    }

    fn needed(&self, used: &Used) -> bool {
        used.riddle || !used.found.is_empty() || used.newest.keys().any(|clone| self.waits(used, *clone))
    }

    /// Whether a file has something of a clone that is not in the store.
    fn waits(&self, used: &Used, clone: CloneId) -> bool {
        used.newest.get(&clone).is_some_and(|newest| self.released.get(&clone).is_none_or(|upto| upto < newest))
    }

    /// The files that have something of a clone that is not in the store.
    pub(super) fn holding(&self, clone: CloneId) -> Vec<u64> {
        let current = self.current.iter().map(|(n, used)| (n, used));
        self.full.iter().chain(current).filter(|(_, used)| self.waits(used, clone)).map(|(n, _)| *n).collect()
    }

    /// Takes back files that hold nothing any more that is not in the store.
    fn recycle(&mut self) {
        let done: Vec<u64> = self.full.iter().filter(|(_, used)| !self.needed(used)).map(|(n, _)| *n).collect();
        for n in done {
            let Some(used) = self.full.remove(&n) else { continue };
            self.take_back(n, used.file);
        }
    }

    /// Takes a file back of which nothing is needed.
    pub(super) fn take_back(&mut self, n: u64, file: File) {
        // So that a start does not look at it. When this is lost in a crash, the log, or a later file, has its entries.
        if let Err(error) = file::write_head(&file, self.id, 0) {
            tracing::warn!(%error, "a journal file could not be marked as empty");
        }
        if self.spare.len() < SPARE_FILES {
            self.spare.push((n, file));
        } else {
            remove(&self.settings, n);
        }
    }

    /// At the end: marks the current file as empty when it is. Nothing of it is written any more when this returns.
    pub(super) fn retire_current(&mut self) {
        if let Some(Ok(Err(error))) = self.ahead.take().map(JoinHandle::join) {
            tracing::debug!(%error, "a journal file could not be made ahead");
        }
        if let Some((n, used)) = self.current.take() {
            self.full.insert(n, used);
            self.recycle();
        }
    }
}

/// Makes file `n`; what is there of one that cannot be made is removed.
fn make(settings: &JournalSettings, n: u64) -> std::io::Result<(u64, File)> {
    let bytes = if settings.inline { 0 } else { settings.file_bytes };
    let made = match settings.full.load(Ordering::Relaxed) {
        true => Err(std::io::ErrorKind::StorageFull.into()),
        false => file::make(&settings.path, n, bytes),
    };
    match made {
        Ok(file) => Ok((n, file)),
        Err(error) => {
            remove(settings, n);
            Err(error)
        }
    }
}

fn remove(settings: &JournalSettings, n: u64) {
    match std::fs::remove_file(file::path_of(&settings.path, n)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(%error, "a journal file could not be removed");
        }
        _ => {}
    }
}
