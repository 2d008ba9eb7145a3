//! `clonegate clone …`

use clap::{Args, Subcommand};

use super::clone_view::{show, show_list};
use super::export::{self, ExportFile};
use super::failure::Failure;
use super::full_clone;
use super::jobs::Detach;
use super::output::{self, Form};
use super::{DryRun, Session, labels, touched};
use crate::lifecycle::views::{
    ChangeLabels, CloneView, CreateClones, CreatedClones, DurabilityView, KeptSnapshot, LifetimeView, PowerEvent,
    PowerOutcome, ResetRulesView, SnapshotView, ToTemplate, Touched,
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
    /// Take the last reset, restore or update back, with what the clone held then
    #[command(after_help = "Example:\n  clonegate clone undo desk-001")]
    Undo {
        /// Names or ids
        #[arg(required = true)]
        clones: Vec<String>,
        #[command(flatten)]
        dry_run: DryRun,
    },
    /// Keep the present state of a clone under a name
    #[command(
        after_help = "Examples:\n  clonegate clone snapshot desk-001 before-update\n  clonegate clone snapshot desk-001 before-update --drop"
    )]
    Snapshot {
        /// Its name or id
        clone: String,
        /// The snapshot
        name: String,
        /// Give it up
        #[arg(long)]
        drop: bool,
        #[command(flatten)]
        dry_run: DryRun,
    },
    /// Move clones to another version of their template: metadata only, and the old deltas can be had back for a while
    #[command(
        after_help = "Examples:\n  clonegate clone update --template win11 --dry-run\n  clonegate clone update --template win11:2 --canary 3 --max-unavailable 20\n  clonegate clone update --template win11:1 desk-001"
    )]
    Update(super::update::Update),
    /// Make a template version of what a clone has become; only what changed is stored
    #[command(after_help = "Example:\n  clonegate clone to-template patched win11 --publish")]
    ToTemplate {
        /// Its name or id
        clone: String,
        /// The template
        template: String,
        /// Give new clones the version at once
        #[arg(long)]
        publish: bool,
        /// Whatever the sealing checks find
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        dry_run: DryRun,
    },
    /// Tell that a machine was switched on or off, or that its user logged off; policies decide what follows
    #[command(after_help = "Example:\n  clonegate clone power off desk-001")]
    Power {
        /// What happened
        #[arg(value_enum)]
        event: Event,
        /// Names or ids
        #[arg(required = true)]
        clones: Vec<String>,
        #[command(flatten)]
        dry_run: DryRun,
    },
    /// Make a full clone of a linked one while it is in use: it needs its base no more
    #[command(after_help = "Example:\n  clonegate clone promote desk-001 --dry-run")]
    Promote {
        /// Its name or id
        clone: String,
        #[command(flatten)]
        dry_run: DryRun,
        #[command(flatten)]
        detach: Detach,
    },
    /// Move a clone that is switched off to another datastore, which gets its base if it has none
    #[command(after_help = "Example:\n  clonegate clone move desk-001 --to big --dry-run")]
    Move {
        /// Its name or id
        clone: String,
        /// The datastore
        #[arg(long)]
        to: String,
        #[command(flatten)]
        dry_run: DryRun,
        #[command(flatten)]
        detach: Detach,
    },
    /// Write the bytes of a clone into a sparse raw or qcow2 file on this machine
    #[command(after_help = "Example:\n  clonegate clone export desk-001 desk-001.qcow2")]
    Export {
        /// Its name or id
        clone: String,
        #[command(flatten)]
        export: ExportFile,
    },
    /// Hold a clone: nothing discards what it has written
    #[command(after_help = "Example:\n  clonegate clone hold desk-001 --reason 'under investigation'")]
    Hold {
        /// Its name or id
        clone: String,
        /// Why
        #[arg(long)]
        reason: String,
        #[command(flatten)]
        dry_run: DryRun,
    },
    /// Let a held clone go
    #[command(after_help = "Example:\n  clonegate clone release desk-001")]
    Release {
        /// Its name or id
        clone: String,
        #[command(flatten)]
        dry_run: DryRun,
    },
    /// Set and remove labels of a clone: which machine boots from it and how, and what policies see
    #[command(
        after_help = "Examples:\n  clonegate clone label pc-07 boot.mac=52:54:00:12:34:56\n  clonegate clone label pc-07 boot.kernel=/vmlinuz --remove boot.args"
    )]
    Label {
        /// Its name or id
        clone: String,
        /// Labels that it gets, KEY=VALUE
        labels: Vec<String>,
        /// Key of a label that goes; may be given again
        #[arg(long, value_name = "KEY")]
        remove: Vec<String>,
        #[command(flatten)]
        dry_run: DryRun,
    },
    /// What makes a clone a machine of its own: host name, keys, users, network
    #[command(subcommand)]
    Identity(super::identity::CloneVerb),
    /// Say whether what a clone writes is meant to last, and when it is dropped besides
    #[command(
        after_help = "Examples:\n  clonegate clone lifetime desk-001 ephemeral\n  clonegate clone lifetime desk-001 persistent --reset-every 7d --reset-at 20GiB\n  clonegate clone lifetime desk-001 persistent --no-rules"
    )]
    Lifetime {
        /// Its name or id
        clone: String,
        /// persistent or ephemeral
        #[arg(value_enum)]
        lifetime: Lifetime,
        #[command(flatten)]
        rules: Rules,
        /// It is dropped by no rule any more
        #[arg(long, conflicts_with_all = ["reset_every", "reset_at"])]
        no_rules: bool,
        #[command(flatten)]
        dry_run: DryRun,
    },
    /// Show the snapshots of a clone; each can be read as CLONE@SNAPSHOT, by NBD and HTTP
    #[command(after_help = "Example:\n  clonegate clone snapshots desk-001")]
    Snapshots {
        /// Its name or id
        clone: String,
    },
    /// Give flushed writes up that only the journal of a lost gateway held, so that the clone can be written again
    #[command(
        after_help = "Example:\n  clonegate clone accept-loss desk-001 --dry-run    says what may be missing\n  clonegate clone accept-loss desk-001"
    )]
    AcceptLoss {
        /// Names or ids
        #[arg(required = true)]
        clones: Vec<String>,
        #[command(flatten)]
        dry_run: DryRun,
    },
    /// Take a clone over from a gateway that is gone, or does nothing with it
    #[command(after_help = "Example:\n  clonegate clone take-over desk-001")]
    TakeOver {
        /// Names or ids
        #[arg(required = true)]
        clones: Vec<String>,
        #[command(flatten)]
        dry_run: DryRun,
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

/// When a delta is dropped besides what policies say, once the machine is off.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct Rules {
    /// Drop the delta so long after the last reset: 12h, 7d
    #[arg(long, value_name = "TIME")]
    reset_every: Option<humantime::Duration>,
    /// Drop the delta when it has so many bytes
    #[arg(long, value_name = "BYTES")]
    reset_at: Option<bytesize::ByteSize>,
}

impl Rules {
    pub(super) fn is_none(&self) -> bool {
        self.reset_every.is_none() && self.reset_at.is_none()
    }

    pub(super) fn view(&self) -> ResetRulesView {
        ResetRulesView {
            every_seconds: self.reset_every.map(|every| every.as_secs()),
            at_bytes: self.reset_at.map(|at| at.as_u64()),
        }
    }
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(super) enum Event {
    /// It is about to be switched on
    On,
    /// It was switched off
    Off,
    /// Its user logged off
    Logoff,
}

impl From<Event> for PowerEvent {
    fn from(event: Event) -> Self {
        match event {
            Event::On => Self::On,
            Event::Off => Self::Off,
            Event::Logoff => Self::Logoff,
        }
    }
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
    #[command(flatten)]
    rules: Rules,
    /// KEY=VALUE for policies; may be given again
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// What makes each a machine of its own, from a TOML or JSON file; what the template says otherwise
    #[arg(long, value_name = "FILE")]
    identity: Option<std::path::PathBuf>,
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
            show_list(&clones, session);
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
        Verb::Undo { clones, dry_run } => {
            for clone in clones {
                let path = format!("clones/{}/undo", session.segment(&clone));
                let done: Touched = client.post(&path, &dry_run.query(), &serde_json::json!({})).await?;
                touched("taken back", &done, session);
            }
            Ok(())
        }
        Verb::Identity(verb) => super::identity::of_clone(verb, session).await,
        Verb::Snapshot { clone, name, drop, dry_run } => {
            let clone = session.segment(&clone);
            let (path, body) = (format!("clones/{clone}/snapshot"), serde_json::json!({ "name": name }));
            let kept = format!("clones/{clone}/snapshots/{}", session.segment(&name));
            if dry_run.dry_run && drop {
                touched("dropped", &client.delete(&kept, &dry_run.query()).await?, session);
                return Ok(());
            }
            if dry_run.tried(&path, &body, "made", session).await? {
                return Ok(());
            }
            let made: SnapshotView =
                if drop { client.delete(&kept, &[]).await? } else { client.post(&path, &[], &body).await? };
            let done = if drop { "dropped" } else { "made" };
            match session.form {
                Form::Json => output::json(&made),
                Form::Table => output::line(&format!("{}@{} {done}", made.clone, made.name)),
            }
            Ok(())
        }
        Verb::Update(update) => super::update::start(update, session).await,
        Verb::Snapshots { clone } => {
            let kept: Vec<KeptSnapshot> = client.get(&format!("clones/{}/snapshots", session.segment(&clone))).await?;
            match session.form {
                Form::Json => output::json(&kept),
                Form::Table => output::table(
                    &["NAME", "MADE", "EXPORT"],
                    &kept.into_iter().map(|k| vec![k.name, output::time(k.made_ms), k.export]).collect::<Vec<_>>(),
                ),
            }
            Ok(())
        }
        Verb::AcceptLoss { clones, dry_run } => {
            say_yes(session, clones, &dry_run, "accept-loss", "opened without them").await
        }
        Verb::TakeOver { clones, dry_run } => say_yes(session, clones, &dry_run, "take-over", "taken over").await,
        Verb::ToTemplate { clone, template, publish, force, dry_run } => {
            let path = format!("clones/{}/to-template", session.segment(&clone));
            let body = ToTemplate { template, publish, force };
            if !dry_run.tried(&path, &body, "made a template version", session).await? {
                super::template::show(&client.post(&path, &[], &body).await?, session);
            }
            Ok(())
        }
        Verb::Power { event, clones, dry_run } => {
            for clone in clones {
                let path = format!("clones/{}/power", session.segment(&clone));
                let body = serde_json::json!({ "event": PowerEvent::from(event) });
                if dry_run.tried(&path, &body, "told", session).await? {
                    continue;
                }
                let outcome: PowerOutcome = client.post(&path, &[], &body).await?;
                match session.form {
                    Form::Json => output::json(&outcome),
                    Form::Table => {
                        let by = if outcome.by.is_empty() { String::new() } else { format!(" ({})", outcome.by) };
                        output::line(&format!("{}: {}, {}{by}", outcome.clone, outcome.action, outcome.reason));
                    }
                }
            }
            Ok(())
        }
        Verb::Hold { clone, reason, dry_run } => {
            let path = format!("clones/{}/hold", session.segment(&clone));
            let done: Touched = client.post(&path, &dry_run.query(), &serde_json::json!({ "reason": reason })).await?;
            touched("held", &done, session);
            Ok(())
        }
        Verb::Release { clone, dry_run } => {
            let path = format!("clones/{}/release", session.segment(&clone));
            let done: Touched = client.post(&path, &dry_run.query(), &serde_json::json!({})).await?;
            touched("released", &done, session);
            Ok(())
        }
        Verb::Lifetime { clone, lifetime, rules, no_rules, dry_run } => {
            let path = format!("clones/{}/lifetime", session.segment(&clone));
            let rules = (no_rules || !rules.is_none()).then(|| rules.view());
            let body = serde_json::json!({ "lifetime": LifetimeView::from(lifetime), "reset": rules });
            let done: Touched = client.post(&path, &dry_run.query(), &body).await?;
            touched("changed", &done, session);
            Ok(())
        }
        Verb::Label { clone, labels, remove, dry_run } => {
            let path = format!("clones/{}/labels", session.segment(&clone));
            let change = ChangeLabels { set: self::labels(&labels)?, remove };
            let done: Touched = client.post(&path, &dry_run.query(), &change).await?;
            touched("labelled", &done, session);
            Ok(())
        }
        Verb::Promote { clone, dry_run, detach } => {
            let path = format!("clones/{}/promote", session.segment(&clone));
            full_clone::start(&path, serde_json::json!({}), "promoted", dry_run, detach, session).await
        }
        Verb::Move { clone, to, dry_run, detach } => {
            let path = format!("clones/{}/move", session.segment(&clone));
            full_clone::start(&path, serde_json::json!({ "to": to }), "moved", dry_run, detach, session).await
        }
        Verb::Export { clone, export } => {
            export::run(&format!("clones/{}", session.segment(&clone)), &clone, export, session).await
        }
        Verb::Restore { clone, name, dry_run } => {
            let path = format!("clones/{}/restore", session.segment(&clone));
            let done: Touched = client.post(&path, &dry_run.query(), &serde_json::json!({ "name": name })).await?;
            touched("restored", &done, session);
            Ok(())
        }
    }
}

/// An operator's yes to something about each of these clones.
async fn say_yes(
    session: &Session,
    clones: Vec<String>,
    dry_run: &DryRun,
    to: &str,
    done_is: &str,
) -> Result<(), Failure> {
    let client = session.client()?;
    for clone in clones {
        let path = format!("clones/{}/{to}", session.segment(&clone));
        let done: Touched = client.post(&path, &dry_run.query(), &serde_json::json!({})).await?;
        if done.names.is_empty() && session.form == Form::Table {
            output::line(&format!("{clone}: {}", done.notes.join("; ")));
        } else {
            touched(done_is, &done, session);
        }
    }
    Ok(())
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
        reset: create.rules.view(),
        labels: labels(&create.labels)?,
        identity: create.identity.as_deref().map(super::identity::read_spec).transpose()?,
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
        let names = if first == last { first.clone() } else { format!("{first} … {last}") };
        output::line(&format!("{} {verb}: {names}", made.names.len()));
    }
    if made.dry_run {
        let (now, most) = (output::size(made.copy_bytes), output::size(made.most_bytes));
        output::line(&format!("{now} are copied first; at most {most} when all of them is written"));
    }
    Ok(())
}
