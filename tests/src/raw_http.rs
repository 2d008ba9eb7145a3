//! HTTP/1.1 by hand over a socket: says exactly what a test wants to say, and shows exactly what came back.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Long enough for the slowest machine; a test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// One connection.
#[derive(Debug)]
pub struct RawHttp {
    stream: TcpStream,
    buffered: Vec<u8>,
}

/// One answer.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    /// Its status.
    pub status: u16,
    /// Its fields, names in lower case.
    pub fields: Vec<(String, String)>,
    /// Its body.
    pub body: Vec<u8>,
}

impl Reply {
    /// The value of a field.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str())
    }

    /// The `code` of a problem.
    pub fn code(&self) -> String {
        let problem: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        problem["code"].as_str().unwrap_or_default().to_owned()
    }
}

impl RawHttp {
    /// Connects.
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the server listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket takes a time-out");
        stream.set_write_timeout(Some(PATIENCE)).expect("a socket takes a time-out");
        Self { stream, buffered: Vec::new() }
    }

    /// Connects to a server that may not be there.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn try_connect(address: SocketAddr, patience: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffered: Vec::new() })
    }

    /// The socket.
    pub fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// Sends a request with these fields and no body, and reads the answer.
    pub fn request(&mut self, method: &str, path: &str, fields: &[(&str, &str)]) -> Reply {
        self.request_with(method, path, fields, b"")
    }

    /// Sends a request with a body (and its Content-Length, unless a field says how long it is), and reads the answer.
    pub fn request_with(&mut self, method: &str, path: &str, fields: &[(&str, &str)], body: &[u8]) -> Reply {
        let mut text = format!("{method} {path} HTTP/1.1\r\nHost: test\r\n");
        for (name, value) in fields {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        let framed = |name: &&(&str, &str)| {
            name.0.eq_ignore_ascii_case("content-length") || name.0.eq_ignore_ascii_case("transfer-encoding")
        };
        if !body.is_empty() && !fields.iter().any(|field| framed(&field)) {
            text.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        text.push_str("\r\n");
        self.send([text.as_bytes(), body].concat()).expect("the server reads");
        self.reply(method == "HEAD").expect("the server answers")
    }

    /// Reads an answer. Its body ends by its Content-Length.
    pub fn reply(&mut self, to_head: bool) -> io::Result<Reply> {
        let end = loop {
            if let Some(end) = self.buffered.windows(4).position(|four| four == b"\r\n\r\n") {
                break end;
            }
            self.more()?;
        };
        let head = String::from_utf8_lossy(&self.buffered[..end]).into_owned();
        self.buffered.drain(..end + 4);
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|status| status.parse().ok());
        let fields = lines.filter_map(|line| line.split_once(':'));
        let fields = fields.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();
        let mut reply = Reply { status: status.unwrap_or(0), fields, body: Vec::new() };
        if reply.status == 100 {
            return self.reply(to_head);
        }
        let length = reply.field("content-length").and_then(|length| length.parse::<usize>().ok()).unwrap_or(0);
        if !to_head && reply.status != 204 && reply.status != 304 {
            while self.buffered.len() < length {
                self.more()?;
            }
            reply.body = self.buffered.drain(..length).collect();
        }
        Ok(reply)
    }

    /// Everything up to the end of the connection. An abrupt end is an end.
    pub fn rest(&mut self) -> Vec<u8> {
        while self.more().is_ok() {}
        std::mem::take(&mut self.buffered)
    }

    fn more(&mut self) -> io::Result<()> {
        let mut part = [0; 64 * 1024];
        match self.stream.read(&mut part)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                self.buffered.extend_from_slice(&part[..count]);
                Ok(())
            }
        }
    }
}
