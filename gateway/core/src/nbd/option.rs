//! The handshake: options that a client sends before transmission, and their replies.

use std::fmt;

use super::{Malformed, OPTION_MAGIC, OPTION_REPLY_MAGIC, Reader, STRING_BYTES_MAX};

/// Option codes.
pub mod code {
    /// Choose an export and begin, with no way to fail but hanging up.
    pub const EXPORT_NAME: u32 = 1;
    /// End the session.
    pub const ABORT: u32 = 2;
    /// Which exports there are.
    pub const LIST: u32 = 3;
    /// Encrypt from here on.
    pub const STARTTLS: u32 = 5;
    /// Facts of an export.
    pub const INFO: u32 = 6;
    /// Choose an export and begin.
    pub const GO: u32 = 7;
    /// Use structured replies.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// Which metadata contexts there are.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Choose metadata contexts.
    pub const SET_META_CONTEXT: u32 = 10;
    /// Use extended headers.
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Reply codes; those with the top bit are refusals.
pub mod reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// One export of a list.
    pub const SERVER: u32 = 2;
    /// One fact of an export.
    pub const INFO: u32 = 3;
    /// One metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// The bit of all refusals.
    pub const ERROR: u32 = 1 << 31;
    /// The option is not known.
    pub const ERR_UNSUP: u32 = ERROR | 1;
    /// The server does not allow it.
    pub const ERR_POLICY: u32 = ERROR | 2;
    /// The option's data is wrong.
    pub const ERR_INVALID: u32 = ERROR | 3;
    /// Encryption first.
    pub const ERR_TLS_REQD: u32 = ERROR | 5;
    /// No such export.
    pub const ERR_UNKNOWN: u32 = ERROR | 6;
    /// The server goes away.
    pub const ERR_SHUTDOWN: u32 = ERROR | 7;
    /// The client must ask for block sizes (never sent here).
    pub const ERR_BLOCK_SIZE_REQD: u32 = ERROR | 8;
    /// The option is too long.
    pub const ERR_TOO_BIG: u32 = ERROR | 9;
    /// Extended headers are chosen already, or needed.
    pub const ERR_EXT_HEADER_REQD: u32 = ERROR | 10;
}

/// Kinds of facts in `INFO` replies.
pub mod info {
    /// Size and transmission flags.
    pub const EXPORT: u16 = 0;
    /// Canonical name.
    pub const NAME: u16 = 1;
    /// Description for people.
    pub const DESCRIPTION: u16 = 2;
    /// Block size constraints.
    pub const BLOCK_SIZE: u16 = 3;
}

/// The fixed part of an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionHeader {
    /// Which option.
    pub code: u32,
    /// Bytes of data that follow.
    pub length: u32,
}

impl OptionHeader {
    /// Bytes of a header.
    pub const BYTES: usize = 16;

    /// Reads a header.
    ///
    /// # Errors
    /// When the magic number is wrong.
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Result<Self, Malformed> {
        let mut reader = Reader(bytes);
        if reader.u64() != Some(OPTION_MAGIC) {
            return Err(Malformed("an option begins with the wrong magic number"));
        }
        match (reader.u32(), reader.u32()) {
            (Some(code), Some(length)) => Ok(Self { code, length }),
            _ => Err(Malformed("an option header is short")),
        }
    }

    /// Appends the header.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        out.extend_from_slice(&self.code.to_be_bytes());
        out.extend_from_slice(&self.length.to_be_bytes());
    }
}

/// Why an option is refused: a reply code and a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The reply code, one of `reply::ERR_…`.
    pub code: u32,
    /// A sentence.
    pub message: String,
}

impl Refusal {
    /// A refusal with this code and sentence.
    pub fn new(code: u32, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    fn invalid(message: &str) -> Self {
        Self::new(reply::ERR_INVALID, message)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// An option as the client means it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OptionRequest {
    /// Begin with this export.
    ExportName(String),
    /// End the session.
    Abort,
    /// Which exports are there?
    List,
    /// Encrypt from here on.
    StartTls,
    /// Facts of an export: its name and the kinds asked for.
    Info(String, Vec<u16>),
    /// Begin with this export: its name and the kinds of facts asked for.
    Go(String, Vec<u16>),
    /// Use structured replies.
    StructuredReply,
    /// Which contexts are there? Export and queries.
    ListMetaContext(String, Vec<String>),
    /// Choose contexts. Export and queries.
    SetMetaContext(String, Vec<String>),
    /// Use extended headers.
    ExtendedHeaders,
    /// Not known here.
    Unknown(u32),
}

impl OptionRequest {
    /// Reads the data of option `code`.
    ///
    /// # Errors
    /// `ERR_INVALID` when the data is not as the option wants it, `ERR_TOO_BIG` when a string is too long.
    pub fn decode(code: u32, data: &[u8]) -> Result<Self, Refusal> {
        let mut reader = Reader(data);
        let request = match code {
            code::EXPORT_NAME => Self::ExportName(text(reader.bytes(data.len()).unwrap_or_default())?),
            // Clients that abort are not to be argued with, whatever they append.
            code::ABORT => return Ok(Self::Abort),
            code::LIST => Self::List,
            code::STARTTLS => Self::StartTls,
            code::STRUCTURED_REPLY => Self::StructuredReply,
            code::EXTENDED_HEADERS => Self::ExtendedHeaders,
            code::INFO | code::GO => {
                let name = counted_text(&mut reader)?;
                let count = reader.u16().ok_or_else(|| Refusal::invalid("the list of facts is missing"))?;
                let mut kinds = Vec::with_capacity(usize::from(count).min(reader.0.len() / 2));
                for _ in 0..count {
                    kinds.push(reader.u16().ok_or_else(|| Refusal::invalid("the list of facts is short"))?);
                }
                if code == code::GO { Self::Go(name, kinds) } else { Self::Info(name, kinds) }
            }
            code::LIST_META_CONTEXT | code::SET_META_CONTEXT => {
                let name = counted_text(&mut reader)?;
                let count = reader.u32().ok_or_else(|| Refusal::invalid("the number of queries is missing"))?;
                let mut queries = Vec::new();
                for _ in 0..count {
                    queries.push(counted_text(&mut reader)?);
                }
                if code == code::SET_META_CONTEXT {
                    Self::SetMetaContext(name, queries)
                } else {
                    Self::ListMetaContext(name, queries)
                }
            }
            other => return Ok(Self::Unknown(other)),
        };
        if reader.is_empty() { Ok(request) } else { Err(Refusal::invalid("the option has data after its end")) }
    }

    /// The code of this option.
    pub fn code(&self) -> u32 {
        match self {
            Self::ExportName(_) => code::EXPORT_NAME,
            Self::Abort => code::ABORT,
            Self::List => code::LIST,
            Self::StartTls => code::STARTTLS,
            Self::Info(..) => code::INFO,
            Self::Go(..) => code::GO,
            Self::StructuredReply => code::STRUCTURED_REPLY,
            Self::ListMetaContext(..) => code::LIST_META_CONTEXT,
            Self::SetMetaContext(..) => code::SET_META_CONTEXT,
            Self::ExtendedHeaders => code::EXTENDED_HEADERS,
            Self::Unknown(code) => *code,
        }
    }

    /// Appends the option, header and data.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut data = Vec::new();
        match self {
            Self::ExportName(name) => data.extend_from_slice(name.as_bytes()),
            Self::Info(name, kinds) | Self::Go(name, kinds) => {
                put_counted(&mut data, name);
                data.extend_from_slice(&u16::try_from(kinds.len()).unwrap_or(u16::MAX).to_be_bytes());
                kinds.iter().take(usize::from(u16::MAX)).for_each(|kind| data.extend_from_slice(&kind.to_be_bytes()));
            }
            Self::ListMetaContext(name, queries) | Self::SetMetaContext(name, queries) => {
                put_counted(&mut data, name);
                data.extend_from_slice(&length_of(queries.len()).to_be_bytes());
                queries.iter().for_each(|query| put_counted(&mut data, query));
            }
            Self::Abort
            | Self::List
            | Self::StartTls
            | Self::StructuredReply
            | Self::ExtendedHeaders
            | Self::Unknown(_) => {}
        }
        OptionHeader { code: self.code(), length: length_of(data.len()) }.encode(out);
        out.extend_from_slice(&data);
    }
}

/// One fact of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Info {
    /// Size in bytes and transmission flags.
    Export {
        /// Bytes.
        size: u64,
        /// See [`super::export_flags`].
        flags: u16,
    },
    /// Canonical name.
    Name(String),
    /// For people.
    Description(String),
    /// What request sizes are good, bytes.
    BlockSize {
        /// Offsets and lengths are multiples of it.
        minimum: u32,
        /// Best not below it.
        preferred: u32,
        /// Largest payload.
        maximum: u32,
    },
    /// A kind that is not known here.
    Other(u16),
}

/// A reply to an option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OptionReply {
    /// Done.
    Ack,
    /// One export of a list.
    Server {
        /// Its name.
        name: String,
        /// For people.
        description: String,
    },
    /// One fact.
    Info(Info),
    /// One context.
    MetaContext {
        /// The id that replies will carry; 0 in lists.
        id: u32,
        /// Its name.
        name: String,
    },
    /// Refused.
    Error(Refusal),
}

impl OptionReply {
    /// Bytes before the data: magic, option, reply code, length.
    pub const HEADER_BYTES: usize = 20;

    /// Appends the reply to option `option`.
    pub fn encode(&self, option: u32, out: &mut Vec<u8>) {
        let mut data = Vec::new();
        let code = match self {
            Self::Ack => reply::ACK,
            Self::Server { name, description } => {
                put_counted(&mut data, name);
                data.extend_from_slice(shorten(description).as_bytes());
                reply::SERVER
            }
            Self::Info(info) => {
                let (kind, text) = match info {
                    Info::Export { .. } => (info::EXPORT, ""),
                    Info::Name(name) => (info::NAME, name.as_str()),
                    Info::Description(text) => (info::DESCRIPTION, text.as_str()),
                    Info::BlockSize { .. } => (info::BLOCK_SIZE, ""),
                    Info::Other(kind) => (*kind, ""),
                };
                data.extend_from_slice(&kind.to_be_bytes());
                data.extend_from_slice(shorten(text).as_bytes());
                match info {
                    Info::Export { size, flags } => {
                        data.extend_from_slice(&size.to_be_bytes());
                        data.extend_from_slice(&flags.to_be_bytes());
                    }
                    Info::BlockSize { minimum, preferred, maximum } => {
                        [minimum, preferred, maximum].iter().for_each(|n| data.extend_from_slice(&n.to_be_bytes()));
                    }
                    _ => {}
                }
                reply::INFO
            }
            Self::MetaContext { id, name } => {
                data.extend_from_slice(&id.to_be_bytes());
                data.extend_from_slice(shorten(name).as_bytes());
                reply::META_CONTEXT
            }
            Self::Error(refusal) => {
                data.extend_from_slice(shorten(&refusal.message).as_bytes());
                refusal.code
            }
        };
        out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
        [option, code, length_of(data.len())].iter().for_each(|n| out.extend_from_slice(&n.to_be_bytes()));
        out.extend_from_slice(&data);
    }

    /// Reads a header: the option answered, the reply code, and the bytes of data that follow.
    ///
    /// # Errors
    /// When the magic number is wrong.
    pub fn decode_header(bytes: &[u8; Self::HEADER_BYTES]) -> Result<(u32, u32, u32), Malformed> {
        let mut reader = Reader(bytes);
        if reader.u64() != Some(OPTION_REPLY_MAGIC) {
            return Err(Malformed("an option reply begins with the wrong magic number"));
        }
        match (reader.u32(), reader.u32(), reader.u32()) {
            (Some(option), Some(code), Some(length)) => Ok((option, code, length)),
            _ => Err(Malformed("an option reply is short")),
        }
    }

    /// Reads the data of a reply with this code.
    ///
    /// # Errors
    /// When the data does not fit the code.
    pub fn decode(code: u32, data: &[u8]) -> Result<Self, Malformed> {
        const WRONG: Malformed = Malformed("the data of an option reply does not fit its kind");
        let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mut reader = Reader(data);
        Ok(match code {
            reply::ACK if data.is_empty() => Self::Ack,
            reply::SERVER => {
                let length = reader.u32().ok_or(WRONG)? as usize;
                let name = lossy(reader.bytes(length).ok_or(WRONG)?);
                Self::Server { name, description: lossy(reader.0) }
            }
            reply::INFO => Self::Info(match reader.u16().ok_or(WRONG)? {
                info::EXPORT => Info::Export { size: reader.u64().ok_or(WRONG)?, flags: reader.u16().ok_or(WRONG)? },
                info::NAME => Info::Name(lossy(reader.0)),
                info::DESCRIPTION => Info::Description(lossy(reader.0)),
                info::BLOCK_SIZE => Info::BlockSize {
                    minimum: reader.u32().ok_or(WRONG)?,
                    preferred: reader.u32().ok_or(WRONG)?,
                    maximum: reader.u32().ok_or(WRONG)?,
                },
                other => Info::Other(other),
            }),
            reply::META_CONTEXT => Self::MetaContext { id: reader.u32().ok_or(WRONG)?, name: lossy(reader.0) },
            code if code & reply::ERROR != 0 => Self::Error(Refusal { code, message: lossy(data) }),
            _ => return Err(Malformed("an option reply of unknown kind")),
        })
    }
}

/// The longest beginning of `text` that the protocol takes as a string.
pub(crate) fn shorten(text: &str) -> &str {
    let mut end = text.len().min(STRING_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn length_of(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

fn put_counted(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&length_of(text.len()).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn text(bytes: &[u8]) -> Result<String, Refusal> {
    if bytes.len() > STRING_BYTES_MAX {
        return Err(Refusal::new(reply::ERR_TOO_BIG, "a string is longer than 4096 bytes"));
    }
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text.to_owned()),
        _ => Err(Refusal::invalid("a string is not UTF-8 without NUL")),
    }
}

fn counted_text(reader: &mut Reader<'_>) -> Result<String, Refusal> {
    let length = reader.u32().ok_or_else(|| Refusal::invalid("the length of a string is missing"))?;
    if length as usize > STRING_BYTES_MAX {
        return Err(Refusal::new(reply::ERR_TOO_BIG, "a string is longer than 4096 bytes"));
    }
    text(reader.bytes(length as usize).ok_or_else(|| Refusal::invalid("a string is shorter than its length"))?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names() -> impl Strategy<Value = String> {
        "[a-z@/.-]{0,80}"
    }

    fn options() -> impl Strategy<Value = OptionRequest> {
        let kinds = proptest::collection::vec(any::<u16>(), 0..20);
        let queries = || proptest::collection::vec(names(), 0..20);
        prop_oneof![
            names().prop_map(OptionRequest::ExportName),
            Just(OptionRequest::Abort),
            Just(OptionRequest::List),
            Just(OptionRequest::StartTls),
            Just(OptionRequest::StructuredReply),
            Just(OptionRequest::ExtendedHeaders),
            (names(), kinds.clone()).prop_map(|(name, kinds)| OptionRequest::Info(name, kinds)),
            (names(), kinds).prop_map(|(name, kinds)| OptionRequest::Go(name, kinds)),
            (names(), queries()).prop_map(|(name, q)| OptionRequest::ListMetaContext(name, q)),
            (names(), queries()).prop_map(|(name, q)| OptionRequest::SetMetaContext(name, q)),
        ]
    }

    fn replies() -> impl Strategy<Value = OptionReply> {
        let infos = prop_oneof![
            (any::<u64>(), any::<u16>()).prop_map(|(size, flags)| Info::Export { size, flags }),
            names().prop_map(Info::Name),
            names().prop_map(Info::Description),
            (any::<u32>(), any::<u32>(), any::<u32>()).prop_map(|(minimum, preferred, maximum)| Info::BlockSize {
                minimum,
                preferred,
                maximum
            }),
        ];
        prop_oneof![
            Just(OptionReply::Ack),
            (names(), names()).prop_map(|(name, description)| OptionReply::Server { name, description }),
            infos.prop_map(OptionReply::Info),
            (any::<u32>(), names()).prop_map(|(id, name)| OptionReply::MetaContext { id, name }),
            (any::<u32>(), names())
                .prop_map(|(code, message)| { OptionReply::Error(Refusal { code: code | reply::ERROR, message }) }),
        ]
    }

    proptest! {
        #[test]
        fn an_option_survives_the_wire(option in options()) {
            let mut out = Vec::new();
            option.encode(&mut out);
            let (head, data) = out.split_at(OptionHeader::BYTES);
            let header = OptionHeader::decode(head.try_into().unwrap()).unwrap();
            prop_assert_eq!(header.length as usize, data.len());
            prop_assert_eq!(OptionRequest::decode(header.code, data).unwrap(), option);
        }

        #[test]
        fn a_reply_survives_the_wire(answer in replies(), option in any::<u32>()) {
            let mut out = Vec::new();
            answer.encode(option, &mut out);
            let (head, data) = out.split_at(OptionReply::HEADER_BYTES);
            let (for_option, code, length) = OptionReply::decode_header(head.try_into().unwrap()).unwrap();
            prop_assert_eq!((for_option, length as usize), (option, data.len()));
            prop_assert_eq!(OptionReply::decode(code, data).unwrap(), answer);
        }

        #[test]
        fn any_bytes_are_an_option_or_are_refused(code in 0u32..16, data in proptest::collection::vec(any::<u8>(), 0..200)) {
            match OptionRequest::decode(code, &data) {
                Ok(OptionRequest::Unknown(_) | OptionRequest::Abort) => {}
                Ok(option) => {
                    let mut out = Vec::new();
                    option.encode(&mut out);
                    prop_assert_eq!(&out[OptionHeader::BYTES..], &data[..]);
                }
                Err(refusal) => prop_assert!(refusal.code & reply::ERROR != 0 && !refusal.message.is_empty()),
            }
            let _ = OptionReply::decode(code, &data);
        }
    }

    #[test]
    fn counts_that_lie_cost_nothing() {
        for (code, data) in [
            (code::GO, [&4u32.to_be_bytes()[..], b"disk", &u16::MAX.to_be_bytes()].concat()),
            (code::SET_META_CONTEXT, [&0u32.to_be_bytes()[..], &u32::MAX.to_be_bytes()].concat()),
            (code::INFO, u32::MAX.to_be_bytes().to_vec()),
        ] {
            assert!(OptionRequest::decode(code, &data).is_err());
        }
    }

    #[test]
    fn texts_are_shortened_between_characters() {
        let long = "é".repeat(3000);
        assert_eq!(shorten(&long).len(), 4096);
        let odd = format!("x{long}");
        assert_eq!(shorten(&odd).len(), 4095);
    }
}
