//! A change that cannot be tried is refused when it is asked with `dry_run`: what was only to be tried must not happen.

use clonegate_core::Error;
use http::Uri;

/// Whether the query says anything of `dry_run`.
pub(super) fn is_asked(uri: &Uri) -> bool {
    uri.query().is_some_and(|query| query.split('&').any(|pair| pair.split('=').next() == Some("dry_run")))
}

/// Why it is refused.
pub(super) fn refusal() -> Error {
    Error::invalid("no-dry-run", "this change cannot be tried: it knows no `dry_run`")
        .hint("nothing was done; leave `dry_run` out to do it")
}
