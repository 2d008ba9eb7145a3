//! What a store's failure means to us: which kind, whether trying again may help, and what the operator can do.

use std::error::Error as StdError;
use std::io;

use clonegate_core::{Error, ErrorKind};
use object_store::Error as StoreError;
use object_store::client::{HttpError, HttpErrorKind};

/// A failure and whether the same request may succeed a moment later.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: Error,
    pub(super) transient: bool,
}

impl Failure {
    pub(super) fn lasting(error: Error) -> Self {
        Self { error, transient: false }
    }

    pub(super) fn passing(error: Error) -> Self {
        Self { error, transient: true }
    }
}

/// Maps what `object_store` reports about `object`.
pub(super) fn map(cause: StoreError, object: &str) -> Failure {
    let facts = Facts::of(&cause);
    let failure = facts.verdict(&cause);
    let error = failure.error.on(object);
    // A kind that says it all needs no transcript of the request.
    let error = if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Exists) {
        error
    } else {
        error.because(Transcript::of(&cause, &facts))
    };
    Failure { error, ..failure }
}

/// What the chain of causes tells.
#[derive(Debug, Default)]
struct Facts {
    status: Option<u16>,
    /// `<Code>` of an S3 or Azure error document.
    service_code: Option<String>,
    region: Option<String>,
    http: Option<HttpErrorKind>,
    tls: Option<Tls>,
    io: Option<io::ErrorKind>,
    raw_os: Option<i32>,
    /// Text of the deepest cause.
    text: String,
}

/// How TLS failed.
#[derive(Debug, Clone, Copy)]
enum Tls {
    Untrusted,
    Failed,
}

const NON_SUCCESS: &str = "Server returned non-2xx status code: ";

impl Facts {
    fn of(cause: &(dyn StdError + 'static)) -> Self {
        let mut facts = Self::default();
        let mut next = Some(cause);
        let mut depth = 0;
        while let Some(error) = next {
            depth += 1;
            if depth > 16 {
                break;
            }
            if let Some(http) = error.downcast_ref::<HttpError>() {
                facts.http.get_or_insert(http.kind());
            }
            if let Some(io) = error.downcast_ref::<io::Error>() {
                facts.io = Some(io.kind());
                facts.raw_os = facts.raw_os.or_else(|| io.raw_os_error());
            }
            facts.text = error.to_string();
            if let Some(tls) = error.downcast_ref::<rustls::Error>() {
                let untrusted = matches!(tls, rustls::Error::InvalidCertificate(_));
                facts.tls = Some(if untrusted { Tls::Untrusted } else { Tls::Failed });
            }
            if let Some(rest) = facts.text.strip_prefix(NON_SUCCESS) {
                facts.status = rest.get(..3).and_then(|digits| digits.parse().ok());
                facts.service_code = between(rest, "<Code>", "</Code>");
                facts.region = between(rest, "<Region>", "</Region>");
            } else if facts.text.starts_with("Received redirect without LOCATION") {
                facts.status = Some(301);
            }
            next = cause_of(error);
        }
        facts
    }

    fn verdict(&self, cause: &StoreError) -> Failure {
        if let Some(failure) = self.by_service_code() {
            return failure;
        }
        match cause {
            StoreError::NotFound { .. } => {
                return Failure::lasting(Error::not_found("no-such-object", "it does not exist in the store"));
            }
            StoreError::AlreadyExists { .. } => {
                return Failure::lasting(Error::exists("object-exists", "it exists in the store"));
            }
            StoreError::Precondition { .. } | StoreError::NotModified { .. } => {
                return Failure::lasting(source_changed());
            }
            StoreError::PermissionDenied { .. } => return Failure::lasting(access_denied()),
            StoreError::Unauthenticated { .. } => return Failure::lasting(bad_credentials()),
            StoreError::NotImplemented { .. } | StoreError::NotSupported { .. } => {
                return Failure::lasting(not_implemented());
            }
            StoreError::InvalidPath { .. } => {
                return Failure::lasting(Error::invalid("bad-key", "the store does not take such a name"));
            }
            _ => {}
        }
        if let Some(status) = self.status {
            return by_status(status);
        }
        if let Some(kind) = self.http {
            return self.by_transport(kind);
        }
        if let Some(kind) = self.io {
            // Linking a file that was just made here is not refused for want of rights: FAT and its like say it this way.
            if kind == io::ErrorKind::PermissionDenied && cause.to_string().contains("Unable to rename file") {
                return by_io(io::ErrorKind::Unsupported, None);
            }
            return by_io(kind, self.raw_os);
        }
        Failure::lasting(Error::unavailable("store-failed", "the store gave an answer that is not understood"))
    }

    fn by_service_code(&self) -> Option<Failure> {
        let error = match self.service_code.as_deref()? {
            "NoSuchBucket" | "ContainerNotFound" => {
                Error::unavailable("no-such-bucket", "the bucket of this store does not exist")
                    .hint("create the bucket, or mend the bucket's name in the store's url")
            }
            "RequestTimeTooSkewed" | "RequestExpired" => {
                Error::denied("clock-skew", "the store finds that this host's clock is wrong")
                    .hint("set the clock of this host by NTP: signed requests are valid for minutes only")
            }
            "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" => {
                Error::denied("credentials-expired", "the credentials for the store have expired")
                    .hint("renew them and restart, or use a role that renews by itself")
            }
            "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "InvalidToken" | "AuthenticationFailed" => {
                bad_credentials()
            }
            "AccessDenied" | "AllAccessDisabled" | "AccountProblem" => access_denied(),
            "AuthorizationHeaderMalformed" | "PermanentRedirect" | "IllegalLocationConstraintException" => {
                wrong_region(self.region.as_deref())
            }
            "QuotaExceeded" | "XMinioStorageFull" | "XMinioAdminBucketQuotaExceeded" | "InsufficientStorage" => {
                Error::exhausted("store-full", "the store has no room or the quota is reached")
                    .hint("make room in the store or raise its quota")
            }
            "EntityTooLarge" => Error::exhausted("object-too-large", "the store does not take an object of this size"),
            "InvalidObjectState" => {
                Error::conflict("archived", "the object was moved to an archive class and cannot be read")
                    .hint("restore it in the store, and keep lifecycle rules off clonegate's prefix")
            }
            "NotImplemented" => not_implemented(),
            _ => return None,
        };
        Some(Failure::lasting(error))
    }

    fn by_transport(&self, kind: HttpErrorKind) -> Failure {
        match self.tls {
            Some(Tls::Untrusted) => {
                return Failure::lasting(
                    Error::unavailable("tls-untrusted", "the certificate of the store is not trusted")
                        .hint("name the PEM file of its certificate authority as ca_file of this store"),
                );
            }
            Some(Tls::Failed) => {
                return Failure::lasting(
                    Error::unavailable("tls-failed", "no TLS connection to the store")
                        .hint("if it serves plain HTTP, its endpoint begins with http://"),
                );
            }
            None => {}
        }
        match kind {
            HttpErrorKind::Connect => Failure::passing(
                Error::unavailable("store-unreachable", "no connection to the store")
                    .hint("check the store's endpoint, the network and the proxy"),
            ),
            HttpErrorKind::Timeout => Failure::passing(timed_out()),
            _ => Failure::passing(Error::unavailable("store-interrupted", "the connection to the store broke")),
        }
    }
}

fn by_status(status: u16) -> Failure {
    match status {
        300..=399 => Failure::lasting(wrong_region(None)),
        401 => Failure::lasting(bad_credentials()),
        403 => Failure::lasting(access_denied()),
        408 | 429 | 503 => {
            Failure::passing(Error::unavailable("store-busy", format!("the store asks to wait ({status})")))
        }
        416 => Failure::lasting(too_short()),
        501 => Failure::lasting(not_implemented()),
        507 => Failure::lasting(Error::exhausted("store-full", "the store has no room").hint("make room in the store")),
        500..=599 => Failure::passing(Error::unavailable("store-failed", format!("the store failed ({status})"))),
        _ => Failure::lasting(Error::unavailable("store-refused", format!("the store refused the request ({status})"))),
    }
}

/// The next deeper cause. An [`io::Error`] does not name what it wraps as its source, but that one's source.
fn cause_of<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a (dyn StdError + 'static)> {
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(wrapped) => Some(wrapped),
        None => error.source(),
    }
}

/// What an input or output error of a local directory means.
pub(super) fn by_io(kind: io::ErrorKind, raw_os: Option<i32>) -> Failure {
    use rustix::io::Errno;
    let is = |errno: Errno| raw_os == Some(errno.raw_os_error());
    let error = match kind {
        io::ErrorKind::NotFound => Error::not_found("no-such-object", "it does not exist in the store"),
        io::ErrorKind::AlreadyExists => Error::exists("object-exists", "it exists in the store"),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => disk_full(),
        io::ErrorKind::PermissionDenied => {
            Error::denied("access-denied", "this program may not do that in the directory")
                .hint("give the user that runs clonegate read and write access to the directory")
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            Error::denied("read-only-filesystem", "the file system is mounted read-only")
        }
        io::ErrorKind::Unsupported | io::ErrorKind::CrossesDevices | io::ErrorKind::TooManyLinks => Error::unsupported(
            "no-hard-links",
            "the file system does not make hard links, which put-if-absent stands on",
        )
        .hint("use ext4, XFS, Btrfs or another file system with hard links"),
        io::ErrorKind::TimedOut | io::ErrorKind::Interrupted => return Failure::passing(timed_out()),
        io::ErrorKind::InvalidFilename => Error::invalid("bad-key", "the file system does not take such a name"),
        _ if is(Errno::NOSPC) || is(Errno::DQUOT) => disk_full(),
        _ if is(Errno::MFILE) || is(Errno::NFILE) => {
            return Failure::passing(
                Error::exhausted("too-many-open-files", "no more files can be opened")
                    .hint("raise the limit (ulimit -n)"),
            );
        }
        _ => Error::unavailable("disk-failed", "the directory failed"),
    };
    Failure::lasting(error)
}

fn disk_full() -> Error {
    Error::exhausted("disk-full", "disk full").hint("make room on the disk that holds the store")
}

fn access_denied() -> Error {
    Error::denied("access-denied", "the store denies access")
        .hint("the key needs to list the bucket, and to get, put and delete objects under the prefix")
}

fn bad_credentials() -> Error {
    Error::denied("bad-credentials", "the store does not accept the credentials")
        .hint("check access_key_id and secret_access_key, or the AWS_… variables of the service")
}

fn wrong_region(region: Option<&str>) -> Error {
    let error = Error::invalid("wrong-region", "the bucket is in another region or at another endpoint");
    match region {
        Some(region) => error.hint(format!("set region = {region:?} for this store")),
        None => error.hint("set the region (and the endpoint) of this store"),
    }
}

fn not_implemented() -> Error {
    Error::unsupported("store-cannot", "the store does not do this request")
        .hint("if it has no put-if-absent: set exclusive = true and let one gateway alone use it")
}

/// The error for an object that is not what its pinned ETag says.
pub(super) fn source_changed() -> Error {
    Error::conflict("source-changed", "the object was changed or replaced since it was pinned")
        .hint("import the image again: a base must never change")
}

/// The error for an object that ends before the range that should be there.
pub(super) fn too_short() -> Error {
    Error::corrupt("object-too-short", "it ends before the bytes that should be there")
}

/// The error for a body that ends early.
pub(super) fn short_body(got: u64, promised: u64) -> Failure {
    Failure::passing(Error::unavailable("short-body", format!("the store sent {got} of {promised} bytes")))
}

/// The error for no answer in time.
pub(super) fn timed_out() -> Error {
    Error::unavailable("store-timeout", "the store did not answer in time")
}

fn between(text: &str, open: &str, close: &str) -> Option<String> {
    let rest = text.split_once(open)?.1;
    Some(rest.split_once(close)?.0.to_owned())
}

/// The cause in one bounded line: stores answer with whole documents.
#[derive(Debug)]
struct Transcript(String);

impl Transcript {
    fn of(cause: &StoreError, facts: &Facts) -> Self {
        const CHARS_MAX: usize = 400;
        let text = cause.to_string();
        if let (Some(code), Some((request, _))) = (between(&text, "<Code>", "</Code>"), text.split_once(NON_SUCCESS)) {
            let status = text[request.len() + NON_SUCCESS.len()..].split(':').next().unwrap_or_default();
            let request = request.rsplit(": ").next().unwrap_or_default().trim_end_matches(" - ");
            let message = between(&text, "<Message>", "</Message>").unwrap_or_default();
            return Self(format!("{request}: {status}: {code} {message}").trim_end().chars().take(CHARS_MAX).collect());
        }
        let mut line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
        if !line.contains(&facts.text) {
            line = format!("{line}: {}", facts.text);
        }
        if line.chars().count() <= CHARS_MAX {
            return Self(line);
        }
        Self(line.chars().take(CHARS_MAX).chain(['…']).collect())
    }
}

impl std::fmt::Display for Transcript {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for Transcript {}

#[cfg(test)]
mod tests {
    use super::*;

    fn s3(status: &str, body: &str) -> StoreError {
        StoreError::Generic { store: "S3", source: format!("{NON_SUCCESS}{status}: {body}").into() }
    }

    #[test]
    fn what_a_service_says_is_told_with_what_to_do() {
        for (cause, code, transient) in [
            (s3("404 Not Found", "<Code>NoSuchBucket</Code>"), "no-such-bucket", false),
            (s3("403 Forbidden", "<Code>RequestTimeTooSkewed</Code>"), "clock-skew", false),
            (s3("400 Bad Request", "<Code>ExpiredToken</Code>"), "credentials-expired", false),
            (s3("403 Forbidden", "<Code>SignatureDoesNotMatch</Code>"), "bad-credentials", false),
            (s3("403 Forbidden", ""), "access-denied", false),
            (s3("301 Moved", ""), "wrong-region", false),
            (s3("503 Slow Down", "<Code>SlowDown</Code>"), "store-busy", true),
            (s3("500 Internal", ""), "store-failed", true),
            (s3("501 Not Implemented", ""), "store-cannot", false),
            (s3("507 Insufficient Storage", ""), "store-full", false),
            (s3("416 Range", ""), "object-too-short", false),
        ] {
            let failure = map(cause, "s3://vdi/fast/x");
            assert_eq!((failure.error.code(), failure.transient), (code, transient));
            assert_eq!(failure.error.object(), Some("s3://vdi/fast/x"));
        }
    }

    #[test]
    fn a_region_that_the_service_names_is_passed_on() {
        let body = "<Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region>";
        let failure = map(s3("400 Bad Request", body), "s3://vdi");
        assert!(failure.error.what_to_do().unwrap().contains("eu-west-1"));
    }

    #[test]
    fn a_full_disk_is_exhausted_however_deep_it_is_reported() {
        let io = io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error());
        let failure = map(StoreError::Generic { store: "LocalFileSystem", source: Box::new(io) }, "file:///d/x");
        assert_eq!((failure.error.kind(), failure.error.code()), (ErrorKind::Exhausted, "disk-full"));
    }

    #[test]
    fn a_document_is_told_in_one_line() {
        let body = "<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code><Message>no</Message><RequestId>tx1";
        let cause = StoreError::Generic {
            store: "S3",
            source: format!("Error performing PUT http://h/b/k in 1ms - {NON_SUCCESS}403 Forbidden: {body}").into(),
        };
        let text = map(cause, "s3://b/k").error.to_string();
        assert!(text.contains("Error performing PUT http://h/b/k in 1ms: 403 Forbidden: AccessDenied no"), "{text}");
    }

    #[test]
    fn a_long_answer_is_cut() {
        let failure = map(s3("500 Internal", &"x ".repeat(10_000)), "s3://vdi");
        assert!(failure.error.to_string().len() < 1000);
    }
}
