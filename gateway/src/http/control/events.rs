//! `/v1/events`: what happens on this gateway, as server-sent events.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures::stream;
use http::HeaderMap;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::lifecycle::Gateway;
use crate::lifecycle::events::Heard;

/// A quiet stream says that it lives so often.
const QUIET: Duration = Duration::from_secs(15);
/// Events of one piece of the stream.
const AT_ONCE: usize = 64;

pub(super) fn routes() -> OpenApiRouter<Arc<Gateway>> {
    OpenApiRouter::new().routes(routes!(events))
}

/// What happens on this gateway from now on, or from behind `Last-Event-ID` on: clones, power, capacity, jobs.
#[utoipa::path(get, path = "/v1/events", tag = "events", params(("Last-Event-ID" = Option<String>, Header, description = "The id of the last event that was seen; it and those after it are kept for a while")), responses((status = 200, description = "A stream that does not end. `event: missed` says that events before the next one are gone", content_type = "text/event-stream", body = String)))]
async fn events(State(gateway): State<Arc<Gateway>>, headers: HeaderMap) -> Response {
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok());
    let at = gateway.events().begin(last);
    let begun = stream::once(async { Ok::<_, Infallible>(Bytes::from_static(b"retry: 2000\n\n")) });
    let heard = stream::unfold((gateway, at), |(gateway, mut at)| async move {
        let text = match tokio::time::timeout(QUIET, gateway.events().next(&mut at, AT_ONCE)).await {
            Err(_) => ": quiet\n\n".to_owned(),
            Ok(None) => return None,
            Ok(Some(heard)) => text(&gateway, &heard),
        };
        Some((Ok::<_, Infallible>(Bytes::from(text)), (gateway, at)))
    });
    let body = Body::from_stream(futures::StreamExt::chain(begun, heard));
    ([(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-store")], body).into_response()
}

fn text(gateway: &Gateway, heard: &Heard) -> String {
    let mut text = String::new();
    if heard.missed {
        text.push_str("event: missed\ndata: {}\n\n");
    }
    for event in &heard.events {
        let data = serde_json::json!({ "at_ms": event.at_ms, "object": event.object, "what": event.data });
        // JSON of serde has no line breaks, so it is one `data:` line.
        let id = gateway.events().id(event.number);
        let _ = write!(text, "id: {id}\nevent: {}\ndata: {data}\n\n", event.kind.word());
    }
    text
}
