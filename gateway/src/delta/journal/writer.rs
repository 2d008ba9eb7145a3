//! Appending groups of batches, and using files again when the store has what they hold.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;

use clonegate_core::format::journal::{ENTRIES_AT, JournalEntryRecord, encode_entry};
use clonegate_core::ids::{CloneId, Nonce};
use clonegate_core::{Error, Result};

use super::recover::FoundFile;
use super::{JournalSettings, Submission, file, io_error};
use crate::clock::Clock;

/// Files that are kept for later use.
const SPARE_FILES: usize = 4;
/// A group is written in pieces of at most this, so that its buffer stays small.
const GROUP_BYTES: usize = 8 << 20;

#[derive(Debug)]
struct Used {
    file: File,
    /// The newest batch of each clone in it.
    newest: HashMap<CloneId, u64>,
    /// Clones whose entries were found in it at start, and are not resolved.
    found: Vec<CloneId>,
}

/// The files of a journal.
#[derive(Debug)]
pub(super) struct Files {
    settings: JournalSettings,
    id: Nonce,
    /// Of the current file; drawn at random, so that leftovers of any earlier use never look like entries of this one.
    generation: u64,
    clock: Clock,
    next_number: u64,
    current: Option<(u64, Used)>,
    at: u64,
    synced: u64,
    full: BTreeMap<u64, Used>,
    spare: Vec<(u64, File)>,
    /// Batches of each clone up to this number are in the store.
    released: HashMap<CloneId, u64>,
    /// Batches that could not be journaled: until the store has them, later ones of the clone must not be either.
    failed: HashMap<CloneId, u64>,
}

impl Files {
    pub(super) fn new(settings: JournalSettings, id: Nonce, clock: Clock, found: BTreeMap<u64, FoundFile>) -> Self {
        let next_number = found.keys().next_back().map_or(0, |n| n + 1);
        let mut full = BTreeMap::new();
        let mut spare = Vec::new();
        for (n, found) in found {
            if found.clones.is_empty() {
                spare.push((n, found.file));
            } else {
                full.insert(n, Used { file: found.file, newest: HashMap::new(), found: found.clones });
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
            full,
            spare,
            released: HashMap::new(),
            failed: HashMap::new(),
        }
    }

    /// Writes and syncs a group, and tells everyone how it went.
    pub(super) fn append(&mut self, group: Vec<Submission>) {
        let mut accepted = Vec::with_capacity(group.len());
        for submission in group {
            let clone = submission.clone;
            if let Some(number) = self.failed.get(&clone).copied() {
                if self.released.get(&clone).copied().unwrap_or(0) < number {
                    self.failed.insert(clone, submission.number);
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
            Ok(()) => accepted.into_iter().for_each(|submission| (submission.done)(Ok(()))),
            Err(error) => {
                tracing::warn!(%error, "the journal failed: flushes wait for the store");
                // What of the file is on the disk is not known: it is not written any more.
                if let Some((n, used)) = self.current.take() {
                    self.full.insert(n, used);
                }
                for submission in accepted {
                    self.failed.insert(submission.clone, submission.number);
                    (submission.done)(Err(error.clone()));
                }
            }
        }
    }

    fn write(&mut self, group: &[Submission]) -> Result<()> {
        let path = self.settings.path.clone();
        let failed = |e: std::io::Error| io_error(&path, e);
        let mut buffer: Vec<u8> = Vec::new();
        for submission in group {
            let entry = |generation, synced| {
                let record = JournalEntryRecord {
                    generation,
                    synced,
                    clone: submission.clone,
                    epoch: submission.epoch,
                    number: submission.number,
                    change: submission.change,
                    time_ms: submission.time_ms,
                    extents: 0,
                    blocks: 0,
                    body_crc: 0,
                };
                encode_entry(record, &submission.runs)
            };
            let mut bytes = entry(self.generation, self.synced)?;
            let end = self.at + (buffer.len() + bytes.len()) as u64;
            if self.current.is_none() || (end > self.settings.file_bytes && self.at + buffer.len() as u64 > ENTRIES_AT)
            {
                self.write_out(&mut buffer).map_err(&failed)?;
                self.sync().map_err(&failed)?;
                self.next_file().map_err(&failed)?;
                bytes = entry(self.generation, self.synced)?;
            }
            buffer.extend_from_slice(&bytes);
            if let Some((_, used)) = &mut self.current {
                used.newest.insert(submission.clone, submission.number);
            }
            if buffer.len() > GROUP_BYTES {
                self.write_out(&mut buffer).map_err(&failed)?;
            }
        }
        self.write_out(&mut buffer).map_err(&failed)?;
        self.sync().map_err(&failed)
    }

    fn write_out(&mut self, buffer: &mut Vec<u8>) -> std::io::Result<()> {
        if let Some((_, used)) = &self.current {
            used.file.write_all_at(buffer, self.at)?;
            self.at += buffer.len() as u64;
        }
        buffer.clear();
        Ok(())
    }

    fn sync(&mut self) -> std::io::Result<()> {
        if let Some((_, used)) = &self.current {
            if !self.settings.inline {
                used.file.sync_data()?;
            }
            self.synced = self.at;
        }
        Ok(())
    }

    fn next_file(&mut self) -> std::io::Result<()> {
        if let Some((n, used)) = self.current.take() {
            self.full.insert(n, used);
            self.recycle();
        }
        let (n, file) = match self.spare.pop() {
            Some(spare) => spare,
            None => {
                let n = self.next_number;
                self.next_number += 1;
                let bytes = if self.settings.inline { 0 } else { self.settings.file_bytes };
                (n, file::make(&self.settings.path, n, bytes)?)
            }
        };
        self.generation = self.clock.random_u64() | 1;
        // Synced before any entry: an old head over new entries would look like damage.
        file::write_head(&file, self.id, self.generation)?;
        if !self.settings.inline {
            file.sync_data()?;
        }
        self.at = ENTRIES_AT;
        self.synced = ENTRIES_AT;
        self.current = Some((n, Used { file, newest: HashMap::new(), found: Vec::new() }));
        Ok(())
    }

    pub(super) fn release(&mut self, batches: HashMap<CloneId, u64>) {
        for (clone, number) in batches {
            let released = self.released.entry(clone).or_default();
            *released = (*released).max(number);
        }
        if !self.full.is_empty() {
            self.recycle();
        }
    }

    pub(super) fn forget_found(&mut self, clone: CloneId) {
        for used in self.full.values_mut() {
            used.found.retain(|c| *c != clone);
        }
        self.recycle();
    }

    fn needed(&self, used: &Used) -> bool {
        let waits = |(clone, number): (&CloneId, &u64)| self.released.get(clone).copied().unwrap_or(0) < *number;
        !used.found.is_empty() || used.newest.iter().any(waits)
    }

    /// Takes back files that hold nothing any more that is not in the store.
    fn recycle(&mut self) {
        let done: Vec<u64> = self.full.iter().filter(|(_, used)| !self.needed(used)).map(|(n, _)| *n).collect();
        for n in done {
            let Some(used) = self.full.remove(&n) else { continue };
            // So that a start does not look at it. When this is lost in a crash, the log says that its entries are stored.
            if let Err(error) = file::write_head(&used.file, self.id, 0) {
                tracing::warn!(%error, "a journal file could not be marked as empty");
            }
            if self.spare.len() < SPARE_FILES {
                self.spare.push((n, used.file));
            } else if let Err(error) = std::fs::remove_file(file::path_of(&self.settings.path, n)) {
                tracing::warn!(%error, "a journal file could not be removed");
            }
        }
    }

    /// At the end: marks the current file as empty when it is.
    pub(super) fn retire_current(&mut self) {
        if let Some((n, used)) = self.current.take() {
            self.full.insert(n, used);
            self.recycle();
        }
    }
}
