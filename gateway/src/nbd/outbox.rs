//! Replies on their way out: heads and payloads in order, many sent by one system call, payloads never copied.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use tokio::sync::OwnedSemaphorePermit;

use crate::device::Segments;

/// Pieces given to one system call.
const SLICES: usize = 64;
/// Sent heads kept at the front of their buffer before it is moved up.
const HEADS_KEPT: usize = 64 * 1024;

#[derive(Debug)]
enum Piece {
    /// So many bytes of `heads`.
    Heads(usize),
    Data(Bytes),
    /// Given back when everything before it is sent; held only for that.
    Permit {
        _permit: OwnedSemaphorePermit,
    },
}

/// A queue of reply bytes.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    pieces: VecDeque<Piece>,
    heads: Vec<u8>,
    /// Bytes of `heads` that are sent.
    heads_sent: usize,
    /// Bytes of a payload at the front that are sent.
    data_sent: usize,
    unsent: usize,
    sent: u64,
}

impl Outbox {
    /// Bytes not yet sent.
    pub(super) fn unsent(&self) -> usize {
        self.unsent
    }

    /// Bytes sent since the beginning.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// Appends what `write` writes: heads, and replies without a payload.
    pub(super) fn head(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let before = self.heads.len();
        write(&mut self.heads);
        let added = self.heads.len() - before;
        self.unsent += added;
        match self.pieces.back_mut() {
            Some(Piece::Heads(length)) => *length += added,
            _ => self.pieces.push_back(Piece::Heads(added)),
        }
    }

    /// Appends a payload.
    pub(super) fn data(&mut self, segments: Segments) {
        for segment in segments {
            if !segment.is_empty() {
                self.unsent += segment.len();
                self.pieces.push_back(Piece::Data(segment));
            }
        }
    }

    /// Keeps `permit` until everything before it is sent.
    pub(super) fn permit(&mut self, permit: OwnedSemaphorePermit) {
        self.pieces.push_back(Piece::Permit { _permit: permit });
    }

    /// Sends until everything is sent or the socket takes no more.
    pub(super) fn poll_send<S: AsyncWrite + Unpin>(
        &mut self,
        io: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if self.pieces.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while self.unsent > 0 {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let filled = self.fill(&mut slices);
            let sent = ready!(Pin::new(&mut *io).poll_write_vectored(cx, &slices[..filled]))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.consume(sent);
        }
        self.consume(0);
        Pin::new(io).poll_flush(cx)
    }

    fn fill<'a>(&'a self, slices: &mut [IoSlice<'a>; SLICES]) -> usize {
        let mut filled = 0;
        let mut head = self.heads_sent;
        let mut skip = self.data_sent;
        for piece in &self.pieces {
            if filled == SLICES {
                break;
            }
            slices[filled] = match piece {
                Piece::Heads(length) => {
                    head += length;
                    IoSlice::new(&self.heads[head - length..head])
                }
                Piece::Data(bytes) => IoSlice::new(&bytes[std::mem::take(&mut skip)..]),
                Piece::Permit { .. } => continue,
            };
            filled += 1;
        }
        filled
    }

    fn consume(&mut self, mut count: usize) {
        self.unsent -= count;
        self.sent += count as u64;
        while let Some(front) = self.pieces.front_mut() {
            match front {
                Piece::Heads(length) => {
                    let part = count.min(*length);
                    *length -= part;
                    self.heads_sent += part;
                    count -= part;
                    if *length > 0 {
                        break;
                    }
                }
                Piece::Data(bytes) => {
                    let part = count.min(bytes.len() - self.data_sent);
                    count -= part;
                    self.data_sent += part;
                    if self.data_sent < bytes.len() {
                        break;
                    }
                    self.data_sent = 0;
                }
                Piece::Permit { .. } => {}
            }
            self.pieces.pop_front();
        }
        if self.pieces.is_empty() {
            self.heads.clear();
            self.heads_sent = 0;
        } else if self.heads_sent > HEADS_KEPT {
            self.heads.drain(..self.heads_sent);
            self.heads_sent = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use smallvec::smallvec;

    use super::*;

    /// Takes a few bytes a call, sometimes none.
    struct Slow {
        steps: VecDeque<usize>,
        got: Vec<u8>,
    }

    impl AsyncWrite for Slow {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let this = self.get_mut();
            let step = this.steps.pop_front().unwrap_or(1000).min(bytes.len());
            if step == 0 {
                return Poll::Pending;
            }
            this.got.extend_from_slice(&bytes[..step]);
            Poll::Ready(Ok(step))
        }
        fn poll_write_vectored(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let all: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
            self.poll_write(cx, &all)
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    proptest! {
        #[test]
        fn bytes_leave_in_order_however_the_socket_takes_them(
            pieces in proptest::collection::vec((any::<bool>(), 0usize..40), 0..100),
            steps in proptest::collection::vec(0usize..50, 0..200),
        ) {
            let mut outbox = Outbox::default();
            let mut io = Slow { steps: steps.into(), got: Vec::new() };
            let mut expect = Vec::new();
            let mut cx = Context::from_waker(std::task::Waker::noop());
            for (number, (is_head, length)) in pieces.iter().enumerate() {
                let bytes = vec![u8::try_from(number).unwrap(); *length];
                expect.extend_from_slice(&bytes);
                if *is_head {
                    outbox.head(|out| out.extend_from_slice(&bytes));
                } else {
                    outbox.data(smallvec![Bytes::from(bytes)]);
                }
                if number % 7 == 0 {
                    let _ = outbox.poll_send(&mut io, &mut cx);
                }
            }
            while outbox.unsent() > 0 {
                let _ = outbox.poll_send(&mut io, &mut cx);
            }
            prop_assert_eq!(outbox.sent(), expect.len() as u64);
            prop_assert_eq!(io.got, expect);
        }
    }
}
