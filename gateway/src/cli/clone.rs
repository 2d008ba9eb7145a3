//! `clonegate clone …`

use clap::{Args, Subcommand};

use super::failure::Failure;
use super::output::{self, Form};
use super::{DryRun, Session, labels, touched};
use crate::lifecycle::views::{
    CloneView, CreateClones, CreatedClones, DurabilityView, LifetimeView, SnapshotView, Touched,
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Make one clone, or many
    #[command(
        after_help = "Example:\n  clonegate clone create desk --template win11 --count 300\n  clonegate clone create 'lab-{nn}' --template debian --count 20 --lifetime ephemeral"
    )]
    Create(Create),
    /// Show all clones
    #[command(after_help = "Example:\n  clonegate clone list --output json")]
    List,
    /// Show one clone
    #[command(after_help = "Example:\n  clonegate clone show desk-001")]
    Show {
        /// Its name or id
        clone: String,
    },
    /// Delete clones with all that they have written
    #[command(after_help = "Example:\n  clonegate clone delete desk-001 desk-002 --dry-run")]
    Delete {
        /// Names or ids
        #[arg(required = true)]
        clones: Vec<String>,
        #[command(flatten)]
        dry_run: DryRun,
    },
    /// Drop what a clone has written: it is its base again
    #[command(after_help = "Example:\n  clonegate clone reset desk-001")]
    Reset {
        /// Names or ids
        #[arg(required = true)]
        clones: Vec<String>,
        #[command(flatten)]
        dry_run: DryRun,
    },
    /// Keep the present state of a clone under a name
    #[command(after_help = "Example:\n  clonegate clone snapshot desk-001 before-update")]
    Snapshot {
        /// Its name or id
        clone: String,
        /// The snapshot
        name: String,
    },
    /// Bring a clone back to a snapshot
    #[command(after_help = "Example:\n  clonegate clone restore desk-001 before-update")]
    Restore {
        /// Its name or id
        clone: String,
        /// The snapshot
        name: String,
        #[command(flatten)]
        dry_run: DryRun,
    },
}

#[derive(Debug, Args)]
pub(super) struct Create {
    /// Name; with --count a stem (`desk` makes desk-001, …) or a pattern (`desk-{nnn}`)
    name: String,
    /// The template, `NAME` or `NAME:VERSION`
    #[arg(long)]
    template: String,
    /// How many
    #[arg(long)]
    count: Option<u32>,
    /// The first number
    #[arg(long, requires = "count")]
    first: Option<u32>,
    /// What a flush promises
    #[arg(long, value_enum)]
    durability: Option<Durability>,
    /// Whether what it writes is meant to last
    #[arg(long, value_enum)]
    lifetime: Option<Lifetime>,
    /// KEY=VALUE for policies; may be given again
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    #[command(flatten)]
    dry_run: DryRun,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(super) enum Durability {
    /// Nothing survives the gateway process
    Ephemeral,
    /// The gateway's disk at once, the store within a second
    Local,
    /// The store
    Object,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(super) enum Lifetime {
    /// Kept until someone asks for a reset
    Persistent,
    /// Dropped at power-off or log-off
    Ephemeral,
}

impl From<Durability> for DurabilityView {
    fn from(durability: Durability) -> Self {
        match durability {
            Durability::Ephemeral => Self::Ephemeral,
            Durability::Local => Self::Local,
            Durability::Object => Self::Object,
        }
    }
}

impl From<Lifetime> for LifetimeView {
    fn from(lifetime: Lifetime) -> Self {
        match lifetime {
            Lifetime::Persistent => Self::Persistent,
            Lifetime::Ephemeral => Self::Ephemeral,
        }
    }
}

pub(super) async fn run(verb: Verb, session: &Session) -> Result<(), Failure> {
    let client = session.client()?;
    match verb {
        Verb::Create(create) => self::create(create, session).await,
        Verb::List => {
            let clones: Vec<CloneView> = client.list("clones").await?;
            if session.form == Form::Json {
                output::json(&clones);
            } else {
                output::table(&HEADERS, &clones.iter().map(row).collect::<Vec<_>>());
            }
            Ok(())
        }
        Verb::Show { clone } => {
            let clone: CloneView = client.get(&format!("clones/{}", session.segment(&clone))).await?;
            show(&clone, session);
            Ok(())
        }
        Verb::Delete { clones, dry_run } => {
            for clone in clones {
                let path = format!("clones/{}", session.segment(&clone));
                let done: Touched = client.delete(&path, &dry_run.query()).await?;
                touched("deleted", &done, session);
            }
            Ok(())
        }
        Verb::Reset { clones, dry_run } => {
            for clone in clones {
                let path = format!("clones/{}/reset", session.segment(&clone));
                let done: Touched = client.post(&path, &dry_run.query(), &serde_json::json!({})).await?;
                touched("reset", &done, session);
            }
            Ok(())
        }
        Verb::Snapshot { clone, name } => {
            let path = format!("clones/{}/snapshot", session.segment(&clone));
            let made: SnapshotView = client.post(&path, &[], &serde_json::json!({ "name": name })).await?;
            match session.form {
                Form::Json => output::json(&made),
                Form::Table => output::line(&format!("{}@{} made", made.clone, made.name)),
            }
            Ok(())
        }
        Verb::Restore { clone, name, dry_run } => {
            let path = format!("clones/{}/restore", session.segment(&clone));
            let done: Touched = client.post(&path, &dry_run.query(), &serde_json::json!({ "name": name })).await?;
            touched("restored", &done, session);
            Ok(())
        }
    }
}

async fn create(create: Create, session: &Session) -> Result<(), Failure> {
    let (template, version) = super::template_and_version(&create.template)?;
    let request = CreateClones {
        name: create.name,
        template,
        version,
        count: create.count,
        first: create.first,
        durability: create.durability.map(Into::into),
        lifetime: create.lifetime.map(Into::into),
        expected_delta: None,
        labels: labels(&create.labels)?,
    };
    let made: CreatedClones = session.client()?.post("clones", &create.dry_run.query(), &request).await?;
    if session.form == Form::Json {
        output::json(&made);
        return Ok(());
    }
    if let ([clone], false) = (&made.clones[..], made.dry_run) {
        show(clone, session);
        return Ok(());
    }
    for place in &made.placements {
        let base = place.base.as_deref().unwrap_or("a new base");
        output::line(&format!(
            "{} on {} at {base} ({}: {})",
            if place.clones == 1 { "1 clone".to_owned() } else { format!("{} clones", place.clones) },
            place.datastore,
            place.by,
            place.reason
        ));
    }
    let (first, last) = (made.names.first(), made.names.last());
    if let (Some(first), Some(last)) = (first, last) {
        let verb = if made.dry_run { "would be created" } else { "created" };
        output::line(&format!("{} {verb}: {first} … {last}", made.names.len()));
    }
    Ok(())
}

const HEADERS: [&str; 7] = ["NAME", "TEMPLATE", "DATASTORE", "SIZE", "DURABILITY", "LIFETIME", "ATTACHED"];

fn row(clone: &CloneView) -> Vec<String> {
    vec![
        clone.name.clone(),
        format!("{}:{}", clone.template, clone.version),
        clone.datastore.clone(),
        output::size(clone.size),
        format!("{:?}", clone.durability).to_lowercase(),
        format!("{:?}", clone.lifetime).to_lowercase(),
        output::or_dash((!clone.attached.is_empty()).then(|| clone.attached.join(","))),
    ]
}

fn show(clone: &CloneView, session: &Session) {
    if session.form == Form::Json {
        output::json(clone);
        return;
    }
    let mut facts = vec![
        ("name", clone.name.clone()),
        ("id", clone.id.clone()),
        ("kind", clone.kind.clone()),
        ("template", format!("{}:{}", clone.template, clone.version)),
        ("datastore", clone.datastore.clone()),
        ("base", format!("{} slot {}", output::or_dash(clone.base.clone()), clone.slot)),
        ("size", format!("{} ({} bytes)", output::size(clone.size), clone.size)),
        ("durability", format!("{:?}", clone.durability).to_lowercase()),
        ("lifetime", format!("{:?}", clone.lifetime).to_lowercase()),
        ("created", output::time(clone.created_ms)),
        ("disk", format!("{}{}", session.server.trim_end_matches('/'), clone.disk)),
    ];
    if !clone.attached.is_empty() {
        facts.push(("attached", clone.attached.join(", ")));
    }
    if let Some(bytes) = clone.delta_bytes {
        facts.push(("delta", output::size(bytes)));
    }
    output::facts(&facts);
}
