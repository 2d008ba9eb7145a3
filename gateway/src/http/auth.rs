//! Tokens: who may ask for what.
//!
//! A boot loader cannot send a token. So what a machine reads on its way up is open to whoever reaches the port, and everything else,
//! above all every change, needs a token once there are any.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use clonegate_core::ids::Name;
use clonegate_core::{Error, Result};
use http::{Method, Request, header};

use super::disk::DiskRoute;
use crate::metrics::RouteClass;

/// Most tokens of a file.
const TOKENS_MAX: usize = 1000;
/// Longest file of tokens, bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Shortest token: 20 random characters cannot be guessed over a network.
const TOKEN_BYTES_MIN: usize = 20;
/// What a token's hash is for; it is never stored.
const CONTEXT: &str = "clonegate 2026 token of a caller";

/// Who may ask for what: the tokens of a file, one per line, each with the name of who has it.
pub struct Tokens {
    /// Hashes, whose comparison takes the same time wherever they differ.
    known: Vec<(Arc<str>, blake3::Hash)>,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").field("known", &self.known.len()).finish()
    }
}

/// Who asks, by the name of the token that came along.
#[derive(Debug, Clone)]
pub(super) struct Caller(pub(super) Arc<str>);

impl Tokens {
    /// Reads a file of lines `NAME TOKEN`; what begins with `#` is a comment. Warns when others than its owner can read it.
    ///
    /// # Errors
    /// `NotFound` with code `no-tokens` when the file cannot be read; `Invalid` with code `bad-tokens` that names the line.
    pub fn load(file: &Path) -> Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        let object = file.display().to_string();
        let unread = |error| {
            Error::not_found("no-tokens", "the file of tokens cannot be read")
                .on(object.clone())
                .because(error)
                .hint("`auth.tokens` of the configuration names a file of lines NAME TOKEN")
        };
        let meta = std::fs::metadata(file).map_err(unread)?;
        if meta.len() > FILE_BYTES_MAX {
            return Err(wrong("it has over 1 MiB").on(object));
        }
        if meta.permissions().mode() & 0o077 != 0 {
            tracing::warn!(file = %object, "others than its owner can read the tokens: chmod 600");
        }
        Self::parse(&std::fs::read_to_string(file).map_err(unread)?).map_err(|error| error.on(object))
    }

    /// The tokens of a text, as [`Tokens::load`].
    ///
    /// # Errors
    /// `Invalid` with code `bad-tokens`.
    pub fn parse(text: &str) -> Result<Self> {
        let mut known: Vec<(Arc<str>, blake3::Hash)> = Vec::new();
        for (number, line) in text.lines().enumerate().map(|(index, line)| (index + 1, line.trim())) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut words = line.split_whitespace();
            let (Some(name), Some(token), None) = (words.next(), words.next(), words.next()) else {
                return Err(wrong(format!("line {number} is not NAME TOKEN")));
            };
            Name::new(name).map_err(|error| wrong(format!("line {number}: {}", error.message())))?;
            if token.len() < TOKEN_BYTES_MIN {
                return Err(wrong(format!("the token of line {number} is shorter than {TOKEN_BYTES_MIN} characters")));
            }
            let hash = digest(token.as_bytes());
            if known.iter().any(|(other, there)| **other == *name || *there == hash) {
                return Err(wrong(format!("name or token of line {number} stands there twice")));
            }
            known.push((name.into(), hash));
        }
        match known.len() {
            0 => Err(wrong("there is no token in it")),
            1..=TOKENS_MAX => Ok(Self { known }),
            _ => Err(wrong(format!("there are more than {TOKENS_MAX} tokens"))),
        }
    }

    /// Who asks; `None` for what anybody may ask and asks without a token.
    ///
    /// # Errors
    /// `Denied` with codes `no-token` and `wrong-token`.
    pub(super) fn admit<B>(&self, request: &Request<B>) -> Result<Option<Caller>> {
        let Some(value) = request.headers().get(header::AUTHORIZATION) else {
            if is_open(request.method(), request.uri().path()) {
                return Ok(None);
            }
            return Err(Error::denied("no-token", "this needs a token")
                .hint("send `Authorization: Bearer TOKEN`; the command line takes --token or CLONEGATE_TOKEN"));
        };
        let value = value.as_bytes();
        let token = value.get(..7).filter(|scheme| scheme.eq_ignore_ascii_case(b"Bearer ")).and(value.get(7..));
        let hash = digest(token.unwrap_or_default().trim_ascii());
        let found = self.known.iter().find(|(_, known)| *known == hash);
        found.map(|(name, _)| Some(Caller(Arc::clone(name)))).ok_or_else(|| {
            Error::denied("wrong-token", "nobody here has this token")
                .hint("take the one that stands in the gateway's file of tokens; the file is read at start")
        })
    }
}

fn digest(token: &[u8]) -> blake3::Hash {
    blake3::Hash::from_bytes(blake3::derive_key(CONTEXT, token))
}

fn wrong(message: impl Into<String>) -> Error {
    Error::invalid("bad-tokens", message).hint("write lines NAME TOKEN; make a token: openssl rand -hex 32")
}

/// Whether this is open to whoever reaches the port: what a machine reads on its way up, whether the gateway is well, and the pages that
/// ask for a token themselves. It goes by what stands in the path: whatever is written in another way needs a token.
fn is_open(method: &Method, path: &str) -> bool {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return false;
    }
    if let Some(route) = DiskRoute::parse(path) {
        return matches!(route.class, RouteClass::Clone | RouteClass::Identity);
    }
    const PAGES: [&str; 7] = ["/", "/console.css", "/console.js", "/healthz", "/readyz", "/openapi.json", "/boot.ipxe"];
    let files =
        |rest: &str| rest.split_once('/').is_some_and(|(_, leaf)| leaf == "files" || leaf.starts_with("files/"));
    PAGES.contains(&path)
        || ["/boot/", "/efi/", "/seed/"].iter().any(|folder| path.starts_with(folder))
        || path.strip_prefix("/v1/clones/").is_some_and(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: &str = "0123456789abcdef0123";

    fn ask(method: Method, path: &str, authorization: Option<&str>) -> Result<Option<String>> {
        let tokens = Tokens::parse(&format!("# who\n\nalice {ALICE}\n  ci\tzzzzzzzzzzzzzzzzzzzzzzzz\n")).unwrap();
        let mut request = Request::builder().method(method).uri(path);
        if let Some(value) = authorization {
            request = request.header(header::AUTHORIZATION, value);
        }
        Ok(tokens.admit(&request.body(()).unwrap())?.map(|caller| caller.0.to_string()))
    }

    #[test]
    fn a_token_tells_who_asks_and_a_wrong_one_opens_nothing() {
        let bearer = format!("Bearer {ALICE}");
        assert_eq!(ask(Method::POST, "/v1/clones", Some(&bearer)).unwrap().as_deref(), Some("alice"));
        assert_eq!(
            ask(Method::GET, "/v1/clones", Some(&format!("bearer  {ALICE}"))).unwrap().as_deref(),
            Some("alice")
        );
        for value in ["Bearer wrong", "Bearer", "", "Basic YTpi", ALICE, &format!("Bearer {ALICE}x")] {
            let error = ask(Method::GET, "/healthz", Some(value)).unwrap_err();
            assert_eq!(error.code(), "wrong-token", "{value:?}");
        }
    }

    #[test]
    fn without_a_token_a_machine_can_boot_and_nobody_can_change_anything() {
        for path in [
            "/healthz",
            "/boot.ipxe",
            "/boot.ipxe?mac=1",
            "/boot/mac/52-54.ipxe",
            "/efi/boot/grub.efi",
            "/seed/pc/meta-data",
            "/v1/clones/pc/disk",
            "/v1/clones/pc/disk.img",
            "/v1/clones/pc@old/disk",
            "/v1/clones/pc/files",
            "/v1/clones/pc/files/-/vmlinuz",
        ] {
            assert_eq!(ask(Method::GET, path, None).unwrap(), None, "{path}");
            assert_eq!(ask(Method::PUT, path, None).unwrap_err().code(), "no-token", "{path}");
        }
        for path in [
            "/v1/clones",
            "/v1/clones/pc",
            "/v1/clones/pc/snapshots",
            "/v1/clones/files",
            "/v1/clones/pc/filesystem",
            "/v1/disks/data",
            "/v1/bases/b/disk",
            "/v1/templates/t/disk",
            "/metrics",
            "/v1/clones/pc/identity-spec",
            "/v1/%63lones/pc/disk",
            "//healthz",
        ] {
            assert_eq!(ask(Method::GET, path, None).unwrap_err().code(), "no-token", "{path}");
        }
    }

    #[test]
    fn a_file_that_is_wrong_is_refused_by_its_line() {
        for (text, say) in [
            ("", "no token"),
            ("# only\n", "no token"),
            ("alice\n", "line 1"),
            ("a b c\n", "line 1"),
            ("alice short\n", "line 1"),
            (&format!("alice {ALICE}\nbob {ALICE}\n"), "line 2"),
            (&format!("alice {ALICE}\nalice {ALICE}x\n"), "line 2"),
            (&format!("Bad/Name {ALICE}\n"), "line 1"),
        ] {
            let error = Tokens::parse(text).unwrap_err();
            assert_eq!(error.code(), "bad-tokens");
            assert!(error.message().contains(say), "{text:?}: {error}");
        }
    }
}
