//! Reading requests and their payloads from the socket.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use clonegate_core::nbd::{Request, Verdict};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::io::poll_read_buf;
use tokio_util::sync::PollSemaphore;

use super::super::socket::Socket;
use super::Transmission;
use crate::exports::Detach;

/// Payloads up to this are slices of the receive buffer while the device is asked, which copies what it keeps of them; those that wait are
/// copied, so that a small write does not keep a large buffer. Larger ones are received into memory of their own.
const SMALL_PAYLOAD_MAX: u64 = 16 * 1024;
/// Receive buffer at most.
const INPUT_BYTES_MAX: usize = 256 * 1024;
/// Room for a request with the largest payload that is not received into memory of its own.
const ROOM_BYTES: usize = 17 * 1024;
/// A large payload is given a second more for so many bytes.
const PAYLOAD_BYTES_PER_SECOND: u64 = 1024 * 1024;

/// What is being received.
pub(super) enum Receiving {
    /// A request header.
    Header,
    /// A payload that lies in the receive buffer.
    Small(Request),
    /// A payload into memory of its own: the bytes so far.
    Large { request: Request, body: BytesMut, permit: OwnedSemaphorePermit },
    /// The rest of the payload of a refused request.
    Refused { request: Request, left: u64, errno: u32, message: &'static str },
    /// Nothing: a request waits for its share of memory; without its payload that is received next.
    Memory { request: Request, payload: Option<Bytes> },
}

impl Receiving {
    /// When the client owes the rest of a request: how much longer than usual it may take.
    pub(super) fn unfinished(&self, input: &BytesMut) -> Option<Duration> {
        match self {
            Self::Header => (!input.is_empty()).then_some(Duration::ZERO),
            Self::Small(_) => Some(Duration::ZERO),
            Self::Large { request: Request { length, .. }, .. } | Self::Refused { left: length, .. } => {
                Some(Duration::from_secs(length / PAYLOAD_BYTES_PER_SECOND))
            }
            Self::Memory { .. } => None,
        }
    }
}

impl<S: Socket> Transmission<S> {
    /// Takes requests out of the receive buffer, and begins them. Gives whether anything was done.
    pub(super) fn receive(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        while self.closing.is_none() && !self.is_full() && self.receive_one(cx) {
            progress = true;
        }
        progress
    }

    fn receive_one(&mut self, cx: &mut Context<'_>) -> bool {
        match std::mem::replace(&mut self.receiving, Receiving::Header) {
            Receiving::Header => return self.receive_header(),
            Receiving::Small(request) => {
                let length = usize::try_from(request.length).unwrap_or(usize::MAX);
                if self.input.len() >= length {
                    let payload = self.input.split_to(length).freeze();
                    self.execute(request, payload, None);
                    return true;
                }
                self.receiving = Receiving::Small(request);
            }
            Receiving::Large { request, mut body, permit } => {
                let missing = usize::try_from(request.length).unwrap_or(usize::MAX).saturating_sub(body.len());
                let here = missing.min(self.input.len());
                body.put_slice(&self.input[..here]);
                self.input.advance(here);
                if here == missing {
                    self.execute(request, body.freeze(), Some(permit));
                    return true;
                }
                self.receiving = Receiving::Large { request, body, permit };
            }
            Receiving::Refused { request, left, errno, message } => {
                let here = usize::try_from(left).unwrap_or(usize::MAX).min(self.input.len());
                self.input.advance(here);
                let left = left - here as u64;
                if left == 0 {
                    self.refuse(&request, errno, message);
                    return true;
                }
                self.receiving = Receiving::Refused { request, left, errno, message };
            }
            Receiving::Memory { request, payload } => {
                let (part, kib) = self.shared.memory.part(Self::weight(&request));
                let memory = self.memory.get_or_insert_with(|| PollSemaphore::new(Arc::clone(part)));
                let acquired = memory.poll_acquire_many(cx, kib);
                if acquired.is_ready() {
                    self.memory = None;
                }
                match acquired {
                    Poll::Ready(Some(permit)) => {
                        match payload {
                            Some(payload) => self.start(request, payload, permit),
                            None => {
                                let length = usize::try_from(request.length).unwrap_or(usize::MAX);
                                let body = BytesMut::with_capacity(length);
                                self.receiving = Receiving::Large { request, body, permit };
                            }
                        }
                        return true;
                    }
                    Poll::Ready(None) => self.lose("the server ended"),
                    Poll::Pending => self.receiving = Receiving::Memory { request, payload },
                }
            }
        }
        false
    }

    fn receive_header(&mut self) -> bool {
        let style = self.rules.style;
        let request = match Request::decode(style, &self.input) {
            Ok(Some(request)) => request,
            Ok(None) => return false,
            Err(malformed) => {
                // What was asked before is still answered.
                tracing::debug!(export = self.device.info().name, %malformed, "an NBD client is hung up on");
                self.closing = Some(Detach::Lost);
                return true;
            }
        };
        self.input.advance(Request::header_bytes(style));
        self.requests += 1;
        self.tally.requests += 1;
        let payload = request.payload(style);
        self.large = payload > SMALL_PAYLOAD_MAX;
        match self.rules.judge(&request) {
            Verdict::Accept if payload == 0 => self.execute(request, Bytes::new(), None),
            Verdict::Accept if payload <= SMALL_PAYLOAD_MAX => self.receiving = Receiving::Small(request),
            Verdict::Accept => self.receiving = Receiving::Memory { request, payload: None },
            Verdict::Refuse { errno, message } => {
                self.receiving = Receiving::Refused { request, left: payload, errno, message };
            }
            Verdict::Disconnect => self.closing = Some(Detach::Clean),
            Verdict::HangUp(why) => {
                tracing::debug!(export = self.device.info().name, why, "an NBD client is hung up on");
                self.closing = Some(Detach::Lost);
            }
        }
        true
    }

    /// After a large payload mostly another comes. With no more than its header in the receive buffer it goes to its place without being
    /// copied: how many bytes of that header are missing.
    fn header_alone(&self) -> Option<usize> {
        let header = self.large && matches!(self.receiving, Receiving::Header);
        let missing = Request::header_bytes(self.rules.style).saturating_sub(self.input.len());
        Some(missing).filter(|missing| header && *missing > 0)
    }

    /// Reads from the socket, if there is use for it. Gives whether anything came.
    pub(super) fn poll_input(&mut self, cx: &mut Context<'_>) -> bool {
        if self.closing.is_some() || self.is_full() || matches!(self.receiving, Receiving::Memory { .. }) {
            return false;
        }
        let read = if let Receiving::Large { request, body, .. } = &mut self.receiving {
            let missing = usize::try_from(request.length).unwrap_or(usize::MAX).saturating_sub(body.len());
            poll_read_buf(Pin::new(&mut self.io), cx, &mut body.limit(missing))
        } else if let Some(missing) = self.header_alone() {
            poll_read_buf(Pin::new(&mut self.io), cx, &mut (&mut self.input).limit(missing))
        } else {
            if self.input.is_empty() || self.input.capacity() - self.input.len() < ROOM_BYTES {
                self.input.reserve(self.input_bytes.saturating_sub(self.input.len()).max(ROOM_BYTES));
            }
            let room = self.input.capacity() - self.input.len();
            let read = poll_read_buf(Pin::new(&mut self.io), cx, &mut self.input);
            if matches!(read, Poll::Ready(Ok(count)) if count == room) {
                self.input_bytes = (self.input_bytes * 2).min(INPUT_BYTES_MAX);
            }
            read
        };
        match read {
            Poll::Ready(Ok(0)) => {
                self.closing = Some(Detach::Lost);
                true
            }
            Poll::Ready(Ok(_)) => true,
            Poll::Ready(Err(error)) => {
                self.lose(&format!("requests cannot be read: {error}"));
                true
            }
            Poll::Pending => false,
        }
    }
}
