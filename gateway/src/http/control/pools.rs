//! Pools: clones under one pattern of names, given to users.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::Response;
use http::StatusCode;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Answer, Created, DryRun, JsonBody, ListParams, Query, Refusal, Tried, tried};
use crate::http::problem::Problem;
use crate::lifecycle::Gateway;
use crate::lifecycle::views::{Allocated, ChangePool, CreatePool, Page, PoolView, Touched, Would};

pub(super) fn routes() -> OpenApiRouter<Arc<Gateway>> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(show, change, delete))
        .routes(routes!(scale))
        .routes(routes!(allocate))
        .routes(routes!(release))
}

/// All pools.
#[utoipa::path(get, path = "/v1/pools", tag = "pools", params(ListParams), responses((status = 200, body = Page<PoolView>)))]
async fn list(State(gateway): State<Arc<Gateway>>, Query(params): Query<ListParams>) -> Answer<Page<PoolView>> {
    Ok(Json(gateway.list_pools(params.checked()?).await?))
}

/// Makes a pool with its clones; a pattern that collides is refused before anything is made.
#[utoipa::path(post, path = "/v1/pools", tag = "pools", params(DryRun), request_body = CreatePool, responses((status = 201, body = PoolView), (status = 404, body = Problem), (status = 409, body = Problem)))]
async fn create(
    State(gateway): State<Arc<Gateway>>,
    Query(query): Query<DryRun>,
    JsonBody(request): JsonBody<CreatePool>,
) -> Created<PoolView> {
    let status = if query.dry_run { StatusCode::OK } else { StatusCode::CREATED };
    Ok((status, Json(gateway.create_pool(request, query.dry_run).await?)))
}

/// One pool with its clones.
#[utoipa::path(get, path = "/v1/pools/{pool}", tag = "pools", params(("pool" = String, Path, description = "Name")), responses((status = 200, body = PoolView), (status = 404, body = Problem)))]
async fn show(State(gateway): State<Arc<Gateway>>, Path(pool): Path<String>) -> Answer<PoolView> {
    Ok(Json(gateway.show_pool(&pool).await?))
}

/// Changes a pool; its clones follow.
#[utoipa::path(patch, path = "/v1/pools/{pool}", tag = "pools", params(("pool" = String, Path, description = "Name"), DryRun), request_body = ChangePool, responses((status = 200, body = PoolView), (status = 404, body = Problem)))]
async fn change(
    State(gateway): State<Arc<Gateway>>,
    Path(pool): Path<String>,
    Query(query): Query<DryRun>,
    JsonBody(request): JsonBody<ChangePool>,
) -> Result<Response, Refusal> {
    let done = match query.dry_run {
        true => Tried::Would(gateway.would(Would::ChangePool { pool, change: request }).await?),
        false => Tried::Done(gateway.change_pool(&pool, request).await?),
    };
    Ok(tried(done, StatusCode::OK))
}

/// How a pool is deleted.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct DeletePool {
    /// Also when users have clones of it.
    #[serde(default)]
    force: bool,
    /// Only say what would be touched.
    #[serde(default)]
    dry_run: bool,
}

/// Deletes a pool with its clones; refused while machines or users have any.
#[utoipa::path(delete, path = "/v1/pools/{pool}", tag = "pools", params(("pool" = String, Path, description = "Name"), DeletePool), responses((status = 200, body = Touched), (status = 404, body = Problem), (status = 409, body = Problem)))]
async fn delete(
    State(gateway): State<Arc<Gateway>>,
    Path(pool): Path<String>,
    Query(query): Query<DeletePool>,
) -> Answer<Touched> {
    Ok(Json(gateway.delete_pool(&pool, query.force, query.dry_run).await?))
}

/// How many clones.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Scale {
    /// Clones that it is to have.
    size: u32,
}

/// Makes clones, or deletes free ones.
#[utoipa::path(post, path = "/v1/pools/{pool}/scale", tag = "pools", params(("pool" = String, Path, description = "Name"), DryRun), request_body = Scale, responses((status = 200, body = Touched), (status = 404, body = Problem), (status = 409, body = Problem)))]
async fn scale(
    State(gateway): State<Arc<Gateway>>,
    Path(pool): Path<String>,
    Query(query): Query<DryRun>,
    JsonBody(request): JsonBody<Scale>,
) -> Answer<Touched> {
    Ok(Json(gateway.scale_pool(&pool, request.size, query.dry_run).await?))
}

/// Who gets a clone.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct User {
    /// A name for people, or a machine.
    user: String,
}

/// Gives a user a clone: the one that he has, or a free one.
#[utoipa::path(post, path = "/v1/pools/{pool}/allocate", tag = "pools", params(("pool" = String, Path, description = "Name"), DryRun), request_body = User, responses((status = 200, body = Allocated), (status = 404, body = Problem), (status = 507, body = Problem)))]
async fn allocate(
    State(gateway): State<Arc<Gateway>>,
    Path(pool): Path<String>,
    Query(query): Query<DryRun>,
    JsonBody(request): JsonBody<User>,
) -> Result<Response, Refusal> {
    let done = match query.dry_run {
        true => Tried::Would(gateway.would(Would::Allocate { pool, user: request.user }).await?),
        false => Tried::Done(gateway.allocate(&pool, &request.user).await?),
    };
    Ok(tried(done, StatusCode::OK))
}

/// Whose clone goes back.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Release {
    /// The user, or the clone.
    user: String,
}

/// Takes a clone back from its user; what was written on it goes.
#[utoipa::path(post, path = "/v1/pools/{pool}/release", tag = "pools", params(("pool" = String, Path, description = "Name"), DryRun), request_body = Release, responses((status = 200, body = Touched), (status = 404, body = Problem), (status = 409, body = Problem)))]
async fn release(
    State(gateway): State<Arc<Gateway>>,
    Path(pool): Path<String>,
    Query(query): Query<DryRun>,
    JsonBody(request): JsonBody<Release>,
) -> Answer<Touched> {
    Ok(Json(gateway.release_clone(&pool, &request.user, query.dry_run).await?))
}
