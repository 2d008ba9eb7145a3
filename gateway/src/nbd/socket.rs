//! The sockets that a connection may run on, plain or encrypted.

use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

/// A byte stream whose other end can be looked after.
pub(super) trait Socket: AsyncRead + AsyncWrite + Unpin + Send {
    /// Whether the client has closed its end, as far as the kernel knows now; bytes may be left to read.
    fn is_hung_up(&self) -> bool;
}

impl Socket for TcpStream {
    fn is_hung_up(&self) -> bool {
        is_hung_up(self)
    }
}

impl Socket for UnixStream {
    fn is_hung_up(&self) -> bool {
        is_hung_up(self)
    }
}

impl<S: Socket> Socket for TlsStream<S> {
    fn is_hung_up(&self) -> bool {
        self.get_ref().0.is_hung_up()
    }
}

fn is_hung_up(socket: impl AsFd) -> bool {
    let mut sockets = [PollFd::new(&socket, PollFlags::RDHUP)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    // HUP and ERR are told without being asked for.
    let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
    poll(&mut sockets, Some(&now)).is_err() || sockets[0].revents().intersects(gone)
}
