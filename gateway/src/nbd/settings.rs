//! What an operator may set of the NBD server, with the defaults.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::tls::Tls;

/// How the NBD server listens and what it bounds.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NbdSettings {
    /// TCP address; port 0 takes a free one.
    pub listen: Option<SocketAddr>,
    /// Path of a Unix socket, made with mode 0600. TLS is not asked for on it: the file's owner decides who may connect.
    pub unix: Option<PathBuf>,
    /// Encryption of TCP connections; without it they are plain.
    pub tls: Option<Tls>,
    /// Threads that serve connections; 0 is one per core.
    pub threads: usize,
    /// Connections at a time; more are closed at once.
    pub connections_max: usize,
    /// A handshake that takes longer is closed.
    #[serde(with = "humantime_serde")]
    pub handshake_timeout: Duration,
    /// A request whose rest does not come within this time closes the connection (a large payload gets more time).
    #[serde(with = "humantime_serde")]
    pub request_timeout: Duration,
    /// A client that takes no replies for this time is disconnected.
    #[serde(with = "humantime_serde")]
    pub reply_timeout: Duration,
    /// How long a new connection waits for the writes of earlier connections to its export.
    #[serde(with = "humantime_serde")]
    pub admission_timeout: Duration,
    /// Bytes of requests that wait for their device, over all connections.
    pub waiting_bytes_max: u64,
}

impl Default for NbdSettings {
    fn default() -> Self {
        Self {
            listen: None,
            unix: None,
            tls: None,
            threads: 0,
            connections_max: 10_000,
            handshake_timeout: Duration::from_secs(60),
            request_timeout: Duration::from_secs(30),
            reply_timeout: Duration::from_secs(120),
            admission_timeout: Duration::from_secs(30),
            waiting_bytes_max: 512 << 20,
        }
    }
}
