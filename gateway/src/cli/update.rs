//! `clonegate clone update …` and `clonegate update …`

use std::time::Duration;

use clap::{Args, Subcommand};

use super::failure::Failure;
use super::output::{self, Form};
use super::{DryRun, Session};
use crate::clock::Clock;
use crate::lifecycle::views::{RolloutAction, UpdateClones, UpdatedClones};

/// How often the gateway is asked how far an update is.
const ASK_AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(super) struct Update {
    /// The template, NAME for its published version or NAME:VERSION
    #[arg(long)]
    template: String,
    /// Names or ids; all clones of the template otherwise
    clones: Vec<String>,
    /// So many go first, one by one
    #[arg(long)]
    canary: Option<u32>,
    /// At most so many at once
    #[arg(long)]
    max_unavailable: Option<u32>,
    /// Only note it; each moves when its machine is next switched on
    #[arg(long)]
    at_next_power_on: bool,
    /// Only those of this pool
    #[arg(long)]
    pool: Option<String>,
    /// Go on after the first ones by itself, without clonegate update promote
    #[arg(long)]
    promote: bool,
    #[command(flatten)]
    dry_run: DryRun,
}

impl Update {
    /// The update of a pool's clones.
    pub(super) fn of_pool(
        template: String,
        pool: String,
        canary: Option<u32>,
        max_unavailable: Option<u32>,
        at_next_power_on: bool,
        dry_run: DryRun,
    ) -> Self {
        let (clones, pool) = (Vec::new(), Some(pool));
        Self { template, clones, canary, max_unavailable, at_next_power_on, pool, promote: false, dry_run }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Show how far the newest update of a template's clones is
    #[command(after_help = "Example:\n  clonegate update show win11")]
    Show(Of),
    /// Move no further clone for now
    #[command(after_help = "Example:\n  clonegate update pause win11")]
    Pause(Steer),
    /// Go on: after a pause, a failure, or the end of the gateway that ran it
    #[command(after_help = "Example:\n  clonegate update resume win11")]
    Resume(Steer),
    /// Say that the first ones are good: the others move
    #[command(after_help = "Example:\n  clonegate update promote win11")]
    Promote(Steer),
    /// Move the clones back, with what they held before
    #[command(after_help = "Example:\n  clonegate update rollback win11")]
    Rollback(Steer),
    /// End it where it is
    #[command(after_help = "Example:\n  clonegate update cancel win11")]
    Cancel(Steer),
}

#[derive(Debug, Args)]
pub(super) struct Of {
    /// The template
    template: String,
}

#[derive(Debug, Args)]
pub(super) struct Steer {
    /// The template
    template: String,
    #[command(flatten)]
    dry_run: DryRun,
}

pub(super) async fn run(verb: Verb, session: &Session) -> Result<(), Failure> {
    let (steer, action, done) = match verb {
        Verb::Show(of) => {
            let path = format!("updates/{}", session.segment(&of.template));
            print(&session.client()?.get(&path).await?, session);
            return Ok(());
        }
        Verb::Pause(steer) => (steer, RolloutAction::Pause, "left where they are for now"),
        Verb::Resume(steer) => (steer, RolloutAction::Resume, "moved"),
        Verb::Promote(steer) => (steer, RolloutAction::Promote, "moved"),
        Verb::Rollback(steer) => (steer, RolloutAction::Rollback, "moved back"),
        Verb::Cancel(steer) => (steer, RolloutAction::Cancel, "left where they are"),
    };
    let path = format!("updates/{}", session.segment(&steer.template));
    let body = serde_json::json!({ "action": action });
    if steer.dry_run.tried(&path, &body, done, session).await? {
        return Ok(());
    }
    follow(session.client()?.post(&path, &[], &body).await?, session).await
}

pub(super) async fn start(update: Update, session: &Session) -> Result<(), Failure> {
    let (template, version) = super::template_and_version(&update.template)?;
    let request = UpdateClones {
        template,
        version,
        clones: update.clones,
        pool: update.pool,
        canary: update.canary,
        promote: update.promote,
        max_unavailable: update.max_unavailable,
        at_next_power_on: update.at_next_power_on,
    };
    let begun: UpdatedClones = session.client()?.post("updates", &update.dry_run.query(), &request).await?;
    follow(begun, session).await
}

/// Waits until the update rests, and says how it ended.
async fn follow(mut update: UpdatedClones, session: &Session) -> Result<(), Failure> {
    let (client, clock) = (session.client()?, Clock::system());
    let path = format!("updates/{}", session.segment(&update.template));
    let mut said = String::new();
    while matches!(update.state.as_str(), "running" | "rolling-back") {
        let waits = update.notes.iter().find(|note| note.starts_with("waits ")).map(|note| format!(", {note}"));
        let now = format!("  {} of {} clones{}", update.updated.len(), update.total, waits.unwrap_or_default());
        if session.form == Form::Table && now != said {
            output::aside(&now);
            said = now;
        }
        clock.sleep(ASK_AGAIN).await;
        update = client.get(&path).await?;
    }
    print(&update, session);
    match update.failed.filter(|_| update.state == "stopped") {
        None => Ok(()),
        Some(why) => Err(clonegate_core::Error::conflict("update-stopped", format!("stopped at {why}"))
            .on(update.template.as_str())
            .hint(format!("mend that and go on: clonegate update resume {}", update.template))
            .into()),
    }
}

fn print(update: &UpdatedClones, session: &Session) {
    if session.form == Form::Json {
        output::json(update);
        return;
    }
    let UpdatedClones { template, version, .. } = update;
    let (count, total) = (update.updated.len(), update.total);
    output::line(&match update.state.as_str() {
        "planned" => format!("{count} clones would move to {template}:{version}"),
        "rolled-back" | "rolling-back" => {
            format!("{count} clones are back from {template}:{version} ({})", update.state)
        }
        state => format!("{count} of {total} clones are on {template}:{version} ({state})"),
    });
    if !update.later.is_empty() {
        output::line(&format!("{} move when their machines are off: {}", update.later.len(), update.later.join(", ")));
    }
    if update.sessions > 0 {
        output::line(&format!("{} machines have them open", update.sessions));
    }
    if update.delta_bytes > 0 {
        output::line(&format!("{} of deltas are replaced", output::size(update.delta_bytes)));
    }
    if update.copy_bytes > 0 {
        output::line(&format!("{} are copied to datastores that lack the version", output::size(update.copy_bytes)));
    }
    if update.new_bases > 0 {
        output::line(&format!("{} more bases are needed", update.new_bases));
    }
    for note in &update.notes {
        output::line(note);
    }
    if update.state == "awaits-promotion" {
        output::line(&format!("look at them, then: clonegate update promote {template} (or rollback)"));
    }
}
