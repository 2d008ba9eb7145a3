//! 4 KiB blocks that say who wrote them, where, and the how-manieth they are: so that every read can be judged.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::nbd_client::NbdClient;
use crate::raw_http::RawHttp;

/// Bytes of a block.
pub const BLOCK: u64 = 4096;

/// A block with its stamp all over.
pub fn block(volume: u32, number: u32, version: u64) -> Vec<u8> {
    let mut stamp = Vec::with_capacity(16);
    stamp.extend((volume | 0x8000_0000).to_le_bytes());
    stamp.extend(number.to_le_bytes());
    stamp.extend(version.to_le_bytes());
    stamp.iter().copied().cycle().take(4096).collect()
}

/// The version that a block says it is of; 0 for what the base has there.
///
/// # Panics
/// When it is neither a whole block of this place nor that of the base: torn, misplaced or another volume's.
pub fn version(volume: u32, number: u32, bytes: &[u8], base: &[u8]) -> u64 {
    if bytes == base {
        return 0;
    }
    let version = u64::from_le_bytes(bytes[8..16].try_into().expect("8 bytes"));
    assert!(bytes == block(volume, number, version), "volume {volume}, block {number}: torn, or of another place");
    version
}

/// A volume as clients of both kinds write it.
#[derive(Debug)]
pub enum Client {
    /// By NBD.
    Nbd(NbdClient),
    /// By range requests.
    Http {
        /// The connection.
        connection: RawHttp,
        /// The path of the volume.
        path: String,
        /// Its size, bytes.
        size: u64,
    },
}

impl Client {
    /// Connects by NBD.
    ///
    /// # Errors
    /// As [`NbdClient::connect`].
    pub fn nbd(address: SocketAddr, clone: &str, patience: Duration) -> io::Result<Self> {
        NbdClient::connect(address, clone, patience).map(Self::Nbd)
    }

    /// Connects by HTTP.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn http(address: SocketAddr, clone: &str, size: u64, patience: Duration) -> io::Result<Self> {
        let connection = RawHttp::try_connect(address, patience)?;
        Ok(Self::Http { connection, path: format!("/v1/clones/{clone}/disk"), size })
    }

    /// Writes a block. Says whether it is durable already.
    ///
    /// # Errors
    /// Those of the socket; `Other` with what the server said when it refused.
    pub fn write(&mut self, number: u32, data: &[u8], fua: bool) -> io::Result<bool> {
        let at = u64::from(number) * BLOCK;
        match self {
            Self::Nbd(client) => client.write(at, data, fua).map(|()| fua),
            Self::Http { connection, path, size } => {
                let last = at + data.len() as u64 - 1;
                let head = format!(
                    "PUT {path} HTTP/1.1\r\nHost: test\r\nContent-Range: bytes {at}-{last}/{size}\r\nContent-Length: {}\r\n\r\n",
                    data.len()
                );
                connection.send([head.as_bytes(), data].concat())?;
                let reply = connection.reply(false)?;
                if reply.status == 204 { Ok(true) } else { Err(refused(&reply)) }
            }
        }
    }

    /// Reads a block.
    ///
    /// # Errors
    /// As [`Client::write`].
    pub fn read(&mut self, number: u32) -> io::Result<Vec<u8>> {
        let at = u64::from(number) * BLOCK;
        match self {
            Self::Nbd(client) => client.read(at, 4096),
            Self::Http { connection, path, .. } => {
                connection.send(format!(
                    "GET {path} HTTP/1.1\r\nHost: test\r\nRange: bytes={at}-{}\r\n\r\n",
                    at + BLOCK - 1
                ))?;
                let reply = connection.reply(false)?;
                if reply.status == 206 { Ok(reply.body) } else { Err(refused(&reply)) }
            }
        }
    }

    /// Flushes; what is written by HTTP is durable already.
    ///
    /// # Errors
    /// As [`Client::write`].
    pub fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Nbd(client) => client.flush(),
            Self::Http { .. } => Ok(()),
        }
    }
}

fn refused(reply: &crate::raw_http::Reply) -> io::Error {
    io::Error::other(format!("{} {}", reply.status, reply.code()))
}
