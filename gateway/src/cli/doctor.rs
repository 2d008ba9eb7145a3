//! `clonegate doctor`: what is wrong here, and how to mend it.

use std::path::{Path, PathBuf};

use clap::Args;
use clonegate_core::{Error, Result};
use clonegate_policy_host::HostSettings;
use serde::Serialize;

use super::failure::Failure;
use super::output::{self, Form};
use super::{Session, running};
use crate::clock::Clock;
use crate::config::{self, Config};
use crate::store::{Store, StoreConfig};

/// Fewer open files than this are too few for many machines.
const OPEN_FILES_FEW: u64 = 16 * 1024;
/// A journal that takes longer to sync makes every flush slow, milliseconds.
const SYNC_SLOW_MS: u128 = 50;
/// Less free space than this in the file system of the journal or a store is a trouble, bytes.
const FREE_FEW: u64 = 1 << 30;
/// A store's clock that is further off makes signed requests fail soon, seconds.
const CLOCK_OFF_S: i64 = 30;

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  clonegate doctor --config /etc/clonegate.toml")]
pub(super) struct Doctor {
    /// The configuration to look at
    #[arg(long, env = "CLONEGATE_CONFIG")]
    config: Option<PathBuf>,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Checked {
    what: String,
    ok: bool,
    found: String,
}

pub(super) async fn run(doctor: Doctor, session: &Session) -> std::result::Result<(), Failure> {
    let config = config::load(doctor.config.as_deref())?;
    let clock = Clock::system();
    let used = match &doctor.config {
        Some(file) => file.display().to_string(),
        None => "the defaults; --config FILE looks at another".to_owned(),
    };
    let mut all = vec![checked("configuration", ignored().map(|()| used)), open_files()];
    all.push(checked("journal", journal(&config.journal.path, &clock)));
    let identity = running::identity(&config.journal.path, &clock);
    match identity {
        Err(error) => all.push(checked("identity", Err(error))),
        Ok(gateway) => {
            let stores = std::iter::once(("home".to_owned(), config.home.0.clone()))
                .chain(config.datastore.iter().map(|d| (format!("datastore {}", d.name), d.store())));
            for (what, settings) in stores {
                all.push(checked(what, probe(&settings, gateway, &clock).await));
            }
        }
    }
    all.push(checked("policies", policies(&config, &clock)));
    if session.form == Form::Json {
        output::json(&all);
    } else {
        for Checked { what, ok, found } in &all {
            output::line(&format!("{}  {what}: {found}", if *ok { "ok   " } else { "WRONG" }));
        }
    }
    let wrong = all.iter().filter(|c| !c.ok).count();
    if wrong == 0 {
        return Ok(());
    }
    Err(Error::internal("unwell", format!("{wrong} of {} things are wrong", all.len())).into())
}

fn checked(what: impl Into<String>, result: Result<String>) -> Checked {
    let ok = result.is_ok();
    let found = result.unwrap_or_else(|error| error.to_string());
    Checked { what: what.into(), ok, found }
}

/// Fails when variables look as if they were to configure something and do not.
fn ignored() -> Result<()> {
    match running::ignored_variables().as_slice() {
        [] => Ok(()),
        ignored => Err(Error::invalid("unknown-key", format!("no key has these names: {}", ignored.join(", ")))
            .hint("they are ignored: mend their names or unset them")),
    }
}

fn open_files() -> Checked {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let most = limit.maximum.unwrap_or(u64::MAX);
    let found = if most < OPEN_FILES_FEW {
        Err(Error::exhausted("few-open-files", format!("at most {most} files and connections"))
            .hint("raise it: LimitNOFILE=1048576 in the service, or ulimit -Hn"))
    } else {
        Ok(format!("{most}"))
    };
    checked("open files", found)
}

fn journal(path: &Path, clock: &Clock) -> Result<String> {
    let failed = |e: std::io::Error| {
        Error::unavailable("no-journal", "the journal's directory cannot be written")
            .on(path.display().to_string())
            .because(e)
            .hint("make it, and let this user own it")
    };
    std::fs::create_dir_all(path).map_err(failed)?;
    let trial = path.join(".doctor");
    let begun = clock.instant();
    let synced = std::fs::write(&trial, [0; 4096])
        .and_then(|()| std::fs::File::open(&trial)?.sync_all())
        .and_then(|()| std::fs::remove_file(&trial));
    synced.map_err(failed)?;
    let took = begun.elapsed().as_millis();
    let stat = rustix::fs::statvfs(path).map_err(|e| failed(e.into()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free < FREE_FEW {
        return Err(Error::exhausted("journal-full", format!("{} free", output::size(free)))
            .on(path.display().to_string())
            .hint("make room, or move it: journal.path"));
    }
    if took > SYNC_SLOW_MS {
        return Err(Error::unavailable("journal-slow", format!("a sync takes {took} ms"))
            .on(path.display().to_string())
            .hint("every flush of a `local` clone waits for it: put it on a faster disk"));
    }
    Ok(format!("a sync takes {took} ms, {} free", output::size(free)))
}

async fn probe(settings: &StoreConfig, gateway: clonegate_core::ids::GatewayId, clock: &Clock) -> Result<String> {
    let store = Store::open(settings, clock)?;
    let admission = store.admit(gateway, &running::host_name()).await?;
    if admission.clock_ahead_s.abs() > CLOCK_OFF_S {
        return Err(Error::unavailable(
            "clock-off",
            format!("its clock is {} s ahead of ours", admission.clock_ahead_s),
        )
        .on(store.label().to_owned())
        .hint("set the clocks: signed requests fail soon"));
    }
    Ok(format!(
        "{}: put-if-absent holds{}, create {:.1} ms, read {:.1} ms{}",
        store.label(),
        if admission.put_if_absent { "" } else { " within this gateway alone (exclusive)" },
        admission.create.as_secs_f64() * 1e3,
        admission.read.as_secs_f64() * 1e3,
        room(&store)?
    ))
}

/// The free space of a directory; of another store nobody knows.
fn room(store: &Store) -> Result<String> {
    let Some(stat) = store.directory().and_then(|directory| rustix::fs::statvfs(directory).ok()) else {
        return Ok(String::new());
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free < FREE_FEW {
        return Err(Error::exhausted("store-full", format!("{} free", output::size(free)))
            .on(store.label().to_owned())
            .hint("make room on the disk that holds it"));
    }
    Ok(format!(", {} free", output::size(free)))
}

fn policies(config: &Config, clock: &Clock) -> Result<String> {
    // Nothing is decided here, so nothing is recorded beside a gateway that runs.
    let settings = HostSettings { records: None, ..running::host_settings(config)? };
    let policies = crate::policy::Policies::look(settings, clock.clone())?;
    match policies.host().empty_places().as_slice() {
        [] => Ok("the sandbox works and every plugin of the chains loads".to_owned()),
        empty => {
            let said: Vec<_> = empty.iter().map(|(slot, plugin, why)| format!("{slot}: {plugin}: {why}")).collect();
            Err(Error::invalid("policy-not-asked", said.join("; "))
                .hint("install it or mend its settings; until then the next plugin of the chain answers, at last the built-in rule"))
        }
    }
}
