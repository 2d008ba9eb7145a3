//! The process: arguments, log, runtime, exit code.

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use super::Cli;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    // Before anything else: this process may be the one that compiles a plugin, with little memory and no threads to spare.
    if std::env::args_os().nth(1).is_some_and(|verb| verb == clonegate_policy_host::CHILD_VERB) {
        return clonegate_policy_host::compile_child_main();
    }
    let cli = Cli::parse();
    let filter = EnvFilter::try_new(cli.log().unwrap_or("warn")).unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
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
        Err(failure) => {
            eprintln!("clonegate: {}", failure.text);
            ExitCode::from(failure.exit)
        }
    }
}
