//! Lines that are kept with the decision: `info!("{} has {} clones", base.id, base.deltas)`.
//!
//! A call may write 32 lines of 1 KiB, 8 KiB together; what is beyond is left away and marked. In native tests the lines are
//! read with [`take`]. The message of a panic is a line of level `Error`.

/// How important a line is; `Warn` and above also reach the gateway's own log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Level {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

/// Writes one line.
#[cfg(target_arch = "wasm32")]
pub fn write(level: Level, message: &str) {
    use crate::bindings::common::clonegate::policy::log;
    let level = match level {
        Level::Trace => log::Level::Trace,
        Level::Debug => log::Level::Debug,
        Level::Info => log::Level::Info,
        Level::Warn => log::Level::Warn,
        Level::Error => log::Level::Error,
    };
    log::write(level, message);
}

/// Makes the message of a panic a line of the log: what the host sees of it is only that the plugin crashed.
#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
pub fn __log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let what = panic.payload_as_str().unwrap_or("a panic without a message");
        match panic.location() {
            Some(at) => write(Level::Error, &format!("panicked at {at}: {what}")),
            None => write(Level::Error, &format!("panicked: {what}")),
        }
    }));
}

#[cfg(not(target_arch = "wasm32"))]
thread_local! {
    static LINES: std::cell::RefCell<Vec<(Level, String)>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// Writes one line.
#[cfg(not(target_arch = "wasm32"))]
pub fn write(level: Level, message: &str) {
    LINES.with(|lines| lines.borrow_mut().push((level, message.to_owned())));
}

/// Takes the lines that this thread has written, in native tests.
#[cfg(not(target_arch = "wasm32"))]
pub fn take() -> Vec<(Level, String)> {
    LINES.with(|lines| std::mem::take(&mut *lines.borrow_mut()))
}

/// Writes a line of level `Trace`; arguments as of `format!`.
#[macro_export]
macro_rules! trace {
    ($($arg:tt)*) => { $crate::log::write($crate::log::Level::Trace, &::std::format!($($arg)*)) };
}

/// Writes a line of level `Debug`; arguments as of `format!`.
#[macro_export]
macro_rules! debug {
    ($($arg:tt)*) => { $crate::log::write($crate::log::Level::Debug, &::std::format!($($arg)*)) };
}

/// Writes a line of level `Info`; arguments as of `format!`.
#[macro_export]
macro_rules! info {
    ($($arg:tt)*) => { $crate::log::write($crate::log::Level::Info, &::std::format!($($arg)*)) };
}

/// Writes a line of level `Warn`; arguments as of `format!`.
#[macro_export]
macro_rules! warn {
    ($($arg:tt)*) => { $crate::log::write($crate::log::Level::Warn, &::std::format!($($arg)*)) };
}

/// Writes a line of level `Error`; arguments as of `format!`.
#[macro_export]
macro_rules! error {
    ($($arg:tt)*) => { $crate::log::write($crate::log::Level::Error, &::std::format!($($arg)*)) };
}
