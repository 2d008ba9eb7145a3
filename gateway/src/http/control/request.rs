//! Tells the control layer who asks.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;

use super::idempotency;
use crate::http::auth::Caller;
use crate::http::service::Peer;
use crate::lifecycle::context;

/// Handlers run as part of the request that they answer.
pub(super) async fn enter(request: Request, next: Next) -> Response {
    let peer = || request.extensions().get::<Peer>().map_or_else(|| "unknown".to_owned(), |peer| peer.0.to_string());
    let by = request.extensions().get::<Caller>().map_or_else(peer, |caller| caller.0.to_string());
    let key = request.headers().get(idempotency::HEADER).and_then(|key| key.to_str().ok()).map(str::to_owned);
    context::within(context::Request::new(by, key), next.run(request)).await
}
