//! `clonegate plugin …`: what authors do with a component on their own machine, and what operators do with a gateway.

mod local;
mod remote;
mod show;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::Session;
use super::failure::Failure;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Write a new plugin: a crate that builds, tests itself and does something, with the SDK in it
    #[command(after_help = "Example:\n  clonegate plugin new least-full")]
    New {
        /// Name of the plugin and of its directory
        name: String,
        /// The SDK of a checkout of clonegate, in place of the one that comes with this program
        #[arg(long, value_name = "DIR")]
        sdk: Option<PathBuf>,
    },
    /// Make a component of a core module
    #[command(
        after_help = "Example:\n  clonegate plugin pack target/wasm32-unknown-unknown/release/least_full.wasm --out least-full.wasm"
    )]
    Pack {
        /// The core module, built for wasm32-unknown-unknown
        core: PathBuf,
        /// Where the component goes; beside the core module as NAME.component.wasm if not said
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Check a component as the gateway does before it installs one
    #[command(after_help = "Example:\n  clonegate plugin check least-full.wasm --settings settings.json")]
    Check {
        #[command(flatten)]
        plugin: Component,
    },
    /// Ask a component one question, with the limits of production
    #[command(after_help = "Example:\n  clonegate plugin run least-full.wasm --input question.json")]
    Run {
        #[command(flatten)]
        plugin: Component,
        /// A question, or a recorded decision
        #[arg(long, value_name = "FILE")]
        input: PathBuf,
    },
    /// Measure a component on one question, beside the built-in rule
    #[command(
        after_help = "Examples:\n  clonegate plugin bench least-full.wasm\n  clonegate plugin bench least-full.wasm --input question.json --runs 5000"
    )]
    Bench {
        #[command(flatten)]
        plugin: Component,
        /// A question, or a recorded decision; made up if not said
        #[arg(long, value_name = "FILE")]
        input: Option<PathBuf>,
        /// Datastores of the question that is made up
        #[arg(long, default_value_t = 20, conflicts_with = "input")]
        datastores: u32,
        /// Bases of the question that is made up
        #[arg(long, default_value_t = 100, conflicts_with = "input")]
        bases: u32,
        /// Calls to time
        #[arg(long, default_value_t = 1000)]
        runs: usize,
    },
    /// Ask a component what was decided before, and show what it would have changed; exit 1 on a difference
    #[command(
        after_help = "Examples:\n  clonegate plugin replay least-full.wasm --since 1d\n  clonegate plugin replay least-full.wasm --records /var/lib/clonegate/decisions --verify"
    )]
    Replay {
        #[command(flatten)]
        plugin: Component,
        /// Recorded decisions: a file or a directory; from the gateway if not said
        #[arg(long, value_name = "PATH")]
        records: Option<PathBuf>,
        /// Decisions of so long
        #[arg(long, value_name = "TIME")]
        since: Option<humantime::Duration>,
        /// The name it is, or was, installed under; its own if not said
        #[arg(long)]
        name: Option<String>,
        /// Ask only decisions of this very component, which must come out exactly the same
        #[arg(long)]
        verify: bool,
    },
    /// Install a component; the one before stays at work when anything fails
    #[command(after_help = "Example:\n  clonegate plugin install least-full.wasm --accept-differences")]
    Install {
        /// The component
        file: PathBuf,
        /// The name in chains; its own if not said
        #[arg(long)]
        name: Option<String>,
        /// Take a version that answers recorded questions otherwise than the one before
        #[arg(long)]
        accept_differences: bool,
        /// Do everything but the exchange
        #[arg(long)]
        dry_run: bool,
    },
    /// List plugins with their places and counts
    #[command(after_help = "Example:\n  clonegate plugin list")]
    List,
    /// Show one plugin: what it is, its settings, its places in chains with their limits and counts
    #[command(after_help = "Example:\n  clonegate plugin show default")]
    Show {
        /// Its name
        name: String,
    },
    /// Bring the version before back
    #[command(after_help = "Example:\n  clonegate plugin rollback least-full")]
    Rollback {
        /// Its name
        name: String,
        /// Only say which version it would be
        #[arg(long)]
        dry_run: bool,
    },
    /// Remove an installed plugin
    #[command(after_help = "Example:\n  clonegate plugin remove least-full")]
    Remove {
        /// Its name
        name: String,
        /// Only say whether it can be removed
        #[arg(long)]
        dry_run: bool,
    },
    /// Write recorded decisions as JSON lines to standard output
    #[command(after_help = "Example:\n  clonegate plugin decisions --since 1d > tests/records.jsonl")]
    Decisions {
        /// placement, rollover or reset
        #[arg(long)]
        slot: Option<String>,
        /// Decisions of so long
        #[arg(long, value_name = "TIME")]
        since: Option<humantime::Duration>,
        /// The newest so many
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
}

/// A component and its settings.
#[derive(Debug, Args)]
pub(super) struct Component {
    /// The component
    file: PathBuf,
    /// Its settings, a JSON file
    #[arg(long, value_name = "FILE")]
    settings: Option<PathBuf>,
}

pub(super) async fn run(verb: Verb, session: &Session) -> Result<(), Failure> {
    match verb {
        Verb::New { name, sdk } => local::new(&name, sdk.as_deref()),
        Verb::Pack { core, out } => local::pack(&core, out),
        Verb::Check { plugin } => local::check(&plugin, session.form),
        Verb::Run { plugin, input } => local::run(&plugin, &input, session.form),
        Verb::Bench { plugin, input, datastores, bases, runs } => {
            local::bench(&plugin, input.as_deref(), (datastores, bases), runs, session.form)
        }
        Verb::Replay { plugin, records, since, name, verify } => {
            let wanted = local::Wanted { since: since.map(Into::into), name, verify };
            match records {
                Some(path) => local::replay(&plugin, &path, &wanted, session.form),
                None => {
                    let file = remote::recorded(session, wanted.since).await?;
                    local::replay(&plugin, file.path(), &wanted, session.form)
                }
            }
        }
        Verb::Install { file, name, accept_differences, dry_run } => {
            remote::install(&file, name, accept_differences, dry_run, session).await
        }
        Verb::List => remote::list(session).await,
        Verb::Show { name } => show::show(&name, session).await,
        Verb::Rollback { name, dry_run } => remote::rollback(&name, dry_run, session).await,
        Verb::Remove { name, dry_run } => remote::remove(&name, dry_run, session).await,
        Verb::Decisions { slot, since, limit } => remote::decisions(slot, since.map(Into::into), limit, session).await,
    }
}
