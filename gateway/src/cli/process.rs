//! The process: arguments, log, runtime, exit code.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use clonegate_core::{Error, Result};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::{Cli, Failure};
use crate::config::{Log, LogFormat};

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    // Before anything else: this process may be the one that compiles a plugin, with little memory and no threads to spare.
    if std::env::args_os().nth(1).is_some_and(|verb| verb == clonegate_policy_host::CHILD_VERB) {
        return clonegate_policy_host::compile_child_main();
    }
    let cli = Cli::parse();
    let form = cli.form();
    if let Err(error) = start_log(&cli) {
        return Failure::from(error).told_to(form);
    }
    crate::store::tls::install_provider();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("clonegate: no threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(cli.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.told_to(form),
    }
}

/// Log lines go to standard error, as `--log` or the configuration of the gateway that this process becomes says; of a command that asks
/// a gateway only warnings.
fn start_log(cli: &Cli) -> Result<()> {
    let Log { level, format } = match cli.configured_log() {
        Some(log) => log?,
        None => Log { level: "warn".to_owned(), format: LogFormat::Text },
    };
    let level = cli.log().map_or(level, str::to_owned);
    let wrong = |why: String| {
        Error::invalid("bad-log-level", why)
            .on(level.clone())
            .hint("use error, warn, info, debug, trace, or a filter as \"warn,clonegate=debug\"")
    };
    // A word alone is read as the name of a module otherwise.
    if level.chars().all(char::is_alphanumeric) && level.parse::<LevelFilter>().is_err() {
        return Err(wrong("it is no level of log lines".to_owned()));
    }
    // This library warns of a harmless oddity of most EFI partitions each time that one is looked into; what the operator says comes after, and counts.
    let filter = EnvFilter::try_new(format!("fatfs=error,{level}")).map_err(|error| wrong(error.to_string()))?;
    // Colours belong on a terminal, not in a file or a journal.
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}
