//! Compiles components where that can do no harm: a child process with limits proves first that it is possible.
//!
//! Cranelift cannot be interrupted, and how long it takes and how much memory is up to the component. The proof and the
//! compilation are the same work with the same configuration, so what passed in the child passes here. Handing the machine
//! code over instead would need an `unsafe` call that trusts it; see `docs/adr/0021-compile-twice.md`.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clonegate_core::{Error, Result};
use wasmtime::component::Component;

use crate::engine::Engine;
use crate::limits::Limits;

/// The hidden verb of the gateway's binary that runs [`compile_child_main`].
pub const CHILD_VERB: &str = "__compile-component";

/// Who proves that a component can be compiled within the limits.
#[derive(Debug, Clone)]
pub enum Compiler {
    /// Nobody: for components that are part of the program, and for authors' tools, which harm only themselves.
    Here,
    /// A child process.
    Child {
        /// The program, which calls [`compile_child_main`].
        program: PathBuf,
        /// Its arguments before the limits.
        args: Vec<OsString>,
    },
}

impl Compiler {
    /// The running program itself as the child.
    ///
    /// # Errors
    /// `no-compiler` (internal) when the program cannot find itself.
    pub fn this_program() -> Result<Self> {
        let program = std::env::current_exe()
            .map_err(|e| Error::internal("no-compiler", "the path of the running program is not known").because(e))?;
        Ok(Self::Child { program, args: vec![CHILD_VERB.into()] })
    }

    /// Compiles a component, on a thread of its own.
    pub(crate) fn compile(&self, engine: &Engine, bytes: &[u8]) -> Result<Component> {
        if let Self::Child { program, args } = self {
            prove(program, args, engine.limits(), bytes)?;
        }
        compile(engine.wasm(), bytes)
    }
}

fn compile(engine: &wasmtime::Engine, bytes: &[u8]) -> Result<Component> {
    Component::from_binary(engine, bytes)
        .map_err(|e| Error::invalid("bad-component", format!("this component is not valid: {e:#}")))
}

fn prove(program: &std::path::Path, args: &[OsString], limits: &Limits, bytes: &[u8]) -> Result<()> {
    let failed = |what: &str, e| Error::unavailable("no-compiler", format!("the compiling process {what}")).because(e);
    let mut child = Command::new(program)
        .args(args)
        .arg(limits.compile_cpu.as_secs().max(1).to_string())
        .arg(limits.compile_memory_bytes.to_string())
        .arg(limits.component_bytes.to_string())
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| failed("does not start", e))?;
    let (mut stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let (said, status) = std::thread::scope(|scope| {
        scope.spawn(move || {
            // A child that died early closes the pipe; its status says why.
            if let Some(stdin) = &mut stdin {
                let _ = stdin.write_all(bytes);
            }
            drop(stdin);
        });
        let reader = scope.spawn(move || {
            let mut said = String::new();
            if let Some(stdout) = stdout {
                let _ = stdout.take(SAID_BYTES_MAX).read_to_string(&mut said);
            }
            said
        });
        let status = wait(&mut child, limits.compile_cpu * 2 + Duration::from_secs(5));
        (reader.join().unwrap_or_default(), status)
    });
    match status.map_err(|e| failed("was lost", e))? {
        None => Err(too_slow(limits)),
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(match (signal(status), said.trim()) {
            (Some(SIGXCPU | SIGKILL), _) => too_slow(limits),
            (Some(_), _) => Error::invalid(
                "compile-too-large",
                format!("compiling this component takes more than {} MiB", limits.compile_memory_bytes >> 20),
            )
            .hint("make it smaller"),
            (None, "") => Error::internal("no-compiler", format!("the compiling process ended with {status}")),
            (None, said) => Error::invalid("bad-component", said.to_owned()),
        }),
    }
}

const SAID_BYTES_MAX: u64 = 4096;
const SIGKILL: i32 = 9;
const SIGXCPU: i32 = 24;

fn too_slow(limits: &Limits) -> Error {
    Error::invalid(
        "compile-too-slow",
        format!("compiling this component takes more than {} s", limits.compile_cpu.as_secs()),
    )
    .hint("make it smaller")
}

fn signal(status: std::process::ExitStatus) -> Option<i32> {
    std::os::unix::process::ExitStatusExt::signal(&status)
}

/// Waits for the child at most so long, then ends it.
fn wait(child: &mut Child, longest: Duration) -> std::io::Result<Option<std::process::ExitStatus>> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if start.elapsed() > longest {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The child: takes the limits from its arguments, compiles what comes in by standard input, and says on standard output what
/// is wrong with it.
pub fn compile_child_main() -> ExitCode {
    let mut numbers = std::env::args().rev().take(3).map(|a| a.parse::<u64>());
    let (Some(Ok(bytes_max)), Some(Ok(memory)), Some(Ok(cpu))) = (numbers.next(), numbers.next(), numbers.next())
    else {
        println!("usage: {CHILD_VERB} CPU-SECONDS MEMORY-BYTES COMPONENT-BYTES");
        return ExitCode::from(2);
    };
    match compile_here(cpu, memory, bytes_max) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let mut said = e.to_string();
            said.truncate(said.floor_char_boundary(2000));
            println!("{said}");
            ExitCode::FAILURE
        }
    }
}

fn compile_here(cpu: u64, memory: u64, bytes_max: u64) -> Result<()> {
    use rustix::process::{Resource, Rlimit, nice, setrlimit};
    let limit = |resource, value| {
        setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) })
            .map_err(|e| Error::internal("no-compiler", "the limits of the compiling process cannot be set").because(e))
    };
    limit(Resource::Core, 0)?;
    limit(Resource::As, memory)?;
    limit(Resource::Cpu, cpu)?;
    let _ = nice(5);
    let mut bytes = Vec::new();
    let read = std::io::stdin().take(bytes_max + 1).read_to_end(&mut bytes);
    read.map_err(|e| Error::internal("no-compiler", "the component does not arrive").because(e))?;
    compile(&Engine::compiler(Limits::default())?, &bytes).map(drop)
}
