//! Asking the device, and writing replies.

use std::sync::Arc;

use bytes::Bytes;
use clonegate_core::nbd::reply::{self, kind};
use clonegate_core::nbd::{Command, Contexts, Request, Style, Verdict, command_flags, errno, meta};
use clonegate_core::units::ByteRange;
use clonegate_core::{Error, ErrorKind, Result};
use futures::future::FutureExt;
use tokio::sync::OwnedSemaphorePermit;

use super::super::socket::Socket;
use super::super::status;
use super::receive::Receiving;
use super::{Event, Transmission};
use crate::device::{Device, Extent, Segments, WriteOptions, is_zeroes};
use crate::exports::Detach;

/// What a request came to.
enum Answer {
    Done,
    Data(Segments),
    Status(Contexts, Vec<Extent>),
}

/// A request that waited and is answered.
pub(super) struct Answered {
    request: Request,
    result: Result<Answer>,
    permit: OwnedSemaphorePermit,
}

impl<S: Socket> Transmission<S> {
    /// Does a request that is right: at once if the device can, otherwise as a future that waits. A payload that comes without a permit
    /// is a slice of the receive buffer.
    pub(super) fn execute(&mut self, request: Request, payload: Bytes, permit: Option<OwnedSemaphorePermit>) {
        if let Err(error) = self.check(&request) {
            return self.reply(&request, Err(error));
        }
        let payload = match request.command {
            Command::Read => match self.device.try_read(range_of(&request)) {
                Some(segments) => {
                    self.tally.inline += 1;
                    self.reply(&request, Ok(Answer::Data(segments)));
                    return;
                }
                None => payload,
            },
            Command::Write if !request.has(command_flags::FUA) => {
                match self.device.try_write(request.offset, payload) {
                    Ok(result) => {
                        self.tally.inline += 1;
                        self.reply(&request, result.map(|()| Answer::Done));
                        return;
                    }
                    Err(payload) => payload,
                }
            }
            _ => payload,
        };
        let payload = if permit.is_none() { Bytes::copy_from_slice(&payload) } else { payload };
        let permit = permit.or_else(|| {
            let (part, kib) = self.shared.memory.part(Self::weight(&request));
            Arc::clone(part).try_acquire_many_owned(kib).ok()
        });
        match permit {
            Some(permit) => self.start(request, payload, permit),
            None => self.receiving = Receiving::Memory { request, payload: Some(payload) },
        }
    }

    /// Whether this machine may do it. One that wrote before a crash which lost some of it is told so, and not that it is
    /// flushed; every machine that starts reads the first sector before it writes, and so begins anew.
    fn check(&mut self, request: &Request) -> Result<()> {
        let writes = request.command.writes();
        if !writes && request.command != Command::Flush {
            if request.command == Command::Read && request.offset == 0 && self.device.is_torn() {
                self.device.begin_anew();
            }
            return Ok(());
        }
        if self.device.is_torn() {
            return Err(torn(&self.device.info().name));
        }
        if writes && !self.writes {
            self.attachment.begin_write()?;
            self.writes = true;
        }
        Ok(())
    }

    /// Begins a request that may wait.
    pub(super) fn start(&mut self, mut request: Request, payload: Bytes, permit: OwnedSemaphorePermit) {
        let mut contexts = self.rules.contexts;
        if request.command == Command::BlockStatus && request.has(command_flags::PAYLOAD_LEN) {
            let Some((length, chosen)) = contexts.choose(&payload) else {
                return self.refuse(&request, errno::EINVAL, "the payload is no list of chosen contexts");
            };
            let verdict = self.rules.judge_range(request.command, request.offset, length);
            if let Verdict::Refuse { errno, message } = verdict {
                return self.refuse(&request, errno, message);
            }
            request.length = length;
            contexts = chosen;
        }
        self.waiting_writes += usize::from(request.command.writes());
        self.waiting_count += 1;
        self.waiting_bytes += Self::weight(&request);
        self.waiting_grew = true;
        let device = Arc::clone(&self.device);
        let work = async move {
            let result = perform(device, &request, payload, contexts).await;
            Event::Answered(Answered { request, result, permit })
        };
        self.waiting.push(work.boxed());
    }

    /// Takes what a waiting request came to.
    pub(super) fn answer(&mut self, answered: Answered) {
        let Answered { request, result, permit } = answered;
        self.waiting_count -= 1;
        self.waiting_bytes -= Self::weight(&request);
        self.waiting_writes -= usize::from(request.command.writes());
        if !self.broken {
            self.reply(&request, result);
            self.outbox.permit(permit);
        }
    }

    /// Answers with an error of the protocol.
    pub(super) fn refuse(&mut self, request: &Request, errno: u32, message: &str) {
        self.tally.errors += 1;
        let (style, to) = (self.rules.style, answered(request));
        self.outbox.head(|out| reply::error(style, to, errno, message, out));
    }

    fn reply(&mut self, request: &Request, result: Result<Answer>) {
        let (style, to) = (self.rules.style, answered(request));
        match result {
            Ok(Answer::Done) => {
                if request.command == Command::Write {
                    self.tally.written_bytes += request.length;
                }
                self.outbox.head(|out| reply::done(style, to, out));
            }
            Ok(Answer::Data(segments)) => self.reply_data(request, segments),
            Ok(Answer::Status(contexts, extents)) => {
                let one = request.has(command_flags::REQ_ONE);
                self.outbox.head(|out| write_status(style, to, contexts, &extents, one, out));
            }
            Err(error) => {
                tracing::debug!(export = self.device.info().name, ?request, %error, "an NBD request failed");
                self.refuse(request, error.kind().nbd_errno(), &error.to_string());
                // Whoever lost the volume serves nothing more: the client finds the new owner.
                if error.kind() == ErrorKind::Fenced {
                    self.closing.get_or_insert(Detach::Lost);
                }
            }
        }
    }

    fn reply_data(&mut self, request: &Request, segments: Segments) {
        let (style, to) = (self.rules.style, answered(request));
        let found: usize = segments.iter().map(Bytes::len).sum();
        let Some(length) = u32::try_from(found).ok().filter(|length| u64::from(*length) == request.length) else {
            let error = Error::internal("short-read", "the device gave another number of bytes than was asked for");
            return self.reply(request, Err(error));
        };
        self.tally.read_bytes += request.length;
        if style != Style::Simple && segments.iter().all(is_zeroes) {
            self.outbox.head(|out| reply::hole(style, to, length, out));
            return;
        }
        self.outbox.head(|out| reply::data_head(style, to, length, out));
        self.outbox.data(segments);
    }
}

fn torn(name: &str) -> Error {
    Error::new(ErrorKind::Unavailable, "writes-lost", "writes that were accepted before the gateway was lost are gone")
        .on(name)
        .hint("reset the machine: it begins anew when it reads the first sector")
}

fn answered(request: &Request) -> reply::Answered {
    reply::Answered { cookie: request.cookie, offset: request.offset }
}

fn range_of(request: &Request) -> ByteRange {
    ByteRange::new(request.offset, request.offset.saturating_add(request.length))
}

async fn perform(device: Arc<dyn Device>, request: &Request, payload: Bytes, contexts: Contexts) -> Result<Answer> {
    let range = range_of(request);
    let fua = request.has(command_flags::FUA);
    match request.command {
        Command::Read => return device.read(range).await.map(Answer::Data),
        Command::Write => device.write(request.offset, payload, WriteOptions { fua, expect: None }).await?,
        Command::Flush => device.flush().await?,
        Command::Trim => device.write_zeroes(range, true, fua).await?,
        Command::WriteZeroes => {
            device.write_zeroes(range, !request.has(command_flags::NO_HOLE), fua).await?;
        }
        Command::Cache => device.prefetch(range).await?,
        Command::BlockStatus => {
            let one = request.has(command_flags::REQ_ONE);
            return status::extents(device, range, one).await.map(|extents| Answer::Status(contexts, extents));
        }
        Command::Disconnect | Command::Resize | Command::Unknown(_) => {
            return Err(Error::internal("not-a-request", "a command was begun that is none"));
        }
    }
    Ok(Answer::Done)
}

/// Writes a chunk for each context, the last of them closing the reply.
fn write_status(
    style: Style,
    to: reply::Answered,
    contexts: Contexts,
    extents: &[Extent],
    one: bool,
    out: &mut Vec<u8>,
) {
    let kind = if style == Style::Extended { kind::BLOCK_STATUS_EXT } else { kind::BLOCK_STATUS };
    let mut left = contexts.iter().count();
    if left == 0 {
        return reply::done(style, to, out);
    }
    let mut payload = Vec::new();
    for context in contexts.iter() {
        left -= 1;
        payload.clear();
        meta::encode_status(style, context.id(), &status::runs(context, extents, one), &mut payload);
        let flags = if left == 0 { reply::FLAG_DONE } else { 0 };
        reply::chunk(style, to, flags, kind, u32::try_from(payload.len()).unwrap_or(u32::MAX), out);
        out.extend_from_slice(&payload);
    }
}
