//! The transmission phase of one connection: one future that reads requests, asks the device, and sends replies.
//!
//! What the device has in memory is answered at once, within the poll that read the request; replies gather in an
//! outbox and leave together. Everything else becomes a future of the set `waiting`, so that requests overtake each
//! other. Nothing more is read from the socket while too much waits, or while replies are not taken.

mod execute;
mod receive;

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use clonegate_core::limits::NBD_WAITING_MAX;
use clonegate_core::nbd::{Request, Rules};
use futures::future::{BoxFuture, FutureExt, poll_fn};
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::PollSemaphore;

use self::execute::Answered;
use self::receive::Receiving;
use super::gate::{Passed, Seat};
use super::outbox::Outbox;
use super::server::Shared;
use super::stats::Tally;
use crate::device::Device;
use crate::exports::Detach;

/// Receive buffer at first; it grows when reads fill it.
const INPUT_BYTES_MIN: usize = 32 * 1024;
/// Reply bytes that may lie unsent before more requests are looked at.
const UNSENT_BYTES_HIGH: usize = 1024 * 1024;
/// Bytes of waiting requests of one connection before more are looked at.
const WAITING_BYTES_HIGH: u64 = 64 << 20;
/// More than the receive buffer of a socket ever holds: after reading so much, what was in it is read.
const SOCKET_BUFFER_BYTES: u64 = 16 << 20;
/// A client that takes fewer reply bytes than this within the reply timeout counts as taking none.
const REPLY_BYTES_STEP: u64 = 64 * 1024;

/// Something that a connection waited for.
enum Event {
    Answered(Answered),
    Barrier(Passed, UnboundedReceiver<Passed>),
    NoMoreBarriers,
    Stop,
}

/// A newer connection that waits until what this one received before it came is done.
struct Barrier {
    passed: Passed,
    /// Writes of this epoch and of those before are waited for.
    epoch: u64,
    /// Bytes received when it came; `None` once the socket was seen empty after that.
    received: Option<u64>,
}

/// What a client leaves undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stall {
    /// The rest of a request; how many came before.
    Request(u64),
    /// Taking replies; how many steps of bytes it took.
    Replies(u64),
}

/// One connection in the transmission phase.
pub(super) struct Transmission<S> {
    io: S,
    device: Arc<dyn Device>,
    rules: Rules,
    shared: Arc<Shared>,
    seat: Seat,

    input: BytesMut,
    /// What the receive buffer holds when it is made anew.
    input_bytes: usize,
    received_bytes: u64,
    receiving: Receiving,
    requests: u64,
    memory: PollSemaphore,

    waiting: FuturesUnordered<BoxFuture<'static, Event>>,
    /// Futures were added to `waiting` since it was polled.
    waiting_grew: bool,
    waiting_count: usize,
    waiting_bytes: u64,
    /// Writes that wait, by epoch; the last epoch is the present one. A barrier begins a new one.
    writes: Vec<(u64, usize)>,
    barriers: Vec<Barrier>,

    outbox: Outbox,
    /// No more requests are taken; says how the connection counts.
    closing: Option<Detach>,
    /// The socket is of no use any more.
    broken: bool,

    stall: Option<(Stall, Instant)>,
    timer: std::pin::Pin<Box<Sleep>>,
    tally: Tally,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Transmission<S> {
    pub(super) fn new(io: S, device: Arc<dyn Device>, mut seat: Seat, rules: Rules, shared: Arc<Shared>) -> Self {
        let mut waiting = FuturesUnordered::new();
        waiting.push(shared.stop.clone().cancelled_owned().map(|()| Event::Stop).boxed());
        waiting.extend(seat.barriers.take().map(next_barrier));
        Self {
            io,
            device,
            rules,
            memory: PollSemaphore::new(Arc::clone(&shared.waiting)),
            shared,
            seat,
            input: BytesMut::with_capacity(INPUT_BYTES_MIN),
            input_bytes: INPUT_BYTES_MIN,
            received_bytes: 0,
            receiving: Receiving::Header,
            requests: 0,
            waiting,
            waiting_grew: true,
            waiting_count: 0,
            waiting_bytes: 0,
            writes: vec![(0, 0)],
            barriers: Vec::new(),
            outbox: Outbox::default(),
            closing: None,
            broken: false,
            stall: None,
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
            tally: Tally::default(),
        }
    }

    /// Serves until the connection ends; no write is in flight after that.
    pub(super) async fn run(&mut self) -> Detach {
        poll_fn(|cx| self.poll(cx)).await
    }

    /// Gives up the seat, and the socket for a good-bye if it still works.
    pub(super) fn finish(mut self) -> Option<S> {
        self.tally.settle(&self.shared.stats);
        drop(self.seat);
        (!self.broken).then_some(self.io)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Detach> {
        self.waiting_grew = true;
        loop {
            let mut progress = self.poll_waiting(cx);
            let was_full = self.is_full();
            progress |= self.receive(cx);
            if !self.broken
                && let Poll::Ready(Err(error)) = self.outbox.poll_send(&mut self.io, cx)
            {
                self.lose(&format!("replies cannot be sent: {error}"));
            }
            progress |= was_full && !self.is_full();
            progress |= self.poll_input(cx);
            self.pass_barriers();
            if let Some(how) = self.closing
                && self.is_over()
            {
                return Poll::Ready(how);
            }
            if !progress && !self.waiting_grew && !self.poll_stall(cx) {
                self.tally.settle(&self.shared.stats);
                return Poll::Pending;
            }
        }
    }

    /// Whether no more requests are looked at for now.
    fn is_full(&self) -> bool {
        self.outbox.unsent() >= UNSENT_BYTES_HIGH
            || self.waiting_count >= NBD_WAITING_MAX
            || self.waiting_bytes >= WAITING_BYTES_HIGH
    }

    /// Whether a closing connection has nothing left to do.
    fn is_over(&self) -> bool {
        if self.broken {
            self.writes.iter().all(|(_, count)| *count == 0)
        } else {
            self.waiting_count == 0 && self.outbox.unsent() == 0
        }
    }

    /// Ends the connection without good-bye. Writes in flight are finished, replies are not sent.
    fn lose(&mut self, why: &str) {
        if !self.broken {
            tracing::debug!(export = self.device.info().name, why, "an NBD connection is cut");
        }
        self.broken = true;
        self.closing = Some(Detach::Lost);
    }

    fn poll_waiting(&mut self, cx: &mut Context<'_>) -> bool {
        if !std::mem::take(&mut self.waiting_grew) {
            return false;
        }
        let mut progress = false;
        while let Poll::Ready(Some(event)) = self.waiting.poll_next_unpin(cx) {
            progress = true;
            match event {
                Event::Answered(answered) => self.answer(answered),
                Event::Barrier(passed, barriers) => {
                    self.waiting.push(next_barrier(barriers));
                    let epoch = self.epoch();
                    self.writes.push((epoch + 1, 0));
                    self.barriers.push(Barrier { passed, epoch, received: Some(self.received_bytes) });
                }
                Event::NoMoreBarriers => {}
                Event::Stop => {
                    self.closing.get_or_insert(Detach::Lost);
                }
            }
        }
        progress
    }

    fn epoch(&self) -> u64 {
        self.writes.last().map_or(0, |(epoch, _)| *epoch)
    }

    /// Lets newer connections go on whose barrier is passed.
    fn pass_barriers(&mut self) {
        if self.barriers.is_empty() {
            return;
        }
        let total = self.received_bytes;
        let closing = self.closing.is_some();
        // While a payload is being received its write is yet to come.
        let between = matches!(self.receiving, Receiving::Header);
        let writes = &self.writes;
        for barrier in std::mem::take(&mut self.barriers) {
            let drained = match barrier.received {
                None => true,
                Some(then) => total - then > SOCKET_BUFFER_BYTES && between,
            };
            let busy = writes.iter().any(|(epoch, count)| *epoch <= barrier.epoch && *count > 0);
            if (drained || closing) && !busy {
                let _ = barrier.passed.send(());
            } else {
                self.barriers.push(barrier);
            }
        }
        let present = self.epoch();
        self.writes.retain(|(epoch, count)| *count > 0 || *epoch == present);
    }

    /// Cuts a client that leaves a request or its replies undone for too long. Gives whether it did.
    fn poll_stall(&mut self, cx: &mut Context<'_>) -> bool {
        let settings = &self.shared.settings;
        let now = if self.broken {
            None
        } else if self.outbox.unsent() > 0 {
            Some((Stall::Replies(self.outbox.sent() / REPLY_BYTES_STEP), settings.reply_timeout))
        } else if self.closing.is_none() && !self.is_full() {
            let patience = settings.request_timeout;
            self.receiving.unfinished(&self.input).map(|more| (Stall::Request(self.requests), patience + more))
        } else {
            None
        };
        let Some((stall, patience)) = now else {
            self.stall = None;
            return false;
        };
        let deadline = match self.stall {
            Some((same, deadline)) if same == stall => deadline,
            _ => Instant::now() + patience,
        };
        self.stall = Some((stall, deadline));
        loop {
            if self.timer.is_elapsed() || self.timer.deadline() > deadline {
                self.timer.as_mut().reset(deadline);
            }
            if self.timer.poll_unpin(cx).is_pending() {
                return false;
            }
            if Instant::now() >= deadline {
                self.lose(match stall {
                    Stall::Request(_) => "the rest of a request did not come",
                    Stall::Replies(_) => "replies were not taken",
                });
                return true;
            }
        }
    }

    /// Bytes that `request` keeps in memory while it waits.
    fn weight(request: &Request) -> u64 {
        use clonegate_core::nbd::Command;
        match request.command {
            Command::Read | Command::Write => request.length,
            Command::BlockStatus => 128 * 1024,
            _ => 1024,
        }
    }
}

/// Waits for a newer connection. By the time it says so the thread has asked the kernel once more which sockets have
/// something, so that "nothing to read" is true and not merely not known yet.
fn next_barrier(mut barriers: UnboundedReceiver<Passed>) -> BoxFuture<'static, Event> {
    async move {
        let Some(passed) = barriers.recv().await else { return Event::NoMoreBarriers };
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        Event::Barrier(passed, barriers)
    }
    .boxed()
}
