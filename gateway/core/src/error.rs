//! What can go wrong, grouped by what the caller should do next.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// Everything in clonegate that can fail returns this.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A kind of failure. Each kind is mapped once to an HTTP status, an NBD errno and an exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// No such object. Check the name.
    NotFound,
    /// The name is taken. Choose another.
    Exists,
    /// The state does not permit this now (referenced, attached, wrong version). Change the state first.
    Conflict,
    /// Another gateway owns the volume. Talk to that one, or take the volume over.
    Fenced,
    /// The caller may not do this.
    Denied,
    /// The request is wrong. Mend the request.
    Invalid,
    /// Stored bytes are not what was written. Run `clonegate fsck`.
    Corrupt,
    /// The store or a peer did not answer in time. Try again.
    Unavailable,
    /// A limit, a quota or a capacity is reached. Make room.
    Exhausted,
    /// Understood, and not done by this version.
    Unsupported,
    /// A bug in clonegate.
    Internal,
}

impl ErrorKind {
    /// The HTTP status for this kind.
    pub const fn http_status(self) -> u16 {
        match self {
            Self::NotFound => 404,
            Self::Exists | Self::Conflict | Self::Fenced => 409,
            Self::Denied => 403,
            Self::Invalid => 400,
            Self::Corrupt | Self::Internal => 500,
            Self::Unavailable => 503,
            Self::Exhausted => 507,
            Self::Unsupported => 501,
        }
    }

    /// The errno sent in NBD replies for this kind (values of the NBD protocol, not of the host).
    pub const fn nbd_errno(self) -> u32 {
        match self {
            Self::Denied => 1,                                       // EPERM
            Self::NotFound | Self::Invalid => 22,                    // EINVAL
            Self::Exhausted => 28,                                   // ENOSPC
            Self::Unsupported => 95,                                 // ENOTSUP
            Self::Fenced | Self::Conflict | Self::Exists => 108,     // ESHUTDOWN
            Self::Corrupt | Self::Unavailable | Self::Internal => 5, // EIO
        }
    }

    /// The process exit code for this kind.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Corrupt | Self::Internal => 1,
            Self::Invalid => 2,
            Self::NotFound => 3,
            Self::Exists | Self::Conflict | Self::Fenced => 4,
            Self::Denied | Self::Unsupported => 5,
            Self::Unavailable | Self::Exhausted => 6,
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotFound => "not found",
            Self::Exists => "exists",
            Self::Conflict => "conflict",
            Self::Fenced => "fenced",
            Self::Denied => "denied",
            Self::Invalid => "invalid",
            Self::Corrupt => "corrupt",
            Self::Unavailable => "unavailable",
            Self::Exhausted => "exhausted",
            Self::Unsupported => "unsupported",
            Self::Internal => "internal",
        })
    }
}

/// One failure: its kind, a stable code, what happened to which object, and what to do.
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    code: &'static str,
    message: String,
    object: Option<String>,
    hint: Option<Cow<'static, str>>,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// A failure of `kind` with a stable kebab-case `code` (part of the public interface) and a sentence.
    pub fn new(kind: ErrorKind, code: &'static str, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, code, message: message.into(), object: None, hint: None, source: None }))
    }

    /// Names the object that it happened to (a clone, a key, a file).
    #[must_use]
    pub fn on(mut self, object: impl Into<String>) -> Self {
        self.0.object = Some(object.into());
        self
    }

    /// Says what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Keeps the cause.
    #[must_use]
    pub fn because(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.0.source = Some(Arc::new(source));
        self
    }

    /// The kind.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The stable code, for programs.
    pub fn code(&self) -> &'static str {
        self.0.code
    }

    /// What happened, one sentence without the object.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The object that it happened to.
    pub fn object(&self) -> Option<&str> {
        self.0.object.as_deref()
    }

    /// What to do about it.
    pub fn what_to_do(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }
}

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident => $kind:ident;)*) => {
        impl Error {
            $($(#[$doc])* pub fn $name(code: &'static str, message: impl Into<String>) -> Self {
                Self::new(ErrorKind::$kind, code, message)
            })*
        }
    };
}

constructors! {
    /// An [`ErrorKind::NotFound`].
    not_found => NotFound;
    /// An [`ErrorKind::Exists`].
    exists => Exists;
    /// An [`ErrorKind::Conflict`].
    conflict => Conflict;
    /// An [`ErrorKind::Fenced`].
    fenced => Fenced;
    /// An [`ErrorKind::Denied`].
    denied => Denied;
    /// An [`ErrorKind::Invalid`].
    invalid => Invalid;
    /// An [`ErrorKind::Corrupt`].
    corrupt => Corrupt;
    /// An [`ErrorKind::Unavailable`].
    unavailable => Unavailable;
    /// An [`ErrorKind::Exhausted`].
    exhausted => Exhausted;
    /// An [`ErrorKind::Unsupported`].
    unsupported => Unsupported;
    /// An [`ErrorKind::Internal`].
    internal => Internal;
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(object) = &self.0.object {
            write!(f, "{object}: ")?;
        }
        f.write_str(&self.0.message)?;
        if let Some(source) = &self.0.source {
            write!(f, ": {source}")?;
        }
        if let Some(hint) = &self.0.hint {
            write!(f, " ({hint})")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} {}] {self}", self.0.kind, self.0.code)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|s| s.as_ref() as &(dyn std::error::Error + 'static))
    }
}
