//! A machine in QEMU that is watched and steered while it runs: its serial line, and its monitor.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// A running machine; killed when dropped.
#[derive(Debug)]
pub struct LiveMachine {
    child: Child,
    monitor: UnixStream,
    serial: Arc<Mutex<String>>,
    events: Arc<Mutex<Vec<Value>>>,
    _dir: TempDir,
}

/// Adds what a pipe gives to a text, on a thread of its own.
fn gather(pipe: impl Read + Send + 'static, text: &Arc<Mutex<String>>) {
    let text = Arc::clone(text);
    thread::spawn(move || {
        let mut pipe = pipe;
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = pipe.read(&mut buffer) {
            let part = String::from_utf8_lossy(&buffer[..length]).into_owned();
            text.lock().unwrap_or_else(PoisonError::into_inner).push_str(&part);
        }
    });
}

impl LiveMachine {
    /// Starts `program` with `arguments`, a serial line and a monitor.
    ///
    /// # Panics
    /// When QEMU does not start.
    pub fn start(program: &Path, arguments: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("clonegate-vm-").tempdir().expect("a temporary directory");
        let socket = dir.path().join("monitor");
        let monitor = format!("unix:{},server=on,wait=off", socket.display());
        let mut child = Command::new(program)
            .args(arguments)
            .args([
                "-accel",
                "tcg,thread=multi",
                "-nodefaults",
                "-display",
                "none",
                "-serial",
                "stdio",
                "-qmp",
                &monitor,
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("QEMU starts");
        let serial = Arc::<Mutex<String>>::default();
        child.stdout.take().into_iter().for_each(|pipe| gather(pipe, &serial));
        child.stderr.take().into_iter().for_each(|pipe| gather(pipe, &serial));
        let begin = Instant::now();
        let monitor = loop {
            match UnixStream::connect(&socket) {
                Ok(monitor) => break monitor,
                Err(error) => assert!(begin.elapsed() < Duration::from_secs(60), "QEMU has no monitor: {error}"),
            }
            thread::sleep(Duration::from_millis(50));
        };
        let events = Arc::<Mutex<Vec<Value>>>::default();
        let (lines, heard) = (BufReader::new(monitor.try_clone().expect("a second handle")), Arc::clone(&events));
        thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                if let Ok(value) = serde_json::from_str::<Value>(&line)
                    && value["event"].is_string()
                {
                    heard.lock().unwrap_or_else(PoisonError::into_inner).push(value);
                }
            }
        });
        let mut machine = Self { child, monitor, serial, events, _dir: dir };
        machine.tell("qmp_capabilities");
        machine
    }

    /// Gives the monitor a command without arguments.
    ///
    /// # Panics
    /// When the monitor is gone.
    pub fn tell(&mut self, command: &str) {
        writeln!(self.monitor, "{}", json!({ "execute": command })).expect("the monitor listens");
    }

    /// What the serial line said so far, and what QEMU complained of.
    pub fn serial(&self) -> String {
        self.serial.lock().unwrap_or_else(PoisonError::into_inner).replace('\r', "")
    }

    /// How often the monitor told of an event.
    pub fn count(&self, event: &str) -> usize {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.iter().filter(|told| told["event"] == event).count()
    }

    /// Waits until `what` is so.
    ///
    /// # Panics
    /// With the serial line, when the machine ends before, or after `patience`.
    pub fn until(&mut self, patience: Duration, mut what: impl FnMut(&Self) -> bool) {
        let begin = Instant::now();
        while !what(self) {
            let over = self.ended() && !what(self);
            assert!(!over, "the machine ended:\n{}", self.serial());
            assert!(begin.elapsed() < patience, "it did not happen within {patience:?}:\n{}", self.serial());
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Whether it has ended.
    pub fn ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }
}

impl Drop for LiveMachine {
    fn drop(&mut self) {
        // It may have ended by itself; either way nothing is left to do about a failure here.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
