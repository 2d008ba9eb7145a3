//! The commands: noun, then verb. They talk REST to a gateway, except those that are a gateway.

mod audit;
mod base;
mod bench;
mod boot_test;
mod cache;
mod capacity;
mod client;
mod clone;
mod clone_view;
mod config;
mod datastore;
mod disk;
mod doctor;
mod export;
mod failure;
mod fsck;
mod full_clone;
mod identity;
mod image;
mod jobs;
mod output;
mod plugin;
mod pool;
mod process;
mod running;
mod serve;
mod template;
mod up;
mod update;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clonegate_core::{Error, Result};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use self::client::Client;
pub use self::failure::Failure;
pub use self::output::Form;
pub use self::process::main;
use crate::config::Log;
use crate::lifecycle::views::{Labels, Touched};

/// Linked-clone volumes out of object stores, by HTTP ranges and NBD.
#[derive(Debug, Parser)]
#[command(name = "clonegate", version, propagate_version = true, max_term_width = 110)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    noun: Noun,
}

#[derive(Debug, Args)]
struct Global {
    /// The gateway to talk to
    #[arg(long, global = true, env = "CLONEGATE_SERVER", default_value = "http://127.0.0.1:8080", value_name = "URL")]
    server: String,
    /// Token for the gateway
    #[arg(long, global = true, env = "CLONEGATE_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// PEM file of an authority to trust for https, besides those of the system
    #[arg(long, global = true, env = "CLONEGATE_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// What is printed
    #[arg(long, global = true, value_enum, default_value = "table")]
    output: Form,
    /// Log lines on standard error: error, warn, info, debug or a filter
    #[arg(long, global = true, env = "CLONEGATE_LOG", value_name = "LEVEL")]
    log: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Noun {
    /// Serve clones of a disk image, all in one command
    Up(up::Up),
    /// Run a gateway
    Serve(serve::Serve),
    /// Say what is wrong with this host, its stores and its policies, and how to mend it
    Doctor(doctor::Doctor),
    /// Look whether everything stored is owned and there
    Fsck(fsck::Fsck),
    /// Read and check the configuration
    #[command(subcommand)]
    Config(config::Verb),
    /// Stores of bases and deltas
    #[command(subcommand)]
    Datastore(datastore::Verb),
    /// Golden images and their versions
    #[command(subcommand)]
    Template(template::Verb),
    /// Read-only copies of template versions, with slots for clones
    #[command(subcommand)]
    Base(base::Verb),
    /// Linked clones
    #[command(subcommand)]
    Clone(clone::Verb),
    /// Clones under one pattern of names, given to users
    #[command(subcommand)]
    Pool(pool::Verb),
    /// Updates that were begun: promote, pause, resume, roll back
    #[command(subcommand)]
    Update(update::Verb),
    /// Data disks: they outlive resets and updates of their clone
    #[command(subcommand)]
    Disk(disk::Verb),
    /// How much space clones need, and what linked cloning saves
    Capacity(capacity::Capacity),
    /// The host memory cache in front of base reads
    #[command(subcommand)]
    Cache(cache::Verb),
    /// Clones that need no base
    #[command(subcommand)]
    FullClone(full_clone::Verb),
    /// Who did what, and why policy decided
    #[command(subcommand)]
    Audit(audit::Verb),
    /// Long work: what is under way and what came of it
    #[command(subcommand)]
    Jobs(jobs::Verb),
    /// Policies in WebAssembly: write, try, install
    #[command(subcommand)]
    Plugin(plugin::Verb),
    /// Load generators, usable on any server
    #[command(subcommand)]
    Bench(bench::Verb),
    /// Boot a machine from a clone in QEMU on this host, and say how far it comes
    BootTest(boot_test::BootTest),
}

/// What every command knows.
struct Session {
    server: String,
    token: Option<String>,
    ca: Option<PathBuf>,
    form: Form,
}

impl Session {
    fn client(&self) -> Result<Client> {
        Client::new(&self.server, self.token.clone(), self.ca.as_deref())
    }

    /// `text` as one segment of a URL's path.
    fn segment(&self, text: &str) -> String {
        const KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_');
        utf8_percent_encode(text, KEPT).to_string()
    }
}

/// `--dry-run` of whatever changes something.
#[derive(Debug, Clone, Copy, Args)]
struct DryRun {
    /// Say what it would touch and do nothing
    #[arg(long)]
    dry_run: bool,
}

impl DryRun {
    fn query(self) -> Vec<(&'static str, String)> {
        if self.dry_run { vec![("dry_run", "true".to_owned())] } else { Vec::new() }
    }
}

impl DryRun {
    /// Posts a change that is only to be tried, and prints what it would touch; tells whether that was asked for.
    async fn tried(
        self,
        path: &str,
        body: &impl serde::Serialize,
        verb: &str,
        session: &Session,
    ) -> std::result::Result<bool, Failure> {
        if self.dry_run {
            let would: Touched = session.client()?.post(path, &self.query(), body).await?;
            touched(verb, &would, session);
        }
        Ok(self.dry_run)
    }
}

impl Cli {
    /// The log filter that was asked for.
    pub fn log(&self) -> Option<&str> {
        self.global.log.as_deref()
    }

    /// How failures are told.
    pub fn form(&self) -> Form {
        self.global.output
    }

    /// What the configuration says of log lines, when this is to be a gateway.
    fn configured_log(&self) -> Option<Result<Log>> {
        match &self.noun {
            Noun::Serve(serve) => Some(serve.log()),
            _ => None,
        }
    }

    /// Runs the command.
    ///
    /// # Errors
    /// One clear line and an exit code.
    pub async fn run(self) -> std::result::Result<(), Failure> {
        let Global { server, token, ca, output, .. } = self.global;
        let session = Session { server, token, ca, form: output };
        match self.noun {
            Noun::Up(up) => up::run(up).await,
            Noun::Serve(serve) => serve::run(serve).await,
            Noun::Doctor(doctor) => doctor::run(doctor, &session).await,
            Noun::Fsck(fsck) => fsck::run(fsck, &session).await,
            Noun::Config(verb) => config::run(verb, &session),
            Noun::Datastore(verb) => datastore::run(verb, &session).await,
            Noun::Template(verb) => template::run(verb, &session).await,
            Noun::Base(verb) => base::run(verb, &session).await,
            Noun::Clone(verb) => clone::run(verb, &session).await,
            Noun::Disk(verb) => disk::run(verb, &session).await,
            Noun::Pool(verb) => pool::run(verb, &session).await,
            Noun::Update(verb) => update::run(verb, &session).await,
            Noun::Capacity(capacity) => capacity::run(capacity, &session).await,
            Noun::Cache(verb) => cache::run(verb, &session).await,
            Noun::FullClone(verb) => full_clone::run(verb, &session).await,
            Noun::Audit(verb) => audit::run(verb, &session).await,
            Noun::Jobs(verb) => jobs::run(verb, &session).await,
            Noun::Plugin(verb) => plugin::run(verb, &session).await,
            Noun::Bench(verb) => bench::run(verb, &session).await,
            Noun::BootTest(test) => boot_test::run(test, &session).await,
        }
    }
}

/// `KEY=VALUE` arguments.
fn labels(arguments: &[String]) -> Result<Labels> {
    let pair = |text: &String| match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(Error::invalid("bad-label", format!("{text:?} is no label")).hint("write KEY=VALUE")),
    };
    arguments.iter().map(pair).collect()
}

/// `NAME` or `NAME:VERSION`.
fn template_and_version(text: &str) -> Result<(String, Option<u32>)> {
    let Some((name, version)) = text.split_once(':') else { return Ok((text.to_owned(), None)) };
    let number = version.parse().map_err(|_| {
        Error::invalid("bad-version", format!("{version:?} is no version number"))
            .on(name)
            .hint("write NAME:VERSION, as win11:2")
    })?;
    Ok((name.to_owned(), Some(number)))
}

/// Says what a change did, or would do.
fn touched(verb: &str, done: &Touched, session: &Session) {
    if session.form == Form::Json {
        output::json(done);
        return;
    }
    let names = done.names.join(", ");
    let sessions = match done.sessions {
        0 => String::new(),
        1 => ", one machine has it open".to_owned(),
        n => format!(", {n} machines have it open"),
    };
    let bytes = if done.bytes == 0 { String::new() } else { format!(", {}", output::size(done.bytes)) };
    let would = if done.dry_run { "would be " } else { "" };
    output::line(&format!("{names}: {would}{verb}{bytes}{sessions}"));
    for note in &done.notes {
        output::line(&format!("  {note}"));
    }
}
