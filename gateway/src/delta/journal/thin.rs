//! Keeps the journal small while the store of one clone takes nothing: what little of it lies in many files moves into the current one.

use clonegate_core::Result;
use clonegate_core::format::journal::{Entry, JournalEntryRecord, append_entry};
use clonegate_core::ids::CloneId;

use super::recover::{self, EntryRef};
use super::writer::Files;
use super::{BatchAt, io_error};

/// Files that are full and in use, above which those with little in them are looked for.
pub(super) const FILES_MANY: usize = 16;
/// Files read for that with each new one: as much is read as is written, twice.
const LOOKS: usize = 2;
/// What moves is at most this part of a file.
const PART: u64 = 4;

impl Files {
    /// Moves what waits for its store out of files that hold little of it, and takes these back. To be called with a new file.
    ///
    /// # Errors
    /// Those of writing and syncing the new file, which must not be used then. A file that cannot be read stays, and that is none.
    pub(super) fn thin_out(&mut self) -> Result<()> {
        for _ in 0..LOOKS {
            if self.full.len() < FILES_MANY || self.readers > 0 {
                return Ok(());
            }
            let eligible = self.full.iter_mut().filter(|(_, used)| !used.riddle && used.found.is_empty());
            let Some((n, used)) = eligible.min_by_key(|(n, used)| (used.looks, **n)) else { return Ok(()) };
            used.looks += 1;
            let n = *n;
            match self.left_in(n) {
                Ok(Some(entries)) => self.take_in(n, entries)?,
                Ok(None) => {}
                Err(error) => tracing::warn!(file = n, %error, "a journal file cannot be read: it stays"),
            }
        }
        Ok(())
    }

    /// What waits in a file, when that is little.
    fn left_in(&self, n: u64) -> Result<Option<Vec<Entry>>> {
        let all = recover::entries(&self.settings.path, self.id, n)?;
        let waits = |clone: &CloneId, place: &EntryRef| self.released.get(clone).is_none_or(|upto| *upto < place.at);
        let waiting: Vec<EntryRef> =
            all.into_iter().filter(|(clone, place)| waits(clone, place)).map(|(_, place)| place).collect();
        if waiting.iter().map(|place| place.bytes).sum::<u64>() > self.settings.file_bytes / PART {
            return Ok(None);
        }
        recover::read(&self.settings.path, &waiting).map(Some)
    }

    fn take_in(&mut self, n: u64, entries: Vec<Entry>) -> Result<()> {
        let mut moved = Vec::with_capacity(entries.len());
        for entry in entries {
            let record = JournalEntryRecord { generation: self.generation, synced: self.synced, ..entry.record };
            moved.push((record.clone, BatchAt { epoch: record.epoch, number: record.number }));
            append_entry(&mut self.buffer, record, &entry.runs)?;
        }
        self.write_out().and_then(|()| self.sync()).map_err(|e| io_error(&self.settings.path, e))?;
        let Some((_, current)) = &mut self.current else { return Ok(()) };
        for (clone, at) in moved {
            let newest = current.newest.entry(clone).or_insert(at);
            *newest = (*newest).max(at);
        }
        if let Some(used) = self.full.remove(&n) {
            self.take_back(n, used.file);
        }
        tracing::debug!(file = n, "what waited in a journal file moved on");
        Ok(())
    }
}
