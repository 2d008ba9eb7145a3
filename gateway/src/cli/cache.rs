//! `clonegate cache …`

use clap::{Args, Subcommand};

use super::failure::Failure;
use super::jobs::{self, Detach};
use super::output::{self, Form};
use super::{DryRun, Session, touched};
use crate::lifecycle::views::{CacheView, JobView, Touched, WarmCache};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Show what the iCache holds and what it spared
    #[command(after_help = "Example:\n  clonegate cache show")]
    Show,
    /// Fetch into the iCache what machines will ask for when they boot, before they do
    #[command(
        after_help = "Examples:\n  clonegate cache warm\n  clonegate cache warm --template win11 --dry-run\n  clonegate cache warm --template debian --whole"
    )]
    Warm(Warm),
    /// Forget everything cached; costs time only
    #[command(after_help = "Example:\n  clonegate cache drop --dry-run")]
    Drop {
        #[command(flatten)]
        dry_run: DryRun,
    },
}

#[derive(Debug, Args)]
pub(super) struct Warm {
    /// A template, of which the published version is meant; may be given again. All otherwise
    #[arg(long = "template", value_name = "NAME")]
    templates: Vec<String>,
    /// A base; may be given again
    #[arg(long = "base", value_name = "ID")]
    bases: Vec<String>,
    #[command(flatten)]
    how: How,
}

/// How something is warmed.
#[derive(Debug, Args)]
pub(super) struct How {
    /// All that is not zero, instead of what boots touch
    #[arg(long)]
    whole: bool,
    #[command(flatten)]
    dry_run: DryRun,
    #[command(flatten)]
    detach: Detach,
}

/// Asks the gateway to fetch these into its iCache, and follows the job.
pub(super) async fn warm(
    templates: Vec<String>,
    bases: Vec<String>,
    how: How,
    session: &Session,
) -> Result<(), Failure> {
    let client = session.client()?;
    let request = WarmCache { templates, bases, whole: how.whole };
    if how.dry_run.dry_run {
        let would: Touched = client.post("cache/warm", &how.dry_run.query(), &request).await?;
        touched("fetched", &would, session);
        return Ok(());
    }
    let job: JobView = client.post("cache/warm", &[], &request).await?;
    let job = jobs::follow(job, how.detach, session).await?;
    if session.form == Form::Json {
        output::json(&job);
        return Ok(());
    }
    let Some(result) = job.result else {
        output::line(&format!("{}: job {}", job.subject, job.id));
        return Ok(());
    };
    let bytes = output::size(result.get("bytes").and_then(serde_json::Value::as_u64).unwrap_or(0));
    output::line(&format!("{bytes} are in the iCache"));
    let notes = result.get("notes").and_then(serde_json::Value::as_array);
    for note in notes.into_iter().flatten().filter_map(serde_json::Value::as_str) {
        output::line(&format!("  {note}"));
    }
    Ok(())
}

pub(super) async fn run(verb: Verb, session: &Session) -> Result<(), Failure> {
    let client = session.client()?;
    match verb {
        Verb::Show => {
            let cache: CacheView = client.get("cache").await?;
            if session.form == Form::Json {
                output::json(&cache);
            } else {
                output::facts(&[
                    ("capacity", output::size(cache.capacity)),
                    ("used", format!("{} in {} lines", output::size(cache.used), cache.lines)),
                    ("hits", cache.hits.to_string()),
                    ("misses", cache.misses.to_string()),
                    ("joins", cache.joins.to_string()),
                    ("from the store", output::size(cache.store_bytes)),
                    ("spared", output::size(cache.spared_bytes)),
                ]);
            }
        }
        Verb::Warm(Warm { templates, bases, how }) => return warm(templates, bases, how, session).await,
        Verb::Drop { dry_run } if dry_run.dry_run => {
            let would: Touched = client.delete("cache", &dry_run.query()).await?;
            touched("forgotten", &would, session);
        }
        Verb::Drop { .. } => {
            client.send(reqwest::Method::DELETE, "cache", &[], super::client::Body::None).await?;
            output::line("the iCache is empty");
        }
    }
    Ok(())
}
