//! What goes on with jobs by itself: those whose gateway died are gone on with, those that are long over are taken away.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use clonegate_core::Result;
use clonegate_core::format::job::{JobRecord, JobState};
use clonegate_core::ids::{CloneId, JobId};
use clonegate_core::limits::{JOB_KEPT_MS, JOBS_KEPT_MAX};
use serde::Deserialize;
use tokio::time::Instant;

use super::book::{Numbered, Put};
use super::{Gateway, STALE};

/// When this gateway first saw the number that each job has, by its own clock.
pub(super) type Seen = HashMap<JobId, (u64, Instant)>;

impl Gateway {
    /// Goes on with the jobs of this gateway's last life, and with those that nobody has.
    pub(in crate::lifecycle) async fn resume_jobs(self: &Arc<Self>) {
        if let Err(error) = self.look_at_jobs(true).await {
            tracing::warn!(%error, "jobs that were cut short could not be looked at");
        }
        self.adopt_rollouts(true).await;
    }

    /// One round of looking at all jobs.
    pub(in crate::lifecycle) async fn tend_jobs(self: Arc<Self>) {
        if let Err(error) = self.look_at_jobs(false).await {
            tracing::debug!(%error, "jobs could not be looked at");
        }
        self.adopt_rollouts(false).await;
    }

    async fn look_at_jobs(self: &Arc<Self>, at_start: bool) -> Result<()> {
        let all = self.jobs.book.list().await?;
        let now = self.clock.instant();
        for job in &all {
            if job.record.state.is_over() || self.jobs.live(job.record.id).is_some() {
                continue;
            }
            if !self.jobs.works.lock().contains_key(job.record.kind.as_str()) {
                continue;
            }
            let stood_still = {
                let mut seen = self.jobs.seen.lock();
                let entry = seen.entry(job.record.id).or_insert((job.number, now));
                if entry.0 != job.number {
                    *entry = (job.number, now);
                }
                now.duration_since(entry.1)
            };
            let ours = job.record.runner.as_ref().is_some_and(|runner| runner.gateway == self.settings.gateway);
            let free = job.record.runner.is_none();
            if free || (ours && at_start) || stood_still >= STALE {
                self.take_over(job).await?;
            }
        }
        self.jobs.seen.lock().retain(|id, _| all.iter().any(|job| job.record.id == *id));
        if !at_start {
            self.forget_jobs(&all).await?;
        }
        Ok(())
    }

    /// Claims a job by putting its next state; whoever puts it has the job.
    async fn take_over(self: &Arc<Self>, job: &Numbered) -> Result<()> {
        let record = JobRecord {
            nonce: self.clock.nonce(),
            written_ms: self.clock.now_ms(),
            state: JobState::Queued,
            runner: Some(self.runner()),
            ..job.record.clone()
        };
        let number = job.number + 1;
        if let Put::Ours = self.jobs.book.put(number, &record).await? {
            tracing::info!(job = %record.id, kind = %record.kind, subject = %record.subject, "going on with a job");
            self.begin_job(Numbered { number, record });
        }
        Ok(())
    }

    /// The volumes that jobs under way are making or moving: their objects have no name yet, and an owner all the same.
    pub(in crate::lifecycle) async fn job_volumes(&self) -> Result<HashSet<CloneId>> {
        #[derive(Deserialize)]
        struct Names {
            volume: Option<CloneId>,
        }
        let mut volumes = HashSet::new();
        for job in self.jobs.book.list().await? {
            if job.record.state.is_over() {
                continue;
            }
            for text in [&job.record.spec, &job.record.cursor] {
                volumes.extend(serde_json::from_str::<Names>(text).ok().and_then(|names| names.volume));
            }
        }
        Ok(volumes)
    }

    /// Takes away what is over for longer than jobs are kept, and the oldest of those that are too many.
    async fn forget_jobs(&self, all: &[Numbered]) -> Result<()> {
        let now = self.clock.now_ms();
        let mut over: Vec<&Numbered> = all.iter().filter(|job| job.record.state.is_over()).collect();
        over.sort_by_key(|job| job.record.ended_ms);
        let surplus = all.len().saturating_sub(JOBS_KEPT_MAX);
        for (at, job) in over.iter().enumerate() {
            let ended = job.record.ended_ms.unwrap_or(job.record.written_ms);
            if at < surplus || ended.saturating_add(JOB_KEPT_MS) < now {
                self.jobs.book.remove(job.record.id).await?;
            }
        }
        for id in self.jobs.book.leftovers().await? {
            self.jobs.book.remove(id).await?;
        }
        Ok(())
    }
}
