//! The real `clonegate` program as a child process on a data directory of its own.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long a start or a stop may take on a loaded machine before the test gives up.
const PATIENCE: Duration = Duration::from_secs(120);

/// The program under test. Cargo builds it with these tests from
/// the source of `clonegate` (see `tests/Cargo.toml`), so it is never stale and never missing.
pub fn program() -> PathBuf {
    let exe = std::env::current_exe().expect("a running program has a path");
    let dir = exe.ancestors().find(|dir| dir.ends_with("deps")).and_then(Path::parent);
    let dir = dir.expect("test programs are in target/<profile>/deps");
    dir.join(format!("clonegate-under-test{}", std::env::consts::EXE_SUFFIX))
}

/// A command of the program, without any `CLONEGATE_…` variable of the caller.
pub fn command<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(program());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CLONEGATE_") {
            command.env_remove(name);
        }
    }
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Where [`free_address`] looks: below the ports that systems give to outgoing connections, one of which could take a port between the
/// choice and its use, or while a gateway is started anew.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// An address of this host that nobody listens on, and that no other test is given while this one runs.
pub fn free_address() -> SocketAddr {
    static TAKEN: Mutex<Vec<File>> = Mutex::new(Vec::new());
    let user = rustix::process::geteuid().as_raw();
    let locks = std::env::temp_dir().join(format!("clonegate-test-ports-{user}"));
    fs::create_dir_all(&locks).expect("the temporary directory is writable");
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    // Programs begin at different places, so that they seldom meet.
    let begin = std::process::id().wrapping_mul(37).wrapping_add(u32::try_from(taken.len()).unwrap_or(0));
    for step in 0..PORTS.len() {
        let port = PORTS.start + u16::try_from((begin as usize + step) % PORTS.len()).unwrap_or(0);
        let file = File::options().create(true).truncate(false).write(true).open(locks.join(port.to_string()));
        let Ok(file) = file else { continue };
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() && TcpListener::bind(address).is_ok() {
            taken.push(file);
            return address;
        }
    }
    panic!("no port of {PORTS:?} is free");
}

/// `clonegate up` on a directory of its own. Dropping it kills the process and removes the directory.
#[derive(Debug)]
pub struct Gateway {
    dir: TempDir,
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
    http: SocketAddr,
    nbd: SocketAddr,
    child: Option<Child>,
}

impl Gateway {
    /// Starts `clonegate up` with further `arguments` and waits until it answers.
    ///
    /// # Panics
    /// With what it printed, when it ends or does not answer in time.
    pub fn up(arguments: &[&str]) -> Self {
        Self::up_with(arguments, &[])
    }

    /// The same, with environment variables.
    ///
    /// # Panics
    /// With what it printed, when it ends or does not answer in time.
    pub fn up_with(arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        Self::up_at(free_address(), free_address(), arguments, variables)
    }

    /// The same, at these addresses.
    ///
    /// # Panics
    /// With what it printed, when it ends or does not answer in time.
    pub fn up_at(http: SocketAddr, nbd: SocketAddr, arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let dir = tempfile::Builder::new().prefix("clonegate-test-").tempdir().expect("a temporary directory");
        let arguments = arguments.iter().map(ToString::to_string).collect();
        let variables = variables.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let mut gateway = Self { dir, arguments, variables, http, nbd, child: None };
        gateway.start();
        gateway
    }

    /// Starts it again on the same directory and addresses.
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let output = File::options().create(true).append(true).open(self.log()).expect("a log file");
        let errors = output.try_clone().expect("a second handle");
        let mut command = command(["up"]);
        command.args(&self.arguments).arg("--data").arg(self.data());
        command.args(["--listen", &self.http.to_string(), "--nbd", &self.nbd.to_string()]);
        command.envs(self.variables.iter().map(|(k, v)| (k, v)));
        command.current_dir(self.dir.path()).stdout(output).stderr(errors);
        self.child = Some(command.spawn().expect("the program starts"));
        self.wait_until_ready();
    }

    fn wait_until_ready(&mut self) {
        let begin = Instant::now();
        let health = self.url("/healthz");
        loop {
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
                panic!("clonegate up ended ({status}):\n{}", self.output());
            }
            if http_status(&health) == Some(200) {
                return;
            }
            assert!(begin.elapsed() < PATIENCE, "clonegate up does not answer:\n{}", self.output());
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ends it as a power cut would: SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("our own child can be killed");
            child.wait().expect("our own child can be waited for");
        }
    }

    /// Ends it as Ctrl-C would, and returns how it ended.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn interrupt(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("it runs");
        kill_process(Pid::from_child(&child), Signal::INT).expect("our own child can be signalled");
        let begin = Instant::now();
        loop {
            if let Some(status) = child.try_wait().expect("our own child can be waited for") {
                return status;
            }
            if begin.elapsed() > PATIENCE {
                child.kill().expect("our own child can be killed");
                child.wait().expect("our own child can be waited for");
                panic!("Ctrl-C did not end it:\n{}", self.output());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The URL of `path` on this gateway.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.http)
    }

    /// The URL of a clone's volume.
    pub fn disk_url(&self, clone: &str) -> String {
        self.url(&format!("/v1/clones/{clone}/disk"))
    }

    /// Where HTTP is served.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// Where NBD is served.
    pub fn nbd(&self) -> SocketAddr {
        self.nbd
    }

    /// The process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// A directory for the test's own files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("output.txt")
    }

    /// Everything it has printed.
    pub fn output(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// Runs a command line verb against this gateway.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        command(arguments).env("CLONEGATE_SERVER", self.url("")).output().expect("the program starts")
    }

    /// Runs a verb that must succeed, and returns its standard output.
    ///
    /// # Panics
    /// When it fails.
    pub fn cli_ok(&self, arguments: &[&str]) -> String {
        let output = self.cli(arguments);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(
            output.status.success(),
            "clonegate {} ended with {}:\n{}{}\n--- gateway:\n{}",
            arguments.join(" "),
            output.status,
            text(&output.stdout),
            text(&output.stderr),
            self.output()
        );
        text(&output.stdout)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if thread::panicking() {
            println!("--- output of the gateway:\n{}", self.output());
        }
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself; either way nothing is left to do about a failure here.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// Waits until `condition` holds.
///
/// # Panics
/// When it does not come to hold.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < PATIENCE, "it did not happen that {what}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// The status of a GET, or `None` when nobody answers. Spoken by hand: readiness needs neither TLS nor a runtime.
fn http_status(url: &str) -> Option<u16> {
    use std::io::{Read, Write};
    let rest = url.strip_prefix("http://")?;
    let (host, path) = rest.split_at(rest.find('/')?);
    let mut socket = std::net::TcpStream::connect(host).ok()?;
    socket.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(socket, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").ok()?;
    let mut head = [0; 12];
    socket.read_exact(&mut head).ok()?;
    std::str::from_utf8(head.get(9..12)?).ok()?.parse().ok()
}
