//! `clonegate full-clone …`

use clap::{Args, Subcommand};

use super::failure::Failure;
use super::jobs::{self, Detach};
use super::output::{self, Form};
use super::{DryRun, Session, labels, touched};
use crate::lifecycle::views::{CloneView, CreateFullClone, JobView, Touched};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Make a clone that needs no base: a copy of a template version, with a volume of its own
    #[command(
        after_help = "Examples:\n  clonegate full-clone create db --template debian --durability object\n  clonegate full-clone create db --template debian:2 --datastore big --detach"
    )]
    Create(Create),
    /// Show all full clones; they are shown, attached, exported and deleted as clones are
    #[command(after_help = "Example:\n  clonegate full-clone list")]
    List,
}

#[derive(Debug, Args)]
pub(super) struct Create {
    /// Its name
    name: String,
    /// NAME or NAME:VERSION; NAME alone takes the published version
    #[arg(long)]
    template: String,
    /// The datastore; that of the template version otherwise
    #[arg(long)]
    datastore: Option<String>,
    /// What a flush promises: local or object
    #[arg(long, value_enum)]
    durability: Option<super::clone::Durability>,
    /// KEY=VALUE for policies; may be given again
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    #[command(flatten)]
    dry_run: DryRun,
    #[command(flatten)]
    detach: Detach,
}

pub(super) async fn run(verb: Verb, session: &Session) -> Result<(), Failure> {
    match verb {
        Verb::List => {
            let clones: Vec<CloneView> = session.client()?.list("full-clones").await?;
            super::clone_view::show_list(&clones, session);
            Ok(())
        }
        Verb::Create(create) => {
            let (template, version) = super::template_and_version(&create.template)?;
            let request = CreateFullClone {
                name: create.name,
                template,
                version,
                datastore: create.datastore,
                durability: create.durability.map(Into::into),
                labels: labels(&create.labels)?,
            };
            let body = serde_json::to_value(&request).unwrap_or_default();
            start("full-clones", body, "made", create.dry_run, create.detach, session).await
        }
    }
}

/// Asks for long work, and follows it unless it is only to be tried or left alone.
pub(super) async fn start(
    path: &str,
    body: serde_json::Value,
    verb: &str,
    dry_run: DryRun,
    detach: Detach,
    session: &Session,
) -> Result<(), Failure> {
    let client = session.client()?;
    if dry_run.dry_run {
        let would: Touched = client.post(path, &dry_run.query(), &body).await?;
        touched(verb, &would, session);
        return Ok(());
    }
    let job: JobView = client.post(path, &[], &body).await?;
    let job = jobs::follow(job, detach, session).await?;
    if session.form == Form::Json {
        output::json(&job);
    } else if detach.detach {
        output::line(&format!("{}: job {}", job.subject, job.id));
    } else {
        output::line(&format!("{}: {verb}", job.subject));
        let stayed = job.result.as_ref().and_then(|result| result.get("stayed")).and_then(|stayed| stayed.as_array());
        for why in stayed.into_iter().flatten().filter_map(|why| why.as_str()) {
            output::line(&format!("  stayed: {why}"));
        }
    }
    Ok(())
}
