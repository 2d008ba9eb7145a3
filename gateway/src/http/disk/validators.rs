//! ETag and Last-Modified of a device version as header values, made once per version and thread.

use std::cell::RefCell;
use std::time::{Duration, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use clonegate_core::http::precondition::Validators;
use clonegate_core::http::{write_content_range, write_decimal};
use clonegate_core::units::ByteRange;
use http::header::HeaderValue;

use crate::clock::Clock;
use crate::device::Version;

/// The last second that an HTTP date can name (the end of the year 9999).
const DATE_MAX_S: u64 = 253_402_300_799;
const SLOTS: usize = 64;

/// Validators of one version of a device.
#[derive(Debug, Clone)]
pub(crate) struct VersionHeaders {
    version: Version,
    modified_ms: u64,
    /// The strong entity tag.
    pub(crate) etag: HeaderValue,
    /// When the bytes last changed; `None` while that second is not over, as another change could follow in it.
    pub(crate) last_modified: Option<HeaderValue>,
}

impl VersionHeaders {
    fn new(version: Version, modified_ms: u64, clock: &Clock) -> Self {
        let seconds = (modified_ms / 1000).min(DATE_MAX_S);
        let settled = clock.now_ms() / 1000 > seconds;
        let last_modified = settled.then(|| {
            let date = httpdate::HttpDate::from(UNIX_EPOCH + Duration::from_secs(seconds));
            value(Bytes::from(date.to_string()))
        });
        let etag = value(Bytes::from(format!("\"{version}\"")));
        Self { version, modified_ms, etag, last_modified }
    }

    /// As preconditions want them.
    pub(crate) fn validators(&self) -> Validators<'_> {
        let modified_s = self.last_modified.as_ref().map(|_| (self.modified_ms / 1000).min(DATE_MAX_S));
        Validators { etag: self.etag.as_bytes(), modified_s }
    }
}

thread_local! {
    static CACHE: RefCell<[Option<VersionHeaders>; SLOTS]> = const { RefCell::new([const { None }; SLOTS]) };
    static SCRATCH: RefCell<BytesMut> = RefCell::default();
}

/// The validators of `version`. Both texts depend on nothing but the arguments, so one cache serves all devices.
pub(crate) fn version_headers((version, modified_ms): (Version, u64), clock: &Clock) -> VersionHeaders {
    let mix = version.life.rotate_left(32) ^ version.change ^ modified_ms.rotate_left(16);
    let slot = (mix.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58) as usize % SLOTS;
    CACHE.with_borrow_mut(|cache| {
        if let Some(entry) = &cache[slot]
            && entry.version == version
            && entry.modified_ms == modified_ms
            && entry.last_modified.is_some()
        {
            return entry.clone();
        }
        let entry = VersionHeaders::new(version, modified_ms, clock);
        cache[slot] = Some(entry.clone());
        entry
    })
}

/// The header value `bytes FIRST-LAST/SIZE`.
pub(crate) fn content_range(range: ByteRange, size: u64) -> HeaderValue {
    carve(|out| write_content_range(out, range, size))
}

/// A number as a header value.
pub(crate) fn decimal(number: u64) -> HeaderValue {
    carve(|out| write_decimal(out, number))
}

/// A short value out of a buffer that is allocated once for many.
fn carve(write: impl FnOnce(&mut BytesMut)) -> HeaderValue {
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.capacity() < 96 {
            *scratch = BytesMut::with_capacity(8192);
        }
        write(scratch);
        value(scratch.split().freeze())
    })
}

fn value(text: Bytes) -> HeaderValue {
    HeaderValue::from_maybe_shared(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// A date in one of the three forms of RFC 9110 §5.6.7, as seconds since 1970 UTC; `None` for anything else.
pub(crate) fn parse_date(text: &[u8]) -> Option<u64> {
    let date = httpdate::parse_http_date(std::str::from_utf8(text).ok()?.trim()).ok()?;
    date.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}
