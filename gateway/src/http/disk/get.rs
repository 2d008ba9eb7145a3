//! GET and HEAD of a disk: preconditions, ranges, and the answer without waiting when everything is in memory.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use clonegate_core::http::precondition::{Conditions, Verdict, if_range_holds};
use clonegate_core::http::{RangeList, Refusal, Selection, select};
use clonegate_core::limits::{HTTP_RANGES_MAX, READ_WINDOW_BYTES};
use clonegate_core::units::ByteRange;
use clonegate_core::{Error, Result};
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;

use super::body::{Body, Part, Windows, check_length};
use super::multipart;
use super::route::DiskRoute;
use super::validators::{VersionHeaders, content_range, decimal, parse_date, version_headers};
use crate::clock::Clock;
use crate::device::{Device, Segments, Version};
use crate::http::problem;
use crate::http::service::Shared;
use crate::http::watch::Watch;
use crate::metrics::RouteClass;

/// How often a read is begun anew because a write came in between.
const TRIES: usize = 4;

/// The fields of a request that decide what is answered.
#[derive(Debug, Default)]
pub(super) struct Asked<'a> {
    range: Option<&'a [u8]>,
    ranges: usize,
    if_range: Option<&'a [u8]>,
    pub(super) conditions: Conditions<'a>,
}

impl<'a> Asked<'a> {
    /// Reads them in one pass.
    pub(super) fn of(headers: &'a HeaderMap) -> Self {
        let mut asked = Self::default();
        for (name, value) in headers {
            let value = value.as_bytes();
            if *name == header::RANGE {
                asked.range = Some(value);
                asked.ranges += 1;
            } else if *name == header::IF_RANGE {
                // A second one cannot be right together with the first: then none holds.
                asked.if_range = Some(if asked.if_range.is_some() { b"" } else { value });
            } else if *name == header::IF_MATCH {
                asked.conditions.if_match.push(value);
            } else if *name == header::IF_NONE_MATCH {
                asked.conditions.if_none_match.push(value);
            } else if *name == header::IF_MODIFIED_SINCE {
                asked.conditions.if_modified_since = parse_date(value);
            } else if *name == header::IF_UNMODIFIED_SINCE {
                asked.conditions.if_unmodified_since = parse_date(value);
            }
        }
        asked
    }

    /// Whether the answer depends on which version it is of.
    fn pins_version(&self) -> bool {
        !self.conditions.is_empty() || self.if_range.is_some()
    }

    fn plan(&self, size: u64, headers: &VersionHeaders, head: bool) -> Plan {
        let now = headers.validators();
        match self.conditions.judge(now, true) {
            Verdict::NotModified => return Plan::NotModified,
            Verdict::Failed => return Plan::Failed,
            Verdict::Proceed => {}
        }
        // Range is defined for GET alone, and there may be one of it.
        let (Some(range), 1, false) = (self.range, self.ranges, head) else { return Plan::Whole };
        if let Some(condition) = self.if_range
            && !if_range_holds(condition, parse_date(condition), now)
        {
            return Plan::Whole;
        }
        match select(range, size) {
            Selection::Whole => Plan::Whole,
            Selection::One(range) => Plan::One(range),
            Selection::Many(ranges) => Plan::Many(ranges),
            Selection::Refused(refusal) => Plan::Refused(refusal),
        }
    }
}

#[derive(Debug)]
enum Plan {
    NotModified,
    Failed,
    Refused(Refusal),
    Whole,
    One(ByteRange),
    Many(RangeList),
}

/// An answer that needs no more waiting.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    size: u64,
    /// Absent when a write kept coming in between, so that nobody can say which version the bytes are of.
    version: Option<VersionHeaders>,
    range: Option<ByteRange>,
    boundary: Option<String>,
    /// The length for a HEAD.
    length: Option<u64>,
    body: Body,
}

impl Answer {
    /// Makes the response in the emptied header map of the request.
    fn into_response(self, mut headers: HeaderMap) -> Response<Body> {
        headers.clear();
        let mut response = Response::new(self.body);
        *response.status_mut() = self.status;
        if self.status != StatusCode::NOT_MODIFIED {
            let kind = match &self.boundary {
                None => HeaderValue::from_static("application/octet-stream"),
                Some(boundary) => multipart::content_type(boundary),
            };
            headers.insert(header::CONTENT_TYPE, kind);
            headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        }
        if let Some(range) = self.range {
            headers.insert(header::CONTENT_RANGE, content_range(range, self.size));
        }
        if let Some(length) = self.length {
            headers.insert(header::CONTENT_LENGTH, decimal(length));
        }
        if let Some(version) = self.version {
            headers.insert(header::ETAG, version.etag);
            if let Some(date) = version.last_modified {
                headers.insert(header::LAST_MODIFIED, date);
            }
        }
        // The bytes behind this URL may change at any time: a cache on the way must ask.
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        *response.headers_mut() = headers;
        response
    }
}

/// Answers without waiting, or gives the request back.
#[expect(
    clippy::result_large_err,
    reason = "the request goes back by value: a box would be an allocation on the hot path"
)]
pub(crate) fn at_once(
    shared: &Shared,
    watch: &Arc<Watch>,
    request: Request<Incoming>,
) -> std::result::Result<Response<Body>, Request<Incoming>> {
    let head = match *request.method() {
        Method::GET => false,
        Method::HEAD => true,
        _ => return Err(request),
    };
    let Some(route) = DiskRoute::parse(request.uri().path()) else { return Err(request) };
    let Some(device) = shared.exports.peek(route.export().as_str()) else { return Err(request) };
    let class = route.class;
    let Some(answer) = try_answer(&*device, &Asked::of(request.headers()), head, &shared.clock) else {
        return Err(request);
    };
    let counters = &watch.ward.counters;
    counters.answered(class, answer.status.as_u16());
    counters.sent(class, hyper::body::Body::size_hint(&answer.body).lower());
    Ok(answer.into_response(request.into_parts().0.headers))
}

fn try_answer(device: &dyn Device, asked: &Asked<'_>, head: bool, clock: &Clock) -> Option<Answer> {
    let size = device.info().size;
    let before = device.version();
    let version = version_headers(before, clock);
    let (status, range) = match asked.plan(size, &version, head) {
        Plan::Whole => (StatusCode::OK, None),
        Plan::One(range) => (StatusCode::PARTIAL_CONTENT, Some(range)),
        Plan::NotModified => return Some(bodiless(StatusCode::NOT_MODIFIED, size, version)),
        Plan::Failed | Plan::Refused(_) | Plan::Many(_) => return None,
    };
    if head {
        return Some(Answer { length: Some(size), ..bodiless(status, size, version) });
    }
    let wanted = range.unwrap_or(ByteRange::new(0, size));
    if wanted.len() > READ_WINDOW_BYTES {
        return None;
    }
    let segments = device.try_read(wanted)?;
    if device.version() != before || check_length(&segments, wanted.len(), "").is_err() {
        return None;
    }
    Some(Answer {
        status,
        size,
        version: Some(version),
        range,
        boundary: None,
        length: None,
        body: Body::segments(segments, wanted.len()),
    })
}

fn bodiless(status: StatusCode, size: u64, version: VersionHeaders) -> Answer {
    Answer { status, size, version: Some(version), range: None, boundary: None, length: None, body: Body::empty() }
}

/// Answers GET and HEAD of a device, waiting for what is not in memory.
pub(super) async fn get(
    shared: &Shared,
    watch: &Arc<Watch>,
    device: &Arc<dyn Device>,
    class: RouteClass,
    (method, headers): (&Method, &HeaderMap),
) -> Response<Body> {
    let head = *method == Method::HEAD;
    let asked = Asked::of(headers);
    let info = device.info();
    let mut last = false;
    for attempt in 1..=TRIES {
        let before = device.version();
        let version = version_headers(before, &shared.clock);
        let plan = asked.plan(info.size, &version, head);
        let parts = match &plan {
            Plan::NotModified => {
                return bodiless(StatusCode::NOT_MODIFIED, info.size, version).into_response(HeaderMap::new());
            }
            Plan::Failed => return with_validators(precondition_failed(&info.name), version),
            Plan::Refused(refusal) => return refused(*refusal, info.size, &info.name),
            Plan::Whole if head => {
                let answer = bodiless(StatusCode::OK, info.size, version);
                return Answer { length: Some(info.size), ..answer }.into_response(HeaderMap::new());
            }
            Plan::Whole => Parts::single(StatusCode::OK, ByteRange::new(0, info.size), None),
            Plan::One(range) => Parts::single(StatusCode::PARTIAL_CONTENT, *range, Some(*range)),
            Plan::Many(ranges) => Parts::many(ranges, info.size, &shared.clock),
        };
        let one_read = match parts.list.as_slices().0 {
            [Part::Data(range)] if range.len() <= READ_WINDOW_BYTES => Some(*range),
            _ => None,
        };
        last = attempt == TRIES;
        let body = match one_read {
            Some(range) => read_one(device, range, before.0, last && !asked.pins_version()).await,
            None => stream(device, parts.list, before.0, class, watch).await,
        };
        match body {
            Ok((body, same_version)) => {
                if let Some(range) = one_read {
                    watch.ward.counters.sent(class, range.len());
                }
                let version = same_version.then_some(version);
                let answer = Answer {
                    status: parts.status,
                    size: info.size,
                    version,
                    range: parts.range,
                    boundary: parts.boundary,
                    length: None,
                    body,
                };
                return answer.into_response(HeaderMap::new());
            }
            Err(error) if error.code() == "version-changed" => {}
            Err(error) => return problem::respond(&error).map(Body::full),
        }
    }
    debug_assert!(last, "the loop ends by an answer or after its last try");
    let error =
        Error::unavailable("changing", "the volume is being written to, so that no answer would be of one version")
            .on(&info.name)
            .hint("try again, without a precondition, or by smaller ranges; or read a snapshot");
    problem::respond(&error).map(Body::full)
}

/// One window. The second result says whether the bytes are surely those of `version`.
async fn read_one(
    device: &Arc<dyn Device>,
    range: ByteRange,
    version: Version,
    any_version: bool,
) -> Result<(Body, bool)> {
    let segments: Segments = device.read(range).await?;
    let same = device.version().0 == version;
    if !same && !any_version {
        return Err(Error::conflict("version-changed", "the volume was written to while it was being read"));
    }
    check_length(&segments, range.len(), &device.info().name)?;
    Ok((Body::segments(segments, range.len()), same))
}

async fn stream(
    device: &Arc<dyn Device>,
    parts: VecDeque<Part>,
    version: Version,
    class: RouteClass,
    watch: &Arc<Watch>,
) -> Result<(Body, bool)> {
    let mut windows = Windows::new(Arc::clone(device), version, parts, class, Arc::clone(watch));
    windows.start().await?;
    Ok((Body::windows(windows), true))
}

#[derive(Debug)]
struct Parts {
    status: StatusCode,
    list: VecDeque<Part>,
    range: Option<ByteRange>,
    boundary: Option<String>,
}

impl Parts {
    fn single(status: StatusCode, data: ByteRange, range: Option<ByteRange>) -> Self {
        Self { status, list: VecDeque::from([Part::Data(data)]), range, boundary: None }
    }

    fn many(ranges: &RangeList, size: u64, clock: &Clock) -> Self {
        let boundary = multipart::boundary(clock);
        let list = multipart::parts(ranges, size, &boundary);
        Self { status: StatusCode::PARTIAL_CONTENT, list, range: None, boundary: Some(boundary) }
    }
}

/// 412.
pub(super) fn precondition_failed(name: &str) -> Response<Bytes> {
    let error = Error::conflict("precondition-failed", "the volume is not in the state that the request names")
        .on(name)
        .hint("read the ETag again and decide anew");
    problem::respond(&error)
}

fn with_validators(response: Response<Bytes>, version: VersionHeaders) -> Response<Body> {
    let mut response = response.map(Body::full);
    response.headers_mut().insert(header::ETAG, version.etag);
    response
}

/// 416.
fn refused(refusal: Refusal, size: u64, name: &str) -> Response<Body> {
    let error = match refusal {
        Refusal::Unsatisfiable => {
            Error::invalid("range-unsatisfiable", format!("no range begins within the {size} bytes of the volume"))
                .hint("begin below its size, which Content-Range and HEAD say")
        }
        Refusal::TooMany => {
            Error::invalid("too-many-ranges", format!("a request may name at most {HTTP_RANGES_MAX} ranges"))
                .hint("ask for fewer ranges at a time")
        }
        Refusal::Overlapping => {
            Error::invalid("overlapping-ranges", "more than two ranges overlap").hint("ask for each byte once")
        }
    };
    beyond_end(&error.on(name), size)
}

/// A 416 that says how large the volume is.
pub(super) fn beyond_end(error: &Error, size: u64) -> Response<Body> {
    let mut response = problem::respond(error).map(Body::full);
    if let Ok(value) = HeaderValue::try_from(format!("bytes */{size}")) {
        response.headers_mut().insert(header::CONTENT_RANGE, value);
    }
    response
}
