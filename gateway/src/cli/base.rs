//! `clonegate base …`

use clap::Subcommand;

use super::failure::Failure;
use super::output::{self, Form};
use super::{DryRun, Session, touched};
use crate::lifecycle::views::{BaseView, Touched};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Show all bases and how full they are
    #[command(after_help = "Example:\n  clonegate base list")]
    List,
    /// Show one base
    #[command(after_help = "Example:\n  clonegate base show b_0123456789abcdefghjkmnpqrs")]
    Show {
        /// Its id
        id: String,
    },
    /// Fetch a base into the gateway's iCache before machines ask
    #[command(
        after_help = "Examples:\n  clonegate base warm b_0123456789abcdefghjkmnpqrs\n  clonegate base warm b_0123456789abcdefghjkmnpqrs --whole --dry-run"
    )]
    Warm {
        /// Its id
        id: String,
        #[command(flatten)]
        how: super::cache::How,
    },
    /// Let a base take no more clones; it goes when its last clone goes
    #[command(after_help = "Example:\n  clonegate base retire b_0123456789abcdefghjkmnpqrs --dry-run")]
    Retire {
        /// Its id
        id: String,
        #[command(flatten)]
        dry_run: DryRun,
    },
}

pub(super) async fn run(verb: Verb, session: &Session) -> Result<(), Failure> {
    let client = session.client()?;
    match verb {
        Verb::List => {
            let all: Vec<BaseView> = client.list("bases").await?;
            if session.form == Form::Json {
                output::json(&all);
            } else {
                let headers = ["ID", "TEMPLATE", "DATASTORE", "STATE", "TAKEN", "SIZE", "KIND"];
                output::table(&headers, &all.iter().map(row).collect::<Vec<_>>());
            }
        }
        Verb::Show { id } => {
            let base: BaseView = client.get(&format!("bases/{}", session.segment(&id))).await?;
            if session.form == Form::Json {
                output::json(&base);
            } else {
                output::facts(&[
                    ("id", base.id.clone()),
                    ("template", format!("{}:{}", base.template, base.version)),
                    ("datastore", base.datastore.clone()),
                    ("state", base.state.clone()),
                    ("taken", format!("{} of {} slots", base.taken, base.slots)),
                    ("size", output::size(base.size)),
                    ("kind", base.kind.clone()),
                    ("made", output::time(base.created_ms)),
                ]);
            }
        }
        Verb::Warm { id, how } => return super::cache::warm(Vec::new(), vec![id], how, session).await,
        Verb::Retire { id, dry_run } => {
            let path = format!("bases/{}/retire", session.segment(&id));
            let done: Touched = client.post(&path, &dry_run.query(), &serde_json::json!({})).await?;
            touched("retired", &done, session);
        }
    }
    Ok(())
}

fn row(base: &BaseView) -> Vec<String> {
    vec![
        base.id.clone(),
        format!("{}:{}", base.template, base.version),
        base.datastore.clone(),
        base.state.clone(),
        format!("{}/{}", base.taken, base.slots),
        output::size(base.size),
        base.kind.clone(),
    ]
}
