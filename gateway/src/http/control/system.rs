//! Routes about the process itself: metrics, health, the description of the interface.

use axum::body::Bytes;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::{Extension, Json};
use http::header::CONTENT_TYPE;
use serde::Serialize;
use utoipa::ToSchema;

use super::Control;
use super::answer::{Answer, Refusal};

/// Counters and gauges for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "system", responses((status = 200, description = "OpenMetrics text", content_type = "application/openmetrics-text", body = String)))]
pub(super) async fn metrics(State(control): State<Control>) -> Result<impl IntoResponse, Refusal> {
    let text = control.metrics.render()?;
    Ok(([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text))
}

/// How the process is.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Health {
    /// `ok`.
    status: &'static str,
}

/// Whether the process is alive.
#[utoipa::path(get, path = "/healthz", tag = "system", responses((status = 200, body = Health)))]
pub(super) async fn healthz() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// Whether it can serve: its home answers, or did within the last second.
#[utoipa::path(get, path = "/readyz", tag = "system", responses((status = 200, body = Health), (status = 503, description = "Not ready", body = crate::http::problem::Problem)))]
pub(super) async fn readyz(State(control): State<Control>) -> Answer<Health> {
    control.exports.ready().await?;
    Ok(Json(Health { status: "ok" }))
}

/// The document, rendered once.
#[derive(Debug, Clone)]
pub(super) struct Description(Bytes);

impl Description {
    pub(super) fn of(document: &utoipa::openapi::OpenApi) -> Self {
        Self(document.to_pretty_json().unwrap_or_default().into())
    }
}

/// This interface, as OpenAPI 3.1.
#[utoipa::path(get, path = "/openapi.json", tag = "system", responses((status = 200, description = "OpenAPI 3.1", content_type = "application/json")))]
pub(super) async fn openapi(Extension(description): Extension<Description>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], description.0)
}
