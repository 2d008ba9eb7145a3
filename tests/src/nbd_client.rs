//! A small NBD client that blocks: fixed newstyle, one request at a time, simple replies.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use clonegate_core::nbd::option::{code, reply};
use clonegate_core::nbd::{Command, OPTION_MAGIC, Reply, Request, Style, command_flags};

/// One connection to one export.
#[derive(Debug)]
pub struct NbdClient {
    stream: TcpStream,
    cookie: u64,
    /// Size of the export, bytes.
    pub size: u64,
}

fn protocol(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

impl NbdClient {
    /// Connects to an export.
    ///
    /// # Errors
    /// Those of the socket, `InvalidData` for an answer that is none, `Other` when the server refuses the export.
    pub fn connect(address: SocketAddr, export: &str, patience: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        let mut client = Self { stream, cookie: 0, size: 0 };
        client.take(18)?;
        let length = u32::try_from(export.len()).map_err(|_| protocol("a long name"))?;
        let mut hello = 3u32.to_be_bytes().to_vec();
        hello.extend(OPTION_MAGIC.to_be_bytes());
        hello.extend(code::GO.to_be_bytes());
        hello.extend((length + 6).to_be_bytes());
        hello.extend(length.to_be_bytes());
        hello.extend(export.as_bytes());
        hello.extend(0u16.to_be_bytes());
        client.stream.write_all(&hello)?;
        loop {
            let head = client.take(20)?;
            let number = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
            let data = client.take(number(16) as usize)?;
            match number(12) {
                reply::ACK => return Ok(client),
                kind if kind & reply::ERROR != 0 => {
                    return Err(io::Error::other(String::from_utf8_lossy(&data).into_owned()));
                }
                // NBD_INFO_EXPORT: kind, size, flags.
                _ if data.len() == 12 && data[..2] == [0, 0] => {
                    let size = data[2..10].try_into().map_err(|_| protocol("a short reply"))?;
                    client.size = u64::from_be_bytes(size);
                }
                _ => {}
            }
        }
    }

    fn take(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn ask(&mut self, command: Command, flags: u16, offset: u64, length: u64, data: &[u8]) -> io::Result<()> {
        self.cookie += 1;
        let mut out = Vec::with_capacity(28 + data.len());
        Request { flags, command, cookie: self.cookie, offset, length }.encode(Style::Simple, &mut out);
        out.extend_from_slice(data);
        self.stream.write_all(&out)?;
        let head = self.take(16)?;
        match Reply::decode(&head) {
            Ok(Some((Reply::Simple { errno: 0, cookie }, _))) if cookie == self.cookie => Ok(()),
            Ok(Some((Reply::Simple { errno, cookie }, _))) if cookie == self.cookie => {
                Err(io::Error::other(format!("NBD error {errno}")))
            }
            other => Err(protocol(format!("{other:?}"))),
        }
    }

    /// Reads.
    ///
    /// # Errors
    /// Those of the socket; `Other` for an error of the server.
    pub fn read(&mut self, offset: u64, length: u32) -> io::Result<Vec<u8>> {
        self.ask(Command::Read, 0, offset, u64::from(length), &[])?;
        self.take(length as usize)
    }

    /// Writes; with `fua`, durable when it returns.
    ///
    /// # Errors
    /// As [`NbdClient::read`].
    pub fn write(&mut self, offset: u64, data: &[u8], fua: bool) -> io::Result<()> {
        let flags = if fua { command_flags::FUA } else { 0 };
        self.ask(Command::Write, flags, offset, data.len() as u64, data)
    }

    /// Makes a range zero; with `trim` by TRIM.
    ///
    /// # Errors
    /// As [`NbdClient::read`].
    pub fn zero(&mut self, offset: u64, length: u32, trim: bool) -> io::Result<()> {
        let command = if trim { Command::Trim } else { Command::WriteZeroes };
        self.ask(command, 0, offset, u64::from(length), &[])
    }

    /// Flushes.
    ///
    /// # Errors
    /// As [`NbdClient::read`].
    pub fn flush(&mut self) -> io::Result<()> {
        self.ask(Command::Flush, 0, 0, 0, &[])
    }

    /// Says goodbye.
    pub fn disconnect(mut self) {
        let mut out = Vec::new();
        let request = Request { flags: 0, command: Command::Disconnect, cookie: 0, offset: 0, length: 0 };
        request.encode(Style::Simple, &mut out);
        drop(self.stream.write_all(&out));
    }
}
