//! The part of `clonegate plugin` that `plugins/build.sh` needs before there is a gateway, and the compiling child of tests.

use std::process::ExitCode;

use clonegate_core::{Error, Result};
use clonegate_policy_host::{CHILD_VERB, compile_child_main, pack};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args.as_slice() {
        [CHILD_VERB, ..] => return compile_child_main(),
        ["pack", core, component] => write(core, component),
        _ => Err(Error::invalid("usage", "usage: clonegate-policy pack CORE.wasm COMPONENT.wasm")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::from(e.kind().exit_code())
        }
    }
}

fn write(core: &str, component: &str) -> Result<()> {
    let failed = |path: &str, e| Error::invalid("cannot-read", "the file cannot be used").on(path).because(e);
    let core = std::fs::read(core).map_err(|e| failed(core, e))?;
    std::fs::write(component, pack(&core)?).map_err(|e| failed(component, e))
}
