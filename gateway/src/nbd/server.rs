//! Listens, and gives each connection to the serving thread that has the fewest.
//!
//! A connection of a virtual machine lives for days, so connections are counted out rather than hashed by the kernel
//! (`SO_REUSEPORT`), which would put some thread to shame. Each thread is a current-thread runtime: a request is
//! answered on the core that read it.

use std::future::Future;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use clonegate_core::{Error, Result};
use tokio::io::{self, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::gate::Gates;
use super::handshake::{self, Encryption, Outcome};
use super::settings::NbdSettings;
use super::socket::Socket;
use super::stats::NbdStats;
use super::transmission::Transmission;
use crate::clock::Clock;
use crate::exports::{Detach, Exports};
use crate::tls::{self, Clients};

/// How long shutdown waits for what is in flight.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(10);
/// A dead peer is found out after about 60 + 6 × 10 seconds of silence, whether or not replies to it are on their way: the kernel asks
/// nothing while it repeats what was not acknowledged, which it would do for a quarter of an hour.
const PEER_TIMEOUT: Duration = Duration::from_secs(120);
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_RETRIES: u32 = 6;
/// Pause after a failed accept (too many open files), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What all connections share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) settings: NbdSettings,
    pub(super) exports: Arc<dyn Exports>,
    pub(super) gates: Arc<Gates>,
    pub(super) stats: Arc<NbdStats>,
    pub(super) memory: Memory,
    pub(super) stop: CancellationToken,
    main: Handle,
}

/// Memory for requests that wait, in KiB, over all connections. Large ones have a part of their own, so that clients
/// that announce much and send it slowly hold up only each other.
#[derive(Debug)]
pub(super) struct Memory {
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
}

impl Memory {
    /// Requests up to this many bytes are small.
    const SMALL_BYTES_MAX: u64 = 1 << 20;

    fn new(bytes: u64) -> Self {
        // Room for the largest request at least, so that it can ever be done.
        let kib = usize::try_from(bytes / 2048).unwrap_or(usize::MAX).clamp(64 * 1024, Semaphore::MAX_PERMITS);
        Self { small: Arc::new(Semaphore::new(kib)), large: Arc::new(Semaphore::new(kib)) }
    }

    /// The part that a request of `bytes` takes from, and how much of it.
    pub(super) fn part(&self, bytes: u64) -> (&Arc<Semaphore>, u32) {
        let part = if bytes <= Self::SMALL_BYTES_MAX { &self.small } else { &self.large };
        (part, u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX))
    }
}

impl Shared {
    /// Runs control work on the main runtime, to its end even if the caller goes away.
    pub(super) async fn on_main<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        match self.main.spawn(work).await {
            Ok(result) => result,
            Err(error) => Err(Error::internal("task-died", "a task of the gateway ended early").because(error)),
        }
    }
}

/// A running NBD server; dropping it stops it without waiting.
#[derive(Debug)]
pub struct NbdServer {
    shared: Arc<Shared>,
    local_addr: Option<SocketAddr>,
    unix: Option<PathBuf>,
    connections: TaskTracker,
    threads_end: CancellationToken,
}

/// Begins to serve `exports`; must be called within the main runtime, which control work will run on.
///
/// # Errors
/// `Invalid` for settings that cannot be (no address, bad certificates); `Unavailable` with code `cannot-listen`.
pub async fn serve(settings: NbdSettings, exports: Arc<dyn Exports>) -> Result<NbdServer> {
    if settings.listen.is_none() && settings.unix.is_none() {
        return Err(Error::invalid("nowhere-to-listen", "NBD has neither a TCP address nor a Unix socket")
            .hint("set listen.nbd or listen.nbd_unix"));
    }
    let tls = settings.tls.as_ref().map(|tls| tls::acceptor(tls, Clients::Certified, b"")).transpose()?;
    let tcp = settings.listen.map(listen_tcp).transpose()?;
    let local_addr = tcp.as_ref().and_then(|listener| listener.local_addr().ok());
    let unix = settings.unix.as_deref().map(listen_unix).transpose()?;
    let shared = Arc::new(Shared {
        memory: Memory::new(settings.waiting_bytes_max),
        exports,
        gates: Arc::default(),
        stats: Arc::default(),
        stop: CancellationToken::new(),
        main: Handle::current(),
        settings,
    });
    let server = NbdServer {
        local_addr,
        unix: shared.settings.unix.clone(),
        connections: TaskTracker::new(),
        threads_end: CancellationToken::new(),
        shared,
    };
    let threads = Arc::new(server.start_threads()?);
    let seats = Seats { shared: Arc::clone(&server.shared), threads, connections: server.connections.clone(), tls };
    if let Some(listener) = tcp {
        tokio::spawn(seats.clone().accept_tcp(listener));
    }
    if let Some(listener) = unix {
        tokio::spawn(seats.accept_unix(listener));
    }
    Ok(server)
}

impl NbdServer {
    /// The TCP address in use.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.local_addr
    }

    /// The counters.
    pub fn stats(&self) -> Arc<NbdStats> {
        Arc::clone(&self.shared.stats)
    }

    /// Takes no more connections and requests, finishes what is in flight (for ten seconds at most), and ends.
    pub async fn shutdown(self) {
        self.shared.stop.cancel();
        self.connections.close();
        if tokio::time::timeout(SHUTDOWN_WAIT, self.connections.wait()).await.is_err() {
            tracing::warn!("NBD connections are still busy after {SHUTDOWN_WAIT:?}; they are cut");
        }
    }

    fn start_threads(&self) -> Result<Vec<ServingThread>> {
        let wanted = match self.shared.settings.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            some => some,
        };
        let failed = |error: std::io::Error| {
            Error::exhausted("no-threads", "a thread for NBD connections cannot be started").because(error)
        };
        (0..wanted)
            .map(|number| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
                let handle = runtime.handle().clone();
                let end = self.threads_end.clone();
                std::thread::Builder::new()
                    .name(format!("nbd-{number}"))
                    .spawn(move || runtime.block_on(end.cancelled()))
                    .map_err(failed)?;
                Ok(ServingThread { handle, open: Arc::default() })
            })
            .collect()
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        self.shared.stop.cancel();
        self.threads_end.cancel();
        if let Some(path) = &self.unix {
            let _ = std::fs::remove_file(path);
        }
    }
}

#[derive(Debug)]
struct ServingThread {
    handle: Handle,
    open: Arc<AtomicUsize>,
}

/// Hands connections to threads.
#[derive(Clone)]
struct Seats {
    shared: Arc<Shared>,
    threads: Arc<Vec<ServingThread>>,
    connections: TaskTracker,
    tls: Option<TlsAcceptor>,
}

impl Seats {
    async fn accept_tcp(self, listener: TcpListener) {
        while let Some(accepted) = self.shared.stop.run_until_cancelled(listener.accept()).await {
            match accepted.and_then(|(stream, peer)| Ok((stream.into_std()?, peer))) {
                Ok((stream, peer)) => {
                    let tls = self.tls.clone();
                    let required = self.shared.settings.tls.as_ref().is_some_and(|tls| tls.required);
                    let client = peer.ip().to_canonical().to_string();
                    self.seat(move |shared| async move {
                        match prepare(stream).and_then(TcpStream::from_std) {
                            Ok(stream) => connection(stream, shared, client, tls, required).await,
                            Err(error) => tracing::debug!(%error, "an NBD connection was lost at once"),
                        }
                    });
                }
                Err(error) => pause(&error).await,
            }
        }
    }

    async fn accept_unix(self, listener: UnixListener) {
        while let Some(accepted) = self.shared.stop.run_until_cancelled(listener.accept()).await {
            match accepted.and_then(|(stream, _)| stream.into_std()) {
                Ok(stream) => self.seat(move |shared| async move {
                    match UnixStream::from_std(stream) {
                        Ok(stream) => connection(stream, shared, "unix".to_owned(), None, false).await,
                        Err(error) => tracing::debug!(%error, "an NBD connection was lost at once"),
                    }
                }),
                Err(error) => pause(&error).await,
            }
        }
    }

    /// Runs a connection on the thread with the fewest; drops it when there are too many.
    fn seat<F: Future<Output = ()> + Send + 'static>(&self, serve: impl FnOnce(Arc<Shared>) -> F + Send + 'static) {
        let open: usize = self.threads.iter().map(|thread| thread.open.load(Ordering::Relaxed)).sum();
        let Some(thread) = self.threads.iter().min_by_key(|thread| thread.open.load(Ordering::Relaxed)) else { return };
        if open >= self.shared.settings.connections_max {
            tracing::warn!("{open} NBD connections are open, which is the most allowed: one more is closed");
            return;
        }
        let count = Arc::clone(&thread.open);
        count.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::clone(&self.shared);
        let counted = Counted { count, stats: Arc::clone(&shared.stats) };
        shared.stats.connections.fetch_add(1, Ordering::Relaxed);
        shared.stats.connections_open.fetch_add(1, Ordering::Relaxed);
        self.connections.spawn_on(
            async move {
                serve(shared).await;
                drop(counted);
            },
            &thread.handle,
        );
    }
}

/// Counts a connection while it lives.
struct Counted {
    count: Arc<AtomicUsize>,
    stats: Arc<NbdStats>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
        self.stats.connections_open.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn pause(error: &io::Error) {
    tracing::warn!(%error, "an NBD connection cannot be accepted");
    Clock::system().sleep(ACCEPT_PAUSE).await;
}

/// One connection from greeting to end.
async fn connection<S: Socket + 'static>(
    mut io: S,
    shared: Arc<Shared>,
    client: String,
    tls: Option<TlsAcceptor>,
    required: bool,
) {
    let patience = shared.settings.handshake_timeout;
    let encryption = match (&tls, required) {
        (None, _) => Encryption::Unavailable,
        (Some(_), false) => Encryption::Offered,
        (Some(_), true) => Encryption::Required,
    };
    let plain = async {
        let Some(flags) = handshake::greet(&mut io).await? else { return Ok((0, Outcome::Closed)) };
        Ok((flags, handshake::negotiate(&mut io, &shared, &client, flags, encryption).await?))
    };
    match within(&shared, patience, plain).await {
        Some((_, Outcome::Begin(session))) => transmit(io, session, shared, &client).await,
        Some((flags, Outcome::StartTls)) => {
            let Some(tls) = tls else { return };
            let encrypted = async {
                let mut io = tls.accept(io).await?;
                let outcome = handshake::negotiate(&mut io, &shared, &client, flags, Encryption::Done).await?;
                Ok((io, outcome))
            };
            if let Some((io, Outcome::Begin(session))) = within(&shared, patience, encrypted).await {
                transmit(io, session, shared, &client).await;
            }
        }
        _ => {}
    }
}

/// Runs a handshake; `None` when it fails, takes too long, or the server stops.
async fn within<T>(shared: &Shared, patience: Duration, handshake: impl Future<Output = io::Result<T>>) -> Option<T> {
    match shared.stop.run_until_cancelled(tokio::time::timeout(patience, handshake)).await? {
        Ok(Ok(outcome)) => Some(outcome),
        Ok(Err(error)) => {
            tracing::debug!(%error, "an NBD handshake failed");
            None
        }
        Err(_) => {
            tracing::debug!("an NBD handshake took longer than {patience:?}");
            None
        }
    }
}

async fn transmit<S: Socket>(io: S, session: Box<handshake::Session>, shared: Arc<Shared>, client: &str) {
    let name = session.device.info().name.clone();
    let style = session.rules.style;
    tracing::info!(export = name, client, ?style, "NBD attached");
    if session.device.is_torn() {
        tracing::warn!(
            export = name,
            client,
            "accepted writes were lost: it may write again when its machine begins anew"
        );
    }
    let mut transmission = Transmission::new(io, *session, Arc::clone(&shared));
    let how = transmission.run().await;
    let (attachment, io) = transmission.finish();
    if how == Detach::Lost {
        shared.stats.connections_lost.fetch_add(1, Ordering::Relaxed);
    }
    tracing::info!(export = name, client, ?how, "NBD detached");
    // Before the client sees the end: then another machine may write.
    attachment.detach(how);
    if let Some(mut io) = io {
        // A TLS session ends with its own good-bye; a peer that is gone cannot hold it up for long.
        let _ = tokio::time::timeout(ACCEPT_PAUSE, io.shutdown()).await;
    }
}

fn prepare(stream: std::net::TcpStream) -> io::Result<std::net::TcpStream> {
    let socket = socket2::SockRef::from(&stream);
    socket.set_tcp_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(PEER_TIMEOUT))?;
    Ok(stream)
}

fn cannot_listen(place: String, error: io::Error) -> Error {
    Error::unavailable("cannot-listen", "NBD cannot listen there")
        .on(place)
        .because(error)
        .hint("see whether another program listens there, and whether you may")
}

fn listen_tcp(address: SocketAddr) -> Result<TcpListener> {
    let listen = || {
        let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(1024)?;
        TcpListener::from_std(socket.into())
    };
    listen().map_err(|error| cannot_listen(address.to_string(), error))
}

fn listen_unix(path: &Path) -> Result<UnixListener> {
    let listen = || {
        // A socket left by a gateway that was killed is in the way; one that answers is not ours to remove.
        let stale = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
            && std::os::unix::net::UnixStream::connect(path).is_err();
        if stale {
            std::fs::remove_file(path)?;
        }
        let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.bind(&socket2::SockAddr::unix(path)?)?;
        // Before anybody can connect: until it listens, all are refused.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        socket.listen(1024)?;
        UnixListener::from_std(socket.into())
    };
    listen().map_err(|error| cannot_listen(path.display().to_string(), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_vanishes_is_found_out_in_two_minutes_with_replies_on_their_way_too() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let stream = prepare(listener.accept().unwrap().0).unwrap();
        let socket = socket2::SockRef::from(&stream);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(PEER_TIMEOUT));
        assert_eq!(PEER_TIMEOUT, KEEPALIVE_IDLE + KEEPALIVE_INTERVAL * KEEPALIVE_RETRIES);
    }
}
