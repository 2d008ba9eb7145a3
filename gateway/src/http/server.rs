//! The server: one thread with a runtime of its own per core, each accepting from one shared socket.

use std::future::{Future, pending, poll_fn};
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener as StdListener, TcpStream as StdStream};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use clonegate_core::{Error, Result};
use futures::future::{Either, select};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;

use super::io::WatchedIo;
use super::problem::Problem;
use super::room::Room;
use super::service::{Requests, Shared};
use super::settings::{HttpSettings, Secure};
use super::watch::{Admitted, Verdict, Ward, Watch};
use crate::clock::Clock;
use crate::exports::Exports;
use crate::metrics::Metrics;
use crate::tls::{self, Clients};
use clonegate_core::limits::HTTP_HEADER_BYTES_MAX;

/// Connections that wait in the kernel to be accepted.
const BACKLOG: i32 = 4096;
/// How long a worker rests after a failed accept: too many open files does not go away at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A running server. Dropping it ends it at once; [`HttpServer::shutdown`] lets answers finish.
#[derive(Debug)]
pub struct HttpServer {
    address: SocketAddr,
    secure: Option<SocketAddr>,
    stop: watch::Sender<Option<Duration>>,
    threads: Vec<JoinHandle<()>>,
    drain_timeout: Duration,
}

impl HttpServer {
    /// Listens and serves: disks of `exports`, and everything else by `router`, whose handlers run on the runtime that
    /// this is called on.
    ///
    /// # Errors
    /// `Unavailable` with code `address-in-use` or `cannot-listen`; those of the certificate of HTTPS.
    pub fn start(
        settings: &HttpSettings,
        exports: Arc<dyn Exports>,
        router: Router,
        metrics: &Metrics,
        clock: Clock,
    ) -> Result<Self> {
        let (plain, address) = listen(settings.listen)?;
        let secure = settings.secure.as_ref().map(Secured::listen).transpose()?;
        let room = Arc::new(Room::new(settings.write_buffers_bytes.into(), settings.write_patience));
        let shared = Arc::new(Shared {
            exports,
            clock,
            router,
            main: Handle::current(),
            room: Arc::clone(&room),
            tokens: settings.tokens.clone(),
        });
        let (stop, stopped) = watch::channel(None);
        let workers = settings.worker_count();
        let (doors, inboxes): (Vec<_>, Vec<_>) = (0..workers)
            .map(|_| {
                let (send, receive) = mpsc::unbounded_channel();
                (Door { ward: Ward::new(settings, Arc::clone(&room), metrics.http_worker()), send }, receive)
            })
            .unzip();
        let doors: Arc<[Door]> = doors.into();
        let mut threads = Vec::with_capacity(workers);
        for (index, inbox) in inboxes.into_iter().enumerate() {
            let worker = Worker {
                index,
                doors: Arc::clone(&doors),
                plain: plain.try_clone().map_err(|error| cannot_listen(address, error))?,
                secure: secure.as_ref().map(Secured::try_clone).transpose()?,
                inbox,
                stopped: stopped.clone(),
                shared: Arc::clone(&shared),
                connections_max: settings.connections_max.div_ceil(workers),
            };
            let thread = std::thread::Builder::new().name(format!("http-{index}")).spawn(move || worker.run());
            threads.push(thread.map_err(|error| cannot_listen(address, error))?);
        }
        let secure = secure.map(|secure| secure.address);
        Ok(Self { address, secure, stop, threads, drain_timeout: settings.drain_timeout })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Where it listens under TLS.
    pub fn secure_addr(&self) -> Option<SocketAddr> {
        self.secure
    }

    /// Stops listening, lets answers that are under way finish, and ends.
    pub async fn shutdown(mut self) {
        let _ = self.stop.send(Some(self.drain_timeout));
        let threads = std::mem::take(&mut self.threads);
        let joined = tokio::task::spawn_blocking(move || {
            for thread in threads {
                let _ = thread.join();
            }
        });
        let _ = joined.await;
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            let _ = self.stop.send(Some(Duration::ZERO));
        }
    }
}

/// A socket that listens, and where it does.
fn listen(address: SocketAddr) -> Result<(StdListener, SocketAddr)> {
    let open = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        // Connections of a server that has just ended do not keep the port; another server does.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let listener = StdListener::from(socket);
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    open().map_err(|error| cannot_listen(address, error))
}

/// A socket whose connections begin with TLS.
struct Secured {
    listener: StdListener,
    address: SocketAddr,
    acceptor: TlsAcceptor,
}

impl Secured {
    fn listen(settings: &Secure) -> Result<Self> {
        let acceptor = tls::acceptor(&settings.tls, Clients::Any, b"http/1.1")?;
        let (listener, address) = listen(settings.listen)?;
        Ok(Self { listener, address, acceptor })
    }

    fn try_clone(&self) -> Result<Self> {
        let listener = self.listener.try_clone().map_err(|error| cannot_listen(self.address, error))?;
        Ok(Self { listener, address: self.address, acceptor: self.acceptor.clone() })
    }
}

fn cannot_listen(address: SocketAddr, error: io::Error) -> Error {
    let (code, hint) = match error.kind() {
        io::ErrorKind::AddrInUse => ("address-in-use", "end the other program, or listen on another port"),
        _ => ("cannot-listen", "choose an address of this host, and a port above 1023"),
    };
    Error::unavailable(code, "it cannot be listened on").on(address.to_string()).hint(hint).because(error)
}

/// How other workers reach a worker.
#[derive(Debug)]
struct Door {
    ward: Arc<Ward>,
    send: mpsc::UnboundedSender<Handed>,
}

/// A connection on its way to another worker.
#[derive(Debug)]
struct Handed {
    stream: StdStream,
    secure: bool,
}

struct Worker {
    index: usize,
    doors: Arc<[Door]>,
    plain: StdListener,
    secure: Option<Secured>,
    inbox: mpsc::UnboundedReceiver<Handed>,
    stopped: watch::Receiver<Option<Duration>>,
    shared: Arc<Shared>,
    connections_max: usize,
}

impl Worker {
    fn run(self) {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return tracing::error!(%error, "an HTTP worker cannot start"),
        };
        runtime.block_on(self.serve());
    }

    async fn serve(self) {
        let Self { index, doors, plain, secure, mut inbox, mut stopped, shared, connections_max } = self;
        let (secure, acceptor) = secure.map(|secure| (secure.listener, secure.acceptor)).unzip();
        let (plain, secure) = match (TcpListener::from_std(plain), secure.map(TcpListener::from_std).transpose()) {
            (Ok(plain), Ok(secure)) => (plain, secure),
            (Err(error), _) | (_, Err(error)) => return tracing::error!(%error, "an HTTP worker cannot listen"),
        };
        let ward = Arc::clone(&doors[index].ward);
        let sweeper = tokio::spawn(sweep(Arc::clone(&ward)));
        let drain = loop {
            let event = {
                let stop = pin!(async {
                    stopped.wait_for(Option::is_some).await.map_or(Some(Duration::ZERO), |drain| *drain)
                });
                let arrive = pin!(async {
                    tokio::select! {
                        accepted = plain.accept() => Arrival::Accepted(accepted, false),
                        accepted = accept(secure.as_ref()) => Arrival::Accepted(accepted, true),
                        handed = inbox.recv() => Arrival::Handed(handed),
                    }
                });
                match select(stop, arrive).await {
                    Either::Left((drain, _)) => break drain.unwrap_or_default(),
                    Either::Right((arrival, _)) => arrival,
                }
            };
            let mine = match event {
                Arrival::Accepted(Ok((stream, _)), secure) => {
                    let least = emptiest(&doors, index);
                    doors[least].ward.load.fetch_add(1, Relaxed);
                    if least == index {
                        Some((stream, secure))
                    } else {
                        hand_over(&doors[least], stream, secure);
                        None
                    }
                }
                Arrival::Handed(Some(Handed { stream, secure })) => match TcpStream::from_std(stream) {
                    Ok(stream) => Some((stream, secure)),
                    Err(_) => {
                        ward.load.fetch_sub(1, Relaxed);
                        None
                    }
                },
                // The other workers hold a sender each, and so does this one.
                Arrival::Handed(None) => None,
                Arrival::Accepted(Err(error), _) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    shared.clock.sleep(ACCEPT_PAUSE).await;
                    None
                }
            };
            if let Some((stream, secure)) = mine {
                if ward.make_room(connections_max) {
                    let acceptor = acceptor.clone().filter(|_| secure);
                    tokio::spawn(connection(stream, acceptor, ward.admit(), Arc::clone(&shared)));
                } else {
                    ward.turned_away();
                    turn_away(stream, secure);
                }
            }
        };
        drop((plain, secure));
        ward.drain();
        let deadline = shared.clock.instant() + drain;
        while ward.open() > 0 && shared.clock.instant() < deadline {
            shared.clock.sleep(Duration::from_millis(10)).await;
        }
        sweeper.abort();
        ward.close_all();
    }
}

enum Arrival {
    Accepted(io::Result<(TcpStream, SocketAddr)>, bool),
    Handed(Option<Handed>),
}

/// The next connection of a socket that may not be there.
async fn accept(listener: Option<&TcpListener>) -> io::Result<(TcpStream, SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => pending().await,
    }
}

/// The worker with the fewest connections; this one when it is among them.
fn emptiest(doors: &[Door], index: usize) -> usize {
    let load = |door: &Door| door.ward.load.load(Relaxed);
    let own = load(&doors[index]);
    let least = doors.iter().enumerate().min_by_key(|(_, door)| load(door));
    least.filter(|(_, door)| load(door) < own).map_or(index, |(least, _)| least)
}

/// Gives a connection to another worker, whose reactor it has to move to.
fn hand_over(door: &Door, stream: TcpStream, secure: bool) {
    let sent = stream.into_std().map(|stream| door.send.send(Handed { stream, secure }));
    if !matches!(sent, Ok(Ok(()))) {
        door.ward.load.fetch_sub(1, Relaxed);
    }
}

/// Ends a connection for which there is no room; in the clear, it hears why.
fn turn_away(stream: TcpStream, secure: bool) {
    let Some(mut stream) = stream.into_std().ok().filter(|_| !secure) else { return };
    let error = Error::unavailable("too-many-connections", "as many connections as may be open are being served")
        .hint("come back soon, or let the operator raise limits.http_connections");
    let problem = serde_json::to_vec(&Problem::of(&error)).unwrap_or_default();
    let head = format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nRetry-After: 1\r\n\
         Connection: close\r\nContent-Length: {}\r\n\r\n",
        problem.len()
    );
    // The socket is empty and takes it at once; if not, the client sees the end of the connection.
    let _ = stream.write_all(&[head.as_bytes(), &problem].concat());
}

async fn sweep(ward: Arc<Ward>) {
    let mut interval = tokio::time::interval(ward.period());
    loop {
        interval.tick().await;
        ward.sweep();
    }
}

/// Serves one connection until it ends, by its client, by the sweep or by a shutdown.
async fn connection(stream: TcpStream, acceptor: Option<TlsAcceptor>, admitted: Admitted, shared: Arc<Shared>) {
    // Without this an answer in two segments waits for the delayed acknowledgement of the first: 40 ms.
    let _ = stream.set_nodelay(true);
    let peer = stream.peer_addr().ok().map(|peer| peer.ip());
    let Some(acceptor) = acceptor else {
        return talk(stream, Requests { shared, watch: Arc::clone(&admitted.watch), peer, secure: false }).await;
    };
    if let Some(stream) = greet(acceptor.accept(stream), &admitted.watch).await {
        talk(stream, Requests { shared, watch: Arc::clone(&admitted.watch), peer, secure: true }).await;
    }
}

/// Waits for the handshake of TLS, which has to come in the time of a header; `None` when it fails or takes longer.
async fn greet<T>(handshake: impl Future<Output = io::Result<T>>, watch: &Watch) -> Option<T> {
    let mut handshake = pin!(handshake);
    watch.received(0);
    poll_fn(|cx| {
        watch.register(cx.waker());
        if watch.verdict() != Verdict::Run {
            return Poll::Ready(None);
        }
        handshake.as_mut().poll(cx).map(|ended| {
            watch.idle();
            ended.inspect_err(|error| tracing::debug!(%error, "a connection did not get through TLS")).ok()
        })
    })
    .await
}

/// Answers the requests of a connection.
async fn talk<T>(stream: T, requests: Requests)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let watch = Arc::clone(&requests.watch);
    let io = TokioIo::new(WatchedIo::new(stream, Arc::clone(&watch)));
    let mut builder = http1::Builder::new();
    // GRUB 2.06 looks for `Content-Length` in just these letters, and without it waits for more until it gives up.
    builder.title_case_headers(true);
    builder.header_read_timeout(None).max_header_size(HTTP_HEADER_BYTES_MAX).half_close(true);
    let mut connection = pin!(builder.serve_connection(io, requests));
    let mut registered = false;
    let mut draining = false;
    poll_fn(|cx| {
        if !registered {
            watch.register(cx.waker());
            registered = true;
        }
        match watch.verdict() {
            Verdict::Close => return Poll::Ready(()),
            Verdict::Drain if !draining => {
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
            Verdict::Drain | Verdict::Run => {}
        }
        connection.as_mut().poll(cx).map(|ended| {
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection ended");
            }
        })
    })
    .await;
}
