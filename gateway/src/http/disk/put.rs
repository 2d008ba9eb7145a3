//! PUT of a disk: writes the bytes that `Content-Range` names, all of them or none.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use clonegate_core::http::ContentRange;
use clonegate_core::http::precondition::Verdict;
use clonegate_core::limits::HTTP_WRITE_BYTES_MAX;
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
use crate::http::service::Shared;
use crate::http::watch::Watch;

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
        let permits = u32::try_from(range.len()).unwrap_or(u32::MAX).min(shared.write_buffers_max);
        let _room = shared.write_buffers.acquire_many(permits).await;
        watch.reading_body(range.len());
        let data = collect(body, range).await?;
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

/// The body, which must be as long as `range`. Without a copy when it came in one piece.
async fn collect(mut body: Incoming, range: ByteRange) -> Result<Bytes> {
    let length = usize::try_from(range.len()).unwrap_or(usize::MAX);
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|error| Error::invalid("body-broken", "the body could not be read").because(error))?;
        let Ok(data) = frame.into_data() else { continue };
        if whole.is_empty() && data.len() == length && body.is_end_stream() {
            return Ok(data);
        }
        if whole.len() + data.len() > length {
            return Err(length_mismatch(range, (whole.len() + data.len()) as u64));
        }
        whole.reserve(if whole.is_empty() { length } else { 0 });
        whole.extend_from_slice(&data);
    }
    if whole.len() == length { Ok(whole.freeze()) } else { Err(length_mismatch(range, whole.len() as u64)) }
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
