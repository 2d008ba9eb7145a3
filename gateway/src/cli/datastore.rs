//! `clonegate datastore …`

use bytesize::ByteSize;
use clap::{Args, Subcommand};

use super::failure::Failure;
use super::full_clone;
use super::jobs::Detach;
use super::output::{self, Form};
use super::{DryRun, Session, labels, touched};
use crate::lifecycle::views::{AddDatastore, DatastoreView, Touched};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Add a datastore. Keys of object stores come from each gateway's configuration or environment, never from here
    #[command(
        after_help = "Example:\n  clonegate datastore add fast s3://vdi/fast --endpoint http://127.0.0.1:9000 --capacity 2TiB"
    )]
    Add(Add),
    /// Show all datastores
    #[command(after_help = "Example:\n  clonegate datastore list")]
    List,
    /// Show one datastore
    #[command(after_help = "Example:\n  clonegate datastore show fast")]
    Show {
        /// Its name
        name: String,
    },
    /// Forget a datastore that has no bases and no clones
    #[command(after_help = "Example:\n  clonegate datastore remove old --dry-run")]
    Remove {
        /// Its name
        name: String,
        #[command(flatten)]
        dry_run: DryRun,
    },
    /// Prove again that its store keeps what put-if-absent promises
    #[command(after_help = "Example:\n  clonegate datastore probe fast")]
    Probe {
        /// Its name
        name: String,
    },
    /// Let it take no new clones, or again
    #[command(after_help = "Example:\n  clonegate datastore maintenance fast on")]
    Maintenance {
        /// Its name
        name: String,
        /// on or off
        state: OnOff,
        #[command(flatten)]
        dry_run: DryRun,
    },
    /// Move clones that are switched off to another datastore
    #[command(after_help = "Example:\n  clonegate datastore rebalance fast --to big --clones 20 --dry-run")]
    Rebalance {
        /// Its name
        name: String,
        /// The other datastore
        #[arg(long)]
        to: String,
        /// At most so many; all that can go otherwise
        #[arg(long)]
        clones: Option<u32>,
        #[command(flatten)]
        dry_run: DryRun,
        #[command(flatten)]
        detach: Detach,
    },
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(super) enum OnOff {
    /// No new clones
    On,
    /// New clones again
    Off,
}

#[derive(Debug, Args)]
pub(super) struct Add {
    /// Its name
    name: String,
    /// file:///directory, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix
    url: String,
    /// Where the service is, when it is not the cloud's own
    #[arg(long)]
    endpoint: Option<String>,
    /// Region of the bucket
    #[arg(long)]
    region: Option<String>,
    /// The bucket is part of the path
    #[arg(long)]
    path_style: bool,
    /// One gateway, ever: its store does not honour put-if-absent
    #[arg(long)]
    exclusive: bool,
    /// Bytes that it may hold, as 2TiB
    #[arg(long)]
    capacity: Option<ByteSize>,
    /// Unwritten bytes take space there; it is refused for linked clones
    #[arg(long)]
    thick: bool,
    /// Bytes kept free for deltas that are there already
    #[arg(long, default_value = "0")]
    reserve: ByteSize,
    /// How many times its capacity may be promised, percent
    #[arg(long, default_value_t = 400)]
    overcommit_percent: u32,
    /// KEY=VALUE for policies; may be given again
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    #[command(flatten)]
    dry_run: DryRun,
}

pub(super) async fn run(verb: Verb, session: &Session) -> Result<(), Failure> {
    let client = session.client()?;
    let path = |name: &str| format!("datastores/{}", session.segment(name));
    match verb {
        Verb::Add(add) => {
            let request = AddDatastore {
                name: add.name,
                url: add.url,
                endpoint: add.endpoint,
                region: add.region,
                path_style: add.path_style,
                exclusive: add.exclusive,
                capacity: add.capacity.map(|c| c.as_u64()),
                thin: Some(!add.thick),
                reserve: add.reserve.as_u64(),
                overcommit_percent: add.overcommit_percent,
                labels: labels(&add.labels)?,
            };
            if !add.dry_run.tried("datastores", &request, "added", session).await? {
                show(&client.post("datastores", &[], &request).await?, session);
            }
        }
        Verb::List => {
            let all: Vec<DatastoreView> = client.list("datastores").await?;
            if session.form == Form::Json {
                output::json(&all);
            } else {
                let headers = ["NAME", "HEALTH", "FREE", "CAPACITY", "BASES", "CLONES", "URL"];
                output::table(&headers, &all.iter().map(row).collect::<Vec<_>>());
            }
        }
        Verb::Show { name } => show(&client.get(&path(&name)).await?, session),
        Verb::Remove { name, dry_run } => {
            let done: Touched = client.delete(&path(&name), &dry_run.query()).await?;
            touched("removed", &done, session);
        }
        Verb::Probe { name } => {
            let probed = client.post(&format!("{}/probe", path(&name)), &[], &serde_json::json!({})).await?;
            show(&probed, session);
        }
        Verb::Rebalance { name, to, clones, dry_run, detach } => {
            let body = serde_json::json!({ "to": to, "clones": clones });
            let path = format!("{}/rebalance", path(&name));
            return full_clone::start(&path, body, "rebalanced", dry_run, detach, session).await;
        }
        Verb::Maintenance { name, state, dry_run } => {
            let body = serde_json::json!({ "on": matches!(state, OnOff::On) });
            let path = format!("{}/maintenance", path(&name));
            if !dry_run.tried(&path, &body, "changed", session).await? {
                show(&client.post(&path, &[], &body).await?, session);
            }
        }
    }
    Ok(())
}

fn row(datastore: &DatastoreView) -> Vec<String> {
    vec![
        datastore.name.clone(),
        if datastore.waiting.is_empty() { datastore.health.clone() } else { "full".to_owned() },
        output::or_dash(datastore.free.map(output::size)),
        output::or_dash(datastore.capacity.map(output::size)),
        datastore.bases.to_string(),
        datastore.clones.to_string(),
        datastore.url.clone(),
    ]
}

fn show(datastore: &DatastoreView, session: &Session) {
    if session.form == Form::Json {
        output::json(datastore);
        return;
    }
    let mut facts = vec![
        ("name", datastore.name.clone()),
        ("url", datastore.url.clone()),
        ("health", datastore.health.clone()),
        ("capacity", output::or_dash(datastore.capacity.map(output::size))),
        ("free", output::or_dash(datastore.free.map(output::size))),
        ("reserve", output::size(datastore.reserve)),
        ("promised", promised(datastore)),
        ("thin", if datastore.thin { "yes" } else { "no: refused for linked clones" }.to_owned()),
        ("bases", datastore.bases.to_string()),
        ("clones", datastore.clones.to_string()),
        ("added", output::time(datastore.created_ms)),
    ];
    if let Some(trouble) = &datastore.trouble {
        facts.push(("trouble", trouble.clone()));
    }
    if !datastore.waiting.is_empty() {
        facts.push(("full", format!("these wait for room: {}", datastore.waiting.join(", "))));
    }
    output::facts(&facts);
}

/// What its clones may grow to, beside what may be promised.
fn promised(datastore: &DatastoreView) -> String {
    let promised = output::size(datastore.promised);
    match datastore.capacity {
        Some(capacity) => {
            let most = u128::from(capacity) * u128::from(datastore.overcommit_percent) / 100;
            let most = output::size(u64::try_from(most).unwrap_or(u64::MAX));
            format!("{promised} to its clones, of {most} ({} % of its capacity)", datastore.overcommit_percent)
        }
        None => format!("{promised} to its clones"),
    }
}
