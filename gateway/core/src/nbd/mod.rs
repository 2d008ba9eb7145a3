//! The NBD wire protocol as pure code: options, requests, replies; no sockets.
//!
//! The source is the specification of the NetworkBlockDevice project (`doc/proto.md`), with the extended
//! headers. Everything encodes and decodes, so that the server, the load generator and the tests share one
//! description. Decoders take what came from the network: they never panic, never allocate more than they were
//! given, and say what is wrong.

pub mod meta;
pub mod option;
pub mod reply;
pub mod request;

pub use meta::{Context, Contexts};
pub use option::{Info, OptionHeader, OptionReply, OptionRequest, Refusal};
pub use reply::Reply;
pub use request::{Command, Request, Rules, Verdict};

/// First 8 bytes of a server's greeting.
pub const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second 8 bytes of a newstyle greeting, and first 8 of every option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// First 8 bytes of every option reply.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// First 4 bytes of a compact request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// First 4 bytes of an extended request.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// First 4 bytes of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// First 4 bytes of a structured reply chunk.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// First 4 bytes of an extended reply chunk.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// Longest string of the protocol, bytes.
pub const STRING_BYTES_MAX: usize = 4096;
/// The port that the protocol has by default.
pub const DEFAULT_PORT: u16 = 10809;

/// Handshake flags of the server and of the client.
pub mod handshake_flags {
    /// Server and client: options are answered one by one.
    pub const FIXED_NEWSTYLE: u16 = 1 << 0;
    /// Server and client: no 124 bytes of padding after `EXPORT_NAME`.
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// Transmission flags: what an export can do.
pub mod export_flags {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// Writes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// `FLUSH` is understood.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// The flag FUA is understood.
    pub const SEND_FUA: u16 = 1 << 3;
    /// Seeks cost time.
    pub const ROTATIONAL: u16 = 1 << 4;
    /// `TRIM` is understood.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// `WRITE_ZEROES` is understood.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// The flag DF is understood.
    pub const SEND_DF: u16 = 1 << 7;
    /// A flush on one connection covers the writes of all.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// `RESIZE` is understood (never set here).
    pub const SEND_RESIZE: u16 = 1 << 9;
    /// `CACHE` is understood.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// The flag `FAST_ZERO` is understood.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
    /// `BLOCK_STATUS` takes a list of contexts as payload.
    pub const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;
}

/// Command flags of a request.
pub mod command_flags {
    /// Reply when it is durable.
    pub const FUA: u16 = 1 << 0;
    /// `WRITE_ZEROES`: do not give the space back.
    pub const NO_HOLE: u16 = 1 << 1;
    /// `READ`: one content chunk.
    pub const DF: u16 = 1 << 2;
    /// `BLOCK_STATUS`: one extent per context.
    pub const REQ_ONE: u16 = 1 << 3;
    /// `WRITE_ZEROES`: fail if it is not faster than writing.
    pub const FAST_ZERO: u16 = 1 << 4;
    /// Extended requests: the length is that of a payload.
    pub const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Error numbers of the protocol (not of the host).
pub mod errno {
    /// Not permitted.
    pub const EPERM: u32 = 1;
    /// Input or output failed.
    pub const EIO: u32 = 5;
    /// No memory.
    pub const ENOMEM: u32 = 12;
    /// The request is wrong.
    pub const EINVAL: u32 = 22;
    /// No space, or a write past the end.
    pub const ENOSPC: u32 = 28;
    /// Too large to answer.
    pub const EOVERFLOW: u32 = 75;
    /// Not supported, or not fast.
    pub const ENOTSUP: u32 = 95;
    /// The server goes away, or is no longer the owner.
    pub const ESHUTDOWN: u32 = 108;
}

/// How requests and replies look on one connection, as negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Style {
    /// Compact requests, simple replies.
    #[default]
    Simple,
    /// Compact requests, structured replies.
    Structured,
    /// Extended requests, extended replies.
    Extended,
}

/// Bytes that are not the protocol: the connection cannot be understood any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the NBD protocol: {0}")]
pub struct Malformed(pub &'static str);

/// Takes fixed-width big-endian numbers and strings off the front of a slice.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        if count > self.0.len() {
            return None;
        }
        let (front, rest) = self.0.split_at(count);
        self.0 = rest;
        Some(front)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
