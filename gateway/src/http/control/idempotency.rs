//! `Idempotency-Key`: a change that is sent again is answered again, and done once.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use clonegate_core::Error;
use clonegate_core::format::sparse::MEDIA_TYPE;
use clonegate_core::limits::HTTP_CONTROL_BODY_BYTES_MAX;
use http::header::{CONTENT_TYPE, HeaderValue, LOCATION};
use http::{HeaderMap, Method, StatusCode};
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use super::answer::Refusal;

pub(super) const HEADER: &str = "idempotency-key";
/// Longest key, bytes.
const KEY_BYTES_MAX: usize = 255;
/// Answers kept; the oldest goes first.
const KEPT_MAX: usize = 1000;
/// Largest answer that is kept, bytes.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Answers by key. In memory: a restarted gateway does not know them.
#[derive(Debug, Default)]
pub(super) struct Kept(Mutex<Ring>);

#[derive(Debug, Default)]
struct Ring {
    by_key: HashMap<String, Arc<Once>>,
    order: VecDeque<String>,
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
    body: Bytes,
}

impl Kept {
    fn entry(&self, key: &str, request: blake3::Hash) -> Arc<Once> {
        let mut ring = self.0.lock();
        if let Some(once) = ring.by_key.get(key) {
            return Arc::clone(once);
        }
        if ring.order.len() >= KEPT_MAX
            && let Some(oldest) = ring.order.pop_front()
        {
            ring.by_key.remove(&oldest);
        }
        let once = Arc::new(Once { request, answer: OnceCell::new() });
        ring.by_key.insert(key.to_owned(), Arc::clone(&once));
        ring.order.push_back(key.to_owned());
        once
    }

    fn forget(&self, key: &str) {
        let mut ring = self.0.lock();
        ring.by_key.remove(key);
        ring.order.retain(|kept| kept != key);
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
    let mut done_now = false;
    let answered = once.answer.get_or_init(async || {
        done_now = true;
        let response = next.run(Request::from_parts(parts, Body::from(body))).await;
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, ANSWER_BYTES_MAX).await.unwrap_or_default();
        let header = |name| parts.headers.get(name).cloned();
        Answered { status: parts.status, content_type: header(CONTENT_TYPE), location: header(LOCATION), body }
    });
    let answered = answered.await.clone();
    // What may go better next time is not held against the client.
    if answered.status.is_server_error() {
        kept.forget(&key);
    }
    let mut headers = HeaderMap::new();
    if let Some(content_type) = answered.content_type {
        headers.insert(CONTENT_TYPE, content_type);
    }
    if let Some(location) = answered.location {
        headers.insert(LOCATION, location);
    }
    if !done_now {
        headers.insert("idempotency-replayed", HeaderValue::from_static("true"));
    }
    (answered.status, headers, answered.body).into_response()
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
        let count = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&count);
        let handler = move |body: String| {
            let number = counter.fetch_add(1, SeqCst) + 1;
            async move {
                tokio::task::yield_now().await;
                (status, format!("{number} {body}"))
            }
        };
        let router = Router::new().route("/", post(handler));
        (router.layer(axum::middleware::from_fn_with_state(Arc::new(Kept::default()), once)), count)
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
}
