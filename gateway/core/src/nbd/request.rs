//! Requests of the transmission phase, and which of them an export takes.

use super::meta::{Contexts, STATUS_PAYLOAD_BYTES_MAX};
use super::{EXTENDED_REQUEST_MAGIC, Malformed, REQUEST_MAGIC, Reader, Style, command_flags, errno};
use crate::units::ByteRange;

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Command {
    /// Bytes.
    Read,
    /// Change bytes.
    Write,
    /// Good-bye.
    Disconnect,
    /// Make what was acknowledged durable.
    Flush,
    /// These bytes are no longer needed.
    Trim,
    /// Fetch into memory.
    Cache,
    /// Make bytes zero.
    WriteZeroes,
    /// Where bytes come from.
    BlockStatus,
    /// Change the size (refused).
    Resize,
    /// Not known here.
    Unknown(u16),
}

impl Command {
    /// The code on the wire.
    pub const fn code(self) -> u16 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Disconnect => 2,
            Self::Flush => 3,
            Self::Trim => 4,
            Self::Cache => 5,
            Self::WriteZeroes => 6,
            Self::BlockStatus => 7,
            Self::Resize => 8,
            Self::Unknown(code) => code,
        }
    }

    /// The command with this code.
    pub const fn from_code(code: u16) -> Self {
        match code {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Disconnect,
            3 => Self::Flush,
            4 => Self::Trim,
            5 => Self::Cache,
            6 => Self::WriteZeroes,
            7 => Self::BlockStatus,
            8 => Self::Resize,
            other => Self::Unknown(other),
        }
    }

    /// Whether it changes the export.
    pub const fn writes(self) -> bool {
        matches!(self, Self::Write | Self::Trim | Self::WriteZeroes)
    }

    /// The flags that it may carry on a connection of this style. FUA is right on every command: clients are known to
    /// set it everywhere.
    const fn flags(self, style: Style) -> u16 {
        use command_flags::{DF, FAST_ZERO, FUA, NO_HOLE, PAYLOAD_LEN, REQ_ONE};
        let structured = !matches!(style, Style::Simple);
        let payload = if matches!(style, Style::Extended) { PAYLOAD_LEN } else { 0 };
        match self {
            Self::Read if structured => FUA | DF,
            Self::Write => FUA | payload,
            Self::WriteZeroes => FUA | NO_HOLE | FAST_ZERO,
            Self::BlockStatus => FUA | REQ_ONE | payload,
            _ => FUA,
        }
    }
}

/// One request, without its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// See [`command_flags`].
    pub flags: u16,
    /// What is asked.
    pub command: Command,
    /// What the reply must carry.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes of the export, or of the payload.
    pub length: u64,
}

impl Request {
    /// Bytes of a request header on a connection of this style.
    pub const fn header_bytes(style: Style) -> usize {
        if matches!(style, Style::Extended) { 32 } else { 28 }
    }

    /// Reads a header; `None` when `bytes` has not all of it yet.
    ///
    /// # Errors
    /// When the magic number is wrong: there is no finding the next request, so the connection is to be closed.
    pub fn decode(style: Style, bytes: &[u8]) -> Result<Option<Self>, Malformed> {
        let mut reader = Reader(bytes);
        let Some(magic) = reader.u32() else { return Ok(None) };
        let extended = style == Style::Extended;
        if magic != if extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC } {
            return Err(Malformed("a request begins with the wrong magic number"));
        }
        if bytes.len() < Self::header_bytes(style) {
            return Ok(None);
        }
        let read = |reader: &mut Reader<'_>| {
            Some(Self {
                flags: reader.u16()?,
                command: Command::from_code(reader.u16()?),
                cookie: reader.u64()?,
                offset: reader.u64()?,
                length: if extended { reader.u64()? } else { u64::from(reader.u32()?) },
            })
        };
        Ok(read(&mut reader))
    }

    /// Appends the header. With compact headers a length beyond 32 bits is cut.
    pub fn encode(&self, style: Style, out: &mut Vec<u8>) {
        let extended = style == Style::Extended;
        let magic = if extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC };
        out.extend_from_slice(&magic.to_be_bytes());
        out.extend_from_slice(&self.flags.to_be_bytes());
        out.extend_from_slice(&self.command.code().to_be_bytes());
        out.extend_from_slice(&self.cookie.to_be_bytes());
        out.extend_from_slice(&self.offset.to_be_bytes());
        if extended {
            out.extend_from_slice(&self.length.to_be_bytes());
        } else {
            out.extend_from_slice(&u32::try_from(self.length).unwrap_or(u32::MAX).to_be_bytes());
        }
    }

    /// Whether the flag is set.
    pub const fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// Bytes of payload that follow the header, whether or not the request is right.
    pub const fn payload(&self, style: Style) -> u64 {
        let follows = match style {
            Style::Extended => self.has(command_flags::PAYLOAD_LEN),
            _ => matches!(self.command, Command::Write),
        };
        if follows { self.length } else { 0 }
    }
}

/// What a connection takes: facts of the export and of the negotiation.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Headers and replies.
    pub style: Style,
    /// Bytes of the export.
    pub size: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// The contexts that were chosen.
    pub contexts: Contexts,
    /// Largest payload, bytes.
    pub payload_bytes_max: u64,
}

/// What to do with a request. Whatever it is, the payload comes first and is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Do it.
    Accept,
    /// Answer with this error; the connection goes on.
    Refuse {
        /// Of the protocol.
        errno: u32,
        /// For people.
        message: &'static str,
    },
    /// Finish what is in flight and close.
    Disconnect,
    /// Close: the payload is more than can be skipped.
    HangUp(&'static str),
}

impl Rules {
    /// Payloads beyond the largest are skipped up to this multiple of it, so that the connection survives an honest mistake.
    const SKIP_FACTOR: u64 = 2;

    /// Decides about a request by its header.
    pub fn judge(&self, request: &Request) -> Verdict {
        let refuse = |errno, message| Verdict::Refuse { errno, message };
        let command = request.command;
        let payload = request.payload(self.style);
        if payload > self.payload_bytes_max.saturating_mul(Self::SKIP_FACTOR) {
            return Verdict::HangUp("the payload is far larger than the largest that was announced");
        }
        match command {
            Command::Disconnect => return Verdict::Disconnect,
            Command::Unknown(_) => return refuse(errno::EINVAL, "the command is not known"),
            Command::Resize => return refuse(errno::EINVAL, "the size of an export does not change"),
            _ => {}
        }
        if request.flags & !command.flags(self.style) != 0 {
            return refuse(errno::EINVAL, "a flag is unknown, not negotiated, or not for this command");
        }
        if command.writes() && self.read_only {
            return refuse(errno::EPERM, "the export is read-only");
        }
        match command {
            Command::Flush if request.offset != 0 || request.length != 0 => {
                return refuse(errno::EINVAL, "a flush has neither offset nor length");
            }
            Command::Flush => return Verdict::Accept,
            Command::BlockStatus if self.contexts.is_empty() => {
                return refuse(errno::EINVAL, "no metadata context was chosen");
            }
            // The range is inside the payload, and judged when that is there.
            Command::BlockStatus if request.has(command_flags::PAYLOAD_LEN) => {
                if payload > STATUS_PAYLOAD_BYTES_MAX {
                    return refuse(errno::EINVAL, "the payload is no list of chosen contexts");
                }
                return Verdict::Accept;
            }
            Command::Write if self.style == Style::Extended && !request.has(command_flags::PAYLOAD_LEN) => {
                return refuse(errno::EINVAL, "a write with extended headers says PAYLOAD_LEN");
            }
            _ => {}
        }
        self.judge_range(command, request.offset, request.length)
    }

    /// Decides about the range of a request.
    pub fn judge_range(&self, command: Command, offset: u64, length: u64) -> Verdict {
        let refuse = |errno, message| Verdict::Refuse { errno, message };
        if length == 0 {
            return refuse(errno::EINVAL, "the length is zero");
        }
        if command == Command::Read && length > self.payload_bytes_max {
            // Only those who know structured replies know this number.
            let errno = if self.style == Style::Simple { errno::EINVAL } else { errno::EOVERFLOW };
            return refuse(errno, "the read is larger than the largest block size that was announced");
        }
        if command == Command::Write && length > self.payload_bytes_max {
            return refuse(errno::EINVAL, "the write is larger than the largest block size that was announced");
        }
        let within = ByteRange::at(offset, length).is_ok_and(|range| range.end() <= self.size);
        match command {
            _ if within => Verdict::Accept,
            Command::Write | Command::WriteZeroes => refuse(errno::ENOSPC, "the range passes the end of the export"),
            _ => refuse(errno::EINVAL, "the range passes the end of the export"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: u64 = 1 << 20;

    fn rules(style: Style) -> Rules {
        let contexts = Contexts { allocation: true, source: false };
        Rules { style, size: SIZE, read_only: false, contexts, payload_bytes_max: 1 << 16 }
    }

    fn check(rules: Rules, command: Command, flags: u16, offset: u64, length: u64, expect: Option<u32>) {
        let verdict = rules.judge(&Request { flags, command, cookie: 1, offset, length });
        match expect {
            None => assert_eq!(verdict, Verdict::Accept, "{command:?} {flags} {offset} {length}"),
            Some(errno) => assert!(
                matches!(verdict, Verdict::Refuse { errno: e, .. } if e == errno),
                "{command:?} {flags} {offset} {length}: {verdict:?}"
            ),
        }
    }

    #[test]
    fn each_wrong_request_has_its_errno() {
        use Command::{BlockStatus, Cache, Flush, Read, Resize, Trim, Unknown, Write, WriteZeroes};
        use command_flags::{DF, FAST_ZERO, FUA, NO_HOLE, PAYLOAD_LEN, REQ_ONE};
        use errno::{EINVAL, ENOSPC, EOVERFLOW, EPERM};
        let simple = rules(Style::Simple);
        let structured = rules(Style::Structured);
        let extended = rules(Style::Extended);
        let sealed = Rules { read_only: true, ..structured };
        let plain = Rules { contexts: Contexts::default(), ..structured };
        for (rules, command, flags, offset, length, expect) in [
            (simple, Read, 0, 0, 4096, None),
            (simple, Read, FUA, SIZE - 1, 1, None),
            (simple, Read, DF, 0, 4096, Some(EINVAL)),
            (structured, Read, DF, 0, 4096, None),
            (structured, Read, REQ_ONE, 0, 4096, Some(EINVAL)),
            (structured, Read, PAYLOAD_LEN, 0, 4096, Some(EINVAL)),
            (structured, Read, 1 << 15, 0, 4096, Some(EINVAL)),
            (simple, Read, 0, 0, 0, Some(EINVAL)),
            (simple, Read, 0, SIZE, 1, Some(EINVAL)),
            (simple, Read, 0, u64::MAX, 2, Some(EINVAL)),
            (simple, Read, 0, 0, 65537, Some(EINVAL)),
            (structured, Read, 0, 0, 65537, Some(EOVERFLOW)),
            (simple, Write, FUA, 0, 4096, None),
            (simple, Write, NO_HOLE, 0, 4096, Some(EINVAL)),
            (simple, Write, 0, SIZE, 1, Some(ENOSPC)),
            (simple, Write, 0, 0, 65537, Some(EINVAL)),
            (sealed, Write, 0, 0, 1, Some(EPERM)),
            (sealed, Trim, 0, 0, 1, Some(EPERM)),
            (sealed, WriteZeroes, 0, 0, 1, Some(EPERM)),
            (sealed, Flush, 0, 0, 0, None),
            (extended, Write, 0, 0, 4096, Some(EINVAL)),
            (extended, Write, PAYLOAD_LEN, 0, 4096, None),
            (simple, Flush, 0, 1, 0, Some(EINVAL)),
            (simple, Flush, 0, 0, 1, Some(EINVAL)),
            (simple, Flush, FUA, 0, 0, None),
            (simple, Trim, FUA, 0, SIZE, None),
            (simple, Trim, NO_HOLE, 0, SIZE, Some(EINVAL)),
            (simple, Trim, 0, 1, SIZE, Some(EINVAL)),
            (simple, WriteZeroes, FUA | NO_HOLE | FAST_ZERO, 0, SIZE, None),
            (simple, WriteZeroes, DF, 0, SIZE, Some(EINVAL)),
            (simple, WriteZeroes, 0, 1, SIZE, Some(ENOSPC)),
            (simple, Cache, 0, 0, SIZE, None),
            (simple, Cache, 0, 1, SIZE, Some(EINVAL)),
            (structured, BlockStatus, REQ_ONE, 0, SIZE, None),
            (structured, BlockStatus, 0, 1, SIZE, Some(EINVAL)),
            (plain, BlockStatus, 0, 0, SIZE, Some(EINVAL)),
            (extended, BlockStatus, PAYLOAD_LEN, 0, 12, None),
            (extended, BlockStatus, PAYLOAD_LEN, 0, 1 << 15, Some(EINVAL)),
            (structured, BlockStatus, PAYLOAD_LEN, 0, 12, Some(EINVAL)),
            (simple, Resize, 0, 0, SIZE * 2, Some(EINVAL)),
            (simple, Unknown(9), 0, 0, 0, Some(EINVAL)),
            (simple, Unknown(u16::MAX), u16::MAX, u64::MAX, 0, Some(EINVAL)),
        ] {
            check(rules, command, flags, offset, length, expect);
        }
    }

    #[test]
    fn a_payload_that_cannot_be_skipped_ends_the_connection() {
        let request = Request { flags: 0, command: Command::Write, cookie: 0, offset: 0, length: u64::from(u32::MAX) };
        assert!(matches!(rules(Style::Simple).judge(&request), Verdict::HangUp(_)));
        let any = Request { flags: command_flags::PAYLOAD_LEN, command: Command::Read, length: u64::MAX, ..request };
        assert!(matches!(rules(Style::Extended).judge(&any), Verdict::HangUp(_)));
    }

    proptest! {
        #[test]
        fn a_request_survives_the_wire(
            flags: u16, code: u16, cookie: u64, offset: u64, length: u64, extended: bool, cut in 0usize..32
        ) {
            let style = if extended { Style::Extended } else { Style::Simple };
            let length = if extended { length } else { length & 0xffff_ffff };
            let request = Request { flags, command: Command::from_code(code), cookie, offset, length };
            let mut out = Vec::new();
            request.encode(style, &mut out);
            prop_assert_eq!(out.len(), Request::header_bytes(style));
            prop_assert_eq!(Request::decode(style, &out), Ok(Some(request)));
            if cut < out.len() {
                prop_assert_eq!(Request::decode(style, &out[..cut]), Ok(None));
            }
        }

        #[test]
        fn every_accepted_range_lies_within_the_export(
            code in 0u16..9, flags in 0u16..64, offset in 0u64..SIZE * 2, length in 0u64..SIZE * 2, style in 0u8..3
        ) {
            let rules = rules([Style::Simple, Style::Structured, Style::Extended][usize::from(style)]);
            let request = Request { flags, command: Command::from_code(code), cookie: 0, offset, length };
            let in_payload = request.command == Command::BlockStatus && request.payload(rules.style) > 0;
            if rules.judge(&request) == Verdict::Accept && request.command != Command::Flush && !in_payload {
                prop_assert!(offset + length <= SIZE && length > 0);
            }
        }
    }
}
