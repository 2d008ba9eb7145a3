//! The iCache.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::lifecycle::Gateway;
use crate::lifecycle::views::CacheView;

pub(super) fn routes() -> OpenApiRouter<Arc<Gateway>> {
    OpenApiRouter::new().routes(routes!(show, drop_all))
}

/// Counters of the iCache.
#[utoipa::path(get, path = "/v1/cache", tag = "cache", responses((status = 200, body = CacheView)))]
async fn show(State(gateway): State<Arc<Gateway>>) -> Json<CacheView> {
    Json(gateway.cache())
}

/// Forgets everything cached. Costs time, never data.
#[utoipa::path(delete, path = "/v1/cache", tag = "cache", responses((status = 204, description = "Forgotten")))]
async fn drop_all(State(gateway): State<Arc<Gateway>>) -> StatusCode {
    gateway.drop_cache();
    StatusCode::NO_CONTENT
}
