//! Linked clones.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::Response;
use http::StatusCode;
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Answer, Created, DryRun, JsonBody, ListParams, Query, Refusal, Tried, tried};
use crate::http::problem::Problem;
use crate::lifecycle::Gateway;
use crate::lifecycle::views::{
    CloneView, CreateClones, CreatedClones, KeptSnapshot, Page, SnapshotView, Touched, Would,
};

pub(super) fn routes() -> OpenApiRouter<Arc<Gateway>> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(show, delete))
        .routes(routes!(reset))
        .routes(routes!(snapshot))
        .routes(routes!(restore))
        .routes(routes!(snapshots))
        .routes(routes!(accept_loss))
        .routes(routes!(take_over))
}

/// All clones.
#[utoipa::path(get, path = "/v1/clones", tag = "clones", params(ListParams), responses((status = 200, body = Page<CloneView>)))]
async fn list(State(gateway): State<Arc<Gateway>>, Query(params): Query<ListParams>) -> Answer<Page<CloneView>> {
    Ok(Json(gateway.list_clones(params.checked()?).await?))
}

/// Makes one clone or many; policies are asked where they go.
#[utoipa::path(post, path = "/v1/clones", tag = "clones", params(DryRun), request_body = CreateClones, responses((status = 201, body = CreatedClones), (status = 200, description = "What a dry run would make", body = CreatedClones), (status = 409, body = Problem), (status = 507, body = Problem)))]
async fn create(
    State(gateway): State<Arc<Gateway>>,
    Query(query): Query<DryRun>,
    JsonBody(request): JsonBody<CreateClones>,
) -> Created<CreatedClones> {
    let status = if query.dry_run { StatusCode::OK } else { StatusCode::CREATED };
    Ok((status, Json(gateway.create_clones(request, query.dry_run).await?)))
}

/// One clone.
#[utoipa::path(get, path = "/v1/clones/{clone}", tag = "clones", params(("clone" = String, Path, description = "Name or id")), responses((status = 200, body = CloneView), (status = 404, body = Problem)))]
async fn show(State(gateway): State<Arc<Gateway>>, Path(clone): Path<String>) -> Answer<CloneView> {
    Ok(Json(gateway.show_clone(&clone).await?))
}

/// Deletes a clone with its delta.
#[utoipa::path(delete, path = "/v1/clones/{clone}", tag = "clones", params(("clone" = String, Path, description = "Name or id"), DryRun), responses((status = 200, body = Touched), (status = 404, body = Problem), (status = 409, body = Problem)))]
async fn delete(
    State(gateway): State<Arc<Gateway>>,
    Path(clone): Path<String>,
    Query(query): Query<DryRun>,
) -> Answer<Touched> {
    Ok(Json(gateway.delete_clone(&clone, query.dry_run).await?))
}

/// Drops the delta: the clone is its base again.
#[utoipa::path(post, path = "/v1/clones/{clone}/reset", tag = "clones", params(("clone" = String, Path, description = "Name or id"), DryRun), responses((status = 200, body = Touched), (status = 404, body = Problem), (status = 409, body = Problem)))]
async fn reset(
    State(gateway): State<Arc<Gateway>>,
    Path(clone): Path<String>,
    Query(query): Query<DryRun>,
) -> Answer<Touched> {
    Ok(Json(gateway.reset_clone(&clone, query.dry_run).await?))
}

/// Names a snapshot.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SnapshotName {
    /// The snapshot.
    name: String,
}

/// Keeps the present state of a clone under a name.
#[utoipa::path(post, path = "/v1/clones/{clone}/snapshot", tag = "clones", params(("clone" = String, Path, description = "Name or id"), DryRun), request_body = SnapshotName, responses((status = 200, description = "What a dry run would touch", body = Touched), (status = 201, body = SnapshotView), (status = 404, body = Problem), (status = 409, body = Problem)))]
async fn snapshot(
    State(gateway): State<Arc<Gateway>>,
    Path(clone): Path<String>,
    Query(query): Query<DryRun>,
    JsonBody(request): JsonBody<SnapshotName>,
) -> Result<Response, Refusal> {
    let done = match query.dry_run {
        true => Tried::Would(gateway.would(Would::Snapshot { clone, snapshot: request.name }).await?),
        false => Tried::Done(gateway.snapshot_clone(&clone, &request.name).await?),
    };
    Ok(tried(done, StatusCode::CREATED))
}

/// Brings a clone back to a snapshot.
#[utoipa::path(post, path = "/v1/clones/{clone}/restore", tag = "clones", params(("clone" = String, Path, description = "Name or id"), DryRun), request_body = SnapshotName, responses((status = 200, body = Touched), (status = 404, body = Problem), (status = 409, body = Problem)))]
async fn restore(
    State(gateway): State<Arc<Gateway>>,
    Path(clone): Path<String>,
    Query(query): Query<DryRun>,
    JsonBody(request): JsonBody<SnapshotName>,
) -> Answer<Touched> {
    Ok(Json(gateway.restore_clone(&clone, &request.name, query.dry_run).await?))
}

/// The snapshots of a clone, oldest first. Each is an export, `CLONE@SNAPSHOT`, by NBD and HTTP.
#[utoipa::path(get, path = "/v1/clones/{clone}/snapshots", tag = "clones", params(("clone" = String, Path, description = "Name or id")), responses((status = 200, body = Vec<KeptSnapshot>), (status = 404, body = Problem)))]
async fn snapshots(State(gateway): State<Arc<Gateway>>, Path(clone): Path<String>) -> Answer<Vec<KeptSnapshot>> {
    Ok(Json(gateway.list_snapshots(&clone).await?))
}

/// Gives flushed writes up that only the journal of a lost gateway held.
#[utoipa::path(post, path = "/v1/clones/{clone}/accept-loss", tag = "clones", params(("clone" = String, Path, description = "Name or id"), DryRun), responses((status = 200, body = Touched), (status = 404, body = Problem)))]
async fn accept_loss(
    State(gateway): State<Arc<Gateway>>,
    Path(clone): Path<String>,
    Query(query): Query<DryRun>,
) -> Answer<Touched> {
    Ok(Json(gateway.accept_loss(&clone, query.dry_run).await?))
}

/// Takes a clone over from a gateway that is gone, or does nothing with it; that one can write nothing more to it.
#[utoipa::path(post, path = "/v1/clones/{clone}/take-over", tag = "clones", params(("clone" = String, Path, description = "Name or id"), DryRun), responses((status = 200, body = Touched), (status = 404, body = Problem), (status = 409, body = Problem)))]
async fn take_over(
    State(gateway): State<Arc<Gateway>>,
    Path(clone): Path<String>,
    Query(query): Query<DryRun>,
) -> Answer<Touched> {
    Ok(Json(gateway.take_clone_over(&clone, query.dry_run).await?))
}
