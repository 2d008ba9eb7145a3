//! `clonegate pool …`

use clap::{Args, Subcommand};

use super::clone::{Durability, Lifetime, Rules};
use super::failure::Failure;
use super::output::{self, Form};
use super::{DryRun, Session, labels, touched};
use crate::lifecycle::views::{Allocated, AssignmentView, ChangePool, CreatePool, PoolView, Touched};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Make a pool with its clones
    #[command(
        after_help = "Examples:\n  clonegate pool create lab --template win11 --size 300\n  clonegate pool create dev --template debian --size 20 --max 40 --spares 3 --assignment dedicated --pattern 'dev-{nn}'"
    )]
    Create(Create),
    /// Show all pools
    #[command(after_help = "Example:\n  clonegate pool list")]
    List,
    /// Show one pool with its clones and their users
    #[command(after_help = "Example:\n  clonegate pool show lab")]
    Show {
        /// Its name
        name: String,
    },
    /// Make clones, or delete free ones
    #[command(after_help = "Example:\n  clonegate pool scale lab --size 320 --dry-run")]
    Scale {
        /// Its name
        name: String,
        /// Clones that it is to have
        #[arg(long)]
        size: u32,
        #[command(flatten)]
        dry_run: DryRun,
    },
    /// Change a pool's settings, which its clones follow, or move them to a newer version of their template
    #[command(
        after_help = "Examples:\n  clonegate pool update lab --spares 5 --max 400\n  clonegate pool update lab --maintenance on\n  clonegate pool update lab --clones --canary 3 --max-unavailable 20"
    )]
    Update(Update),
    /// Delete a pool with its clones; refused while machines or users have any
    #[command(after_help = "Example:\n  clonegate pool delete lab --dry-run")]
    Delete {
        /// Its name
        name: String,
        /// Also when users have clones of it
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        dry_run: DryRun,
    },
    /// Give a user a clone: the one that he has, or a free one
    #[command(after_help = "Example:\n  clonegate pool allocate lab alice")]
    Allocate {
        /// The pool
        pool: String,
        /// The user
        user: String,
        #[command(flatten)]
        dry_run: DryRun,
    },
    /// Take a clone back from its user; what was written on it goes
    #[command(after_help = "Example:\n  clonegate pool release lab alice")]
    Release {
        /// The pool
        pool: String,
        /// The user, or the clone
        user: String,
        #[command(flatten)]
        dry_run: DryRun,
    },
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(super) enum Assignment {
    /// Any free clone; it goes back, reset, when it is released or switched off
    Floating,
    /// Always the same clone
    Dedicated,
}

#[derive(Debug, Args)]
pub(super) struct Create {
    /// Its name
    name: String,
    /// The template, `NAME` or `NAME:VERSION` to pin a version
    #[arg(long)]
    template: String,
    /// Clones that it has
    #[arg(long)]
    size: u32,
    /// Clones that it may grow to, so that spares are left; its size otherwise
    #[arg(long)]
    max: Option<u32>,
    /// Free clones that are kept ready
    #[arg(long, default_value_t = 0)]
    spares: u32,
    /// Names of its clones, as `desk-{nnn}`; otherwise the pool's name and a number
    #[arg(long)]
    pattern: Option<String>,
    /// How they are given to users
    #[arg(long, value_enum, default_value = "floating")]
    assignment: Assignment,
    /// What a flush promises
    #[arg(long, value_enum)]
    durability: Option<Durability>,
    /// Whether what is written is meant to last; ephemeral for floating, persistent for dedicated
    #[arg(long, value_enum)]
    lifetime: Option<Lifetime>,
    #[command(flatten)]
    rules: Rules,
    /// KEY=VALUE for policies; may be given again
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    #[command(flatten)]
    dry_run: DryRun,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(super) enum Switch {
    /// It takes no allocations
    On,
    /// It takes them again
    Off,
}

#[derive(Debug, Args)]
pub(super) struct Update {
    /// Its name
    name: String,
    /// Clones that it may grow to
    #[arg(long)]
    max: Option<u32>,
    /// Free clones that are kept ready
    #[arg(long)]
    spares: Option<u32>,
    /// Whether what is written is meant to last
    #[arg(long, value_enum)]
    lifetime: Option<Lifetime>,
    #[command(flatten)]
    rules: Rules,
    /// Whether it takes no allocations
    #[arg(long, value_enum)]
    maintenance: Option<Switch>,
    /// Move its clones to the published version of their template, or to --to
    #[arg(long)]
    clones: bool,
    /// The version that they move to
    #[arg(long, requires = "clones", value_name = "VERSION")]
    to: Option<u32>,
    /// So many go first, one by one; then it waits for clonegate update promote
    #[arg(long, requires = "clones")]
    canary: Option<u32>,
    /// At most so many at once
    #[arg(long, requires = "clones")]
    max_unavailable: Option<u32>,
    /// Only note it; each moves when its machine is next switched on
    #[arg(long, requires = "clones")]
    at_next_power_on: bool,
    #[command(flatten)]
    dry_run: DryRun,
}

pub(super) async fn run(verb: Verb, session: &Session) -> Result<(), Failure> {
    let client = session.client()?;
    let path = |name: &str| format!("pools/{}", session.segment(name));
    match verb {
        Verb::Create(create) => {
            let (template, version) = super::template_and_version(&create.template)?;
            let request = CreatePool {
                name: create.name,
                template,
                version,
                pattern: create.pattern,
                size: create.size,
                max: create.max,
                spares: create.spares,
                assignment: match create.assignment {
                    Assignment::Floating => AssignmentView::Floating,
                    Assignment::Dedicated => AssignmentView::Dedicated,
                },
                durability: create.durability.map(Into::into),
                lifetime: create.lifetime.map(Into::into),
                reset: create.rules.view(),
                labels: labels(&create.labels)?,
            };
            show(&client.post("pools", &create.dry_run.query(), &request).await?, session);
        }
        Verb::List => {
            let pools: Vec<PoolView> = client.list("pools").await?;
            if session.form == Form::Json {
                output::json(&pools);
            } else {
                output::table(&HEADERS, &pools.iter().map(row).collect::<Vec<_>>());
            }
        }
        Verb::Show { name } => show(&client.get(&path(&name)).await?, session),
        Verb::Scale { name, size, dry_run } => {
            let body = serde_json::json!({ "size": size });
            let done: Touched = client.post(&format!("{}/scale", path(&name)), &dry_run.query(), &body).await?;
            touched("scaled", &done, session);
        }
        Verb::Update(update) => return self::update(update, session).await,
        Verb::Delete { name, force, dry_run } => {
            let mut query = dry_run.query();
            query.extend(force.then(|| ("force", "true".to_owned())));
            let done: Touched = client.delete(&path(&name), &query).await?;
            touched("deleted", &done, session);
        }
        Verb::Allocate { pool, user, dry_run } => {
            let (path, body) = (format!("{}/allocate", path(&pool)), serde_json::json!({ "user": user }));
            if dry_run.tried(&path, &body, "allocated", session).await? {
                return Ok(());
            }
            let got: Allocated = client.post(&path, &[], &body).await?;
            match session.form {
                Form::Json => output::json(&got),
                Form::Table => output::line(&got.clone),
            }
        }
        Verb::Release { pool, user, dry_run } => {
            let body = serde_json::json!({ "user": user });
            let done: Touched = client.post(&format!("{}/release", path(&pool)), &dry_run.query(), &body).await?;
            touched("released", &done, session);
        }
    }
    Ok(())
}

async fn update(update: Update, session: &Session) -> Result<(), Failure> {
    let client = session.client()?;
    let path = format!("pools/{}", session.segment(&update.name));
    let change = ChangePool {
        max: update.max,
        spares: update.spares,
        lifetime: update.lifetime.map(Into::into),
        reset: (!update.rules.is_none()).then(|| update.rules.view()),
        maintenance: update.maintenance.map(|switch| matches!(switch, Switch::On)),
    };
    let query = update.dry_run.query();
    if !update.clones {
        match update.dry_run.dry_run {
            true => touched("changed", &client.patch(&path, &query, &change).await?, session),
            false => show(&client.patch(&path, &query, &change).await?, session),
        }
        return Ok(());
    }
    let pool: PoolView =
        if update.dry_run.dry_run { client.get(&path).await? } else { client.patch(&path, &query, &change).await? };
    let version = update.to.or(pool.version).map(|version| format!(":{version}")).unwrap_or_default();
    super::update::start(
        super::update::Update::of_pool(
            format!("{}{version}", pool.template),
            update.name,
            update.canary,
            update.max_unavailable,
            update.at_next_power_on,
            update.dry_run,
        ),
        session,
    )
    .await
}

const HEADERS: [&str; 8] = ["NAME", "TEMPLATE", "CLONES", "ASSIGNED", "FREE", "OUTDATED", "ASSIGNMENT", "LIFETIME"];

fn row(pool: &PoolView) -> Vec<String> {
    vec![
        pool.name.clone(),
        pool.version.map_or_else(|| pool.template.clone(), |version| format!("{}:{version}", pool.template)),
        format!("{}/{}", pool.clones, pool.max),
        pool.assigned.to_string(),
        pool.free.to_string(),
        pool.outdated.to_string(),
        format!("{:?}", pool.assignment).to_lowercase(),
        format!("{:?}", pool.lifetime).to_lowercase(),
    ]
}

fn show(pool: &PoolView, session: &Session) {
    if session.form == Form::Json {
        output::json(pool);
        return;
    }
    let would = if pool.dry_run { " (would be made)" } else { "" };
    output::facts(&[
        ("name", format!("{}{would}", pool.name)),
        ("template", pool.template.clone()),
        ("names", pool.pattern.clone()),
        ("clones", format!("{} of at most {}, {} spares wanted", pool.clones, pool.max, pool.spares)),
        ("given", format!("{} assigned, {} free", pool.assigned, pool.free)),
        ("outdated", pool.outdated.to_string()),
        ("assignment", format!("{:?}", pool.assignment).to_lowercase()),
        ("lifetime", format!("{:?}", pool.lifetime).to_lowercase()),
        ("maintenance", if pool.maintenance { "on" } else { "off" }.to_owned()),
    ]);
    pool.notes.iter().for_each(|note| output::line(&format!("  {note}")));
    if pool.members.is_empty() {
        return;
    }
    let rows: Vec<Vec<String>> = pool
        .members
        .iter()
        .map(|member| {
            let attached = (!member.attached.is_empty()).then(|| member.attached.join(","));
            vec![
                member.name.clone(),
                member.version.to_string(),
                output::or_dash(member.assigned.clone()),
                output::or_dash(attached),
            ]
        })
        .collect();
    output::table(&["CLONE", "VERSION", "USER", "ATTACHED"], &rows);
}
