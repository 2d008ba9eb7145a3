//! `clonegate jobs …`, and how commands follow the jobs that they start.

use std::io::IsTerminal;
use std::time::Duration;

use clap::{Args, Subcommand};
use clonegate_core::{Error, ErrorKind};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::client::Client;
use super::failure::Failure;
use super::output::{self, Form};
use super::{DryRun, Session, touched};
use crate::clock::Clock;
use crate::lifecycle::views::{JobStateView, JobUnitView, JobView, Touched};

/// How often a job that is followed is asked for.
const ASK: Duration = Duration::from_millis(300);
/// How long a command follows a job that waits for room in a store.
const WAITS_MOST: Duration = Duration::from_secs(20);

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Show jobs, the newest first
    #[command(after_help = "Examples:\n  clonegate jobs list --under-way\n  clonegate jobs list --subject desk-001")]
    List {
        /// Only those that are not over
        #[arg(long)]
        under_way: bool,
        /// Only those of this clone, base or template
        #[arg(long)]
        subject: Option<String>,
    },
    /// Show one job
    #[command(after_help = "Example:\n  clonegate jobs show j_0123456789abcdefghjkmnpqrs")]
    Show {
        /// Its id
        job: String,
    },
    /// End a job at the next point where that does no harm; nothing half done stays
    #[command(after_help = "Example:\n  clonegate jobs cancel j_0123456789abcdefghjkmnpqrs --dry-run")]
    Cancel {
        /// Ids
        #[arg(required = true)]
        jobs: Vec<String>,
        #[command(flatten)]
        dry_run: DryRun,
    },
    /// Follow a job to its end, with a progress bar on a terminal; the exit code is that of the job
    #[command(after_help = "Example:\n  clonegate jobs watch j_0123456789abcdefghjkmnpqrs")]
    Watch {
        /// Its id
        job: String,
    },
}

/// `--detach` of whatever starts a job.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct Detach {
    /// Print the job and return; it goes on by itself
    #[arg(long)]
    pub(super) detach: bool,
}

pub(super) async fn run(verb: Verb, session: &Session) -> Result<(), Failure> {
    let client = session.client()?;
    match verb {
        Verb::List { under_way, subject } => {
            let mut query = Vec::new();
            query.extend(under_way.then(|| ("under_way", "true".to_owned())));
            query.extend(subject.map(|subject| ("subject", subject)));
            let jobs: Vec<JobView> = client.list_of("jobs", &query).await?;
            if session.form == Form::Json {
                output::json(&jobs);
            } else {
                let headers = ["ID", "KIND", "SUBJECT", "STATE", "DONE", "HOST", "ASKED FOR"];
                output::table(&headers, &jobs.iter().map(row).collect::<Vec<_>>());
            }
            Ok(())
        }
        Verb::Show { job } => {
            let job: JobView = client.get(&path(&job, session)).await?;
            show(&job, session);
            Ok(())
        }
        Verb::Cancel { jobs, dry_run } => {
            for job in jobs {
                let path = format!("{}/cancel", path(&job, session));
                let done: Touched = client.post(&path, &dry_run.query(), &serde_json::json!({})).await?;
                if done.names.is_empty() && session.form == Form::Table {
                    output::line(&format!("{job}: {}", done.notes.join("; ")));
                } else {
                    touched("cancelled", &done, session);
                }
            }
            Ok(())
        }
        Verb::Watch { job } => {
            let job: JobView = client.get(&path(&job, session)).await?;
            let job = follow(job, Detach { detach: false }, session).await;
            if let Ok(job) = &job {
                show(job, session);
            }
            job.map(drop)
        }
    }
}

fn path(job: &str, session: &Session) -> String {
    format!("jobs/{}", session.segment(job))
}

/// Follows a job that a command has started, unless it was told not to.
///
/// # Errors
/// The failure of the job.
pub(super) async fn follow(job: JobView, detach: Detach, session: &Session) -> Result<JobView, Failure> {
    if detach.detach {
        return Ok(job);
    }
    let job = watch(&session.client()?, job, session).await?;
    if let Some(waits) = job.waits.as_ref().filter(|_| !job.state.is_over()) {
        // It goes on; whoever asked for it has to know now.
        let hint =
            format!("it goes on when there is room: clonegate jobs watch {0}; or clonegate jobs cancel {0}", job.id);
        return Err(Error::exhausted("store-full", waits.clone()).on(job.subject.as_str()).hint(hint).into());
    }
    ended(&job)?;
    Ok(job)
}

/// Asks for a job until it is over, or waits for room for too long, and shows how far it is.
async fn watch(client: &Client, mut job: JobView, session: &Session) -> Result<JobView, Failure> {
    let bar = Bar::new(session.form);
    let clock = Clock::system();
    let path = path(&job.id, session);
    let mut failures = 0;
    let mut free = clock.instant();
    loop {
        bar.show(&job);
        if job.waits.is_none() {
            free = clock.instant();
        }
        if job.state.is_over() || free.elapsed() >= WAITS_MOST {
            bar.finish();
            return Ok(job);
        }
        clock.sleep(ASK).await;
        match client.get(&path).await {
            Ok(now) => {
                job = now;
                failures = 0;
            }
            // A gateway that is started again goes on with its jobs.
            Err(failure) if failure.exit == ErrorKind::Unavailable.exit_code() && failures < 100 => failures += 1,
            Err(failure) => return Err(failure),
        }
    }
}

/// The failure of a job that failed.
fn ended(job: &JobView) -> Result<(), Failure> {
    if job.state == JobStateView::Cancelled {
        let text = format!("{}: the job was cancelled", job.subject);
        return Err(Failure { exit: ErrorKind::Conflict.exit_code(), code: "job-cancelled".to_owned(), text });
    }
    match &job.error {
        None => Ok(()),
        Some(error) => Err(Failure::told(
            &error.kind,
            error.code.clone(),
            &error.detail,
            error.object.as_deref(),
            error.hint.as_deref(),
        )),
    }
}

fn done(job: &JobView) -> String {
    let count = |n: u64| match job.unit {
        JobUnitView::Bytes => output::size(n),
        JobUnitView::Clones | JobUnitView::Objects | JobUnitView::Steps => n.to_string(),
    };
    match job.total {
        Some(total) => format!("{} of {}", count(job.done), count(total)),
        None => count(job.done),
    }
}

fn row(job: &JobView) -> Vec<String> {
    vec![
        job.id.clone(),
        job.kind.clone(),
        job.subject.clone(),
        if job.cancelling { "cancelling" } else { job.state.word() }.to_owned(),
        done(job),
        output::or_dash(job.host.clone()),
        output::time(job.created_ms),
    ]
}

/// Prints one job.
pub(super) fn show(job: &JobView, session: &Session) {
    if session.form == Form::Json {
        output::json(job);
        return;
    }
    let mut facts = vec![
        ("id", job.id.clone()),
        ("kind", job.kind.clone()),
        ("subject", job.subject.clone()),
        ("state", if job.cancelling { "cancelling" } else { job.state.word() }.to_owned()),
        ("done", done(job)),
        ("asked for", format!("{} by {}", output::time(job.created_ms), job.by)),
    ];
    if !job.note.is_empty() && !job.state.is_over() {
        facts.push(("now", job.note.clone()));
    }
    facts.extend(job.host.clone().map(|host| ("host", host)));
    facts.extend(job.started_ms.map(|at| ("begun", output::time(at))));
    facts.extend(job.ended_ms.map(|at| ("ended", output::time(at))));
    if job.attempts > 1 {
        facts.push(("attempts", job.attempts.to_string()));
    }
    if let Some(error) = &job.error {
        facts.push(("error", format!("{} ({})", error.detail, error.code)));
    }
    output::facts(&facts);
}

/// A bar on a terminal, a line for each quarter otherwise, nothing beside JSON.
struct Bar {
    bar: Option<ProgressBar>,
    lines: bool,
    said: std::cell::Cell<u64>,
}

impl Bar {
    fn new(form: Form) -> Self {
        let bar = std::io::stderr()
            .is_terminal()
            .then(|| ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(8)));
        Self { lines: form == Form::Table && bar.is_none(), bar, said: std::cell::Cell::new(0) }
    }

    fn show(&self, job: &JobView) {
        if let Some(bar) = &self.bar {
            let numbers = match job.unit {
                JobUnitView::Bytes => "{bytes} of {total_bytes}  {bytes_per_sec}  {eta} left",
                JobUnitView::Clones | JobUnitView::Objects | JobUnitView::Steps => "{pos} of {len}  {eta} left",
            };
            let template = format!("{{bar:30}} {{percent:>3}} %  {numbers}  {{msg}}");
            if let Ok(style) = ProgressStyle::with_template(&template) {
                bar.set_style(style);
            }
            if let Some(total) = job.total {
                bar.set_length(total);
            }
            bar.set_position(job.done);
            bar.set_message(if job.note.is_empty() { job.state.word().to_owned() } else { job.note.clone() });
        } else if let (true, Some(total)) = (self.lines, job.total.filter(|total| *total > 0)) {
            let quarter = job.done.saturating_mul(4) / total;
            if quarter > self.said.get() {
                self.said.set(quarter);
                output::aside(&format!(
                    "  {} % of {}",
                    quarter * 25,
                    done(job).split(" of ").last().unwrap_or_default()
                ));
            }
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
