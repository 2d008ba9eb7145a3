//! `Idempotency-Key`: a change that is sent again is answered again, and done once.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use clonegate_core::Error;
use clonegate_core::format::sparse::MEDIA_TYPE;
use clonegate_core::limits::{
    HTTP_ANSWER_KEPT_BYTES_MAX, HTTP_ANSWERS_KEPT_BYTES_MAX, HTTP_ANSWERS_KEPT_MAX, HTTP_CONTROL_BODY_BYTES_MAX,
};
use futures::{StreamExt, stream};
use http::header::{CONTENT_TYPE, HeaderValue, LOCATION};
use http::{Method, StatusCode};
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use super::answer::Refusal;

pub(super) const HEADER: &str = "idempotency-key";
/// Longest key, bytes.
const KEY_BYTES_MAX: usize = 255;

/// Answers by key. In memory: a restarted gateway does not know them.
#[derive(Debug)]
pub(super) struct Kept {
    ring: Mutex<Ring>,
    bounds: Bounds,
}

/// What is kept at most.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    answers: usize,
    /// Of all bodies.
    bytes: usize,
    /// Of one body.
    answer_bytes: usize,
}

#[derive(Debug, Default)]
struct Ring {
    by_key: HashMap<String, Place>,
    order: VecDeque<String>,
    bytes: usize,
}

#[derive(Debug)]
struct Place {
    once: Arc<Once>,
    /// Bytes of its answer, once there is one.
    bytes: usize,
}

#[derive(Debug)]
struct Once {
    request: blake3::Hash,
    answer: OnceCell<Answered>,
}

#[derive(Debug, Clone)]
struct Answered {
    status: StatusCode,
    content_type: Option<HeaderValue>,
    location: Option<HeaderValue>,
    /// `None` when it is too large to be kept.
    body: Option<Bytes>,
}

impl Default for Kept {
    fn default() -> Self {
        Self::within(Bounds {
            answers: HTTP_ANSWERS_KEPT_MAX,
            bytes: HTTP_ANSWERS_KEPT_BYTES_MAX,
            answer_bytes: HTTP_ANSWER_KEPT_BYTES_MAX,
        })
    }
}

impl Kept {
    fn within(bounds: Bounds) -> Self {
        Self { ring: Mutex::default(), bounds }
    }

    fn entry(&self, key: &str, request: blake3::Hash) -> Arc<Once> {
        let mut ring = self.ring.lock();
        if let Some(place) = ring.by_key.get(key) {
            return Arc::clone(&place.once);
        }
        if ring.order.len() >= self.bounds.answers {
            // Rather one that is answered than one that is being done, which may be sent again at any moment.
            ring.remove(|place| place.once.answer.initialized()).or_else(|| ring.remove(|_| true));
        }
        let once = Arc::new(Once { request, answer: OnceCell::new() });
        ring.by_key.insert(key.to_owned(), Place { once: Arc::clone(&once), bytes: 0 });
        ring.order.push_back(key.to_owned());
        once
    }

    /// The answer under `key` has come: older ones make room for its bytes.
    fn answered(&self, key: &str, once: &Arc<Once>, bytes: usize) {
        let mut ring = self.ring.lock();
        let Some(place) = ring.by_key.get_mut(key).filter(|place| Arc::ptr_eq(&place.once, once)) else { return };
        place.bytes = bytes;
        ring.bytes += bytes;
        while ring.bytes > self.bounds.bytes && ring.remove(|place| place.bytes > 0).is_some() {}
    }

    fn forget(&self, once: &Arc<Once>) {
        self.ring.lock().remove(|place| Arc::ptr_eq(&place.once, once));
    }
}

impl Ring {
    /// Takes out the oldest of this kind.
    fn remove(&mut self, kind: impl Fn(&Place) -> bool) -> Option<()> {
        let at = self.order.iter().position(|key| self.by_key.get(key).is_some_and(&kind))?;
        let place = self.by_key.remove(&self.order.remove(at)?)?;
        self.bytes -= place.bytes;
        Some(())
    }
}

/// Does a change with a key once. Two at the same time: the second waits for the answer of the first.
pub(super) async fn once(State(kept): State<Arc<Kept>>, request: Request, next: Next) -> Response {
    let key = match key_of(&request) {
        Ok(Some(key)) => key,
        Ok(None) => return next.run(request).await,
        Err(error) => return Refusal(error).into_response(),
    };
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, HTTP_CONTROL_BODY_BYTES_MAX).await else {
        let error =
            Error::invalid("body-too-large", "the body is larger than a request with an Idempotency-Key may have");
        return Refusal(error).into_response();
    };
    let mut hash = blake3::Hasher::new();
    for part in [parts.method.as_str().as_bytes(), parts.uri.to_string().as_bytes(), &body] {
        hash.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    let once = kept.entry(&key, hash.finalize());
    if once.request != hash.finalize() {
        let error = Error::conflict("idempotency-key-reused", "the key was used for another request").on(key);
        return Refusal(error.hint("use a new key for each change")).into_response();
    }
    let mut done_now = None;
    let answered = once.answer.get_or_init(async || {
        let response = next.run(Request::from_parts(parts, Body::from(body))).await;
        let (parts, body) = response.into_parts();
        let (kept, body) = gather(body, kept.bounds.answer_bytes).await;
        let header = |name| parts.headers.get(name).cloned();
        let (content_type, location) = (header(CONTENT_TYPE), header(LOCATION));
        let answered = Answered { status: parts.status, content_type, location, body: kept };
        done_now = Some(Response::from_parts(parts, body));
        answered
    });
    let answered = answered.await;
    // What may go better next time is not held against the client.
    if answered.status.is_server_error() {
        kept.forget(&once);
    } else if done_now.is_some() {
        kept.answered(&key, &once, answered.body.as_ref().map_or(0, Bytes::len));
    }
    done_now.unwrap_or_else(|| again(&key, answered))
}

/// A body to be kept, when it has at most `most` bytes, and the same to be sent.
async fn gather(body: Body, most: usize) -> (Option<Bytes>, Body) {
    let mut rest = body.into_data_stream();
    let (mut pieces, mut bytes) = (Vec::new(), 0);
    while let Some(piece) = rest.next().await {
        bytes += piece.as_ref().map_or(0, Bytes::len);
        let broken = piece.is_err();
        pieces.push(piece);
        if broken || bytes > most {
            return (None, Body::from_stream(stream::iter(pieces).chain(rest)));
        }
    }
    let whole: Bytes = match pieces.len() {
        1 => pieces.pop().and_then(Result::ok).unwrap_or_default(),
        _ => pieces.into_iter().flatten().collect::<Vec<Bytes>>().concat().into(),
    };
    (Some(whole.clone()), Body::from(whole))
}

/// What a request gets that was answered before.
fn again(key: &str, answered: &Answered) -> Response {
    let mut response = match &answered.body {
        Some(body) => (answered.status, body.clone()).into_response(),
        None => {
            let how = if answered.status.is_success() { "was done" } else { "was refused" };
            let text = format!("the request {how} ({}); its answer was too large to be kept", answered.status.as_u16());
            let place = answered.location.as_ref().and_then(|location| location.to_str().ok());
            let place = place.map_or_else(|| "list what it was about".to_owned(), |place| format!("see {place}"));
            let hint = format!("it is not done a second time: {place}");
            Refusal(Error::conflict("answer-not-kept", text).on(key).hint(hint)).into_response()
        }
    };
    let headers = response.headers_mut();
    if let (Some(content_type), true) = (&answered.content_type, answered.body.is_some()) {
        headers.insert(CONTENT_TYPE, content_type.clone());
    }
    if let Some(location) = &answered.location {
        headers.insert(LOCATION, location.clone());
    }
    headers.insert("idempotency-replayed", HeaderValue::from_static("true"));
    response
}

/// The key of a change; uploads are not kept, as they are larger than any answer.
fn key_of(request: &Request) -> Result<Option<String>, Error> {
    if matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS) {
        return Ok(None);
    }
    if request.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == MEDIA_TYPE) {
        return Ok(None);
    }
    let Some(key) = request.headers().get(HEADER) else { return Ok(None) };
    match key.to_str() {
        Ok(key) if !key.is_empty() && key.len() <= KEY_BYTES_MAX => Ok(Some(key.to_owned())),
        _ => Err(Error::invalid(
            "bad-idempotency-key",
            format!("Idempotency-Key is not 1 to {KEY_BYTES_MAX} ASCII characters"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

    use axum::Router;
    use axum::routing::post;
    use tower::ServiceExt;

    use super::*;

    fn app(status: StatusCode) -> (Router, Arc<AtomicU32>) {
        app_that_keeps(Kept::default(), status)
    }

    fn app_that_keeps(kept: Kept, status: StatusCode) -> (Router, Arc<AtomicU32>) {
        let count = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&count);
        let handler = move |body: String| {
            let number = counter.fetch_add(1, SeqCst) + 1;
            async move {
                tokio::task::yield_now().await;
                (status, [(LOCATION, format!("/v1/things/{number}"))], format!("{number} {body}"))
            }
        };
        let router = Router::new().route("/", post(handler));
        (router.layer(axum::middleware::from_fn_with_state(Arc::new(kept), once)), count)
    }

    async fn send(app: &Router, key: Option<&str>, body: &'static str) -> (u16, String, bool) {
        let mut request = Request::builder().method("POST").uri("/");
        if let Some(key) = key {
            request = request.header(HEADER, key);
        }
        let response = app.clone().oneshot(request.body(Body::from(body)).unwrap()).await.unwrap();
        let replayed = response.headers().contains_key("idempotency-replayed");
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), 1000).await.unwrap();
        (status, String::from_utf8_lossy(&body).into_owned(), replayed)
    }

    #[tokio::test]
    async fn a_change_that_is_sent_again_is_done_once() {
        let (app, count) = app(StatusCode::CREATED);
        let (first, second) = tokio::join!(send(&app, Some("k"), "a"), send(&app, Some("k"), "a"));
        assert_eq!((first.0, first.1.as_str(), first.2), (201, "1 a", false));
        assert_eq!((second.0, second.1.as_str(), second.2), (201, "1 a", true));
        assert_eq!(send(&app, Some("other"), "a").await.1, "2 a");
        assert_eq!(send(&app, None, "a").await.1, "3 a");
        assert_eq!(count.load(SeqCst), 3);
        let reused = send(&app, Some("k"), "b").await;
        assert!(reused.0 == 409 && reused.1.contains("idempotency-key-reused"));
        assert_eq!(send(&app, Some(""), "a").await.0, 400);
    }

    #[tokio::test]
    async fn a_failure_of_ours_is_tried_again() {
        let (app, count) = app(StatusCode::SERVICE_UNAVAILABLE);
        for _ in 0..2 {
            assert_eq!(send(&app, Some("k"), "a").await.0, 503);
        }
        assert_eq!(count.load(SeqCst), 2);
    }

    #[tokio::test]
    async fn the_oldest_answers_go_when_all_together_have_too_many_bytes() {
        let bounds = Bounds { answers: 3, bytes: 20, answer_bytes: 20 };
        let (app, count) = app_that_keeps(Kept::within(bounds), StatusCode::OK);
        for key in ["a", "b"] {
            assert_eq!(send(&app, Some(key), "12345678").await.1.len(), 10);
        }
        for key in ["a", "b"] {
            assert!(send(&app, Some(key), "12345678").await.2, "{key} fits");
        }
        assert_eq!(send(&app, Some("c"), "1").await.1, "3 1");
        assert!(send(&app, Some("b"), "12345678").await.2 && send(&app, Some("c"), "1").await.2);
        assert_eq!(count.load(SeqCst), 3);
        assert!(!send(&app, Some("a"), "12345678").await.2, "the oldest made room");
        // The number is a bound, too.
        for key in ["d", "e", "f"] {
            send(&app, Some(key), "").await;
        }
        assert!(send(&app, Some("f"), "").await.2 && !send(&app, Some("c"), "1").await.2);
    }

    #[tokio::test]
    async fn of_an_answer_too_large_to_keep_its_caller_gets_all_and_a_repeat_hears_that_it_is_done_and_where() {
        let bounds = Bounds { answers: 10, bytes: 8, answer_bytes: 8 };
        let (app, count) = app_that_keeps(Kept::within(bounds), StatusCode::CREATED);
        let (first, second) = tokio::join!(send(&app, Some("k"), "a long one"), send(&app, Some("k"), "a long one"));
        assert_eq!((first.0, first.1.as_str(), first.2), (201, "1 a long one", false));
        for again in [second, send(&app, Some("k"), "a long one").await] {
            assert_eq!((again.0, again.2), (409, true));
            for part in ["answer-not-kept", "(201)", "see /v1/things/1"] {
                assert!(again.1.contains(part), "{part}: {}", again.1);
            }
        }
        assert_eq!(count.load(SeqCst), 1);
    }
}
