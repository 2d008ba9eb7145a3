//! `clonegate config …`

use std::path::PathBuf;

use clap::Subcommand;
use clonegate_core::Error;
use clonegate_policy_host::HostSettings;

use super::Session;
use super::failure::Failure;
use super::output::{self, Form};
use super::running;
use crate::clock::Clock;
use crate::config;
use crate::policy::Policies;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Say whether a configuration is right
    #[command(after_help = "Example:\n  clonegate config check --config /etc/clonegate.toml")]
    Check {
        /// The file
        #[arg(long, env = "CLONEGATE_CONFIG")]
        config: Option<PathBuf>,
    },
    /// Show the configuration as it would be used, secrets hidden
    #[command(after_help = "Example:\n  clonegate config print --config /etc/clonegate.toml")]
    Print {
        /// The file
        #[arg(long, env = "CLONEGATE_CONFIG")]
        config: Option<PathBuf>,
    },
}

pub(super) fn run(verb: Verb, session: &Session) -> Result<(), Failure> {
    match verb {
        Verb::Check { config } => {
            let loaded = config::load(config.as_deref())?;
            running::check_files(&loaded)?;
            let empty = policies(&loaded)?;
            let ignored = running::ignored_variables();
            let stores = loaded.datastore.len();
            match session.form {
                Form::Json => {
                    let told =
                        serde_json::json!({ "ok": true, "datastores": stores, "not_asked": empty, "ignored": ignored });
                    output::json(&told);
                }
                Form::Table => {
                    output::line(&format!("the configuration is right: {stores} datastores"));
                    for variable in &ignored {
                        output::line(&format!("ignored, as no key has this name: {variable}"));
                    }
                    empty.iter().for_each(|place| output::line(&format!("not asked until it is installed: {place}")));
                }
            }
        }
        Verb::Print { config } => {
            let loaded = config::load(config.as_deref())?;
            match session.form {
                Form::Json => output::json(&loaded),
                Form::Table => output::line(config::to_text(&loaded)?.trim_end()),
            }
        }
    }
    Ok(())
}

/// Checks the settings of every plugin that is there; says which are not.
fn policies(config: &config::Config) -> Result<Vec<String>, Failure> {
    let settings = HostSettings { records: None, ..running::host_settings(config)? };
    let policies = Policies::look(settings, Clock::system())?;
    let mut missing = Vec::new();
    for (slot, plugin, why) in policies.host().empty_places() {
        match policies.host().plugin(&plugin) {
            Some(_) => {
                return Err(Error::invalid("bad-settings", why).on(format!("policy.{slot}: {plugin}")).into());
            }
            None => missing.push(format!("{slot}: {plugin}")),
        }
    }
    Ok(missing)
}
