//! The transmission phase of one connection: one future that reads requests, asks the device, and sends replies.
//!
//! What the device has in memory is answered at once, within the poll that read the request; replies gather in an
//! outbox and leave together. Everything else becomes a future of the set `waiting`, so that requests overtake each
//! other. Nothing more is read from the socket while too much waits, or while replies are not taken.

mod execute;
mod receive;

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::BytesMut;
use clonegate_core::limits::NBD_WAITING_MAX;
use clonegate_core::nbd::{Request, Rules};
use futures::future::{BoxFuture, FutureExt, poll_fn};
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::PollSemaphore;

use self::execute::Answered;
use self::receive::Receiving;
use super::gate::{Passed, Seat};
use super::handshake::Session;
use super::outbox::Outbox;
use super::server::Shared;
use super::socket::Socket;
use super::stats::Tally;
use crate::device::Device;
use crate::exports::{Attachment, Detach};

/// Receive buffer at first; it grows when reads fill it.
const INPUT_BYTES_MIN: usize = 32 * 1024;
/// Reply bytes that may lie unsent before more requests are looked at.
const UNSENT_BYTES_HIGH: usize = 1024 * 1024;
/// Bytes of waiting requests of one connection before more are looked at.
const WAITING_BYTES_HIGH: u64 = 64 << 20;
/// A client that takes fewer reply bytes than this within the reply timeout counts as taking none.
const REPLY_BYTES_STEP: u64 = 64 * 1024;

/// Something that a connection waited for.
enum Event {
    Answered(Answered),
    Barrier(Passed, UnboundedReceiver<Passed>),
    NoMoreBarriers,
    Stop,
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
    attachment: Box<dyn Attachment>,
    /// It is the machine that writes.
    writes: bool,
    rules: Rules,
    shared: Arc<Shared>,
    seat: Seat,

    input: BytesMut,
    /// What the receive buffer holds when it is made anew.
    input_bytes: usize,
    /// The last request had a payload that is not copied.
    large: bool,
    receiving: Receiving,
    requests: u64,
    /// Waits for memory, when it must.
    memory: Option<PollSemaphore>,

    waiting: FuturesUnordered<BoxFuture<'static, Event>>,
    /// Futures were added to `waiting` since it was polled.
    waiting_grew: bool,
    waiting_count: usize,
    waiting_bytes: u64,
    /// Writes among those that wait.
    waiting_writes: usize,
    /// Newer connections that wait for the end of this one.
    newer: Vec<Passed>,

    outbox: Outbox,
    /// No more requests are taken; says how the connection counts.
    closing: Option<Detach>,
    /// The socket is of no use any more.
    broken: bool,

    stall: Option<(Stall, Instant)>,
    timer: std::pin::Pin<Box<Sleep>>,
    tally: Tally,
}

impl<S: Socket> Transmission<S> {
    pub(super) fn new(io: S, session: Session, shared: Arc<Shared>) -> Self {
        let Session { device, attachment, mut seat, rules } = session;
        let mut waiting = FuturesUnordered::new();
        waiting.push(shared.stop.clone().cancelled_owned().map(|()| Event::Stop).boxed());
        waiting.extend(seat.barriers.take().map(next_barrier));
        Self {
            io,
            device,
            attachment,
            writes: false,
            rules,
            memory: None,
            shared,
            seat,
            input: BytesMut::with_capacity(INPUT_BYTES_MIN),
            input_bytes: INPUT_BYTES_MIN,
            large: false,
            receiving: Receiving::Header,
            requests: 0,
            waiting,
            waiting_grew: true,
            waiting_count: 0,
            waiting_bytes: 0,
            waiting_writes: 0,
            newer: Vec::new(),
            outbox: Outbox::default(),
            closing: None,
            broken: false,
            stall: None,
            timer: Box::pin(tokio::time::sleep_until(Instant::now())),
            tally: Tally::default(),
        }
    }

    /// Serves until the connection ends; no write is in flight after that.
    pub(super) async fn run(&mut self) -> Detach {
        poll_fn(|cx| self.poll(cx)).await
    }

    /// Gives up the seat; gives back the attachment, and the socket for a good-bye if it still works.
    pub(super) fn finish(mut self) -> (Box<dyn Attachment>, Option<S>) {
        self.tally.settle(&self.shared.stats);
        drop(self.seat);
        drop(self.newer);
        (self.attachment, (!self.broken).then_some(self.io))
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
        if self.broken { self.waiting_writes == 0 } else { self.waiting_count == 0 && self.outbox.unsent() == 0 }
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
                    self.meet_newer(passed);
                }
                Event::NoMoreBarriers => {}
                Event::Stop => {
                    self.closing.get_or_insert(Detach::Lost);
                }
            }
        }
        progress
    }

    /// A newer connection wants to begin. It need not wait for a client that is alive; a dead one's writes come first.
    fn meet_newer(&mut self, passed: Passed) {
        if self.closing.is_none() && !self.io.is_hung_up() {
            let _ = passed.send(());
            return;
        }
        self.newer.push(passed);
        // What is still in the socket is read to its end, unless nothing can be read: then it is barred.
        if self.closing.is_none() && (self.is_full() || matches!(self.receiving, Receiving::Memory { .. })) {
            self.lose("its client is gone");
        }
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

fn next_barrier(mut barriers: UnboundedReceiver<Passed>) -> BoxFuture<'static, Event> {
    async move {
        match barriers.recv().await {
            Some(passed) => Event::Barrier(passed, barriers),
            None => Event::NoMoreBarriers,
        }
    }
    .boxed()
}
