//! PUT of a disk: writes the bytes that `Content-Range` names, all of them or none.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use clonegate_core::http::ContentRange;
use clonegate_core::http::precondition::Verdict;
use clonegate_core::limits::{HTTP_PUT_UNCOUNTED_BYTES, HTTP_PUT_WINDOW_BYTES, HTTP_WRITE_BYTES_MAX};
use clonegate_core::units::ByteRange;
use clonegate_core::{Error, Result};
use http::header::{self, HeaderMap};
use http::{Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};

use super::body::Body;
use super::get::{Asked, beyond_end, precondition_failed};
use super::validators::version_headers;
use crate::device::{Device, Version, WriteOptions, read_only};
use crate::http::problem;
use crate::http::room::Held;
use crate::http::service::Shared;
use crate::http::watch::Watch;

/// Memory that is reserved at once for a body that comes in pieces.
const FIRST_BYTES: usize = 256 * 1024;

/// Answers a PUT.
pub(super) async fn put(
    shared: &Shared,
    watch: &Arc<Watch>,
    device: &Arc<dyn Device>,
    headers: HeaderMap,
    body: Incoming,
) -> Response<Body> {
    let info = device.info();
    if info.read_only {
        return problem::respond(&read_only(&info.name)).map(Body::full);
    }
    let range = match target(&headers, info.size, &body) {
        Ok(range) => range,
        Err(error) if error.code() == "beyond-end" => return beyond_end(&error.on(&info.name), info.size),
        Err(error) => return problem::respond(&error.on(&info.name)).map(Body::full),
    };
    // Judged before the body is read, so that a client that waits for 100 (Continue) need not send it.
    let before = device.version();
    let expect = {
        let asked = Asked::of(&headers);
        if asked.conditions.judge(version_headers(before, &shared.clock).validators(), false) == Verdict::Failed {
            return precondition_failed(&info.name).map(Body::full);
        }
        (!asked.conditions.is_empty()).then_some(before.0)
    };
    let written = async {
        // What it holds is given back when the bytes are written.
        let mut intake = Intake::new(shared, watch, range);
        let data = intake.collect(body).await.map_err(|e| e.on(&info.name))?;
        watch.serving();
        device.write(range.start(), data, WriteOptions { fua: true, expect }).await
    };
    match written.await {
        Ok(()) => {
            watch.ward.counters.written(range.len());
            done(shared, device, expect)
        }
        Err(error) if error.code() == "version-changed" => precondition_failed(&info.name).map(Body::full),
        Err(error) => problem::respond(&error).map(Body::full),
    }
}

/// Which bytes the request writes.
fn target(headers: &HeaderMap, size: u64, body: &Incoming) -> Result<ByteRange> {
    let mut lines = headers.get_all(header::CONTENT_RANGE).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else {
        return Err(Error::invalid(
            "content-range-required",
            "a PUT must say by one Content-Range where its bytes belong",
        )
        .hint("add a header like `Content-Range: bytes 0-511/1048576`"));
    };
    let ContentRange { range, size: claimed } = ContentRange::parse(line.as_bytes())?;
    range.check_within(size)?;
    if let Some(claimed) = claimed.filter(|claimed| *claimed != size) {
        let sentence = format!("Content-Range says that the disk has {claimed} bytes, but it has {size}");
        return Err(Error::invalid("content-range-size", sentence).hint("ask for the size with HEAD, or say `*`"));
    }
    if range.len() > HTTP_WRITE_BYTES_MAX {
        return Err(Error::invalid("body-too-large", format!("one PUT writes at most {HTTP_WRITE_BYTES_MAX} bytes"))
            .hint("write in several requests"));
    }
    match body.size_hint().exact() {
        Some(length) if length != range.len() => Err(length_mismatch(range, length)),
        _ => Ok(range),
    }
}

fn length_mismatch(range: ByteRange, got: u64) -> Error {
    Error::invalid("length-mismatch", format!("Content-Range names {} bytes, but the body has {got}", range.len()))
        .hint("nothing was written: send as many bytes as the range has")
}

/// A body on its way in.
struct Intake<'a> {
    shared: &'a Shared,
    watch: &'a Watch,
    held: Held<'a>,
    range: ByteRange,
    /// How many bytes there is room for.
    covered: u64,
}

impl<'a> Intake<'a> {
    fn new(shared: &'a Shared, watch: &'a Watch, range: ByteRange) -> Self {
        watch.reading_body(range.len());
        Self { shared, watch, held: shared.room.enter(), range, covered: HTTP_PUT_UNCOUNTED_BYTES }
    }

    /// The body, which must be as long as the range. Without a copy when it came in one piece.
    async fn collect(&mut self, mut body: Incoming) -> Result<Bytes> {
        let length = usize::try_from(self.range.len()).unwrap_or(usize::MAX);
        let mut whole = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame =
                frame.map_err(|error| Error::invalid("body-broken", "the body could not be read").because(error))?;
            let Ok(data) = frame.into_data() else { continue };
            let here = whole.len() + data.len();
            if here > length {
                return Err(length_mismatch(self.range, here as u64));
            }
            self.cover(here as u64).await?;
            if whole.is_empty() && here == length && body.is_end_stream() {
                return Ok(data);
            }
            // It grows with what comes, not with what was announced.
            whole.reserve(if whole.is_empty() { length.min(FIRST_BYTES) } else { 0 });
            whole.extend_from_slice(&data);
        }
        if whole.len() == length { Ok(whole.freeze()) } else { Err(length_mismatch(self.range, whole.len() as u64)) }
    }

    /// Takes room for what is here and a window more, before more is read.
    async fn cover(&mut self, here: u64) -> Result<()> {
        let length = self.range.len();
        if here < self.covered || self.covered >= length {
            return Ok(());
        }
        self.covered = length.min(here + HTTP_PUT_WINDOW_BYTES);
        if !self.held.try_cover(self.covered) {
            self.watch.serving();
            self.held.cover(self.covered, &self.shared.clock).await?;
            self.watch.reading_body(length - here);
        }
        self.watch.holds_room();
        Ok(())
    }
}

/// 204, with the new entity tag when it is surely that of this write: the version follows directly on the one expected.
fn done(shared: &Shared, device: &Arc<dyn Device>, expect: Option<Version>) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let after = device.version();
    let next = expect.map(|before| Version { change: before.change.wrapping_add(1), ..before });
    if next == Some(after.0) {
        response.headers_mut().insert(header::ETAG, version_headers(after, &shared.clock).etag);
    }
    response
}
