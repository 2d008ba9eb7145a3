//! `clonegate clone identity …` and `clonegate template identity …`

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use clonegate_core::limits::HTTP_CONTROL_BODY_BYTES_MAX;
use clonegate_core::{Error, Result};

use super::failure::Failure;
use super::output::{self, Form};
use super::{DryRun, Session, touched};
use crate::lifecycle::views::{
    IdentityFormat, IdentitySpec, IdentityView, RenewIdentity, SetIdentity, TemplateIdentityView, Touched, UserSpec,
};

#[derive(Debug, Subcommand)]
pub(super) enum CloneVerb {
    /// Show what makes a clone a machine of its own
    #[command(after_help = "Example:\n  clonegate clone identity show desk-001")]
    Show {
        /// Name or id of the clone
        clone: String,
    },
    /// Say who a machine is: host name, users, keys, network, user-data
    #[command(
        after_help = "Examples:\n  clonegate clone identity set desk-001 --user anna --key ~/.ssh/id_ed25519.pub --sudo --renew\n  clonegate clone identity set desk-001 desk-002 --spec lab.toml --dry-run\n\nWithout --spec the rest stays as it is. A spec (TOML or JSON) says all of it; its fields are in examples/identity/lab.toml."
    )]
    Set(Box<Set>),
    /// Make it a new machine: another instance-id, machine-id and SSH host keys
    #[command(after_help = "Example:\n  clonegate clone identity renew desk-001 --keep-host-keys")]
    Renew {
        /// Names or ids of the clones
        #[arg(required = true)]
        clones: Vec<String>,
        /// Those who know the machine by its SSH host key go on knowing it
        #[arg(long)]
        keep_host_keys: bool,
        /// Another MAC address, too
        #[arg(long)]
        new_mac: bool,
        #[command(flatten)]
        dry_run: DryRun,
    },
    /// Forget what was said: it follows from the clone's id and name again
    #[command(after_help = "Example:\n  clonegate clone identity clear desk-001 --dry-run")]
    Clear {
        /// Names or ids of the clones
        #[arg(required = true)]
        clones: Vec<String>,
        #[command(flatten)]
        dry_run: DryRun,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum TemplateVerb {
    /// Show the identity that new clones get
    #[command(after_help = "Example:\n  clonegate template identity show debian")]
    Show {
        /// The template
        template: String,
    },
    /// Say which identity new clones get; {name} in it is the name of each
    #[command(
        after_help = "Examples:\n  clonegate template identity set debian --hostname '{name}.lab.example' --key ~/.ssh/id_ed25519.pub\n  clonegate template identity set win11 --spec examples/identity/windows.toml"
    )]
    Set {
        /// The template
        template: String,
        #[command(flatten)]
        what: What,
        #[command(flatten)]
        dry_run: DryRun,
    },
    /// New clones get what follows from their id and name again
    #[command(after_help = "Example:\n  clonegate template identity clear debian")]
    Clear {
        /// The template
        template: String,
        #[command(flatten)]
        dry_run: DryRun,
    },
}

#[derive(Debug, Args)]
pub(super) struct Set {
    /// Names or ids of the clones
    #[arg(required = true)]
    clones: Vec<String>,
    #[command(flatten)]
    what: What,
    /// Make it a new machine, too: a guest takes most changes only then
    #[arg(long)]
    renew: bool,
    #[command(flatten)]
    dry_run: DryRun,
}

/// What is said about a machine.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub(super) struct What {
    /// All of it, from a TOML or JSON file; - for JSON from standard input
    #[arg(long, value_name = "FILE")]
    spec: Option<PathBuf>,
    /// Host name, maybe with a domain; {name} is the clone's name
    #[arg(long)]
    hostname: Option<String>,
    /// A user that is made, or is there in the spec already; --key, --sudo and --password-hash are for this user then
    #[arg(long)]
    user: Option<String>,
    /// An SSH public key that may log in: a .pub file, or the key itself. Replaces those before; may be given again
    #[arg(long = "key", value_name = "FILE|KEY")]
    keys: Vec<String>,
    /// The user may do everything as root
    #[arg(long, requires = "user")]
    sudo: bool,
    /// The user's password as a hash, as `mkpasswd` prints it
    #[arg(long, requires = "user")]
    password_hash: Option<String>,
    /// File with free cloud-init user-data
    #[arg(long, value_name = "FILE")]
    user_data: Option<PathBuf>,
    /// MAC address of the first card
    #[arg(long)]
    mac: Option<String>,
    /// machine-id, 32 hexadecimal digits
    #[arg(long)]
    machine_id: Option<String>,
    /// Which kind of disk is made of it
    #[arg(long, value_enum)]
    format: Option<Format>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Format {
    /// cloud-init NoCloud, label CIDATA
    Nocloud,
    /// OpenStack config drive, label config-2; also for Cloudbase-Init on Windows
    ConfigDrive,
}

/// Reads a file that a user named, up to what a request may carry.
fn read(path: &std::path::Path) -> Result<String> {
    use std::io::Read as _;
    let wrong =
        |e: std::io::Error| Error::invalid("bad-file", "it cannot be read").on(path.display().to_string()).because(e);
    let mut text = String::new();
    let most = HTTP_CONTROL_BODY_BYTES_MAX as u64;
    if path == std::path::Path::new("-") {
        std::io::stdin().take(most).read_to_string(&mut text).map_err(wrong)?;
    } else {
        std::fs::File::open(path).map_err(wrong)?.take(most).read_to_string(&mut text).map_err(wrong)?;
    }
    Ok(text)
}

/// A spec from a file: TOML when its name ends so, JSON otherwise.
pub(super) fn read_spec(path: &std::path::Path) -> Result<IdentitySpec> {
    let text = read(path)?;
    let wrong = |why: String| {
        Error::invalid("bad-identity", why)
            .on(path.display().to_string())
            .hint("examples/identity/lab.toml has all fields")
    };
    if path.extension().is_some_and(|ending| ending == "toml") {
        toml::from_str(&text).map_err(|e| wrong(e.to_string()))
    } else {
        serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))
    }
}

/// A key, or all keys of a file.
fn read_keys(text: &str) -> Result<Vec<String>> {
    if text.contains(' ') {
        return Ok(vec![text.to_owned()]);
    }
    let file = read(std::path::Path::new(text))?;
    let lines = file.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(lines.map(str::to_owned).collect())
}

impl What {
    /// The whole spec: from the file, or `before` with what was said changed.
    fn spec(&self, before: impl FnOnce() -> IdentitySpec) -> Result<IdentitySpec> {
        let mut spec = self.spec.as_deref().map_or_else(|| Ok(before()), read_spec)?;
        let mut keys = Vec::new();
        for key in &self.keys {
            keys.extend(read_keys(key)?);
        }
        if let Some(name) = &self.user {
            let at = spec.users.iter().position(|user| user.name == *name).unwrap_or_else(|| {
                spec.users.push(UserSpec {
                    name: name.clone(),
                    shell: Some("/bin/bash".to_owned()),
                    ..UserSpec::default()
                });
                spec.users.len() - 1
            });
            let user = &mut spec.users[at];
            user.sudo |= self.sudo;
            if let Some(hash) = &self.password_hash {
                user.password_hash = Some(hash.clone());
            }
            if !keys.is_empty() {
                user.authorized_keys = keys;
            }
        } else if !keys.is_empty() {
            spec.authorized_keys = keys;
        }
        if let Some(hostname) = &self.hostname {
            spec.hostname.clone_from(hostname);
        }
        if let Some(path) = &self.user_data {
            spec.user_data = Some(read(path)?);
        }
        spec.mac = self.mac.clone().or(spec.mac);
        spec.machine_id = self.machine_id.clone().or(spec.machine_id);
        match self.format {
            Some(Format::Nocloud) => spec.format = IdentityFormat::Nocloud,
            Some(Format::ConfigDrive) => spec.format = IdentityFormat::ConfigDrive,
            None => {}
        }
        Ok(spec)
    }
}

pub(super) async fn of_clone(verb: CloneVerb, session: &Session) -> std::result::Result<(), Failure> {
    let client = session.client()?;
    let path = |clone: &str| format!("clones/{}/identity-spec", session.segment(clone));
    match verb {
        CloneVerb::Show { clone } => show(&client.get(&path(&clone)).await?, session),
        CloneVerb::Set(set) => {
            let Set { clones, what, renew, dry_run } = *set;
            for clone in clones {
                let before: IdentityView = client.get(&path(&clone)).await?;
                // One that only follows from its id has no host keys yet; one that is said has, unless the spec says no.
                let spec =
                    what.spec(|| if before.kept == "derived" { IdentitySpec::default() } else { before.spec })?;
                let request = SetIdentity { spec, renew };
                show(&client.put(&path(&clone), &dry_run.query(), &request).await?, session);
            }
        }
        CloneVerb::Renew { clones, keep_host_keys, new_mac, dry_run } => {
            for clone in clones {
                let request = RenewIdentity { keep_host_keys, new_mac };
                show(&client.post(&format!("{}/renew", path(&clone)), &dry_run.query(), &request).await?, session);
            }
        }
        CloneVerb::Clear { clones, dry_run } => {
            for clone in clones {
                let done: Touched = client.delete(&path(&clone), &dry_run.query()).await?;
                touched("cleared", &done, session);
            }
        }
    }
    Ok(())
}

pub(super) async fn of_template(verb: TemplateVerb, session: &Session) -> std::result::Result<(), Failure> {
    let client = session.client()?;
    let path = |template: &str| format!("templates/{}/identity-spec", session.segment(template));
    match verb {
        TemplateVerb::Show { template } => show_default(&client.get(&path(&template)).await?, session),
        TemplateVerb::Set { template, what, dry_run } => {
            let before: TemplateIdentityView = client.get(&path(&template)).await?;
            let spec = what.spec(|| if before.kept == "none" { IdentitySpec::default() } else { before.spec })?;
            show_default(&client.put(&path(&template), &dry_run.query(), &spec).await?, session);
        }
        TemplateVerb::Clear { template, dry_run } => {
            let done: Touched = client.delete(&path(&template), &dry_run.query()).await?;
            touched("cleared", &done, session);
        }
    }
    Ok(())
}

fn show(view: &IdentityView, session: &Session) {
    if session.form == Form::Json {
        output::json(view);
        return;
    }
    let server = session.server.trim_end_matches('/');
    let mut facts = vec![
        ("clone", view.clone.clone()),
        ("hostname", view.hostname.clone()),
        ("instance-id", view.instance_id.clone()),
        ("generation", view.generation.to_string()),
        ("machine-id", view.machine_id.clone()),
        ("mac", view.mac.clone()),
        ("ssh host key", view.fingerprint.clone().unwrap_or_else(|| "its own".to_owned())),
    ];
    facts.extend(said(&view.spec));
    facts.extend([
        ("kept", view.kept.clone()),
        ("disk", format!("{server}{}", view.disk)),
        ("seed", format!("{server}{}", view.seed)),
    ]);
    output::facts(&facts);
    if view.dry_run {
        output::line("nothing was done");
    }
    for note in &view.notes {
        output::line(&format!("  {note}"));
    }
}

fn show_default(view: &TemplateIdentityView, session: &Session) {
    if session.form == Form::Json {
        output::json(view);
        return;
    }
    let mut facts = vec![("template", view.template.clone()), ("hostname", view.spec.hostname.clone())];
    facts.extend(said(&view.spec));
    facts.push(("kept", view.kept.clone()));
    output::facts(&facts);
    if view.dry_run {
        output::line("nothing was done");
    }
}

fn said(spec: &IdentitySpec) -> Vec<(&'static str, String)> {
    let users: Vec<String> = spec.users.iter().map(|user| user.name.clone()).collect();
    let keys: usize =
        spec.authorized_keys.len() + spec.users.iter().map(|user| user.authorized_keys.len()).sum::<usize>();
    let format = match spec.format {
        IdentityFormat::Nocloud => "nocloud",
        IdentityFormat::ConfigDrive => "config-drive",
    };
    vec![
        ("users", output::or_dash(Some(users.join(", ")).filter(|text| !text.is_empty()))),
        ("keys", keys.to_string()),
        (
            "network",
            spec.network
                .as_ref()
                .map_or_else(|| "the image's own way".to_owned(), |n| format!("{} cards", n.interfaces.len())),
        ),
        ("user-data", spec.user_data.as_ref().map_or_else(|| "-".to_owned(), |data| format!("{} bytes", data.len()))),
        ("format", format.to_owned()),
    ]
}
