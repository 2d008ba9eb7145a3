//! Long work: recorded in the home, done by one gateway, gone on with by another when that one dies.
//!
//! A job is a series of numbered states, each put if absent. Its runner puts one every [`HEARTBEAT`] and whenever its work has come to a point
//! to go on from. Another gateway that has seen the same number for longer than [`STALE`], by its own clock, puts the next one in its
//! own name; the former runner finds its number taken and stops. Until then both may be at work, so work is made of steps that do no harm
//! when they are done twice: put-if-absent, claims, deletions.

mod book;
mod house;
pub(super) mod kinds;
mod run;
mod verbs;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use clonegate_core::format::job::{JobRecord, JobState, JobUnit, Runner};
use clonegate_core::format::making::Maker;
use clonegate_core::ids::{JobId, Nonce};
use clonegate_core::limits::{JOBS_AT_ONCE, JOBS_KEPT_MAX};
use clonegate_core::{Error, ErrorKind, Result};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::Semaphore;

use self::book::{Book, Numbered, Put};
pub(crate) use self::run::JobRun;
use self::run::{Live, text};
use super::context;
use super::events::EventKind;
use super::gateway::Gateway;
use super::views::{JobView, Started};
use super::waiting;
use crate::clock::Clock;
use crate::store::Store;

/// How often a runner says that it lives.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How often those who listen to events are told of its progress, in that time.
const TELLS: u32 = 10;
/// How long a state must stand still, as another gateway sees it, before that gateway goes on with the job.
pub(super) const STALE: Duration = Duration::from_secs(45);
/// How often other gateways' jobs are looked at.
pub(super) const LOOK: Duration = Duration::from_secs(15);
/// How often a job is begun; one that takes the gateway down each time must not do so for ever.
const ATTEMPTS_MAX: u32 = 16;
/// How long a job waits for a store that does not answer, between tries.
const TRY_AGAIN: Duration = Duration::from_secs(5);
/// Tries of a job against a store that does not answer, without any progress in between.
const TRIES: u32 = 12;
/// How long a stopping gateway waits for its jobs to come to a point to go on from.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// Does the work of one kind of job; what it returns is the job's result.
pub(super) type Work = fn(Arc<Gateway>, Arc<JobRun>) -> BoxFuture<'static, Result<serde_json::Value>>;

/// What is asked for.
#[derive(Debug)]
pub(super) struct JobOrder<S> {
    /// One of [`kinds`].
    pub(super) kind: &'static str,
    /// What it is done to; one job at a time is under way for each subject.
    pub(super) subject: String,
    /// What exactly is asked for.
    pub(super) spec: S,
    /// What its progress counts.
    pub(super) unit: JobUnit,
    /// How much there is to do, if that is known.
    pub(super) total: Option<u64>,
}

/// The jobs of this gateway.
pub(super) struct Jobs {
    book: Arc<Book>,
    /// This life of the process.
    run: Nonce,
    live: Mutex<HashMap<JobId, Arc<Live>>>,
    turns: Arc<Semaphore>,
    seen: Mutex<house::Seen>,
    works: Mutex<HashMap<&'static str, Work>>,
}

impl fmt::Debug for Jobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jobs").field("live", &self.live.lock().len()).finish()
    }
}

impl Jobs {
    pub(super) fn new(home: Store, clock: &Clock) -> Self {
        Self {
            book: Arc::new(Book::new(home)),
            run: clock.nonce(),
            live: Mutex::default(),
            turns: Arc::new(Semaphore::new(JOBS_AT_ONCE)),
            seen: Mutex::default(),
            works: Mutex::new(kinds::all().into_iter().collect()),
        }
    }

    /// What waits for room of the job of this subject, if this gateway does it.
    pub(super) fn waits_of(&self, subject: &str) -> Option<String> {
        let live: Vec<Arc<Live>> = self.live.lock().values().cloned().collect();
        live.iter().find(|live| live.subject == subject).and_then(|live| live.waits.sentence())
    }

    /// What is known here of a job that this gateway does.
    fn live(&self, id: JobId) -> Option<Arc<Live>> {
        self.live.lock().get(&id).cloned()
    }

    /// Lets all jobs come to a point from which another gateway, or this one after its restart, goes on.
    pub(super) async fn stop(&self, clock: &Clock) {
        for live in self.live.lock().values() {
            live.stop();
        }
        let begun = clock.instant();
        while !self.live.lock().is_empty() && begun.elapsed() < STOP_WITHIN {
            clock.sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Gateway {
    /// Records a job and begins it. A request that is sent again with its `Idempotency-Key` finds the job that it made.
    ///
    /// # Errors
    /// `Conflict` with code `job-running` when another job is at work on the subject; `Exhausted` with code `too-many-jobs`; those of the home.
    pub(super) async fn start_job<S: Serialize + Send>(self: &Arc<Self>, order: JobOrder<S>) -> Result<JobView> {
        let spec = text(&order.spec)?;
        let id = self.job_id(order.kind, &order.subject);
        if let Some(there) = self.jobs.book.newest(id).await? {
            return Ok(JobView::of(&there.record));
        }
        self.refuse_second(&order.subject, id).await?;
        let now = self.clock.now_ms();
        let record = JobRecord {
            id,
            nonce: self.clock.nonce(),
            written_ms: now,
            kind: order.kind.to_owned(),
            subject: order.subject.clone(),
            by: context::by(),
            spec,
            state: JobState::Queued,
            done: 0,
            total: order.total,
            unit: order.unit,
            note: String::new(),
            cursor: String::new(),
            runner: Some(self.runner()),
            attempts: 0,
            cancel: false,
            created_ms: now,
            started_ms: None,
            ended_ms: None,
            error: None,
            result: String::new(),
        };
        if let Put::Theirs(theirs) = self.jobs.book.put(1, &record).await? {
            return Ok(JobView::of(&theirs));
        }
        // Looked at again: of two that were asked for at once, at least one sees the other.
        if let Err(error) = self.refuse_second(&order.subject, id).await {
            self.jobs.book.remove(id).await?;
            return Err(error);
        }
        let view = JobView::of(&record);
        self.tell_job(&record);
        self.begin_job(Numbered { number: 1, record });
        Ok(view)
    }

    /// Waits until a job that was begun here has ended.
    ///
    /// # Errors
    /// Why it failed; `Conflict` with code `job-ended` when it was ended elsewhere.
    pub(super) async fn see_through(&self, job: &JobView) -> Result<()> {
        const LOOK_AGAIN: Duration = Duration::from_millis(5);
        let id: JobId = job.id.parse()?;
        let live = self.jobs.live(id);
        while live.is_some() && self.jobs.live(id).is_some() {
            self.clock.sleep(LOOK_AGAIN).await;
        }
        if let Some(error) = live.and_then(|live| live.failure.lock().take()) {
            return Err(error);
        }
        match self.jobs.book.newest(id).await? {
            Some(ended) if ended.record.state != JobState::Done => {
                let why = ended.record.error.map_or_else(|| "it was cancelled".to_owned(), |error| error.message);
                Err(Error::conflict("job-ended", why).on(job.subject.clone()).hint(format!("clonegate jobs show {id}")))
            }
            _ => Ok(()),
        }
    }

    /// The job that this request made when it was sent before, if it has an `Idempotency-Key` and did.
    pub(super) async fn job_of_request(&self, kind: &str, subject: &str) -> Result<Option<Started>> {
        if context::current().is_none_or(|request| request.key.is_none()) {
            return Ok(None);
        }
        let there = self.jobs.book.newest(self.job_id(kind, subject)).await?;
        Ok(there.map(|job| Started::Job(Box::new(JobView::of(&job.record)))))
    }

    /// The same request with the same key gives the same id, on every gateway and after every restart.
    fn job_id(&self, kind: &str, subject: &str) -> JobId {
        let Some(key) = context::current().and_then(|request| request.key.clone()) else { return self.clock.id() };
        let mut hash = blake3::Hasher::new();
        for part in ["clonegate job", &key, kind, subject] {
            hash.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash.finalize().as_bytes()[..16]);
        JobId::from_bytes(bytes)
    }

    async fn refuse_second(&self, subject: &str, own: JobId) -> Result<()> {
        let all = self.jobs.book.list().await?;
        let under_way = |job: &&Numbered| !job.record.state.is_over() && job.record.id != own;
        if let Some(other) = all.iter().filter(under_way).find(|job| job.record.subject == subject) {
            let what = format!("the job {} ({}) is at work on it", other.record.id, other.record.kind);
            return Err(Error::conflict("job-running", what)
                .on(subject)
                .hint("wait for it: clonegate jobs watch; or clonegate jobs cancel"));
        }
        if all.iter().filter(under_way).count() >= JOBS_KEPT_MAX {
            return Err(Error::exhausted("too-many-jobs", format!("{JOBS_KEPT_MAX} jobs are under way"))
                .hint("wait for some of them, or cancel them"));
        }
        Ok(())
    }

    /// Tells those who listen to events how a job stands.
    fn tell_job(&self, record: &JobRecord) {
        let view = JobView::of(record);
        let data = serde_json::json!({
            "id": view.id, "kind": view.kind, "state": view.state, "done": view.done, "total": view.total, "unit": view.unit,
            "note": view.note, "error": view.error,
        });
        self.events.tell(EventKind::Job, &record.subject, data);
    }

    fn runner(&self) -> Runner {
        Runner { gateway: self.settings.gateway, run: self.jobs.run, host: self.settings.host.clone() }
    }

    /// This life of this gateway, as the notes of images say it.
    pub(super) fn maker(&self) -> Maker {
        Maker { gateway: self.settings.gateway, run: self.jobs.run }
    }

    /// Does a job whose newest state names this process as its runner.
    fn begin_job(self: &Arc<Self>, state: Numbered) {
        let live = Live::new(&state.record);
        if self.jobs.live.lock().insert(live.id, Arc::clone(&live)).is_some() {
            return;
        }
        let run = JobRun::new(state, self.jobs.run, live, Arc::clone(&self.jobs.book), self.clock.clone());
        let gateway = Arc::clone(self);
        self.handle.spawn(async move {
            let heart = gateway.handle.spawn(beat(Arc::clone(&run), Arc::clone(&gateway)));
            let turn = Arc::clone(&gateway.jobs.turns);
            let ended = gateway.do_job(&run, turn).await;
            run.live.failure.lock().clone_from(&ended.as_ref().err().cloned());
            heart.abort();
            // The put of a heartbeat that was cut is settled by its nonce: the next number is tried again.
            let _ = heart.await;
            if let Err(error) = gateway.end_job(&run, ended).await {
                tracing::warn!(job = %run.id(), %error, "how a job ended could not be written; it is gone on with later");
            }
            gateway.jobs.live.lock().remove(&run.id());
        });
    }

    /// Does the work, and again when a store did not answer.
    async fn do_job(self: &Arc<Self>, run: &Arc<JobRun>, turns: Arc<Semaphore>) -> Result<serde_json::Value> {
        let short = kinds::SHORT.contains(&run.now().await.kind.as_str());
        let _turn = loop {
            run.check()?;
            if short {
                break None;
            }
            if let Ok(turn) = tokio::time::timeout(Duration::from_secs(1), Arc::clone(&turns).acquire_owned()).await {
                break turn.ok();
            }
        };
        let now = self.clock.now_ms();
        let record = run
            .write(|record| {
                record.state = JobState::Running;
                record.started_ms.get_or_insert(now);
                record.attempts += 1;
            })
            .await?;
        self.tell_job(&record);
        run.check()?;
        if record.attempts > ATTEMPTS_MAX {
            return Err(Error::internal(
                "too-many-attempts",
                format!("it was begun {ATTEMPTS_MAX} times and never ended"),
            )
            .on(run.id().to_string()));
        }
        let work = self.jobs.works.lock().get(record.kind.as_str()).copied();
        let work = work.ok_or_else(|| {
            Error::unsupported("foreign-job", format!("this version does no jobs of the kind {:?}", record.kind))
        })?;
        let (mut tries, mut done) = (0, run.live.done());
        loop {
            // A task of its own, so that a bug in it ends the job and not its record.
            let task = self.handle.spawn(waiting::within(
                Arc::clone(&run.live.waits),
                context::within(
                    context::Request::new(record.by.clone(), None),
                    work(Arc::clone(self), Arc::clone(run)),
                ),
            ));
            let ended =
                task.await.unwrap_or_else(|e| Err(Error::internal("job-died", format!("the work was cut short: {e}"))));
            match ended {
                // A store that does not answer now answers later, most of the time.
                Err(error) if error.kind() == ErrorKind::Unavailable && tries < TRIES && !run.live.is_stopping() => {
                    tries = if run.live.done() > done { 0 } else { tries + 1 };
                    done = run.live.done();
                    run.note(format!("tried again: {}", error.message()));
                    self.clock.sleep(TRY_AGAIN).await;
                }
                ended => return ended,
            }
        }
    }

    async fn end_job(self: &Arc<Self>, run: &Arc<JobRun>, ended: Result<serde_json::Value>) -> Result<()> {
        let live = &run.live;
        if live.is_lost() {
            return Ok(());
        }
        let mut tries = 0;
        loop {
            let written = match &ended {
                Ok(value) => match text(value) {
                    Ok(result) => run.end(JobState::Done, None, &result).await,
                    Err(error) => run.end(JobState::Failed, Some(&error), "").await,
                },
                Err(_) if live.is_cancelled() => run.end(JobState::Cancelled, None, "").await,
                Err(_) if live.is_stopping() => {
                    // Whoever looks next goes on at once.
                    let release = |record: &mut JobRecord| {
                        record.state = JobState::Queued;
                        record.runner = None;
                    };
                    run.write(release).await
                }
                Err(error) => run.end(JobState::Failed, Some(error), "").await,
            };
            match written {
                Err(error) if error.kind() == ErrorKind::Unavailable && tries < TRIES && !live.is_stopping() => {
                    tries += 1;
                    self.clock.sleep(TRY_AGAIN).await;
                }
                Err(_) if live.is_lost() => return Ok(()),
                Ok(record) => {
                    self.tell_job(&record);
                    let state = record.state;
                    tracing::info!(job = %run.id(), kind = %record.kind, subject = %record.subject, ?state, "a job ended");
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Says that the runner lives, and how far it is.
async fn beat(run: Arc<JobRun>, gateway: Arc<Gateway>) {
    let mut beats = 0_u32;
    loop {
        // Those who listen are told more often than it is written.
        tokio::select! {
            () = gateway.clock.sleep(HEARTBEAT / TELLS) => {}
            () = run.live.wake.notified() => {}
        }
        beats += 1;
        gateway.tell_job(&run.now().await);
        if !beats.is_multiple_of(TELLS) && !run.is_to_end() {
            continue;
        }
        match run.write(|_| {}).await {
            Ok(_) => {}
            Err(error) if run.live.is_lost() => {
                tracing::warn!(job = %run.id(), %error, "a job was taken over");
                return;
            }
            Err(error) => tracing::debug!(job = %run.id(), %error, "a heartbeat was not written"),
        }
    }
}

#[cfg(test)]
mod tests;
