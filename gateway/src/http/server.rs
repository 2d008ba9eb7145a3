//! The server: one thread with a runtime of its own per core, each accepting from one shared socket.

use std::future::poll_fn;
use std::io;
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
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, watch};

use super::io::WatchedIo;
use super::service::{Requests, Shared};
use super::settings::HttpSettings;
use super::watch::{Verdict, Ward};
use crate::clock::Clock;
use crate::exports::Exports;
use crate::metrics::Metrics;
use clonegate_core::limits::HTTP_HEADER_BYTES_MAX;

/// Connections that wait in the kernel to be accepted.
const BACKLOG: i32 = 4096;
/// How long a worker rests after a failed accept: too many open files does not go away at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A running server. Dropping it ends it at once; [`HttpServer::shutdown`] lets answers finish.
#[derive(Debug)]
pub struct HttpServer {
    address: SocketAddr,
    stop: watch::Sender<Option<Duration>>,
    threads: Vec<JoinHandle<()>>,
    drain_timeout: Duration,
}

impl HttpServer {
    /// Listens and serves: disks of `exports`, and everything else by `router`, whose handlers run on the runtime that
    /// this is called on.
    ///
    /// # Errors
    /// `Unavailable` with code `address-in-use` or `cannot-listen`.
    pub fn start(
        settings: &HttpSettings,
        exports: Arc<dyn Exports>,
        router: Router,
        metrics: &Metrics,
        clock: Clock,
    ) -> Result<Self> {
        let listener = listen(settings.listen).map_err(|error| cannot_listen(settings.listen, error))?;
        let address = listener.local_addr().map_err(|error| cannot_listen(settings.listen, error))?;
        let write_buffers = Semaphore::new(usize::try_from(settings.write_buffers_bytes).unwrap_or(usize::MAX >> 3));
        let shared = Arc::new(Shared {
            exports,
            clock,
            router,
            main: Handle::current(),
            write_buffers,
            write_buffers_max: settings.write_buffers_bytes,
        });
        let (stop, stopped) = watch::channel(None);
        let workers = settings.worker_count();
        let (doors, inboxes): (Vec<_>, Vec<_>) = (0..workers)
            .map(|_| {
                let (send, receive) = mpsc::unbounded_channel();
                (Door { ward: Ward::new(settings, metrics.http_worker()), send }, receive)
            })
            .unzip();
        let doors: Arc<[Door]> = doors.into();
        let mut threads = Vec::with_capacity(workers);
        for (index, inbox) in inboxes.into_iter().enumerate() {
            let worker = Worker {
                index,
                doors: Arc::clone(&doors),
                listener: listener.try_clone().map_err(|error| cannot_listen(address, error))?,
                inbox,
                stopped: stopped.clone(),
                shared: Arc::clone(&shared),
                connections_max: settings.connections_max.div_ceil(workers),
            };
            let thread = std::thread::Builder::new().name(format!("http-{index}")).spawn(move || worker.run());
            threads.push(thread.map_err(|error| cannot_listen(address, error))?);
        }
        Ok(Self { address, stop, threads, drain_timeout: settings.drain_timeout })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
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

fn listen(address: SocketAddr) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of a server that has just ended do not keep the port; another server does.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
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
    send: mpsc::UnboundedSender<StdStream>,
}

struct Worker {
    index: usize,
    doors: Arc<[Door]>,
    listener: StdListener,
    inbox: mpsc::UnboundedReceiver<StdStream>,
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
        let Self { index, doors, listener, mut inbox, mut stopped, shared, connections_max } = self;
        let listener = match TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!(%error, "an HTTP worker cannot listen"),
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
                        accepted = listener.accept() => Arrival::Accepted(accepted),
                        handed = inbox.recv() => Arrival::Handed(handed),
                    }
                });
                match select(stop, arrive).await {
                    Either::Left((drain, _)) => break drain.unwrap_or_default(),
                    Either::Right((arrival, _)) => arrival,
                }
            };
            let mine = match event {
                Arrival::Accepted(Ok((stream, _))) => {
                    let least = emptiest(&doors, index);
                    doors[least].ward.load.fetch_add(1, Relaxed);
                    if least == index { Some(stream) } else { hand_over(&doors[least], stream) }
                }
                Arrival::Handed(Some(stream)) => match TcpStream::from_std(stream) {
                    Ok(stream) => Some(stream),
                    Err(_) => {
                        ward.load.fetch_sub(1, Relaxed);
                        None
                    }
                },
                // The other workers hold a sender each, and so does this one.
                Arrival::Handed(None) => None,
                Arrival::Accepted(Err(error)) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    shared.clock.sleep(ACCEPT_PAUSE).await;
                    None
                }
            };
            if let Some(stream) = mine {
                if ward.open() >= connections_max {
                    ward.evict_one();
                }
                tokio::spawn(connection(stream, Arc::clone(&ward), Arc::clone(&shared)));
            }
        };
        drop(listener);
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
    Accepted(io::Result<(TcpStream, SocketAddr)>),
    Handed(Option<StdStream>),
}

/// The worker with the fewest connections; this one when it is among them.
fn emptiest(doors: &[Door], index: usize) -> usize {
    let load = |door: &Door| door.ward.load.load(Relaxed);
    let own = load(&doors[index]);
    let least = doors.iter().enumerate().min_by_key(|(_, door)| load(door));
    least.filter(|(_, door)| load(door) < own).map_or(index, |(least, _)| least)
}

/// Gives a connection to another worker, whose reactor it has to move to.
fn hand_over(door: &Door, stream: TcpStream) -> Option<TcpStream> {
    let sent = stream.into_std().map(|stream| door.send.send(stream));
    if !matches!(sent, Ok(Ok(()))) {
        door.ward.load.fetch_sub(1, Relaxed);
    }
    None
}

async fn sweep(ward: Arc<Ward>) {
    let mut interval = tokio::time::interval(ward.period());
    loop {
        interval.tick().await;
        ward.sweep();
    }
}

/// Serves one connection until it ends, by its client, by the sweep or by a shutdown.
async fn connection(stream: TcpStream, ward: Arc<Ward>, shared: Arc<Shared>) {
    let admitted = ward.admit();
    // Without this an answer in two segments waits for the delayed acknowledgement of the first: 40 ms.
    let _ = stream.set_nodelay(true);
    let watch = &admitted.watch;
    let peer = stream.peer_addr().ok().map(|peer| peer.ip());
    let io = TokioIo::new(WatchedIo::new(stream, Arc::clone(watch)));
    let requests = Requests { shared, watch: Arc::clone(watch), peer };
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
