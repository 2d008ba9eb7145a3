//! `clonegate config …`

use std::path::PathBuf;

use clap::Subcommand;

use super::Session;
use super::failure::Failure;
use super::output::{self, Form};
use crate::config;

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
            let stores = loaded.datastore.len();
            match session.form {
                Form::Json => output::json(&serde_json::json!({ "ok": true, "datastores": stores })),
                Form::Table => output::line(&format!("the configuration is right: {stores} datastores")),
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
