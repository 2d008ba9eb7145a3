//! An NBD client for the load generator and the tests: any style of headers, many requests in flight.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use clonegate_core::nbd::meta::{self, Run};
use clonegate_core::nbd::option::{self, Info, OptionReply, OptionRequest, Refusal};
use clonegate_core::nbd::reply::{self, kind};
use clonegate_core::nbd::{
    Command, DEFAULT_PORT, INIT_MAGIC, OPTION_MAGIC, Reply, Request, Style, command_flags, handshake_flags,
};
use clonegate_core::{Error, ErrorKind, Result};
use percent_encoding::percent_decode_str;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

/// Data of one option reply at most, bytes; a server that sends more is hung up on.
const OPTION_REPLY_BYTES_MAX: u32 = 1 << 20;
/// Payload of one chunk at most, bytes.
const CHUNK_BYTES_MAX: u64 = (64 << 20) + 8;
/// Read from the socket at a time, bytes.
const INPUT_BYTES: usize = 256 * 1024;

/// Where a server listens, and which export is meant: `nbd://HOST:PORT/EXPORT`, `nbds://…` with TLS, or
/// `nbd+unix:///EXPORT?socket=PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NbdUri {
    /// Where.
    pub place: Place,
    /// Whether TLS is asked for.
    pub tls: bool,
    /// Which export.
    pub export: String,
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Host and port.
    Tcp(String, u16),
    /// Path of a socket.
    Unix(PathBuf),
}

impl FromStr for NbdUri {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::invalid("bad-nbd-uri", format!("{text:?} is no NBD address"))
                .hint("use nbd://HOST:PORT/EXPORT, nbds://… for TLS, or nbd+unix:///EXPORT?socket=PATH")
        };
        let url = url::Url::parse(text).map_err(|_| wrong())?;
        let export = percent_decode_str(url.path().trim_start_matches('/')).decode_utf8().map_err(|_| wrong())?;
        let place = match url.scheme() {
            "nbd" | "nbds" => {
                let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(wrong)?;
                Place::Tcp(host.trim_matches(['[', ']']).to_owned(), url.port().unwrap_or(DEFAULT_PORT))
            }
            "nbd+unix" | "nbds+unix" => {
                let (_, path) = url.query_pairs().find(|(key, _)| key == "socket").ok_or_else(wrong)?;
                Place::Unix(PathBuf::from(path.into_owned()))
            }
            _ => return Err(wrong()),
        };
        Ok(Self { place, tls: url.scheme().starts_with("nbds"), export: export.into_owned() })
    }
}

impl fmt::Display for NbdUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "nbds" } else { "nbd" };
        match &self.place {
            Place::Tcp(host, port) if host.contains(':') => write!(f, "{scheme}://[{host}]:{port}/{}", self.export),
            Place::Tcp(host, port) => write!(f, "{scheme}://{host}:{port}/{}", self.export),
            Place::Unix(path) => write!(f, "{scheme}+unix:///{}?socket={}", self.export, path.display()),
        }
    }
}

/// What a client asks for in the handshake.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// Headers and replies; a server that does not know them gets the next plainer ones.
    pub style: Style,
    /// Metadata contexts by name.
    pub contexts: Vec<String>,
    /// How to encrypt, for addresses that say so.
    pub tls: Option<Arc<ClientConfig>>,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A connection with an export.
pub struct Connection {
    io: Box<dyn Stream>,
    style: Style,
    size: u64,
    flags: u16,
    input: BytesMut,
    output: Vec<u8>,
    /// Requests in flight: read length and what of the reply is here.
    pending: HashMap<u64, (usize, Response)>,
    next_cookie: u64,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("style", &self.style).field("size", &self.size).finish_non_exhaustive()
    }
}

/// All of a reply.
#[derive(Debug, Clone, Default)]
pub struct Response {
    /// Of the request.
    pub cookie: u64,
    /// 0 is good.
    pub errno: u32,
    /// The sentence that came with an error.
    pub message: String,
    /// Bytes of a read, pieces in order of their offsets.
    pub pieces: Vec<(u64, Piece)>,
    /// Status runs by context id.
    pub status: Vec<(u32, Vec<Run>)>,
}

/// A part of a read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Bytes.
    Data(Bytes),
    /// So many zeroes.
    Hole(u32),
}

impl Response {
    /// The bytes of a read, in one piece.
    pub fn bytes(&self) -> Vec<u8> {
        let mut all = Vec::new();
        for (_, piece) in &self.pieces {
            match piece {
                Piece::Data(bytes) => all.extend_from_slice(bytes),
                Piece::Hole(length) => all.resize(all.len() + *length as usize, 0),
            }
        }
        all
    }
}

fn broken(message: impl Into<String>) -> Error {
    Error::unavailable("nbd-protocol", message)
}

fn lost(error: std::io::Error) -> Error {
    Error::unavailable("nbd-lost", "the connection is lost").because(error)
}

impl Connection {
    /// Connects and chooses the export.
    ///
    /// # Errors
    /// `Unavailable` when the server cannot be reached or talks another protocol; `NotFound` or `Denied` when it refuses.
    pub async fn open(uri: &NbdUri, wish: &Wish) -> Result<Self> {
        let mut io = Self::greeted(&uri.place).await?;
        if uri.tls {
            let (Some(config), Place::Tcp(host, _)) = (&wish.tls, &uri.place) else {
                return Err(Error::invalid("no-tls", "TLS is asked for, and nothing says how"));
            };
            negotiate(&mut io, &OptionRequest::StartTls).await?;
            let name = ServerName::try_from(host.clone())
                .map_err(|error| Error::invalid("bad-host", "the host has no valid name").because(error))?;
            let connector = tokio_rustls::TlsConnector::from(Arc::clone(config));
            io = Box::new(connector.connect(name, io).await.map_err(lost)?);
        }
        let style = agree(&mut io, wish.style).await?;
        if !wish.contexts.is_empty() {
            let choose = OptionRequest::SetMetaContext(uri.export.clone(), wish.contexts.clone());
            negotiate(&mut io, &choose).await?;
        }
        let facts = negotiate(&mut io, &OptionRequest::Go(uri.export.clone(), Vec::new())).await?;
        let export = facts.iter().find_map(|fact| match fact {
            OptionReply::Info(Info::Export { size, flags }) => Some((*size, *flags)),
            _ => None,
        });
        let (size, flags) = export.ok_or_else(|| broken("the server did not tell the size of the export"))?;
        Ok(Self {
            io,
            style,
            size,
            flags,
            input: BytesMut::with_capacity(INPUT_BYTES),
            output: Vec::new(),
            pending: HashMap::new(),
            next_cookie: 1,
        })
    }

    /// The exports of a server, names and descriptions.
    ///
    /// # Errors
    /// As [`Connection::open`].
    pub async fn list(place: &Place) -> Result<Vec<(String, String)>> {
        let mut io = Self::greeted(place).await?;
        let replies = negotiate(&mut io, &OptionRequest::List).await?;
        let names = replies.into_iter().filter_map(|reply| match reply {
            OptionReply::Server { name, description } => Some((name, description)),
            _ => None,
        });
        Ok(names.collect())
    }

    async fn greeted(place: &Place) -> Result<Box<dyn Stream>> {
        let mut io: Box<dyn Stream> = match place {
            Place::Tcp(host, port) => {
                let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(lost)?;
                stream.set_nodelay(true).map_err(lost)?;
                Box::new(stream)
            }
            Place::Unix(path) => Box::new(UnixStream::connect(path).await.map_err(lost)?),
        };
        if (io.read_u64().await.map_err(lost)?, io.read_u64().await.map_err(lost)?) != (INIT_MAGIC, OPTION_MAGIC) {
            return Err(broken("the server does not greet as a newstyle NBD server"));
        }
        let flags = io.read_u16().await.map_err(lost)?;
        let ours = handshake_flags::FIXED_NEWSTYLE | handshake_flags::NO_ZEROES;
        io.write_u32(u32::from(flags & ours)).await.map_err(lost)?;
        Ok(io)
    }

    /// Bytes of the export.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What the export can do; see [`clonegate_core::nbd::export_flags`].
    pub fn flags(&self) -> u16 {
        self.flags
    }

    /// Requests sent and not answered.
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// Queues a request, to be sent by [`Connection::send`]; gives its cookie.
    pub fn queue(&mut self, command: Command, flags: u16, offset: u64, length: u64, payload: &[u8]) -> u64 {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let with_payload = self.style == Style::Extended && !payload.is_empty();
        let flags = flags | if with_payload { command_flags::PAYLOAD_LEN } else { 0 };
        Request { flags, command, cookie, offset, length }.encode(self.style, &mut self.output);
        self.output.extend_from_slice(payload);
        if command != Command::Disconnect {
            let expect = if command == Command::Read { usize::try_from(length).unwrap_or(usize::MAX) } else { 0 };
            self.pending.insert(cookie, (expect, Response { cookie, ..Response::default() }));
        }
        cookie
    }

    /// Sends what is queued.
    ///
    /// # Errors
    /// `Unavailable` when the connection is lost.
    pub async fn send(&mut self) -> Result<()> {
        self.io.write_all(&self.output).await.map_err(lost)?;
        self.output.clear();
        self.io.flush().await.map_err(lost)
    }

    /// The next reply that is complete.
    ///
    /// # Errors
    /// `Unavailable` when the connection is lost, or the reply is not of the protocol.
    pub async fn receive(&mut self) -> Result<Response> {
        loop {
            if let Some(response) = self.take_received()? {
                return Ok(response);
            }
            self.input.reserve(INPUT_BYTES);
            if self.io.read_buf(&mut self.input).await.map_err(lost)? == 0 {
                return Err(broken("the server closed the connection"));
            }
        }
    }

    /// A complete reply, if it has been received already.
    ///
    /// # Errors
    /// As [`Connection::receive`].
    pub fn take_received(&mut self) -> Result<Option<Response>> {
        let unknown = || broken("a reply to no request");
        loop {
            let decoded = Reply::decode(&self.input).map_err(|error| broken(error.to_string()))?;
            let Some((head, head_bytes)) = decoded else { return Ok(None) };
            let (cookie, payload_bytes) = match head {
                Reply::Simple { errno, cookie } => {
                    let (expect, _) = self.pending.get(&cookie).ok_or_else(unknown)?;
                    (cookie, if errno == 0 { *expect } else { 0 })
                }
                Reply::Chunk { cookie, length, .. } => {
                    if length > CHUNK_BYTES_MAX {
                        return Err(broken("a chunk is far too long"));
                    }
                    (cookie, usize::try_from(length).unwrap_or(usize::MAX))
                }
            };
            if self.input.len() < head_bytes + payload_bytes {
                self.input.reserve(head_bytes + payload_bytes - self.input.len());
                return Ok(None);
            }
            self.input.advance(head_bytes);
            let payload = self.input.split_to(payload_bytes).freeze();
            let (_, response) = self.pending.get_mut(&cookie).ok_or_else(unknown)?;
            let done = match head {
                Reply::Simple { errno, .. } => {
                    response.errno = errno;
                    if !payload.is_empty() {
                        response.pieces.push((0, Piece::Data(payload)));
                    }
                    true
                }
                Reply::Chunk { flags, kind, offset, .. } => {
                    take_chunk(response, kind, offset.is_some(), payload)?;
                    flags & reply::FLAG_DONE != 0
                }
            };
            if done {
                let (_, mut response) = self.pending.remove(&cookie).ok_or_else(unknown)?;
                response.pieces.sort_by_key(|(offset, _)| *offset);
                return Ok(Some(response));
            }
        }
    }

    /// Sends one request and waits for its reply; no other may be in flight.
    ///
    /// # Errors
    /// As [`Connection::receive`]; an error of the server is in the response.
    pub async fn call(
        &mut self,
        command: Command,
        flags: u16,
        offset: u64,
        length: u64,
        payload: &[u8],
    ) -> Result<Response> {
        self.queue(command, flags, offset, length, payload);
        self.send().await?;
        self.receive().await
    }

    /// Says good-bye and closes.
    ///
    /// # Errors
    /// `Unavailable` when the connection was lost before.
    pub async fn disconnect(mut self) -> Result<()> {
        self.queue(Command::Disconnect, 0, 0, 0, &[]);
        self.send().await?;
        // The server finishes what is in flight and closes.
        while self.io.read_buf(&mut self.input).await.map_err(lost)? > 0 {
            self.input.clear();
        }
        Ok(())
    }
}

fn take_chunk(response: &mut Response, chunk: u16, extended: bool, mut payload: Bytes) -> Result<()> {
    match chunk {
        kind::NONE => {}
        kind::OFFSET_DATA if payload.len() > 8 => {
            let offset = payload.get_u64();
            response.pieces.push((offset, Piece::Data(payload)));
        }
        kind::OFFSET_HOLE if payload.len() == 12 => {
            let offset = payload.get_u64();
            response.pieces.push((offset, Piece::Hole(payload.get_u32())));
        }
        kind::BLOCK_STATUS | kind::BLOCK_STATUS_EXT => {
            let wide = extended && chunk == kind::BLOCK_STATUS_EXT;
            response.status.push(meta::decode_status(wide, &payload).map_err(|error| broken(error.to_string()))?);
        }
        error if error & kind::ERROR_BIT != 0 => {
            (response.errno, response.message) =
                reply::decode_error(&payload).map_err(|error| broken(error.to_string()))?;
        }
        _ => return Err(broken("a chunk of unknown kind")),
    }
    Ok(())
}

/// The style that the server takes, this one at best.
async fn agree(io: &mut Box<dyn Stream>, wished: Style) -> Result<Style> {
    let plainer = match wished {
        Style::Simple => return Ok(Style::Simple),
        Style::Structured => (OptionRequest::StructuredReply, Style::Simple),
        Style::Extended => (OptionRequest::ExtendedHeaders, Style::Structured),
    };
    match negotiate(io, &plainer.0).await {
        Ok(_) => Ok(wished),
        Err(error) if error.kind() == ErrorKind::Unsupported => Box::pin(agree(io, plainer.1)).await,
        Err(error) => Err(error),
    }
}

/// Sends one option; gives its replies but the last, which is `ACK`.
async fn negotiate(io: &mut Box<dyn Stream>, request: &OptionRequest) -> Result<Vec<OptionReply>> {
    let mut out = Vec::new();
    request.encode(&mut out);
    io.write_all(&out).await.map_err(lost)?;
    io.flush().await.map_err(lost)?;
    let mut replies = Vec::new();
    loop {
        let mut head = [0; OptionReply::HEADER_BYTES];
        io.read_exact(&mut head).await.map_err(lost)?;
        let (_, code, length) = OptionReply::decode_header(&head).map_err(|error| broken(error.to_string()))?;
        if length > OPTION_REPLY_BYTES_MAX {
            return Err(broken("an option reply is far too long"));
        }
        let mut data = vec![0; length as usize];
        io.read_exact(&mut data).await.map_err(lost)?;
        match OptionReply::decode(code, &data).map_err(|error| broken(error.to_string()))? {
            OptionReply::Ack => return Ok(replies),
            OptionReply::Error(refusal) => return Err(refused(&refusal)),
            other => replies.push(other),
        }
    }
}

fn refused(refusal: &Refusal) -> Error {
    let reason = if refusal.message.is_empty() { "it gives no reason" } else { &refusal.message };
    let message = format!("the server refuses: {reason}");
    match refusal.code {
        option::reply::ERR_UNKNOWN => Error::not_found("nbd-refused", message),
        option::reply::ERR_UNSUP => Error::unsupported("nbd-refused", message),
        _ => Error::denied("nbd-refused", message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        for (text, place, export) in [
            ("nbd://host:1/a", Place::Tcp("host".into(), 1), "a"),
            ("nbd://[::1]:10809/disk/b", Place::Tcp("::1".into(), 10809), "disk/b"),
            ("nbd+unix:///c@identity?socket=/run/s", Place::Unix("/run/s".into()), "c@identity"),
        ] {
            let uri: NbdUri = text.parse().unwrap();
            assert_eq!((&uri.place, uri.export.as_str()), (&place, export));
            assert_eq!(uri.to_string(), text);
        }
        for wrong in ["host:1", "http://host/a", "nbd:///a", "nbd+unix:///a"] {
            assert_eq!(wrong.parse::<NbdUri>().unwrap_err().code(), "bad-nbd-uri", "{wrong}");
        }
    }
}
