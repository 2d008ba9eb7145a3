//! One job that this gateway does now: its progress, its cursor, and whether it is to end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use clonegate_core::format::job::{JobError, JobRecord, JobState};
use clonegate_core::ids::{JobId, Nonce};
use clonegate_core::limits::JOB_TEXT_BYTES_MAX;
use clonegate_core::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::book::{Book, Numbered, Put};
use crate::clock::Clock;
use crate::lifecycle::waiting::Waits;

/// No total is known.
const UNKNOWN: u64 = u64::MAX;

/// What those who watch a job see of it while this gateway does it.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) id: JobId,
    pub(super) subject: String,
    done: AtomicU64,
    total: AtomicU64,
    note: Mutex<String>,
    /// What of its work waits for room in a store.
    pub(super) waits: Arc<Waits>,
    cancel: AtomicBool,
    /// The gateway stops; another goes on.
    stopping: AtomicBool,
    /// Another gateway has the job.
    lost: AtomicBool,
    /// Why the work failed, for who waits for it here.
    pub(super) failure: Mutex<Option<Error>>,
    /// Wakes the heartbeat, and with it the record.
    pub(super) wake: tokio::sync::Notify,
}

impl Live {
    pub(super) fn new(record: &JobRecord) -> Arc<Self> {
        Arc::new(Self {
            id: record.id,
            subject: record.subject.clone(),
            done: AtomicU64::new(record.done),
            total: AtomicU64::new(record.total.unwrap_or(UNKNOWN)),
            note: Mutex::new(record.note.clone()),
            waits: Arc::default(),
            cancel: AtomicBool::new(record.cancel),
            stopping: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            failure: Mutex::default(),
            wake: tokio::sync::Notify::new(),
        })
    }

    pub(super) fn cancel(&self) {
        self.cancel.store(true, Ordering::Relaxed);
        self.wake.notify_one();
    }

    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.wake.notify_one();
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// How far it is.
    pub(super) fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Brings a record up to date with what is known here.
    pub(super) fn show(&self, record: &mut JobRecord) {
        record.done = self.done.load(Ordering::Relaxed);
        record.total = Some(self.total.load(Ordering::Relaxed)).filter(|total| *total != UNKNOWN);
        record.note = self.waits.sentence().unwrap_or_else(|| self.note.lock().clone());
        record.cancel |= self.is_cancelled();
    }
}

/// The hand that work has on its job. Work calls [`JobRun::check`] often, [`JobRun::progress`] as often as it likes, and
/// [`JobRun::save`] when it has come to a point from which somebody else could go on.
#[derive(Debug)]
pub(crate) struct JobRun {
    pub(super) live: Arc<Live>,
    book: Arc<Book>,
    clock: Clock,
    run: Nonce,
    state: tokio::sync::Mutex<Numbered>,
    spec: String,
    cursor: Mutex<String>,
}

impl JobRun {
    pub(super) fn new(state: Numbered, run: Nonce, live: Arc<Live>, book: Arc<Book>, clock: Clock) -> Arc<Self> {
        let record = &state.record;
        let (spec, cursor) = (record.spec.clone(), record.cursor.clone());
        Arc::new(Self {
            live,
            book,
            clock,
            run,
            state: tokio::sync::Mutex::new(state),
            spec,
            cursor: Mutex::new(cursor),
        })
    }

    /// The job.
    pub(crate) fn id(&self) -> JobId {
        self.live.id
    }

    /// What was asked for.
    ///
    /// # Errors
    /// `Unsupported` when another version of the program wrote it.
    pub(crate) fn spec<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_str(&self.spec).map_err(|e| foreign(self.id(), &e))
    }

    /// Where whoever had it before was; `None` at the beginning.
    ///
    /// # Errors
    /// `Unsupported` when another version of the program wrote it.
    pub(crate) fn cursor<T: DeserializeOwned>(&self) -> Result<Option<T>> {
        let cursor = self.cursor.lock();
        if cursor.is_empty() {
            return Ok(None);
        }
        serde_json::from_str(&cursor).map(Some).map_err(|e| foreign(self.id(), &e))
    }

    /// Fails when the work is to end: cancelled, the gateway stops, or another gateway has the job.
    ///
    /// # Errors
    /// `Conflict` with code `job-cancelled`, `Unavailable` with code `stopping`, `Fenced` with code `job-taken-over`.
    pub(crate) fn check(&self) -> Result<()> {
        let live = &self.live;
        if live.is_lost() {
            return Err(Error::fenced("job-taken-over", "another gateway goes on with it").on(self.id().to_string()));
        }
        if live.is_cancelled() {
            return Err(Error::conflict("job-cancelled", "somebody cancelled it").on(self.id().to_string()));
        }
        if live.is_stopping() {
            return Err(Error::unavailable("stopping", "the gateway is stopping").on(self.id().to_string()));
        }
        Ok(())
    }

    /// Says how far it is. Costs nothing.
    pub(crate) fn progress(&self, done: u64, total: Option<u64>) {
        self.live.done.store(done, Ordering::Relaxed);
        self.live.total.store(total.unwrap_or(UNKNOWN), Ordering::Relaxed);
    }

    /// Says what it does now, for people.
    pub(crate) fn note(&self, note: impl Into<String>) {
        *self.live.note.lock() = note.into();
    }

    /// Its state as it is known here.
    pub(super) async fn now(&self) -> JobRecord {
        let mut record = self.state.lock().await.record.clone();
        self.live.show(&mut record);
        record
    }

    /// Whether somebody wants it to end.
    pub(super) fn is_to_end(&self) -> bool {
        self.live.is_cancelled() || self.live.is_stopping()
    }

    /// Whether nobody tries again after this error: time to clean up.
    pub(crate) fn is_last(&self, error: &Error) -> bool {
        !self.live.is_lost() && !self.live.is_stopping() && error.kind() != ErrorKind::Unavailable
    }

    /// Writes down where somebody else could go on, also when the work is to end: what is done is not done again. When it returns,
    /// this gateway still has the job.
    ///
    /// # Errors
    /// As [`JobRun::check`]; those of the home.
    pub(crate) async fn save(&self, cursor: &(impl Serialize + Sync)) -> Result<()> {
        let cursor = text(cursor)?;
        self.write(|record| record.cursor.clone_from(&cursor)).await?;
        *self.cursor.lock() = cursor;
        self.check()
    }

    /// Writes the next state: what is known, changed by `change`. A cancellation of another gateway is taken in.
    pub(super) async fn write(&self, change: impl Fn(&mut JobRecord) + Send) -> Result<JobRecord> {
        let mut state = self.state.lock().await;
        loop {
            if self.live.is_lost() {
                return Err(
                    Error::fenced("job-taken-over", "another gateway goes on with it").on(self.id().to_string())
                );
            }
            let mut next = state.record.clone();
            self.live.show(&mut next);
            change(&mut next);
            next.nonce = self.clock.nonce();
            next.written_ms = self.clock.now_ms();
            match self.book.put(state.number + 1, &next).await? {
                Put::Ours => {
                    *state = Numbered { number: state.number + 1, record: next.clone() };
                    return Ok(next);
                }
                Put::Theirs(theirs) => {
                    let ours = theirs.runner.as_ref().is_some_and(|runner| runner.run == self.run);
                    if !ours {
                        self.live.lost.store(true, Ordering::Relaxed);
                    }
                    if theirs.cancel {
                        self.live.cancel.store(true, Ordering::Relaxed);
                    }
                    *state = Numbered { number: state.number + 1, record: *theirs };
                }
            }
        }
    }

    /// Writes how it ended.
    pub(super) async fn end(&self, ended: JobState, error: Option<&Error>, result: &str) -> Result<JobRecord> {
        let now = self.clock.now_ms();
        self.write(|record| {
            record.state = ended;
            record.ended_ms = Some(now);
            record.runner = None;
            record.error = error.map(kept);
            record.result = result.to_owned();
            if ended == JobState::Done
                && let Some(total) = record.total
            {
                record.done = total;
            }
        })
        .await
    }
}

/// A failure as it is kept.
fn kept(error: &Error) -> JobError {
    let cut = |text: &str| text.chars().take(2000).collect::<String>();
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    JobError {
        kind: error.kind(),
        code: error.code().to_owned(),
        message: cut(&format!("{}{cause}", error.message())),
        object: error.object().map(cut),
        hint: error.what_to_do().map(cut),
    }
}

/// JSON for a record.
pub(super) fn text(value: &impl Serialize) -> Result<String> {
    let text = serde_json::to_string(value)
        .map_err(|e| Error::internal("bad-job", "what belongs to a job does not encode").because(e))?;
    if text.len() > JOB_TEXT_BYTES_MAX {
        return Err(Error::exhausted("job-too-large", format!("a job of {} bytes", text.len()))
            .hint("do it in several jobs, each with fewer names"));
    }
    Ok(text)
}

fn foreign(id: JobId, error: &serde_json::Error) -> Error {
    Error::unsupported("foreign-job", format!("the job is of another version of the program: {error}"))
        .on(id.to_string())
        .hint("let a gateway of that version do it, or cancel it")
}
