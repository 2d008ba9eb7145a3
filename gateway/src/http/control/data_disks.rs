//! Data disks. Their bytes are at `/v1/disks/{disk}`; what is said about them is below that.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use http::StatusCode;
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Answer, Created, DryRun, JsonBody, ListParams, Query};
use crate::http::problem::Problem;
use crate::lifecycle::Gateway;
use crate::lifecycle::views::{CreateDisk, DiskView, Page, Touched};

pub(super) fn routes() -> OpenApiRouter<Arc<Gateway>> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(show, delete))
        .routes(routes!(attach))
        .routes(routes!(detach))
        .routes(routes!(archive))
}

/// All data disks.
#[utoipa::path(get, path = "/v1/disks", tag = "disks", params(ListParams), responses((status = 200, body = Page<DiskView>)))]
async fn list(State(gateway): State<Arc<Gateway>>, Query(params): Query<ListParams>) -> Answer<Page<DiskView>> {
    Ok(Json(gateway.list_disks(params.checked()?).await?))
}

/// Makes an empty data disk.
#[utoipa::path(post, path = "/v1/disks", tag = "disks", params(DryRun), request_body = CreateDisk, responses((status = 201, body = DiskView), (status = 200, description = "What a dry run would make", body = DiskView), (status = 409, body = Problem)))]
async fn create(
    State(gateway): State<Arc<Gateway>>,
    Query(query): Query<DryRun>,
    JsonBody(request): JsonBody<CreateDisk>,
) -> Created<DiskView> {
    let status = if query.dry_run { StatusCode::OK } else { StatusCode::CREATED };
    Ok((status, Json(gateway.create_disk(request, query.dry_run).await?)))
}

/// What is said about one data disk.
#[utoipa::path(get, path = "/v1/disks/{disk}/record", tag = "disks", params(("disk" = String, Path, description = "Name")), responses((status = 200, body = DiskView), (status = 404, body = Problem)))]
async fn show(State(gateway): State<Arc<Gateway>>, Path(disk): Path<String>) -> Answer<DiskView> {
    Ok(Json(gateway.show_disk(&disk).await?))
}

/// Deletes a data disk that no clone has, with its bytes.
#[utoipa::path(delete, path = "/v1/disks/{disk}/record", tag = "disks", params(("disk" = String, Path, description = "Name"), DryRun), responses((status = 200, body = Touched), (status = 404, body = Problem), (status = 409, body = Problem)))]
async fn delete(
    State(gateway): State<Arc<Gateway>>,
    Path(disk): Path<String>,
    Query(query): Query<DryRun>,
) -> Answer<Touched> {
    Ok(Json(gateway.delete_disk(&disk, query.dry_run).await?))
}

/// Who gets a disk.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Give {
    /// Name or id of the clone.
    clone: String,
}

/// Gives a disk to a clone.
#[utoipa::path(post, path = "/v1/disks/{disk}/attach", tag = "disks", params(("disk" = String, Path, description = "Name"), DryRun), request_body = Give, responses((status = 200, body = DiskView), (status = 404, body = Problem), (status = 409, body = Problem)))]
async fn attach(
    State(gateway): State<Arc<Gateway>>,
    Path(disk): Path<String>,
    Query(query): Query<DryRun>,
    JsonBody(request): JsonBody<Give>,
) -> Answer<DiskView> {
    Ok(Json(gateway.attach_disk(&disk, &request.clone, query.dry_run).await?))
}

/// Takes a disk from its clone; its bytes stay.
#[utoipa::path(post, path = "/v1/disks/{disk}/detach", tag = "disks", params(("disk" = String, Path, description = "Name"), DryRun), responses((status = 200, body = DiskView), (status = 404, body = Problem), (status = 409, body = Problem)))]
async fn detach(
    State(gateway): State<Arc<Gateway>>,
    Path(disk): Path<String>,
    Query(query): Query<DryRun>,
) -> Answer<DiskView> {
    Ok(Json(gateway.detach_disk(&disk, query.dry_run).await?))
}

/// Puts a disk away: all of it is in the store, and it is served to nobody until it is attached again.
#[utoipa::path(post, path = "/v1/disks/{disk}/archive", tag = "disks", params(("disk" = String, Path, description = "Name"), DryRun), responses((status = 200, body = DiskView), (status = 404, body = Problem), (status = 409, body = Problem)))]
async fn archive(
    State(gateway): State<Arc<Gateway>>,
    Path(disk): Path<String>,
    Query(query): Query<DryRun>,
) -> Answer<DiskView> {
    Ok(Json(gateway.archive_disk(&disk, query.dry_run).await?))
}
