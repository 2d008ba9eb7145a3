//! What an operator may set of the HTTP server.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use clonegate_policy_host::PolicyHost;

use super::auth::Tokens;
use super::boot::BootSettings;
use crate::tls::Tls;

/// Settings of the HTTP server. Every bound protects honest clients from one that is not.
#[derive(Debug, Clone)]
pub struct HttpSettings {
    /// Where to listen. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where to listen for the same under TLS.
    pub secure: Option<Secure>,
    /// Threads that serve connections; 0 for one per core.
    pub workers: usize,
    /// Open connections. Beyond it the one that has waited longest for its client makes room; when there is none, the new one is turned
    /// away.
    pub connections_max: usize,
    /// How long a connection may be idle between requests.
    pub idle_timeout: Duration,
    /// How long the header of a request may take from its first byte.
    pub header_timeout: Duration,
    /// How long a request body may stand still; it must also bring 64 KiB a second on average.
    pub body_timeout: Duration,
    /// How long a response may wait for a reader that takes less than 64 KiB.
    pub stall_timeout: Duration,
    /// How long a connection that is served, or whose body is read, may stand still when it is in the way of a new one.
    pub crowded_timeout: Duration,
    /// How long a shutdown waits for answers that are under way.
    pub drain_timeout: Duration,
    /// Bytes of PUT bodies that are held in memory at a time, over all connections, besides the first 64 KiB of each; more wait.
    /// 64 MiB of it are for one body at a time.
    pub write_buffers_bytes: u32,
    /// How long a PUT waits for that.
    pub write_patience: Duration,
    /// In what time 256 KiB of a body that holds some must come while others wait.
    pub write_hurry: Duration,
    /// The boot routes.
    pub boot: BootSettings,
    /// The plugins, whose routes are there only with them.
    pub policies: Option<Arc<PolicyHost>>,
    /// Who may change things; without it, whoever reaches the port.
    pub tokens: Option<Arc<Tokens>>,
}

/// HTTPS.
#[derive(Debug, Clone)]
pub struct Secure {
    /// Where to listen. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Its certificate. Clients are told apart by tokens, not by certificates.
    pub tls: Tls,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            secure: None,
            workers: 0,
            connections_max: 4096,
            idle_timeout: Duration::from_secs(75),
            header_timeout: Duration::from_secs(15),
            body_timeout: Duration::from_secs(30),
            stall_timeout: Duration::from_secs(30),
            crowded_timeout: Duration::from_secs(5),
            drain_timeout: Duration::from_secs(10),
            write_buffers_bytes: 256 * 1024 * 1024,
            write_patience: Duration::from_secs(30),
            write_hurry: Duration::from_secs(1),
            boot: BootSettings::default(),
            policies: None,
            tokens: None,
        }
    }
}

impl HttpSettings {
    /// The number of workers that this asks for.
    pub(super) fn worker_count(&self) -> usize {
        match self.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            workers => workers,
        }
        .min(WORKERS_MAX)
    }
}

/// Most worker threads; more are not started.
const WORKERS_MAX: usize = 256;
