//! Answers with a file: length first (firmware asks by HEAD how much room it needs), one range at most, an ETag.

use axum::body::Body;
use axum::response::Response;
use clonegate_core::Error;
use clonegate_core::http::range::{self, Selection};
use clonegate_core::units::ByteRange;
use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_NONE_MATCH, IF_RANGE, RANGE,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode};

use super::problem;

/// What is known of a file before it is read.
#[derive(Debug)]
pub(super) struct Download {
    /// Size, bytes.
    pub(super) size: u64,
    /// Strong, with its quotes.
    pub(super) etag: String,
    /// Media type.
    pub(super) content_type: &'static str,
}

impl Download {
    /// The answer; `body` is asked for the bytes that are sent, and not at all for HEAD.
    pub(super) fn answer(self, method: &Method, headers: &HeaderMap, body: impl FnOnce(ByteRange) -> Body) -> Response {
        let head = method == Method::HEAD;
        let etag = HeaderValue::try_from(self.etag).unwrap_or(HeaderValue::from_static("\"\""));
        let given = |name| headers.get(name).map(HeaderValue::as_bytes);
        let whole = ByteRange::new(0, self.size);
        let unchanged = given(IF_NONE_MATCH).is_some_and(|tags| tags == etag.as_bytes() || tags == b"*");
        // Range is defined for GET alone (RFC 9110 §14.2).
        let wanted = given(RANGE).filter(|_| !head && given(IF_RANGE).is_none_or(|tag| tag == etag.as_bytes()));
        // Several ranges may be answered with everything (RFC 9110 §14.2); no boot loader asks for them.
        let (status, part) = match wanted.filter(|_| self.size > 0).map(|header| range::select(header, self.size)) {
            _ if unchanged => (StatusCode::NOT_MODIFIED, None),
            Some(Selection::One(part)) => (StatusCode::PARTIAL_CONTENT, Some(part)),
            Some(Selection::Refused(_)) => (StatusCode::RANGE_NOT_SATISFIABLE, None),
            _ => (StatusCode::OK, Some(whole)),
        };
        let mut response = match status {
            StatusCode::RANGE_NOT_SATISFIABLE => {
                let what = format!("no range begins within the {} bytes of the file", self.size);
                problem::respond(&Error::invalid("range-unsatisfiable", what)).map(Body::from)
            }
            _ => Response::new(Body::empty()),
        };
        *response.status_mut() = status;
        let out = response.headers_mut();
        // What is behind the name may change at any time: a cache on the way must ask.
        out.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        out.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        out.insert(ETAG, etag);
        let said = match (status, part) {
            (StatusCode::PARTIAL_CONTENT, Some(part)) => {
                Some(format!("bytes {}-{}/{}", part.start(), part.end() - 1, self.size))
            }
            (StatusCode::RANGE_NOT_SATISFIABLE, _) => Some(format!("bytes */{}", self.size)),
            _ => None,
        };
        if let Some(said) = said.and_then(|text| HeaderValue::try_from(text).ok()) {
            out.insert(CONTENT_RANGE, said);
        }
        if let Some(part) = part {
            out.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
            out.insert(CONTENT_LENGTH, HeaderValue::from(part.len()));
            if !head {
                *response.body_mut() = body(part);
            }
        }
        response
    }
}

/// The media type that firmware wants for a name: it refuses to run what it does not know (UEFI 2.10 §24.7.2.2).
pub(super) fn content_type(name: &str) -> &'static str {
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension).to_ascii_lowercase();
    match extension.as_str() {
        "efi" => "application/efi",
        "iso" => "application/vnd.efi-iso",
        "img" => "application/vnd.efi-img",
        "ipxe" | "cfg" | "txt" => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_has_the_status_and_the_lengths_that_the_request_asks_for() {
        let check = |method: Method, headers: &[(http::HeaderName, &str)], status: u16, length: Option<&str>| {
            let download = Download { size: 1000, etag: "\"e\"".into(), content_type: "application/efi" };
            let headers =
                headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect();
            let response = download.answer(&method, &headers, |_| Body::from("x"));
            assert_eq!(response.status().as_u16(), status, "{headers:?}");
            let said = response.headers().get(CONTENT_LENGTH).map(|value| value.to_str().unwrap());
            assert_eq!(said, length, "{headers:?}");
        };
        check(Method::GET, &[], 200, Some("1000"));
        check(Method::HEAD, &[], 200, Some("1000"));
        check(Method::GET, &[(RANGE, "bytes=10-19")], 206, Some("10"));
        check(Method::HEAD, &[(RANGE, "bytes=10-19")], 200, Some("1000"));
        check(Method::GET, &[(RANGE, "bytes=10-19"), (IF_RANGE, "\"other\"")], 200, Some("1000"));
        check(Method::GET, &[(RANGE, "bytes=2000-")], 416, None);
        check(Method::GET, &[(RANGE, "bytes=nonsense")], 200, Some("1000"));
        check(Method::GET, &[(RANGE, "bytes=0-1,4-5")], 200, Some("1000"));
        check(Method::GET, &[(IF_NONE_MATCH, "\"e\"")], 304, None);
    }
}
