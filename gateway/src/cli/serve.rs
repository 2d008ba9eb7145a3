//! `clonegate serve`

use std::path::PathBuf;

use clap::Args;
use clonegate_core::Result as Outcome;

use super::failure::Failure;
use super::{output, running};
use crate::config::{self, Log};

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  clonegate serve --config /etc/clonegate.toml")]
pub(super) struct Serve {
    /// The configuration; examples/clonegate.toml tells each key
    #[arg(long, env = "CLONEGATE_CONFIG")]
    config: Option<PathBuf>,
}

impl Serve {
    /// What its configuration says of log lines.
    pub(super) fn log(&self) -> Outcome<Log> {
        config::load(self.config.as_deref()).map(|config| config.log)
    }
}

pub(super) async fn run(serve: Serve) -> Result<(), Failure> {
    let config = config::load(serve.config.as_deref())?;
    let running = running::prepare(&config).await?.serve().await?;
    output::line(&format!("HTTP on http://{}", running.http()));
    if let Some(https) = running.https() {
        output::line(&format!("HTTPS on https://{https}"));
    }
    if let Some(nbd) = running.nbd() {
        output::line(&format!("NBD on nbd://{nbd}"));
    }
    if let Some(path) = &config.listen.nbd_unix {
        output::line(&format!("NBD on nbd+unix:///?socket={}", path.display()));
    }
    Ok(running.until_stopped().await?)
}
