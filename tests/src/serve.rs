//! `clonegate serve` as a child process: several of them may share a store, and each may be stopped, woken and killed.

use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::gateway::{command, free_address};
use crate::raw_http::RawHttp;

/// How long a start may take on a loaded machine before the test gives up.
const PATIENCE: Duration = Duration::from_secs(120);

/// One gateway. Dropping it kills the process.
#[derive(Debug)]
pub struct Serve {
    dir: PathBuf,
    variables: Vec<(String, String)>,
    http: SocketAddr,
    nbd: SocketAddr,
    child: Option<Child>,
}

impl Serve {
    /// Starts a gateway that keeps its journal and its output in `dir`. `config` says where home and datastores are; the
    /// rest is filled in.
    ///
    /// # Panics
    /// With what it printed, when it ends or does not answer in time.
    pub fn start(dir: &Path, config: &str, variables: &[(&str, String)]) -> Self {
        fs::create_dir_all(dir).expect("a directory");
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let (http, nbd) = (free_address(), free_address());
        let mut serve = Self { dir: dir.to_owned(), variables, http, nbd, child: None };
        let journal = dir.join("journal");
        // Keys outside of tables come first.
        let text = format!(
            "{config}\n[listen]\nhttp = \"{http}\"\nnbd = \"{nbd}\"\n[journal]\npath = \"{}\"\n",
            journal.display()
        );
        fs::write(serve.config(), text).expect("a file");
        serve.restart();
        serve
    }

    /// Starts it again, after [`Serve::kill`].
    ///
    /// # Panics
    /// As [`Serve::start`].
    pub fn restart(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let output = File::options().create(true).append(true).open(self.log()).expect("a log file");
        let errors = output.try_clone().expect("a second handle");
        let mut command = command(["serve", "--config"]);
        command.arg(self.config()).stdout(output).stderr(errors);
        command.envs(self.variables.iter().map(|(k, v)| (k, v)));
        self.child = Some(command.spawn().expect("the program starts"));
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
                panic!("clonegate serve ended ({status}):\n{}", self.output());
            }
            // NBD listens a moment after HTTP.
            if self.get("/healthz").is_ok_and(|status| status == 200) && TcpStream::connect(self.nbd).is_ok() {
                return;
            }
            assert!(begin.elapsed() < PATIENCE, "clonegate serve does not answer:\n{}", self.output());
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn get(&self, path: &str) -> io::Result<u16> {
        let mut connection = RawHttp::try_connect(self.http, Duration::from_secs(5))?;
        connection.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"))?;
        connection.reply(false).map(|reply| reply.status)
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it runs");
        kill_process(Pid::from_child(child), signal).expect("our own child can be signalled");
    }

    /// It stands still, as on a host that hangs.
    pub fn stall(&self) {
        self.signal(Signal::STOP);
    }

    /// It goes on.
    pub fn wake(&self) {
        self.signal(Signal::CONT);
    }

    /// Ends it as a power cut would: SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("our own child can be killed");
            child.wait().expect("our own child can be waited for");
        }
    }

    /// Ends it as an operator would: SIGTERM. Says whether it ended well.
    pub fn terminate(&mut self) -> bool {
        self.signal(Signal::TERM);
        let mut child = self.child.take().expect("it runs");
        let begin = Instant::now();
        loop {
            if let Some(status) = child.try_wait().expect("our own child can be waited for") {
                return status.success();
            }
            if begin.elapsed() > PATIENCE {
                drop(child.kill());
                drop(child.wait());
                return false;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Its process id while it runs.
    pub fn pid(&self) -> Option<Pid> {
        self.child.as_ref().map(Pid::from_child)
    }

    /// Where HTTP is served.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// Where NBD is served.
    pub fn nbd(&self) -> SocketAddr {
        self.nbd
    }

    fn config(&self) -> PathBuf {
        self.dir.join("clonegate.toml")
    }

    fn log(&self) -> PathBuf {
        self.dir.join("output.txt")
    }

    /// Everything it has printed.
    pub fn output(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// Runs a command line verb against this gateway.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        let mut command: Command = command(arguments);
        command.env("CLONEGATE_SERVER", format!("http://{}", self.http)).output().expect("the program starts")
    }

    /// Runs a verb that must succeed, and returns its standard output.
    ///
    /// # Panics
    /// With what both printed, when it fails.
    pub fn cli_ok(&self, arguments: &[&str]) -> String {
        let output = self.cli(arguments);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(
            output.status.success(),
            "clonegate {}: {}{}\n--- gateway:\n{}",
            arguments.join(" "),
            text(&output.stdout),
            text(&output.stderr),
            self.output()
        );
        text(&output.stdout)
    }
}

impl Drop for Serve {
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
