//! Replies of the transmission phase: simple, structured and extended.

use super::option::shorten;
use super::{EXTENDED_REPLY_MAGIC, Malformed, Reader, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, Style};

/// No more chunks follow for this request.
pub const FLAG_DONE: u16 = 1 << 0;

/// Kinds of chunks; those with the top bit are errors.
pub mod kind {
    /// Nothing; only closes a reply.
    pub const NONE: u16 = 0;
    /// Bytes with their offset.
    pub const OFFSET_DATA: u16 = 1;
    /// Zeroes with their offset.
    pub const OFFSET_HOLE: u16 = 2;
    /// Status runs with 32 bits.
    pub const BLOCK_STATUS: u16 = 5;
    /// Status runs with 64 bits.
    pub const BLOCK_STATUS_EXT: u16 = 6;
    /// An error.
    pub const ERROR: u16 = 1 << 15 | 1;
    /// An error at an offset.
    pub const ERROR_OFFSET: u16 = 1 << 15 | 2;
    /// The bit of all errors.
    pub const ERROR_BIT: u16 = 1 << 15;
}

/// The largest head of a reply before its data: an extended chunk and the offset.
pub const HEAD_BYTES_MAX: usize = 40;

/// Which request is answered: what its reply must carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answered {
    /// The cookie.
    pub cookie: u64,
    /// The offset, which extended replies repeat.
    pub offset: u64,
}

/// Appends a simple reply.
pub fn simple(errno: u32, cookie: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&errno.to_be_bytes());
    out.extend_from_slice(&cookie.to_be_bytes());
}

/// Appends the head of a chunk with `length` bytes of payload. `style` is not `Simple`.
pub fn chunk(style: Style, to: Answered, flags: u16, kind: u16, length: u32, out: &mut Vec<u8>) {
    let extended = style == Style::Extended;
    let magic = if extended { EXTENDED_REPLY_MAGIC } else { STRUCTURED_REPLY_MAGIC };
    out.extend_from_slice(&magic.to_be_bytes());
    out.extend_from_slice(&flags.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&to.cookie.to_be_bytes());
    if extended {
        out.extend_from_slice(&to.offset.to_be_bytes());
        out.extend_from_slice(&u64::from(length).to_be_bytes());
    } else {
        out.extend_from_slice(&length.to_be_bytes());
    }
}

/// Appends all of a good reply that has no data.
pub fn done(style: Style, to: Answered, out: &mut Vec<u8>) {
    match style {
        Style::Simple | Style::Structured => simple(0, to.cookie, out),
        Style::Extended => chunk(style, to, FLAG_DONE, kind::NONE, 0, out),
    }
}

/// Appends what comes before the `length` bytes of a good read, which is its whole and only content.
pub fn data_head(style: Style, to: Answered, length: u32, out: &mut Vec<u8>) {
    if style == Style::Simple {
        return simple(0, to.cookie, out);
    }
    chunk(style, to, FLAG_DONE, kind::OFFSET_DATA, length.saturating_add(8), out);
    out.extend_from_slice(&to.offset.to_be_bytes());
}

/// Appends all of a good read whose bytes are all zero. `style` is not `Simple`.
pub fn hole(style: Style, to: Answered, length: u32, out: &mut Vec<u8>) {
    chunk(style, to, FLAG_DONE, kind::OFFSET_HOLE, 12, out);
    out.extend_from_slice(&to.offset.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
}

/// Appends all of a reply that says an error, with a sentence where the style has room for one.
pub fn error(style: Style, to: Answered, errno: u32, message: &str, out: &mut Vec<u8>) {
    if style == Style::Simple {
        return simple(errno, to.cookie, out);
    }
    let message = shorten(message);
    let length = u16::try_from(message.len()).unwrap_or(0);
    chunk(style, to, FLAG_DONE, kind::ERROR, 6 + u32::from(length), out);
    out.extend_from_slice(&errno.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&message.as_bytes()[..usize::from(length)]);
}

/// The head of a reply, as a client sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// A simple reply; the bytes of a good read follow.
    Simple {
        /// 0 is good.
        errno: u32,
        /// Of the request.
        cookie: u64,
    },
    /// A chunk; `length` bytes of payload follow.
    Chunk {
        /// [`FLAG_DONE`].
        flags: u16,
        /// See [`kind`].
        kind: u16,
        /// Of the request.
        cookie: u64,
        /// Of the request, in extended chunks.
        offset: Option<u64>,
        /// Bytes of payload.
        length: u64,
    },
}

impl Reply {
    /// Reads a head: the reply and the bytes of the head; `None` when `bytes` has not all of it yet.
    ///
    /// # Errors
    /// When the magic number is none of a reply.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, Malformed> {
        let mut reader = Reader(bytes);
        let Some(magic) = reader.u32() else { return Ok(None) };
        let read = match magic {
            SIMPLE_REPLY_MAGIC => simple_head,
            STRUCTURED_REPLY_MAGIC => structured_head,
            EXTENDED_REPLY_MAGIC => extended_head,
            _ => return Err(Malformed("a reply begins with the wrong magic number")),
        };
        Ok(read(&mut reader).map(|reply| (reply, bytes.len() - reader.0.len())))
    }
}

fn simple_head(reader: &mut Reader<'_>) -> Option<Reply> {
    Some(Reply::Simple { errno: reader.u32()?, cookie: reader.u64()? })
}

fn structured_head(reader: &mut Reader<'_>) -> Option<Reply> {
    let (flags, kind, cookie) = (reader.u16()?, reader.u16()?, reader.u64()?);
    Some(Reply::Chunk { flags, kind, cookie, offset: None, length: u64::from(reader.u32()?) })
}

fn extended_head(reader: &mut Reader<'_>) -> Option<Reply> {
    let (flags, kind, cookie) = (reader.u16()?, reader.u16()?, reader.u64()?);
    Some(Reply::Chunk { flags, kind, cookie, offset: Some(reader.u64()?), length: reader.u64()? })
}

/// Reads the payload of an error chunk: the errno and the sentence.
///
/// # Errors
/// When it is shorter than it says.
pub fn decode_error(payload: &[u8]) -> Result<(u32, String), Malformed> {
    let mut reader = Reader(payload);
    let read = |reader: &mut Reader<'_>| {
        let errno = reader.u32()?;
        let length = reader.u16()?;
        Some((errno, String::from_utf8_lossy(reader.bytes(usize::from(length))?).into_owned()))
    };
    read(&mut reader).ok_or(Malformed("an error chunk is malformed"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TO: Answered = Answered { cookie: 7, offset: 8192 };

    #[test]
    fn replies_have_the_bytes_of_the_specification() {
        let bytes = |write: &dyn Fn(&mut Vec<u8>)| {
            let mut out = Vec::new();
            write(&mut out);
            out.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        };
        let cases = [
            (bytes(&|out| done(Style::Simple, TO, out)), "67446698000000000000000000000007"),
            (bytes(&|out| done(Style::Structured, TO, out)), "67446698000000000000000000000007"),
            (
                bytes(&|out| done(Style::Extended, TO, out)),
                "6e8a278c00010000000000000000000700000000000020000000000000000000",
            ),
            (bytes(&|out| data_head(Style::Simple, TO, 512, out)), "67446698000000000000000000000007"),
            (
                bytes(&|out| data_head(Style::Structured, TO, 512, out)),
                "668e33ef000100010000000000000007000002080000000000002000",
            ),
            (
                bytes(&|out| hole(Style::Structured, TO, 512, out)),
                "668e33ef0001000200000000000000070000000c000000000000200000000200",
            ),
            (
                bytes(&|out| error(Style::Structured, TO, 22, "no", out)),
                "668e33ef000180010000000000000007000000080000001600026e6f",
            ),
            (bytes(&|out| error(Style::Simple, TO, 22, "no", out)), "67446698000000160000000000000007"),
        ];
        for (got, expect) in cases {
            assert!(got.starts_with(expect), "{got} is not {expect}");
        }
    }

    #[test]
    fn an_error_survives_the_wire_and_long_sentences_are_cut() {
        for style in [Style::Structured, Style::Extended] {
            let mut out = Vec::new();
            error(style, TO, 28, &"x".repeat(70_000), &mut out);
            let (head, at) = Reply::decode(&out).unwrap().unwrap();
            let Reply::Chunk { flags: FLAG_DONE, kind: kind::ERROR, cookie: 7, length, .. } = head else {
                panic!("{head:?}")
            };
            assert_eq!(length as usize, out.len() - at);
            assert_eq!(decode_error(&out[at..]).unwrap(), (28, "x".repeat(4096)));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_reply_or_are_refused(mut data in proptest::collection::vec(any::<u8>(), 0..80), magic in 0u8..4) {
            if let (Some(front), Some(magic)) = (
                data.get_mut(..4),
                [SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, EXTENDED_REPLY_MAGIC].get(usize::from(magic)),
            ) {
                front.copy_from_slice(&magic.to_be_bytes());
            }
            if let Ok(Some((_, at))) = Reply::decode(&data) {
                prop_assert!(at <= data.len());
            }
            let _ = decode_error(&data);
        }
    }
}
