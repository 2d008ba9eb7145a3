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

use super::commit::{RUNS_MAX, put};
use super::core::Core;
use super::parts::split;
use crate::delta::dirty::Dirty;
use crate::delta::journal::Journal;
use crate::delta::load::{End, Loaded, apply, load, read_head};
use crate::delta::state::LogState;
use crate::store::keys;
use clonegate_core::format::log::Position;
use std::sync::Arc;
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
        let checked = match self.check_tail(&loaded).await {
            Ok(_) => self.tail(&loaded).await.map(drop),
            checked => checked.map(drop),
        };
        match checked {
            Err(error) if error.code() == "lost-tail" => Ok(Some(error)),
            checked => checked.map(|()| None),
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
        let ours = self.engine.journal.as_ref().filter(|ours| journal == Some(ours.id()));
        let why = match (ours, &claim) {
            (Some(ours), Some(claim)) => {
                let (id, mark) = (self.record.id, loaded.state.journal_mark);
                let Some(place) = ours.damage(id, mark, claim.claimed_ms) else { return Ok(false) };
                format!("the journal is damaged ({place})")
            }
            _ => format!("gateway {gateway} had it open and did not close it"),
        };
        self.needs_yes(loaded, &why)
    }

    /// True when an operator said yes to what is lost, and otherwise the error that asks for it.
    fn needs_yes(&self, loaded: &Loaded, why: &str) -> Result<bool> {
        if self.lost_tail_accepted.load(Ordering::Acquire) {
            tracing::warn!(clone = %self.record.name, %why, "flushed writes that only a journal held are given up");
            return Ok(true);
        }
        let stored = std::time::UNIX_EPOCH + Duration::from_millis(loaded.state.modified_ms);
        let stored = humantime::format_rfc3339_seconds(stored);
        Err(Error::conflict(
            "lost-tail",
            format!(
                "{why}: everything up to {stored} is here, what was flushed after that (a second or so) may be in that journal only"
            ),
        )
        .on(self.record.name.to_string())
        .hint("start the gateway with its journal whole, or give these writes up with `clonegate clone accept-loss`"))
    }

    /// What our journal held of this volume and may still be applied, and whether something is missing in it that an operator gave up.
    pub(super) async fn tail(&self, loaded: &Loaded) -> Result<(Vec<Entry>, bool)> {
        let mut entries = self.journaled().await?;
        entries.retain(|entry| entry.record.number > loaded.state.journal_mark);
        let last = loaded.state.at.map_or(Epoch(0), |at| at.epoch);
        // An epoch of another gateway in between went on without these writes: they are given up, and it was said then.
        let mut ours = last;
        if entries.is_empty() {
            return Ok((entries, false));
        }
        let oldest = entries.iter().map(|entry| entry.record.epoch).min().unwrap_or(last);
        let mut epoch = last;
        while epoch > oldest {
            if !self.may_miss_older(epoch).await? {
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
                "flushed writes in the journal are older than a takeover by another gateway, or than an operator's yes: given up");
        }
        // Numbers have no gap; behind one, the order of writes would be broken.
        let whole =
            entries.iter().zip(loaded.state.journal_mark + 1..).take_while(|(e, n)| e.record.number == *n).count();
        let gap = whole < entries.len();
        if gap {
            let missing = loaded.state.journal_mark + 1 + whole as u64;
            self.needs_yes(loaded, &format!("batch {missing} is missing in the journal"))?;
            entries.truncate(whole);
        }
        Ok((entries, gap))
    }

    /// Everything that our journal has of this volume and that may not be in the log.
    async fn journaled(&self) -> Result<Vec<Entry>> {
        let (engine, id) = (Arc::clone(&self.engine), self.record.id);
        if !engine.journal.as_ref().is_some_and(|journal| journal.has_pending(id)) {
            return Ok(Vec::new());
        }
        let read = move || engine.journal.as_ref().map_or(Ok(Vec::new()), |journal| journal.read_pending(id));
        if self.engine.settings.journal_inline {
            return read();
        }
        tokio::task::spawn_blocking(read).await.map_err(|_| super::read::stopping())?
    }

    /// Whether what our journal holds of epochs before this one may still be missing in the log: nobody opened it, or we did and may have
    /// died before all of it was there.
    async fn may_miss_older(&self, epoch: Epoch) -> Result<bool> {
        let ours = match self.claim_of(epoch).await {
            Ok(claim) => claim.journal.is_some() && claim.journal == self.journal_id(),
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        match read_head(&self.store, self.record.id, Position::new(epoch.0, 0), None).await {
            Ok((head, _)) => Ok(match head.record.what {
                Change::Poison { .. } => true,
                // What was given up with a yes stays given up.
                Change::Open { lost_tail, .. } => ours && !lost_tail,
                _ => false,
            }),
            // Collected, so that the epoch was at work, which begins when everything older is in the log.
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
            let (mut bytes, mut extents, mut number, mut time_ms) = (0, 0, 0, 0);
            // Several only if one record takes them all: a part of one batch without all of those before it is no prefix.
            let size = |entry: &Entry| u64::from(entry.record.blocks) * BLOCK_BYTES;
            let fits = |entry: &Entry, bytes: u64, extents: usize| {
                bytes + size(entry) <= COMMIT_BYTES_MAX as u64 / 2
                    && extents + entry.record.extents as usize <= RUNS_MAX / 2
            };
            while let Some(entry) = entries.next_if(|entry| number == 0 || fits(entry, bytes, extents)) {
                (number, time_ms) = (entry.record.number, entry.record.time_ms);
                bytes += size(&entry);
                extents += entry.record.extents as usize;
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
