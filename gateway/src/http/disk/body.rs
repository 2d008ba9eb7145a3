//! Response bodies: slices of cached lines, handed to the socket as they are.

use std::collections::VecDeque;
use std::error::Error as StdError;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use clonegate_core::limits::READ_WINDOW_BYTES;
use clonegate_core::units::ByteRange;
use clonegate_core::{Error, Result};
use futures::future::BoxFuture;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use crate::device::{Device, Segments, Version};
use crate::http::watch::Watch;
use crate::metrics::RouteClass;

/// Why a body broke off.
pub(crate) type BodyError = Box<dyn StdError + Send + Sync>;

type SegmentsIter = <Segments as IntoIterator>::IntoIter;

/// The body of any answer. When it is dropped, the connection waits for its next request.
#[derive(Debug)]
pub(crate) struct Body {
    kind: Kind,
    watch: Option<Arc<Watch>>,
}

#[derive(Debug)]
enum Kind {
    Empty,
    Full(Bytes),
    Segments { rest: SegmentsIter, left: u64 },
    Windows(Box<Windows>),
    Router(axum::body::Body),
}

impl Body {
    pub(crate) fn empty() -> Self {
        Self { kind: Kind::Empty, watch: None }
    }

    pub(crate) fn full(bytes: Bytes) -> Self {
        Self { kind: Kind::Full(bytes), watch: None }
    }

    /// `length` bytes that are here.
    pub(crate) fn segments(segments: Segments, length: u64) -> Self {
        Self { kind: Kind::Segments { rest: segments.into_iter(), left: length }, watch: None }
    }

    pub(crate) fn windows(windows: Windows) -> Self {
        Self { kind: Kind::Windows(Box::new(windows)), watch: None }
    }

    pub(crate) fn router(body: axum::body::Body) -> Self {
        Self { kind: Kind::Router(body), watch: None }
    }

    /// Tells `watch` when the answer is complete.
    pub(crate) fn watched(mut self, watch: Arc<Watch>) -> Self {
        self.watch = Some(watch);
        self
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if let Some(watch) = &self.watch {
            watch.idle();
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, BodyError>>> {
        match &mut self.kind {
            Kind::Empty => Poll::Ready(None),
            Kind::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Kind::Segments { rest, left } => {
                let next = rest.find(|bytes| !bytes.is_empty());
                if let Some(bytes) = &next {
                    *left = left.saturating_sub(bytes.len() as u64);
                }
                Poll::Ready(next.map(|bytes| Ok(Frame::data(bytes))))
            }
            Kind::Windows(windows) => match ready!(windows.poll_next(cx)) {
                None => Poll::Ready(None),
                Some(Ok(bytes)) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
                Some(Err(error)) => {
                    windows.watch.ward.counters.aborted();
                    tracing::warn!(code = error.code(), %error, "an answer was broken off");
                    Poll::Ready(Some(Err(Box::new(error))))
                }
            },
            Kind::Router(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Empty => true,
            Kind::Full(bytes) => bytes.is_empty(),
            Kind::Segments { left, .. } => *left == 0,
            Kind::Windows(windows) => windows.left == 0,
            Kind::Router(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Segments { left, .. } => SizeHint::with_exact(*left),
            Kind::Windows(windows) => SizeHint::with_exact(windows.left),
            Kind::Router(body) => body.size_hint(),
        }
    }
}

/// A piece of a long answer.
#[derive(Debug)]
pub(crate) enum Part {
    /// Text between the parts of a multipart answer.
    Text(Bytes),
    /// Bytes of the device.
    Data(ByteRange),
}

impl Part {
    fn length(&self) -> u64 {
        match self {
            Self::Text(text) => text.len() as u64,
            Self::Data(range) => range.len(),
        }
    }
}

/// A long answer: read a window at a time, all of it from one version of the device, or broken off.
pub(crate) struct Windows {
    device: Arc<dyn Device>,
    version: Version,
    parts: VecDeque<Part>,
    here: SegmentsIter,
    reading: Option<(u64, BoxFuture<'static, Result<Segments>>)>,
    left: u64,
    class: RouteClass,
    watch: Arc<Watch>,
}

impl std::fmt::Debug for Windows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Windows").field("left", &self.left).finish_non_exhaustive()
    }
}

impl Windows {
    pub(crate) fn new(
        device: Arc<dyn Device>,
        version: Version,
        parts: VecDeque<Part>,
        class: RouteClass,
        watch: Arc<Watch>,
    ) -> Self {
        let left = parts.iter().map(Part::length).fold(0, u64::saturating_add);
        Self { device, version, parts, here: Segments::new().into_iter(), reading: None, left, class, watch }
    }

    /// Waits until the first bytes are here, so that what fails at once fails with a status.
    pub(crate) async fn start(&mut self) -> Result<()> {
        std::future::poll_fn(|cx| self.poll_fill(cx)).await.map(|_| ())
    }

    /// Whether there is anything in `here`, once it has been waited for.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool>> {
        loop {
            if self.here.as_slice().iter().any(|bytes| !bytes.is_empty()) {
                return Poll::Ready(Ok(true));
            }
            let (length, segments) = match &mut self.reading {
                Some((length, reading)) => {
                    let segments = ready!(reading.as_mut().poll(cx));
                    let length = *length;
                    self.reading = None;
                    (length, segments?)
                }
                None => match self.parts.pop_front() {
                    None => return Poll::Ready(Ok(false)),
                    Some(Part::Text(text)) => {
                        self.here = Segments::from_iter([text]).into_iter();
                        continue;
                    }
                    Some(Part::Data(range)) => match self.begin(range) {
                        Some(read) => read,
                        None => continue,
                    },
                },
            };
            let (now, _) = self.device.version();
            if now != self.version {
                return Poll::Ready(Err(Error::conflict(
                    "version-changed",
                    "the volume was written to while it was being read",
                )
                .on(&self.device.info().name)
                .hint("read it by ranges, or read a snapshot")));
            }
            check_length(&segments, length, &self.device.info().name)?;
            self.here = segments.into_iter();
        }
    }

    /// Reads the first window of `range`: at once, or as a future that `reading` keeps.
    fn begin(&mut self, range: ByteRange) -> Option<(u64, Segments)> {
        let window = ByteRange::new(range.start(), range.end().min(range.start().saturating_add(READ_WINDOW_BYTES)));
        if window.end() < range.end() {
            self.parts.push_front(Part::Data(ByteRange::new(window.end(), range.end())));
        }
        if let Some(segments) = self.device.try_read(window) {
            return Some((window.len(), segments));
        }
        let device = Arc::clone(&self.device);
        self.reading = Some((window.len(), Box::pin(async move { device.read(window).await })));
        None
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes>>> {
        match ready!(self.poll_fill(cx)) {
            Err(error) => Poll::Ready(Some(Err(error))),
            Ok(false) => Poll::Ready(None),
            Ok(true) => {
                let next = self.here.find(|bytes| !bytes.is_empty());
                if let Some(bytes) = &next {
                    self.left = self.left.saturating_sub(bytes.len() as u64);
                    self.watch.ward.counters.sent(self.class, bytes.len() as u64);
                }
                Poll::Ready(next.map(Ok))
            }
        }
    }
}

/// A device that gives more or less than it was asked for is not trusted with the framing of the connection.
pub(crate) fn check_length(segments: &Segments, length: u64, name: &str) -> Result<()> {
    let got: u64 = segments.iter().map(|bytes| bytes.len() as u64).sum();
    if got == length {
        return Ok(());
    }
    Err(Error::internal("read-length", format!("a read of {length} bytes gave {got}")).on(name))
}
