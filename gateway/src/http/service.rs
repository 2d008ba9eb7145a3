//! What a connection does with a request: a disk from memory, a disk that has to be waited for, or the router.

use std::convert::Infallible;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use bytes::Bytes;
use clonegate_core::Error;
use clonegate_core::format::sparse::MEDIA_TYPE;
use clonegate_core::limits::HTTP_CONTROL_BODY_BYTES_MAX;
use futures::future::BoxFuture;
use http::{HeaderValue, Method, Request, Response, Version, header};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::service::Service;
use tokio::runtime::Handle;
use tower::ServiceExt;

use super::auth::Tokens;
use super::disk::{self, Body, DiskRoute};
use super::problem;
use super::room::Room;
use super::watch::Watch;
use crate::clock::Clock;
use crate::exports::Exports;
use crate::metrics::RouteClass;

/// What all connections of a server share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) exports: Arc<dyn Exports>,
    pub(crate) clock: Clock,
    pub(crate) router: Router,
    /// Where the router's handlers run: they may do store IO.
    pub(crate) main: Handle,
    /// For the bodies of PUTs.
    pub(crate) room: Arc<Room>,
    /// Who may ask; `None` for anybody.
    pub(crate) tokens: Option<Arc<Tokens>>,
}

/// One connection's requests.
#[derive(Debug)]
pub(super) struct Requests {
    pub(super) shared: Arc<Shared>,
    pub(super) watch: Arc<Watch>,
    pub(super) peer: Option<IpAddr>,
    /// Whether it is under TLS.
    pub(super) secure: bool,
}

impl Service<Request<Incoming>> for Requests {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, mut request: Request<Incoming>) -> Answer {
        self.watch.begin();
        pin(&mut request);
        let answer = match self.admit(&mut request) {
            Ok(()) => disk::at_once(&self.shared, &self.watch, request),
            Err(error) => {
                let response = problem::respond(&error);
                self.watch.ward.counters.answered(RouteClass::Control, response.status().as_u16());
                Ok(response.map(Body::full))
            }
        };
        match answer {
            Ok(response) => Answer::Now(Some(response.map(|body| body.watched(Arc::clone(&self.watch))))),
            Err(request) => {
                let from = (self.peer, self.secure);
                Answer::Later(Box::pin(later(Arc::clone(&self.shared), Arc::clone(&self.watch), from, request)))
            }
        }
    }
}

impl Requests {
    /// Whether the request is one that may be looked at.
    fn admit(&self, request: &mut Request<Incoming>) -> Result<(), Error> {
        if !host_is_right(request) {
            return Err(Error::invalid("bad-host", "an HTTP/1.1 request has exactly one Host"));
        }
        if !is_text(request.uri().path()) {
            return Err(Error::invalid("bad-path", "the path is not UTF-8")
                .hint("encode names as UTF-8, then by percent signs"));
        }
        if let Some(tokens) = &self.shared.tokens
            && let Some(caller) = tokens.admit(request)?
        {
            request.extensions_mut().insert(caller);
        }
        Ok(())
    }
}

/// The version in the URL of a disk is the `If-Match` of a client that cannot send one: boot loaders read a disk by many requests, and
/// must not get bytes of two states of it.
fn pin<B>(request: &mut Request<B>) {
    let Some(query) = request.uri().query() else { return };
    let Some(version) = query.split('&').find_map(|pair| pair.strip_prefix("version=")) else { return };
    if DiskRoute::parse(request.uri().path()).is_some() {
        // What cannot be a version is none that there is.
        let right = version.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        let tag = HeaderValue::try_from(format!("\"{}\"", if right { version } else { "" }));
        request.headers_mut().insert(header::IF_MATCH, tag.unwrap_or(HeaderValue::from_static("\"\"")));
    }
}

/// Handlers take the names in a path as text.
fn is_text(path: &str) -> bool {
    !path.contains('%') || percent_encoding::percent_decode_str(path).decode_utf8().is_ok()
}

/// RFC 9112 §3.2.
fn host_is_right(request: &Request<Incoming>) -> bool {
    if request.version() != Version::HTTP_11 {
        return true;
    }
    let mut hosts = request.headers().get_all(header::HOST).iter();
    hosts.next().is_some() && hosts.next().is_none()
}

/// Says to handlers that a request came under TLS.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Encrypted;

/// Where a request came from, for handlers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) IpAddr);

async fn later(
    shared: Arc<Shared>,
    watch: Arc<Watch>,
    (peer, secure): (Option<IpAddr>, bool),
    mut request: Request<Incoming>,
) -> Response<Body> {
    if secure {
        request.extensions_mut().insert(Encrypted);
    }
    if let Some(peer) = peer {
        request.extensions_mut().insert(Peer(peer));
    }
    let response = if DiskRoute::parse(request.uri().path()).is_some() {
        disk::serve(&shared, &watch, request).await
    } else {
        let head = *request.method() == Method::HEAD;
        let response = route(&shared, &watch, request).await;
        watch.ward.counters.answered(RouteClass::Control, response.status().as_u16());
        // Files out of volumes and boot programs are most of what some machines read.
        let length = response.headers().get(header::CONTENT_LENGTH).filter(|_| !head);
        let length = length.and_then(|value| value.to_str().ok()?.parse().ok());
        watch.ward.counters.sent(RouteClass::Control, length.unwrap_or(0));
        response
    };
    response.map(|body| body.watched(watch))
}

async fn route(shared: &Shared, watch: &Arc<Watch>, request: Request<Incoming>) -> Response<Body> {
    let upload = request.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == MEDIA_TYPE);
    let bound = (!upload).then_some(HTTP_CONTROL_BODY_BYTES_MAX as u64);
    let watch = Arc::clone(watch);
    let request = request.map(|body| axum::body::Body::new(RequestBody { inner: body, watch, bound }));
    let answer = shared.main.spawn(shared.router.clone().oneshot(request));
    match answer.await {
        Ok(Ok(response)) => response.map(Body::router),
        Ok(Err(never)) => match never {},
        Err(_) => {
            let error = Error::internal("handler-died", "the request could not be answered because of a bug");
            problem::respond(&error).map(Body::full)
        }
    }
}

/// A request body for the router, which tells the watch when its handler waits for the client.
struct RequestBody {
    inner: Incoming,
    watch: Arc<Watch>,
    bound: Option<u64>,
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        match &polled {
            Poll::Pending => self.watch.awaiting_body(self.bound),
            Poll::Ready(_) => self.watch.serving(),
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// The answer to a request, at once or later.
#[expect(
    clippy::large_enum_variant,
    reason = "the answer that is ready is the hot path: a box would be an allocation for each"
)]
pub(super) enum Answer {
    Now(Option<Response<Body>>),
    Later(BoxFuture<'static, Response<Body>>),
}

impl Future for Answer {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Self::Now(response) => response.take().map_or(Poll::Pending, |response| Poll::Ready(Ok(response))),
            Self::Later(future) => future.as_mut().poll(cx).map(Ok),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_in_the_url_of_a_disk_is_a_precondition() {
        let check = |uri: &str, expect: Option<&str>| {
            let mut request = Request::get(uri).body(()).unwrap();
            pin(&mut request);
            let tag = request.headers().get(header::IF_MATCH).map(|value| value.to_str().unwrap());
            assert_eq!(tag, expect, "{uri}");
        };
        check("/v1/clones/pc/disk?version=1f-2", Some("\"1f-2\""));
        check("/v1/clones/pc/disk.img?a=b&version=1f-2", Some("\"1f-2\""));
        check("/v1/clones/pc/disk?version=*", Some("\"\""));
        check("/v1/clones/pc/disk?version=", Some("\"\""));
        check("/v1/clones/pc/disk?versions=1", None);
        check("/v1/clones/pc/disk", None);
        check("/v1/clones/pc?version=1f-2", None);
    }
}
