//! `multipart/byteranges` (RFC 9110 §14.6).

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use clonegate_core::http::{RangeList, write_content_range};
use http::header::HeaderValue;

use super::body::Part;
use crate::clock::Clock;

/// A boundary that no disk can hold on purpose, as it is drawn for each answer.
pub(super) fn boundary(clock: &Clock) -> String {
    format!("clonegate-{:016x}{:016x}", clock.random_u64(), clock.random_u64())
}

/// The `Content-Type` for a boundary of [`boundary`].
pub(super) fn content_type(boundary: &str) -> HeaderValue {
    HeaderValue::try_from(format!("multipart/byteranges; boundary={boundary}"))
        .unwrap_or_else(|_| HeaderValue::from_static("multipart/byteranges"))
}

/// The parts in the order in which they were asked for, with what stands between them.
pub(super) fn parts(ranges: &RangeList, size: u64, boundary: &str) -> VecDeque<Part> {
    let mut parts = VecDeque::with_capacity(ranges.len() * 2 + 1);
    for (position, range) in ranges.iter().enumerate() {
        let mut text = BytesMut::with_capacity(256);
        text.extend_from_slice(if position == 0 { b"--" } else { b"\r\n--" });
        text.extend_from_slice(boundary.as_bytes());
        text.extend_from_slice(b"\r\nContent-Type: application/octet-stream\r\nContent-Range: ");
        write_content_range(&mut text, *range, size);
        text.extend_from_slice(b"\r\n\r\n");
        parts.push_back(Part::Text(text.freeze()));
        parts.push_back(Part::Data(*range));
    }
    parts.push_back(Part::Text(Bytes::from(format!("\r\n--{boundary}--\r\n"))));
    parts
}
