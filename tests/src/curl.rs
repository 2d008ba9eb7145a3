//! curl as a client of the gateway.

use std::path::Path;
use std::process::{Command, Stdio};

/// What curl got.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The status code; 0 when there was no answer.
    pub status: u16,
    /// The header lines.
    pub headers: String,
    /// The body.
    pub body: Vec<u8>,
}

impl Reply {
    /// The value of a header, in whatever case its name was sent.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The `code` of a problem document.
    pub fn problem(&self) -> String {
        self.json()["code"].as_str().unwrap_or_default().to_owned()
    }
}

/// Runs curl with `arguments` (among them the URL), without the user's configuration and proxies.
///
/// # Panics
/// When curl cannot be run. No answer is a status of 0.
pub fn curl(arguments: &[&str]) -> Reply {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (headers, body) = (dir.path().join("headers"), dir.path().join("body"));
    let mut command = Command::new("curl");
    command.args(["-q", "--silent", "--noproxy", "*", "--max-time", "300", "--write-out", "%{http_code}"]);
    command.arg("--dump-header").arg(&headers).arg("--output").arg(&body).args(arguments);
    let output = command.stdin(Stdio::null()).output().expect("curl starts");
    let read = |path: &Path| std::fs::read(path).unwrap_or_default();
    Reply {
        status: String::from_utf8_lossy(&output.stdout).trim().parse().unwrap_or(0),
        headers: String::from_utf8_lossy(&read(&headers)).into_owned(),
        body: read(&body),
    }
}

/// `length` bytes at `offset`, by a range request.
///
/// # Panics
/// When the answer is not just that.
pub fn range(url: &str, offset: u64, length: u64) -> Vec<u8> {
    let last = offset + length - 1;
    let reply = curl(&["--range", &format!("{offset}-{last}"), url]);
    assert_eq!(reply.status, 206, "{url} {offset}-{last}: {}{}", reply.headers, reply.text());
    assert_eq!(reply.body.len() as u64, length, "{url} {offset}-{last}");
    reply.body
}

/// Writes `data` at `offset` of a volume of `size` bytes.
///
/// # Panics
/// When it is not accepted.
pub fn put(url: &str, offset: u64, data: &[u8], size: u64) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("data");
    std::fs::write(&file, data).expect("a temporary directory is writable");
    let content_range = format!("Content-Range: bytes {offset}-{}/{size}", offset + data.len() as u64 - 1);
    let source = format!("@{}", file.display());
    let reply = curl(&["--request", "PUT", "--header", &content_range, "--data-binary", &source, url]);
    assert_eq!(reply.status, 204, "PUT {url} {content_range}: {}{}", reply.headers, reply.text());
}
