//! What one gateway takes on at a time.

use bytesize::ByteSize;
use clonegate_core::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::http::HttpSettings;
use crate::nbd::NbdSettings;

const CONNECTIONS_MAX: u32 = 1_000_000;
const THREADS_MAX: u32 = 256;
/// The largest request must fit, 64 MiB, and as much must be left for others.
const PUT_BUFFERS_MIN: ByteSize = ByteSize::mib(128);
/// The largest request must fit, 32 MiB.
const NBD_WAITING_MIN: ByteSize = ByteSize::mib(64);
const BUFFERS_MAX: ByteSize = ByteSize::gib(2);

/// Bounds of the servers. Each protects honest clients from one that is not; raise them for more machines than usual.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Open connections by HTTP and HTTPS; beyond it the one that waited longest for its client is closed, or else the new one.
    pub http_connections: u32,
    /// Threads that serve HTTP; 0 is one per core.
    pub http_threads: u32,
    /// Bytes of PUT bodies held in memory at a time, besides the first 64 KiB of each; more wait.
    pub http_put_buffers: ByteSize,
    /// Open connections by NBD; more are closed at once.
    pub nbd_connections: u32,
    /// Threads that serve NBD; 0 is one per core.
    pub nbd_threads: u32,
    /// Bytes of NBD requests that wait for their disk; more are not read from the network yet.
    pub nbd_waiting: ByteSize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            http_connections: 4096,
            http_threads: 0,
            http_put_buffers: ByteSize::mib(256),
            nbd_connections: 10_000,
            nbd_threads: 0,
            nbd_waiting: ByteSize::mib(512),
        }
    }
}

impl Limits {
    /// Refuses what no server can work with.
    ///
    /// # Errors
    /// `Invalid` with code `bad-config` naming the key.
    pub fn check(&self) -> Result<()> {
        let wrong = |key: &str, range: String| Err(Error::invalid("bad-config", range).on(format!("limits.{key}")));
        for (key, connections) in
            [("http_connections", self.http_connections), ("nbd_connections", self.nbd_connections)]
        {
            if !(1..=CONNECTIONS_MAX).contains(&connections) {
                return wrong(key, format!("it is from 1 to {CONNECTIONS_MAX}"));
            }
        }
        for (key, threads) in [("http_threads", self.http_threads), ("nbd_threads", self.nbd_threads)] {
            if threads > THREADS_MAX {
                return wrong(key, format!("it is from 0 to {THREADS_MAX}"));
            }
        }
        for (key, buffers, least) in [
            ("http_put_buffers", self.http_put_buffers, PUT_BUFFERS_MIN),
            ("nbd_waiting", self.nbd_waiting, NBD_WAITING_MIN),
        ] {
            if !(least..=BUFFERS_MAX).contains(&buffers) {
                return wrong(key, format!("it is from {least} to {BUFFERS_MAX}"));
            }
        }
        Ok(())
    }

    /// The settings of the HTTP server, with these limits.
    pub fn http(&self) -> HttpSettings {
        HttpSettings {
            connections_max: usize::try_from(self.http_connections).unwrap_or(usize::MAX),
            workers: usize::try_from(self.http_threads).unwrap_or(0),
            write_buffers_bytes: u32::try_from(self.http_put_buffers.as_u64()).unwrap_or(u32::MAX),
            ..HttpSettings::default()
        }
    }

    /// The settings of the NBD server, with these limits.
    pub fn nbd(&self) -> NbdSettings {
        NbdSettings {
            connections_max: usize::try_from(self.nbd_connections).unwrap_or(usize::MAX),
            threads: usize::try_from(self.nbd_threads).unwrap_or(0),
            waiting_bytes_max: self.nbd_waiting.as_u64(),
            ..NbdSettings::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_those_of_the_servers() {
        let (ours, http, nbd) = (Limits::default(), HttpSettings::default(), NbdSettings::default());
        let limits = ours.http();
        assert_eq!((limits.connections_max, limits.workers), (http.connections_max, http.workers));
        assert_eq!(limits.write_buffers_bytes, http.write_buffers_bytes);
        let limits = ours.nbd();
        assert_eq!((limits.connections_max, limits.threads), (nbd.connections_max, nbd.threads));
        assert_eq!(limits.waiting_bytes_max, nbd.waiting_bytes_max);
    }

    #[test]
    fn what_no_server_can_work_with_is_refused_with_the_key() {
        for (text, key) in [
            ("http_connections = 0", "limits.http_connections"),
            ("nbd_connections = 2000000", "limits.nbd_connections"),
            ("http_threads = 1000", "limits.http_threads"),
            ("http_put_buffers = '64MiB'", "limits.http_put_buffers"),
            ("nbd_waiting = '3GiB'", "limits.nbd_waiting"),
        ] {
            let error = crate::config::from_text(&format!("[limits]\n{text}")).unwrap_err();
            assert_eq!((error.code(), error.object()), ("bad-config", Some(key)), "{error}");
        }
    }
}
