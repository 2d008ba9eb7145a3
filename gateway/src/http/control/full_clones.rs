//! Full clones, promotion, moves: what copies gigabytes, answered with a job.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Answer, DryRun, JsonBody, ListParams, Query, Refusal};
use super::jobs::accepted;
use crate::http::problem::Problem;
use crate::lifecycle::Gateway;
use crate::lifecycle::views::{CloneView, CreateFullClone, JobView, Page, Rebalance, Started, Touched};

pub(super) fn routes() -> OpenApiRouter<Arc<Gateway>> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(promote))
        .routes(routes!(move_clone))
        .routes(routes!(rebalance))
}

/// 200 with what it would touch, or 202 with the job.
pub(super) fn answer(started: Started) -> Result<Response, Refusal> {
    Ok(match started {
        Started::Would(touched) => Json(touched).into_response(),
        Started::Job(job) => accepted(*job),
    })
}

/// All full clones.
#[utoipa::path(get, path = "/v1/full-clones", tag = "full-clones", params(ListParams), responses((status = 200, body = Page<CloneView>)))]
async fn list(State(gateway): State<Arc<Gateway>>, Query(params): Query<ListParams>) -> Answer<Page<CloneView>> {
    Ok(Json(gateway.list_full_clones(params.checked()?).await?))
}

/// Makes a clone that needs no base: a copy of a template version.
#[utoipa::path(post, path = "/v1/full-clones", tag = "full-clones", params(DryRun), request_body = CreateFullClone, responses((status = 202, description = "The job; the clone is there when it is done", body = JobView), (status = 200, description = "What a dry run would touch", body = Touched), (status = 404, body = Problem), (status = 409, body = Problem), (status = 507, body = Problem)))]
async fn create(
    State(gateway): State<Arc<Gateway>>,
    Query(query): Query<DryRun>,
    JsonBody(request): JsonBody<CreateFullClone>,
) -> Result<Response, Refusal> {
    answer(gateway.create_full_clone(request, query.dry_run).await?)
}

/// Makes a full clone of a linked one, while machines have it open.
#[utoipa::path(post, path = "/v1/clones/{clone}/promote", tag = "clones", params(("clone" = String, Path, description = "Name or id"), DryRun), responses((status = 202, description = "The job", body = JobView), (status = 200, description = "What a dry run would touch", body = Touched), (status = 404, body = Problem), (status = 409, body = Problem), (status = 507, body = Problem)))]
async fn promote(
    State(gateway): State<Arc<Gateway>>,
    Path(clone): Path<String>,
    Query(query): Query<DryRun>,
) -> Result<Response, Refusal> {
    answer(gateway.promote_clone(&clone, query.dry_run).await?)
}

/// Where a clone is to be.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct MoveTo {
    /// The datastore.
    to: String,
}

/// Moves a clone that nobody has open to another datastore, with its base where that has none.
#[utoipa::path(post, path = "/v1/clones/{clone}/move", tag = "clones", params(("clone" = String, Path, description = "Name or id"), DryRun), request_body = MoveTo, responses((status = 202, description = "The job", body = JobView), (status = 200, description = "What a dry run would touch", body = Touched), (status = 404, body = Problem), (status = 409, body = Problem), (status = 507, body = Problem)))]
async fn move_clone(
    State(gateway): State<Arc<Gateway>>,
    Path(clone): Path<String>,
    Query(query): Query<DryRun>,
    JsonBody(request): JsonBody<MoveTo>,
) -> Result<Response, Refusal> {
    answer(gateway.move_clone(&clone, request.to, query.dry_run).await?)
}

/// Moves clones that nobody has open from one datastore to another.
#[utoipa::path(post, path = "/v1/datastores/{datastore}/rebalance", tag = "datastores", params(("datastore" = String, Path, description = "Name"), DryRun), request_body = Rebalance, responses((status = 202, description = "The job", body = JobView), (status = 200, description = "What a dry run would touch", body = Touched), (status = 404, body = Problem), (status = 409, body = Problem)))]
async fn rebalance(
    State(gateway): State<Arc<Gateway>>,
    Path(datastore): Path<String>,
    Query(query): Query<DryRun>,
    JsonBody(request): JsonBody<Rebalance>,
) -> Result<Response, Refusal> {
    answer(gateway.rebalance_datastore(&datastore, request, query.dry_run).await?)
}
