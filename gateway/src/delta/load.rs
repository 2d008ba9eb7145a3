//! Reads the state of a clone from the store: the newest checkpoint, then every record behind it, in order.

use std::collections::BTreeSet;

use bytes::Bytes;
use clonegate_core::format::clone::CloneRecord;
use clonegate_core::format::log::{Change, CommitHead, Head, ObjectName, Position, decode_head};
use clonegate_core::ids::{CloneId, Epoch, Sequence};
use clonegate_core::limits::{EPOCHS_UNCLAIMED_MAX, LOG_NUMBER_MAX};
use clonegate_core::units::ByteRange;
use clonegate_core::{Error, ErrorKind, Result};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, stream};

use super::state::{Applied, LogState};
use crate::store::{Store, keys};

/// Requests in flight while a log is read.
const IN_FLIGHT: usize = 64;
/// The first read of a record: its head, and most of its table when it is not large.
const HEAD_BYTES: u64 = 16 * 1024;
/// Commit records of one volume that are put at the same time.
pub const IN_FLIGHT_COMMITS: usize = 3;
/// From this size on a checkpoint takes longer to decode than a task may run.
const LARGE_CHECKPOINT: usize = 256 << 10;
/// Times that a load is begun anew because objects were collected under it.
const ATTEMPTS: u32 = 8;

/// What a list of a clone's objects says.
#[derive(Debug, Default)]
pub struct Listing {
    /// Epochs that were claimed, ascending.
    pub epochs: Vec<u64>,
    /// Commit records and their sizes, ascending.
    pub logs: Vec<(Position, u64)>,
    /// Checkpoints and their sizes, ascending.
    pub checkpoints: Vec<(Position, u64)>,
    /// Segments (epoch, number) and their sizes, ascending.
    pub segments: Vec<(Epoch, u64, u64)>,
    /// Whether the clone has a tombstone.
    pub deleted: bool,
    /// Names that are none of these.
    pub others: Vec<String>,
    /// Names of a form that is ours, with numbers that no clone comes to.
    pub impossible: Vec<String>,
}

impl Listing {
    /// Lists a clone's objects.
    ///
    /// # Errors
    /// What the store gives.
    pub async fn read(store: &Store, clone: CloneId) -> Result<Self> {
        let mut listing = Self::default();
        for listed in store.list(&keys::clone_dir(clone)).await? {
            let parts: Vec<&str> = listed.key.split('/').collect();
            let numbers: Option<Vec<u64>> = parts.iter().skip(1).map(|part| keys::number(part)).collect();
            let numbers = numbers.unwrap_or_default();
            let ours =
                matches!((parts.as_slice(), numbers.len()), (["epoch", _], 1) | (["log" | "ckpt" | "seg", _, _], 2));
            if ours && numbers.iter().any(|number| *number > LOG_NUMBER_MAX) {
                listing.impossible.push(listed.key);
                continue;
            }
            match (parts.as_slice(), numbers.as_slice()) {
                (["epoch", _], [e]) => listing.epochs.push(*e),
                (["log", ..], [e, n]) => listing.logs.push((Position::new(*e, *n), listed.size)),
                (["ckpt", ..], [e, n]) => listing.checkpoints.push((Position::new(*e, *n), listed.size)),
                (["seg", ..], [e, n]) => listing.segments.push((Epoch(*e), *n, listed.size)),
                (["deleted"], _) => listing.deleted = true,
                (["clone"] | ["identity", _], _) => {}
                _ => listing.others.push(listed.key),
            }
        }
        listing.epochs.sort_unstable();
        listing.logs.sort_unstable();
        listing.checkpoints.sort_unstable();
        listing.segments.sort_unstable();
        Ok(listing)
    }

    /// Names and sizes of the records, checkpoints and segments.
    pub fn sizes(&self) -> impl Iterator<Item = (ObjectName, u64)> + '_ {
        let logs = self.logs.iter().map(|(at, size)| (ObjectName::Log(*at), *size));
        let checkpoints = self.checkpoints.iter().map(|(at, size)| (ObjectName::Checkpoint(*at), *size));
        let segments = self.segments.iter().map(|(epoch, n, size)| (ObjectName::Segment(*epoch, *n), *size));
        logs.chain(checkpoints).chain(segments)
    }

    /// The highest epoch that anything speaks of.
    pub fn highest_epoch(&self) -> u64 {
        let log = self.logs.last().map_or(0, |(at, _)| at.epoch.0);
        let checkpoint = self.checkpoints.last().map_or(0, |(at, _)| at.epoch.0);
        self.epochs.last().copied().unwrap_or(0).max(log).max(checkpoint)
    }

    /// Epochs that anybody claimed or put a record in, ascending.
    fn known_epochs(&self) -> BTreeSet<u64> {
        self.epochs.iter().copied().chain(self.logs.iter().map(|(at, _)| at.epoch.0)).collect()
    }

    /// Epochs from `first` on and below `end` that may have a writer, however late it is: those that are known of, and before each and before
    /// `end` as many as may have been claimed without being known of.
    pub fn may_be_written(&self, first: u64, end: u64) -> Vec<u64> {
        let mut epochs = Vec::new();
        let mut next = first.max(1);
        for epoch in self.known_epochs().into_iter().filter(|epoch| *epoch < end).chain([end]) {
            epochs.extend(next.max(epoch.saturating_sub(EPOCHS_UNCLAIMED_MAX))..=epoch);
            next = next.max(epoch.saturating_add(1));
        }
        epochs.retain(|epoch| *epoch < end);
        epochs
    }

    /// Refuses names that cannot be there: numbers that no clone comes to, and, after the epoch `opened`, which has an owner or had one, epochs that do
    /// not follow one another. Who owns the volume is looked for in the next epoch, so that one far away is not to be gone on from.
    fn check(&self, clone: CloneId, opened: Option<u64>) -> Result<()> {
        let refuse = |key: String, what: String| {
            Err(Error::corrupt("impossible-number", what)
                .on(key)
                .hint("clonegate did not make it: remove it, and run `clonegate fsck`; other clones are unharmed"))
        };
        let dir = keys::clone_dir(clone);
        if let Some(name) = self.impossible.first() {
            return refuse(format!("{dir}{name}"), "a number that no clone comes to".to_owned());
        }
        let Some(mut before) = opened else { return Ok(()) };
        for epoch in self.known_epochs().range(before.saturating_add(1)..) {
            if epoch - before > EPOCHS_UNCLAIMED_MAX {
                let record = self.logs.iter().map(|(at, _)| *at).find(|at| at.epoch.0 == *epoch);
                let key = match record.filter(|_| self.epochs.binary_search(epoch).is_err()) {
                    Some(at) => keys::log(clone, at.epoch, at.sequence),
                    None => keys::epoch(clone, Epoch(*epoch)),
                };
                return refuse(key.to_string(), format!("epoch {epoch}, where epoch {before} was the last"));
            }
            before = *epoch;
        }
        Ok(())
    }

    /// Sizes of the records of an epoch from `sequence` on, as far as there is no gap.
    pub fn run_of(&self, epoch: u64, sequence: u64) -> Vec<u64> {
        let first = self.logs.partition_point(|(at, _)| *at < Position::new(epoch, sequence));
        let mut sizes = Vec::new();
        for (at, size) in &self.logs[first..] {
            if *at != Position::new(epoch, sequence + sizes.len() as u64) {
                break;
            }
            sizes.push(*size);
        }
        sizes
    }
}

/// How an epoch ends, as far as was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With a record of its owner: everything it accepted is there.
    Closed,
    /// With a poison record of another epoch.
    Poisoned,
    /// The next record is not there (yet).
    Open,
}

/// Reads and decodes the head of one record.
///
/// # Errors
/// `NotFound`, `Corrupt`, and what the store gives.
pub async fn read_head(store: &Store, clone: CloneId, at: Position, size: Option<u64>) -> Result<(CommitHead, u64)> {
    let key = keys::log(clone, at.epoch, at.sequence);
    let size = match size {
        Some(size) => size,
        None => store.head(&key).await?.size,
    };
    let mut needed = HEAD_BYTES.min(size);
    let mut again = false;
    loop {
        let beginning = store.get_range(&key, ByteRange::new(0, needed), None).await?;
        match decode_head(&beginning, size) {
            Ok(Head::Whole(head)) => {
                if head.record.clone != clone || head.record.at != at {
                    return Err(
                        Error::corrupt("misplaced", format!("the record of {:?}", head.record.at)).on(key.to_string())
                    );
                }
                return Ok((head, size));
            }
            Ok(Head::Needs(more)) if more > needed && needed < size => needed = more.min(size),
            Ok(Head::Needs(_)) => {
                return Err(Error::corrupt("short-record", "the record is cut off").on(key.to_string()));
            }
            // It may have been damaged on the way: once more, then it is an error.
            Err(_) if !again => again = true,
            Err(error) => {
                return Err(error.on(key.to_string()).hint("run `clonegate fsck`; other clones are unharmed"));
            }
        }
    }
}

/// Reads a checkpoint as a state.
///
/// # Errors
/// `NotFound`, `Corrupt`, and what the store gives.
pub async fn read_checkpoint(store: &Store, clone: CloneId, at: Position, size: Option<u64>) -> Result<LogState> {
    let key = keys::checkpoint(clone, at.epoch, at.sequence);
    let size = match size {
        Some(size) => size,
        None => store.head(&key).await?.size,
    };
    let mut again = false;
    loop {
        let parts: Vec<BoxFuture<'_, Result<Bytes>>> = (0..size)
            .step_by(64 << 20)
            .map(|from| store.get_range(&key, ByteRange::new(from, size.min(from + (64 << 20))), None).boxed())
            .collect();
        let parts = futures::future::try_join_all(parts).await?;
        let object = if let [one] = parts.as_slice() { one.clone() } else { parts.concat().into() };
        match on_the_side(object.len(), move || LogState::from_checkpoint(clone, at, &object)).await {
            Ok(state) => return Ok(state),
            Err(_) if !again => again = true,
            Err(error) => {
                return Err(error.on(key.to_string()).hint("run `clonegate fsck`; other clones are unharmed"));
            }
        }
    }
}

/// Does work on so many bytes of a checkpoint; outside of the runtime when that would keep others waiting.
///
/// # Errors
/// What the work gives; `Unavailable` when the runtime ends.
pub async fn on_the_side<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    if bytes < LARGE_CHECKPOINT {
        return work();
    }
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| Error::unavailable("stopping", "the gateway is stopping"))?
}

/// Applies one record, reading the kept state that it goes back to when that is not in memory.
///
/// # Errors
/// As [`LogState::apply`], and what reading gives.
pub async fn apply(store: &Store, state: &mut LogState, head: &CommitHead, size: u64) -> Result<()> {
    if let Some(at) = state.needs(&head.record.what) {
        let kept = read_checkpoint(store, state.clone, at, None).await?;
        state.load_kept(at, &kept);
    }
    let applied = Applied { record: &head.record, extents: &head.extents, frames_at: head.frames_at, size };
    let key = keys::log(state.clone, head.record.at.epoch, head.record.at.sequence);
    state.apply(&applied).map_err(|e| e.on(key.to_string()))
}

/// Applies the records `sizes` of an epoch from `from` on; says where it stopped and why.
async fn replay(store: &Store, state: &mut LogState, from: Position, sizes: &[u64]) -> Result<(Position, End)> {
    let clone = state.clone;
    let reads: Vec<BoxFuture<'_, Result<(CommitHead, u64)>>> = sizes
        .iter()
        .enumerate()
        .map(|(n, size)| {
            let at = Position { epoch: from.epoch, sequence: Sequence(from.sequence.0 + n as u64) };
            read_head(store, clone, at, Some(*size)).boxed()
        })
        .collect();
    let mut heads = stream::iter(reads).buffered(IN_FLIGHT);
    let mut next = from;
    while let Some(read) = heads.next().await {
        let (head, size) = read?;
        match head.record.what {
            Change::Poison { .. } => return Ok((next, End::Poisoned)),
            Change::Close => {
                apply(store, state, &head, size).await?;
                return Ok((next.next(), End::Closed));
            }
            _ => apply(store, state, &head, size).await?,
        }
        next = next.next();
    }
    Ok((next, End::Open))
}

/// A state and where its log ends.
#[derive(Debug)]
pub struct Loaded {
    /// The state.
    pub state: LogState,
    /// What was listed.
    pub listing: Listing,
    /// The next record of the last epoch that was read, and how that ends.
    pub end: Option<(Position, End)>,
}

/// Reads the state of a clone as it is now, or was a moment ago.
///
/// # Errors
/// `Corrupt` naming the object, `NotFound` with code `clone-deleted`, and what the store gives.
pub async fn load(store: &Store, record: &CloneRecord) -> Result<Loaded> {
    let mut last = None;
    for _ in 0..ATTEMPTS {
        let listing = Listing::read(store, record.id).await?;
        match load_listed(store, record, listing).await {
            // Collected since it was listed: a newer checkpoint is there now.
            Err(error) if error.kind() == ErrorKind::NotFound && error.code() != "clone-deleted" => last = Some(error),
            loaded => return loaded,
        }
    }
    let missing = Error::corrupt("missing-object", "an object that the volume needs is gone")
        .hint("run `clonegate fsck`; other clones are unharmed");
    let object = last.as_ref().and_then(Error::object).map(str::to_owned);
    Err(missing.on(object.unwrap_or_else(|| record.id.to_string())))
}

async fn load_listed(store: &Store, record: &CloneRecord, listing: Listing) -> Result<Loaded> {
    if listing.deleted {
        return Err(Error::not_found("clone-deleted", "the volume was deleted").on(record.id.to_string()));
    }
    listing.check(record.id, None)?;
    let mut state = match listing.checkpoints.last() {
        Some((at, size)) => read_checkpoint(store, record.id, *at, Some(*size)).await?,
        None => LogState::born(record),
    };
    let mut end = None;
    let begin = state.at;
    // Those that have records: others were claimed and not opened.
    let first = begin.map_or(1, |at| at.epoch.0);
    let written = listing.logs.iter().map(|(at, _)| at.epoch.0).filter(|epoch| *epoch >= first);
    let epochs: BTreeSet<u64> = written.chain(begin.map(|at| at.epoch.0)).collect();
    for epoch in epochs {
        let from = match begin {
            Some(at) if at.epoch.0 == epoch => at.next(),
            _ => Position::new(epoch, 0),
        };
        let sizes = listing.run_of(epoch, from.sequence.0);
        if sizes.is_empty() && from.sequence.0 == 0 {
            // Not opened: what lies in it is late.
            continue;
        }
        let (mut next, mut how) = replay(store, &mut state, from, &sizes).await?;
        while how == End::Open {
            // Records may have come since the list was made, and an epoch that a later one follows has an end.
            match read_head(store, record.id, next, None).await {
                Ok((head, _)) if matches!(head.record.what, Change::Poison { .. }) => how = End::Poisoned,
                Ok((head, size)) => {
                    apply(store, &mut state, &head, size).await?;
                    next = next.next();
                    if head.record.what == Change::Close {
                        how = End::Closed;
                    }
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    let opened_later = listing.logs.iter().any(|(at, _)| at.epoch.0 > epoch && at.sequence.0 == 0);
                    if opened_later && later_is_open(store, record.id, &listing, epoch).await? {
                        return Err(error);
                    }
                    check_gap(store, record.id, &listing, next).await?;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        if state.at.is_some_and(|at| at.epoch.0 == epoch) || begin.is_some_and(|at| at.epoch.0 == epoch) {
            end = Some((next, how));
        }
    }
    listing.check(record.id, state.at.map(|at| at.epoch.0))?;
    Ok(Loaded { state, listing, end })
}

/// A crash may leave records behind a missing one, that were under way together with it. A record that was made when the
/// missing one was in the store says that it was taken away.
async fn check_gap(store: &Store, clone: CloneId, listing: &Listing, missing: Position) -> Result<()> {
    let beyond = |(at, _): &&(Position, u64)| at.epoch == missing.epoch && *at > missing;
    for (at, size) in listing.logs.iter().filter(beyond).take(2 * IN_FLIGHT_COMMITS) {
        let (head, _) = read_head(store, clone, *at, Some(*size)).await?;
        if head.record.settled > missing.sequence {
            let key = keys::log(clone, missing.epoch, missing.sequence);
            return Err(Error::corrupt("missing-object", "it is gone, and later records say that it was there")
                .on(key.to_string())
                .hint("run `clonegate fsck`; other clones are unharmed"));
        }
    }
    Ok(())
}

/// Whether an epoch after this one was opened (and not poisoned before it was).
async fn later_is_open(store: &Store, clone: CloneId, listing: &Listing, epoch: u64) -> Result<bool> {
    for (at, size) in listing.logs.iter().filter(|(at, _)| at.epoch.0 > epoch && at.sequence.0 == 0) {
        let (head, _) = read_head(store, clone, *at, Some(*size)).await?;
        if matches!(head.record.what, Change::Open { .. }) {
            return Ok(true);
        }
    }
    Ok(false)
}
