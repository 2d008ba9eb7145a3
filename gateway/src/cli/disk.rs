//! `clonegate disk …`

use bytesize::ByteSize;
use clap::{Args, Subcommand};

use super::clone::Durability;
use super::failure::Failure;
use super::output::{self, Form};
use super::{DryRun, Session, touched};
use crate::lifecycle::views::{CreateDisk, DiskView, Touched};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Make an empty data disk
    #[command(after_help = "Example:\n  clonegate disk create home-anna 20GiB --clone desk-001")]
    Create(Create),
    /// Show all data disks
    #[command(after_help = "Example:\n  clonegate disk list")]
    List,
    /// Show one data disk
    #[command(after_help = "Example:\n  clonegate disk show home-anna")]
    Show {
        /// Its name
        name: String,
    },
    /// Give a disk to a clone
    #[command(after_help = "Example:\n  clonegate disk attach home-anna desk-007")]
    Attach {
        /// The disk
        name: String,
        /// Name or id of the clone
        clone: String,
        #[command(flatten)]
        dry_run: DryRun,
    },
    /// Take a disk from its clone; its bytes stay
    #[command(after_help = "Example:\n  clonegate disk detach home-anna")]
    Detach {
        /// The disk
        name: String,
        #[command(flatten)]
        dry_run: DryRun,
    },
    /// Put a disk away: all of it is in the store, and nobody can open it until it is attached again
    #[command(after_help = "Example:\n  clonegate disk archive home-anna")]
    Archive {
        /// The disk
        name: String,
        #[command(flatten)]
        dry_run: DryRun,
    },
    /// Delete a disk that no clone has
    #[command(after_help = "Example:\n  clonegate disk delete home-anna --dry-run")]
    Delete {
        /// The disk
        name: String,
        #[command(flatten)]
        dry_run: DryRun,
    },
}

#[derive(Debug, Args)]
pub(super) struct Create {
    /// Its name
    name: String,
    /// Its size, as 20GiB
    size: ByteSize,
    /// The clone that gets it
    #[arg(long)]
    clone: Option<String>,
    /// The datastore; the first that is online otherwise
    #[arg(long)]
    datastore: Option<String>,
    /// It goes when its clone is deleted
    #[arg(long)]
    delete_with_clone: bool,
    /// What a flush promises
    #[arg(long, value_enum)]
    durability: Option<Durability>,
    #[command(flatten)]
    dry_run: DryRun,
}

pub(super) async fn run(verb: Verb, session: &Session) -> Result<(), Failure> {
    let client = session.client()?;
    let path = |name: &str, what: &str| format!("disks/{}/{what}", session.segment(name));
    match verb {
        Verb::Create(create) => {
            let request = CreateDisk {
                name: create.name,
                size: create.size.as_u64(),
                datastore: create.datastore,
                clone: create.clone,
                delete_with_clone: create.delete_with_clone,
                durability: create.durability.map(Into::into),
            };
            show(&client.post("disks", &create.dry_run.query(), &request).await?, session);
        }
        Verb::List => {
            let all: Vec<DiskView> = client.list("disks").await?;
            if session.form == Form::Json {
                output::json(&all);
            } else {
                let row = |d: &DiskView| {
                    let (name, size) = (d.name.clone(), output::size(d.size));
                    vec![name, size, d.datastore.clone(), d.state.clone(), output::or_dash(d.clone.clone())]
                };
                output::table(
                    &["NAME", "SIZE", "DATASTORE", "STATE", "CLONE"],
                    &all.iter().map(row).collect::<Vec<_>>(),
                );
            }
        }
        Verb::Show { name } => show(&client.get(&path(&name, "record")).await?, session),
        Verb::Attach { name, clone, dry_run } => {
            let body = serde_json::json!({ "clone": clone });
            show(&client.post(&path(&name, "attach"), &dry_run.query(), &body).await?, session);
        }
        Verb::Detach { name, dry_run } => {
            show(&client.post(&path(&name, "detach"), &dry_run.query(), &serde_json::json!({})).await?, session);
        }
        Verb::Archive { name, dry_run } => {
            show(&client.post(&path(&name, "archive"), &dry_run.query(), &serde_json::json!({})).await?, session);
        }
        Verb::Delete { name, dry_run } => {
            let done: Touched = client.delete(&path(&name, "record"), &dry_run.query()).await?;
            touched("deleted", &done, session);
        }
    }
    Ok(())
}

fn show(disk: &DiskView, session: &Session) {
    if session.form == Form::Json {
        output::json(disk);
        return;
    }
    output::facts(&[
        ("name", disk.name.clone()),
        ("id", disk.id.clone()),
        ("size", format!("{} ({} bytes)", output::size(disk.size), disk.size)),
        ("datastore", disk.datastore.clone()),
        ("state", disk.state.clone()),
        ("clone", output::or_dash(disk.clone.clone())),
        ("with its clone", if disk.delete_with_clone { "deleted" } else { "kept" }.to_owned()),
        ("open on", output::or_dash(Some(disk.attached.join(", ")).filter(|text| !text.is_empty()))),
        ("disk", format!("{}{}", session.server.trim_end_matches('/'), disk.disk)),
    ]);
    if disk.dry_run {
        output::line("nothing was done");
    }
}
