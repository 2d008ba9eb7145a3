//! The iCache.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{DryRun, JsonBody, Query, Refusal, Tried, tried};
use super::full_clones::answer;
use crate::http::problem::Problem;
use crate::lifecycle::Gateway;
use crate::lifecycle::views::{CacheView, JobView, Touched, WarmCache};

pub(super) fn routes() -> OpenApiRouter<Arc<Gateway>> {
    OpenApiRouter::new().routes(routes!(show, drop_all)).routes(routes!(warm))
}

/// Counters of the iCache.
#[utoipa::path(get, path = "/v1/cache", tag = "cache", responses((status = 200, body = CacheView)))]
async fn show(State(gateway): State<Arc<Gateway>>) -> Json<CacheView> {
    Json(gateway.cache())
}

/// Forgets everything cached. Costs time, never data.
#[utoipa::path(delete, path = "/v1/cache", tag = "cache", params(DryRun), responses((status = 204, description = "Forgotten"), (status = 200, description = "What a dry run would forget", body = Touched)))]
async fn drop_all(State(gateway): State<Arc<Gateway>>, Query(query): Query<DryRun>) -> Result<Response, Refusal> {
    if query.dry_run {
        let cache = gateway.cache();
        let notes = vec![format!("{} lines are read from their stores again when they are asked for", cache.lines)];
        let names = vec!["iCache".to_owned()];
        let would = Touched { dry_run: true, names, bytes: cache.used, notes, ..Touched::default() };
        return Ok(tried(Tried::<()>::Would(would), StatusCode::OK));
    }
    gateway.drop_cache();
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Fetches bases into the iCache of this gateway before machines ask: what boots touch, or all of them.
#[utoipa::path(post, path = "/v1/cache/warm", tag = "cache", params(DryRun), request_body = WarmCache, responses((status = 202, description = "The job", body = JobView), (status = 200, description = "What a dry run would fetch", body = Touched), (status = 404, body = Problem), (status = 409, body = Problem)))]
async fn warm(
    State(gateway): State<Arc<Gateway>>,
    Query(query): Query<DryRun>,
    JsonBody(request): JsonBody<WarmCache>,
) -> Result<Response, Refusal> {
    answer(gateway.warm_cache(request, query.dry_run).await?)
}
