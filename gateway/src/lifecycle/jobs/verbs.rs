//! Jobs as operators see them: list, show, cancel.

use std::sync::Arc;

use clonegate_core::format::job::{JobRecord, JobState};
use clonegate_core::ids::JobId;
use clonegate_core::{Error, Result};

use super::book::{Numbered, Put};
use super::{Gateway, JobView};
use crate::lifecycle::views::{JobErrorView, ListJobs, Page, Touched};

/// Items of a page when nobody says.
const PAGE_USUAL: usize = 100;

impl JobView {
    /// A job for people and programs.
    pub(super) fn of(record: &JobRecord) -> Self {
        Self {
            id: record.id.to_string(),
            kind: record.kind.clone(),
            subject: record.subject.clone(),
            by: record.by.clone(),
            state: record.state.into(),
            done: record.done,
            total: record.total,
            unit: record.unit.into(),
            note: record.note.clone(),
            waits: None,
            host: record.runner.as_ref().map(|runner| runner.host.clone()),
            attempts: record.attempts,
            cancelling: record.cancel && !record.state.is_over(),
            created_ms: record.created_ms,
            started_ms: record.started_ms,
            ended_ms: record.ended_ms,
            error: record.error.as_ref().map(|error| JobErrorView {
                kind: error.kind.to_string(),
                code: error.code.clone(),
                detail: error.message.clone(),
                object: error.object.clone(),
                hint: error.hint.clone(),
            }),
            result: serde_json::from_str(&record.result).ok(),
        }
    }
}

impl Gateway {
    fn job_view(&self, job: &Numbered) -> JobView {
        let mut record = job.record.clone();
        let live = self.jobs.live(record.id).filter(|_| !record.state.is_over());
        if let Some(live) = &live {
            live.show(&mut record);
        }
        JobView { waits: live.and_then(|live| live.waits.sentence()), ..JobView::of(&record) }
    }

    /// All jobs, the newest first. The cursor is the id of the last job of the page before.
    pub(in crate::lifecycle) async fn do_list_jobs(self: Arc<Self>, query: ListJobs) -> Result<Page<JobView>> {
        let mut all = self.jobs.book.list().await?;
        all.reverse();
        if let Some(cursor) = &query.list.cursor {
            let cursor: JobId = cursor.parse()?;
            let at = all.iter().position(|job| job.record.id == cursor);
            let at = at.ok_or_else(|| {
                Error::invalid("bad-cursor", "the job that the list was cut at is gone").hint("begin the list anew")
            })?;
            all.drain(..=at);
        }
        let wanted = |job: &Numbered| {
            query.subject.as_ref().is_none_or(|subject| *subject == job.record.subject)
                && (!query.under_way || !job.record.state.is_over())
        };
        all.retain(wanted);
        let limit = query.list.limit.unwrap_or(PAGE_USUAL).max(1);
        let next = (all.len() > limit).then(|| all[limit - 1].record.id.to_string());
        all.truncate(limit);
        Ok(Page { items: all.iter().map(|job| self.job_view(job)).collect(), next })
    }

    pub(in crate::lifecycle) async fn do_show_job(self: Arc<Self>, id: String) -> Result<JobView> {
        let id: JobId = id.parse()?;
        let job = self.jobs.book.newest(id).await?.ok_or_else(|| unknown(id))?;
        Ok(self.job_view(&job))
    }

    /// Wants a job to end. One that nobody does now ends at once; otherwise its gateway ends it at the next point where that does no harm.
    pub(in crate::lifecycle) async fn do_cancel_job(self: Arc<Self>, id: String, dry_run: bool) -> Result<Touched> {
        let id: JobId = id.parse()?;
        loop {
            let job = self.jobs.book.newest(id).await?.ok_or_else(|| unknown(id))?;
            let view = self.job_view(&job);
            let note = match (job.record.state, job.record.runner.as_ref()) {
                (state, _) if state.is_over() => format!("it is over already: {}", view.state.word()),
                (_, None) => "nobody does it now: it ends at once".to_owned(),
                (_, Some(runner)) => format!("{} ends it as soon as that does no harm", runner.host),
            };
            // One that is over is not touched.
            let names = if job.record.state.is_over() { Vec::new() } else { vec![id.to_string()] };
            let touched = Touched { dry_run, names, notes: vec![note], ..Touched::default() };
            if dry_run || job.record.state.is_over() {
                return Ok(touched);
            }
            if let Some(live) = self.jobs.live(id) {
                live.cancel();
                return Ok(touched);
            }
            let mut next = job.record.clone();
            next.nonce = self.clock.nonce();
            next.written_ms = self.clock.now_ms();
            next.cancel = true;
            if next.runner.is_none() {
                next.state = JobState::Cancelled;
                next.ended_ms = Some(next.written_ms);
            }
            if let Put::Ours = self.jobs.book.put(job.number + 1, &next).await? {
                return Ok(touched);
            }
        }
    }
}

fn unknown(id: JobId) -> Error {
    Error::not_found("unknown-job", "there is no such job")
        .on(id.to_string())
        .hint("`clonegate jobs list` shows those that there are; jobs that are over are kept for 14 days")
}
