//! The handshake: from the greeting to a session with one export.

use std::sync::Arc;

use clonegate_core::limits::{
    NBD_HANDSHAKE_BYTES_MAX, NBD_LISTED_MAX, NBD_OPTION_BYTES_MAX, NBD_OPTIONS_MAX, NBD_PAYLOAD_BYTES_MAX,
};
use clonegate_core::nbd::option::{self, Info, OptionHeader, OptionReply, OptionRequest, Refusal, reply};
use clonegate_core::nbd::{Context, Contexts, INIT_MAGIC, OPTION_MAGIC, Rules, Style, export_flags, handshake_flags};
use clonegate_core::units::BLOCK_BYTES;
use clonegate_core::{Error, ErrorKind, Result};
use tokio::io::{self, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::gate::Seat;
use super::server::Shared;
use crate::device::{Device, DeviceInfo};
use crate::exports::{Attach, Attachment, ExportName};

/// Whether a connection is, may be or must be encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encryption {
    /// Not offered here.
    Unavailable,
    /// The client may ask for it.
    Offered,
    /// Nothing is told before it.
    Required,
    /// It is.
    Done,
}

/// A connection that has chosen its export.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) device: Arc<dyn Device>,
    pub(super) attachment: Box<dyn Attachment>,
    pub(super) seat: Seat,
    pub(super) rules: Rules,
}

/// How a handshake ended.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Transmission begins.
    Begin(Box<Session>),
    /// The next byte of the client is TLS; all that was negotiated is void (CVE-2021-3716).
    StartTls,
    /// Nothing more is to be said.
    Closed,
}

/// Greets a client; gives its flags, `None` when it is to be hung up on.
pub(super) async fn greet<S: AsyncRead + AsyncWrite + Unpin>(io: &mut S) -> io::Result<Option<u16>> {
    let ours = handshake_flags::FIXED_NEWSTYLE | handshake_flags::NO_ZEROES;
    let mut greeting = [0; 18];
    greeting[..8].copy_from_slice(&INIT_MAGIC.to_be_bytes());
    greeting[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    greeting[16..].copy_from_slice(&ours.to_be_bytes());
    io.write_all(&greeting).await?;
    let theirs = io.read_u32().await?;
    Ok(u16::try_from(theirs).ok().filter(|flags| flags & !ours == 0))
}

/// Answers options until one ends the handshake. Reads no byte beyond that option, so that none sent before
/// encryption counts as sent under it.
pub(super) async fn negotiate<S: AsyncRead + AsyncWrite + Unpin>(
    io: &mut S,
    shared: &Arc<Shared>,
    client: &str,
    client_flags: u16,
    encryption: Encryption,
) -> io::Result<Outcome> {
    let mut negotiation = Negotiation { shared, client, style: Style::Simple, contexts: None };
    let mut bytes_left = NBD_HANDSHAKE_BYTES_MAX;
    for _ in 0..NBD_OPTIONS_MAX {
        let mut head = [0; OptionHeader::BYTES];
        io.read_exact(&mut head).await?;
        let Ok(header) = OptionHeader::decode(&head) else { return Ok(Outcome::Closed) };
        bytes_left = match bytes_left.checked_sub(u64::from(header.length)) {
            Some(left) => left,
            None => return Ok(Outcome::Closed),
        };
        let decoded = if header.length > NBD_OPTION_BYTES_MAX {
            io::copy(&mut (&mut *io).take(u64::from(header.length)), &mut io::sink()).await?;
            Err(Refusal::new(reply::ERR_TOO_BIG, "the option is longer than any that is taken here"))
        } else {
            let mut data = vec![0; header.length as usize];
            io.read_exact(&mut data).await?;
            OptionRequest::decode(header.code, &data)
        };
        // This option cannot be refused, and it is all that a client without fixed newstyle may send.
        if header.code == option::code::EXPORT_NAME {
            let forbidden = encryption == Encryption::Required || negotiation.style == Style::Extended;
            let Some(OptionRequest::ExportName(name)) = decoded.ok().filter(|_| !forbidden) else {
                return Ok(Outcome::Closed);
            };
            let Ok(session) = negotiation.begin(&name).await else { return Ok(Outcome::Closed) };
            let mut answer = session.rules.size.to_be_bytes().to_vec();
            answer.extend_from_slice(&flags(session.device.info(), &session.rules).to_be_bytes());
            if client_flags & handshake_flags::NO_ZEROES == 0 {
                answer.resize(answer.len() + 124, 0);
            }
            send(io, &answer).await?;
            return Ok(Outcome::Begin(Box::new(session)));
        }
        if client_flags & handshake_flags::FIXED_NEWSTYLE == 0 {
            return Ok(Outcome::Closed);
        }
        if header.code == option::code::SET_META_CONTEXT {
            // It replaces what was chosen before, even when it fails.
            negotiation.contexts = None;
        }
        let mut answers = Answers { option: header.code, out: Vec::new() };
        let outcome = match decoded {
            Ok(OptionRequest::Abort) => {
                answers.ack();
                Some(Outcome::Closed)
            }
            Ok(OptionRequest::StartTls) => match encryption {
                Encryption::Unavailable => {
                    answers.refuse(Refusal::new(reply::ERR_POLICY, "this server has no certificate"));
                    None
                }
                Encryption::Done => {
                    answers.refuse(Refusal::new(reply::ERR_INVALID, "the connection is encrypted already"));
                    None
                }
                Encryption::Offered | Encryption::Required => {
                    answers.ack();
                    Some(Outcome::StartTls)
                }
            },
            _ if encryption == Encryption::Required && header.code != option::code::STARTTLS => {
                answers.refuse(Refusal::new(reply::ERR_TLS_REQD, "this server talks by TLS only: begin with STARTTLS"));
                None
            }
            Err(refusal) => {
                answers.refuse(refusal);
                None
            }
            Ok(request) => negotiation.answer(request, &mut answers).await,
        };
        send(io, &answers.out).await?;
        if let Some(outcome) = outcome {
            return Ok(outcome);
        }
    }
    Ok(Outcome::Closed)
}

async fn send<S: AsyncWrite + Unpin>(io: &mut S, bytes: &[u8]) -> io::Result<()> {
    io.write_all(bytes).await?;
    io.flush().await
}

/// The replies to one option.
struct Answers {
    option: u32,
    out: Vec<u8>,
}

impl Answers {
    fn say(&mut self, reply: &OptionReply) {
        reply.encode(self.option, &mut self.out);
    }

    fn ack(&mut self) {
        self.say(&OptionReply::Ack);
    }

    /// Replaces what was said by a refusal.
    fn refuse(&mut self, refusal: Refusal) {
        self.out.clear();
        self.say(&OptionReply::Error(refusal));
    }
}

/// What was agreed on so far; made anew when encryption begins.
struct Negotiation<'a> {
    shared: &'a Arc<Shared>,
    client: &'a str,
    style: Style,
    /// The contexts that were chosen, and for which export.
    contexts: Option<(String, Contexts)>,
}

impl Negotiation<'_> {
    async fn answer(&mut self, request: OptionRequest, answers: &mut Answers) -> Option<Outcome> {
        let refusal = match request {
            OptionRequest::StructuredReply => match self.style {
                Style::Simple => {
                    self.style = Style::Structured;
                    answers.ack();
                    return None;
                }
                Style::Structured => Refusal::new(reply::ERR_INVALID, "structured replies are agreed on already"),
                Style::Extended => Refusal::new(reply::ERR_EXT_HEADER_REQD, "extended headers are agreed on already"),
            },
            OptionRequest::ExtendedHeaders if self.style == Style::Extended => {
                Refusal::new(reply::ERR_INVALID, "extended headers are agreed on already")
            }
            OptionRequest::ExtendedHeaders => {
                self.style = Style::Extended;
                answers.ack();
                return None;
            }
            OptionRequest::List => match self.shared.exports.list(NBD_LISTED_MAX).await {
                Ok(exports) => {
                    for export in exports.into_iter().take(NBD_LISTED_MAX) {
                        answers.say(&OptionReply::Server { name: export.name, description: export.description });
                    }
                    answers.ack();
                    return None;
                }
                Err(error) => refusal_of(&error),
            },
            OptionRequest::Info(name, kinds) => match self.look(&name).await {
                Ok(device) => {
                    let called = self.called(&name).await;
                    self.describe(called, &self.rules(&name, device.info()), device.info(), &kinds, answers);
                    answers.ack();
                    return None;
                }
                Err(error) => refusal_of(&error),
            },
            OptionRequest::Go(name, kinds) => match self.begin(&name).await {
                Ok(session) => {
                    let called = self.called(&name).await;
                    self.describe(called, &session.rules, session.device.info(), &kinds, answers);
                    answers.ack();
                    return Some(Outcome::Begin(Box::new(session)));
                }
                Err(error) => refusal_of(&error),
            },
            OptionRequest::ListMetaContext(name, queries) => match self.list_contexts(&name, &queries).await {
                Ok(contexts) => {
                    for context in contexts.iter() {
                        answers.say(&OptionReply::MetaContext { id: 0, name: context.name().to_owned() });
                    }
                    answers.ack();
                    return None;
                }
                Err(refusal) => refusal,
            },
            OptionRequest::SetMetaContext(name, queries) => match self.set_contexts(&name, &queries).await {
                Ok(contexts) => {
                    for context in contexts.iter() {
                        let name = context.name().to_owned();
                        answers.say(&OptionReply::MetaContext { id: context.id(), name });
                    }
                    self.contexts = Some((name, contexts));
                    answers.ack();
                    return None;
                }
                Err(refusal) => refusal,
            },
            OptionRequest::ExportName(_)
            | OptionRequest::Abort
            | OptionRequest::StartTls
            | OptionRequest::Unknown(_) => Refusal::new(reply::ERR_UNSUP, "the option is not known here"),
        };
        answers.refuse(refusal);
        None
    }

    async fn list_contexts(&self, name: &str, queries: &[String]) -> Result<Contexts, Refusal> {
        self.check_queries(name, queries).await?;
        let mut contexts = Contexts::default();
        if queries.is_empty() {
            Context::ALL.into_iter().for_each(|context| contexts.insert(context));
        }
        queries.iter().flat_map(|query| Context::listed_by(query)).for_each(|context| contexts.insert(context));
        Ok(contexts)
    }

    async fn set_contexts(&self, name: &str, queries: &[String]) -> Result<Contexts, Refusal> {
        self.check_queries(name, queries).await?;
        let mut contexts = Contexts::default();
        Context::ALL
            .into_iter()
            .filter(|context| queries.iter().any(|query| query == context.name()))
            .for_each(|context| contexts.insert(context));
        Ok(contexts)
    }

    async fn check_queries(&self, name: &str, queries: &[String]) -> Result<(), Refusal> {
        if self.style == Style::Simple {
            return Err(Refusal::new(reply::ERR_INVALID, "metadata contexts want structured replies first"));
        }
        if let Some(query) = queries.iter().find(|query| !query.contains(':')) {
            let message = format!("the query {:?} has no namespace", query.chars().take(80).collect::<String>());
            return Err(Refusal::new(reply::ERR_INVALID, message));
        }
        self.look(name).await.map(drop).map_err(|error| refusal_of(&error))
    }

    /// The export that a client names; the empty name is the only export, if there is one only.
    async fn resolve(&self, name: &str) -> Result<ExportName> {
        if !name.is_empty() {
            return name.parse();
        }
        match self.shared.exports.list(2).await?.as_slice() {
            [only] => only.name.parse(),
            _ => Err(Error::not_found("no-default-export", "there is no default export").hint("name an export")),
        }
    }

    /// The name under which an export is found again, whatever it was asked for by.
    async fn called(&self, name: &str) -> String {
        self.resolve(name).await.map_or_else(|_| name.to_owned(), |export| export.to_string())
    }

    /// Opens an export to tell of it, which is no power-on.
    async fn look(&self, name: &str) -> Result<Arc<dyn Device>> {
        let name = self.resolve(name).await?;
        let exports = Arc::clone(&self.shared.exports);
        self.shared.on_main(async move { exports.open(name).await }).await
    }

    /// Attaches to an export and waits for the writes of earlier connections.
    async fn begin(&self, name: &str) -> Result<Session> {
        let export = self.resolve(name).await?;
        let exports = Arc::clone(&self.shared.exports);
        let attach = Attach { client: self.client.to_owned(), write: true };
        let attachment = self.shared.on_main(async move { exports.attach(export, attach).await }).await?;
        let device = Arc::clone(attachment.device());
        let seat = self.shared.gates.admit(&device, self.shared.settings.admission_timeout).await?;
        let rules = self.rules(name, device.info());
        Ok(Session { device, attachment, seat, rules })
    }

    fn rules(&self, name: &str, info: &DeviceInfo) -> Rules {
        // Contexts that were chosen for another export do not count.
        let contexts = self.contexts.as_ref().filter(|(export, _)| export == name).map(|(_, contexts)| *contexts);
        Rules {
            style: self.style,
            size: info.size,
            read_only: info.read_only,
            contexts: contexts.unwrap_or_default(),
            payload_bytes_max: u64::from(NBD_PAYLOAD_BYTES_MAX),
        }
    }

    fn describe(&self, name: String, rules: &Rules, info: &DeviceInfo, kinds: &[u16], answers: &mut Answers) {
        let mut say = |info| answers.say(&OptionReply::Info(info));
        say(Info::Export { size: info.size, flags: flags(info, rules) });
        if kinds.contains(&option::info::NAME) {
            say(Info::Name(name));
        }
        if kinds.contains(&option::info::DESCRIPTION) {
            say(Info::Description(info.description.clone()));
        }
        let preferred = u32::try_from(BLOCK_BYTES).unwrap_or(4096);
        say(Info::BlockSize { minimum: 1, preferred, maximum: NBD_PAYLOAD_BYTES_MAX });
    }
}

/// What an export can do. Multi-conn is true because all connections to a device are in this process and share the one
/// device, whose flush covers every write that it accepted; another gateway cannot own the volume at the same time.
fn flags(info: &DeviceInfo, rules: &Rules) -> u16 {
    use export_flags::{
        BLOCK_STATUS_PAYLOAD, CAN_MULTI_CONN, HAS_FLAGS, READ_ONLY, SEND_CACHE, SEND_DF, SEND_FAST_ZERO, SEND_FLUSH,
        SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES,
    };
    let mut flags = HAS_FLAGS | SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN | SEND_CACHE;
    // Zeroing is one record however long the range is, so the fast kind is the only kind.
    flags |= if info.read_only { READ_ONLY } else { SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO };
    if rules.style != Style::Simple {
        flags |= SEND_DF;
    }
    if rules.style == Style::Extended && !rules.contexts.is_empty() {
        flags |= BLOCK_STATUS_PAYLOAD;
    }
    flags
}

fn refusal_of(error: &Error) -> Refusal {
    let code = match error.kind() {
        ErrorKind::NotFound | ErrorKind::Invalid => reply::ERR_UNKNOWN,
        ErrorKind::Fenced => reply::ERR_SHUTDOWN,
        _ => reply::ERR_POLICY,
    };
    Refusal::new(code, error.to_string())
}
