//! `clonegate audit …`

use clap::Subcommand;

use super::Session;
use super::failure::Failure;
use super::output::{self, Form};
use crate::lifecycle::views::{AuditView, Page};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Show who did what to which object, with what result, and why policy decided; the newest first
    #[command(
        after_help = "Examples:\n  clonegate audit list --object desk-001\n  clonegate audit list --action 'clone reset' --limit 1000 --output json"
    )]
    List {
        /// Most entries
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        limit: u32,
        /// Only what was done to this
        #[arg(long)]
        object: Option<String>,
        /// Only this action, as 'clone reset'
        #[arg(long)]
        action: Option<String>,
    },
}

/// Entries asked for at a time.
const PAGE: usize = 1000;

pub(super) async fn run(verb: Verb, session: &Session) -> Result<(), Failure> {
    let client = session.client()?;
    let Verb::List { limit, object, action } = verb;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut picked: Vec<(&str, String)> = Vec::new();
    picked.extend(object.map(|object| ("object", object)));
    picked.extend(action.map(|action| ("action", action)));
    let mut all: Vec<AuditView> = Vec::new();
    let mut cursor: Option<String> = None;
    while all.len() < limit {
        let mut query = picked.clone();
        query.push(("limit", (limit - all.len()).min(PAGE).to_string()));
        query.extend(cursor.take().map(|cursor| ("cursor", cursor)));
        let page: Page<AuditView> = client.get_of("audit", &query).await?;
        all.extend(page.items);
        match page.next {
            Some(next) => cursor = Some(next),
            None => break,
        }
    }
    if session.form == Form::Json {
        output::json(&all);
        return Ok(());
    }
    let row = |entry: &AuditView| {
        let why = match (&entry.reason, &entry.policy) {
            (Some(reason), Some(policy)) => format!("{reason} ({policy})"),
            (Some(reason), None) => reason.clone(),
            (None, _) => "-".to_owned(),
        };
        vec![
            output::time(entry.at_ms),
            entry.by.clone(),
            entry.action.clone(),
            entry.object.clone(),
            entry.outcome.clone(),
            why,
        ]
    };
    output::table(&["WHEN", "WHO", "WHAT", "OBJECT", "RESULT", "WHY"], &all.iter().map(row).collect::<Vec<_>>());
    Ok(())
}
