//! The tail of a `local` volume: flushed writes that the journal has and the log has not.
//!
//! An epoch that its owner did not close may have such a tail. When the journal is ours, the tail is put into the log
//! before anything else is accepted. When it is another gateway's, the volume is not taken over without an operator's yes.

use clonegate_core::format::clone::Durability;
use clonegate_core::format::envelope;
use clonegate_core::format::journal::Entry;
use clonegate_core::format::log::{Change, CommitHead, CommitRecord, EpochRecord, encode_commit};
use clonegate_core::ids::{Epoch, Nonce};
use clonegate_core::limits::COMMIT_BYTES_MAX;
use clonegate_core::units::BLOCK_BYTES;
use clonegate_core::{Error, ErrorKind, Result};

use super::commit::{put, split};
use super::core::Core;
use crate::delta::dirty::Dirty;
use crate::delta::journal::Journal;
use crate::delta::load::{End, Loaded, apply, load, read_head};
use crate::delta::state::LogState;
use crate::store::keys;
use clonegate_core::format::log::Position;
use std::sync::atomic::Ordering;
use std::time::Duration;

impl Core {
    fn journal_id(&self) -> Option<Nonce> {
        self.engine.journal.as_ref().map(Journal::id)
    }

    pub(super) async fn claim_of(&self, epoch: Epoch) -> Result<EpochRecord> {
        let key = keys::epoch(self.record.id, epoch);
        envelope::decode(&self.store.get(&key).await?).map_err(|e| e.on(key.to_string()))
    }

    /// The error that a claim would give, when it would.
    pub(super) async fn lost_tail(&self) -> Result<Option<Error>> {
        if matches!(self.state.read().role, super::core::Role::Owner) {
            return Ok(None);
        }
        let loaded = load(&self.store, &self.record).await?;
        match self.check_tail(&loaded).await {
            Err(error) if error.code() == "lost-tail" => Ok(Some(error)),
            checked => checked.map(|_| None),
        }
    }

    /// Whether flushed writes may be missing that an operator gave up; an error when nobody did.
    pub(super) async fn check_tail(&self, loaded: &Loaded) -> Result<bool> {
        let (Durability::Local, Some((next, end))) = (self.mode, loaded.end) else { return Ok(false) };
        if end == End::Closed {
            return Ok(false);
        }
        let claim = match self.claim_of(next.epoch).await {
            // A claim that is gone says nothing: as if there had been a journal.
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            claim => Some(claim?),
        };
        let (journal, gateway) = match &claim {
            Some(claim) if claim.journal.is_none() => return Ok(false),
            Some(claim) => (claim.journal, claim.gateway.to_string()),
            None => (None, "a gateway that is not known".to_owned()),
        };
        if journal.is_some() && journal == self.journal_id() {
            return Ok(false);
        }
        if self.lost_tail_accepted.load(Ordering::Acquire) {
            tracing::warn!(clone = %self.record.name, %gateway, "taken over without the journal of its last owner");
            return Ok(true);
        }
        Err(Error::conflict(
            "lost-tail",
            format!(
                "gateway {gateway} had it open and did not close it: everything up to {} is here, what was flushed after \
                 that (a second or so) may be in its journal only",
                humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + Duration::from_millis(loaded.state.modified_ms)),
            ),
        )
        .on(self.record.name.to_string())
        .hint("start that gateway with its journal, or give these writes up with `clonegate clone accept-loss`"))
    }

    /// What our journal held of this volume and may still be applied.
    pub(super) async fn tail(&self, loaded: &Loaded) -> Result<Vec<Entry>> {
        let Some(journal) = self.engine.journal.as_ref().filter(|j| j.has_pending(self.record.id)) else {
            return Ok(Vec::new());
        };
        let mut entries = journal.read_pending(self.record.id)?;
        entries.retain(|entry| entry.record.number > loaded.state.journal_mark);
        let last = loaded.state.at.map_or(Epoch(0), |at| at.epoch);
        // An epoch of another gateway in between went on without these writes: they are given up, and it was said then.
        let mut ours = last;
        if entries.is_empty() {
            return Ok(entries);
        }
        let oldest = entries.iter().map(|entry| entry.record.epoch).min().unwrap_or(last);
        let mut epoch = last;
        while epoch > oldest {
            if !self.is_ours_or_unopened(epoch).await? {
                break;
            }
            epoch = Epoch(epoch.0 - 1);
            ours = epoch;
        }
        let before = entries.len();
        let valid = |entry: &Entry| entry.record.epoch >= ours && entry.record.epoch <= last;
        entries.retain(valid);
        if entries.len() < before {
            tracing::warn!(clone = %self.record.name, entries = before - entries.len(),
                "flushed writes in the journal are older than a takeover by another gateway: given up");
        }
        // Numbers have no gap; behind one, the order of writes would be broken.
        let whole =
            entries.iter().zip(loaded.state.journal_mark + 1..).take_while(|(e, n)| e.record.number == *n).count();
        if whole < entries.len() {
            return Err(Error::corrupt(
                "journal-damaged",
                format!("batch {} is missing", loaded.state.journal_mark + 1 + whole as u64),
            )
            .on(self.record.name.to_string())
            .hint("move the journal away and accept that its writes are lost, or restore it"));
        }
        Ok(entries)
    }

    async fn is_ours_or_unopened(&self, epoch: Epoch) -> Result<bool> {
        match self.claim_of(epoch).await {
            Ok(claim) if claim.journal.is_some() && claim.journal == self.journal_id() => return Ok(true),
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        match read_head(&self.store, self.record.id, Position::new(epoch.0, 0), None).await {
            Ok((head, _)) => Ok(matches!(head.record.what, Change::Poison { .. })),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Puts the tail into the log, behind our `open` record and before anything else.
    pub(super) async fn replay_tail(&self, log: &mut LogState, tail: Vec<Entry>) -> Result<()> {
        let mark = log.journal_mark;
        let mut entries = tail.into_iter().filter(|entry| entry.record.number > mark).peekable();
        while entries.peek().is_some() {
            let mut merged = Dirty::default();
            let (mut bytes, mut number, mut time_ms) = (0, 0, 0);
            while let Some(entry) = entries.next_if(|_| bytes < COMMIT_BYTES_MAX as u64 / 2) {
                (number, time_ms) = (entry.record.number, entry.record.time_ms);
                bytes += u64::from(entry.record.blocks) * BLOCK_BYTES + 1;
                for run in entry.runs {
                    merged.insert(run.start.0, run.start.0 + run.blocks, run.data, number);
                }
            }
            let parts = split(merged.take());
            let count = parts.len();
            for (index, runs) in parts.into_iter().enumerate() {
                let at = log.at.map_or(Position::new(0, 0), Position::next);
                let record = CommitRecord {
                    clone: self.record.id,
                    at,
                    nonce: self.engine.clock.nonce(),
                    base: log.image.base,
                    change: log.change + 1,
                    time_ms,
                    journal_mark: if index + 1 == count { number } else { log.journal_mark },
                    settled: at.sequence,
                    what: Change::Data,
                    extents: 0,
                    blocks: 0,
                    table_crc: 0,
                };
                let (object, head) = encode(record, &runs)?;
                let size = object.len() as u64;
                put(self, &keys::log(self.record.id, at.epoch, at.sequence), object, false).await?;
                apply(&self.store, log, &head, size).await?;
            }
        }
        Ok(())
    }
}

/// The object of a commit and its head.
pub(super) fn encode(
    mut record: CommitRecord,
    runs: &[clonegate_core::format::log::Run],
) -> Result<(bytes::Bytes, CommitHead)> {
    let (object, extents, frames_at) = encode_commit(record.clone(), runs)?;
    record.extents = u32::try_from(extents.len()).unwrap_or(u32::MAX);
    record.blocks = extents.iter().filter(|e| e.frame.is_some()).map(|e| e.blocks).sum();
    Ok((object, CommitHead { record, extents, frames_at }))
}
