//! Datastores.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::Response;
use http::StatusCode;
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Answer, DryRun, JsonBody, ListParams, Query, Refusal, Tried, tried};
use crate::http::problem::Problem;
use crate::lifecycle::Gateway;
use crate::lifecycle::views::{AddDatastore, DatastoreView, Page, Touched, Would};

pub(super) fn routes() -> OpenApiRouter<Arc<Gateway>> {
    OpenApiRouter::new()
        .routes(routes!(list, add))
        .routes(routes!(show, remove))
        .routes(routes!(probe))
        .routes(routes!(maintenance))
}

/// All datastores.
#[utoipa::path(get, path = "/v1/datastores", tag = "datastores", params(ListParams), responses((status = 200, body = Page<DatastoreView>)))]
async fn list(State(gateway): State<Arc<Gateway>>, Query(params): Query<ListParams>) -> Answer<Page<DatastoreView>> {
    Ok(Json(gateway.list_datastores(params.checked()?).await?))
}

/// Adds a datastore, once its store has been probed.
#[utoipa::path(post, path = "/v1/datastores", params(DryRun), tag = "datastores", request_body = AddDatastore, responses((status = 200, description = "What a dry run would touch", body = Touched), (status = 201, body = DatastoreView), (status = 409, body = Problem)))]
async fn add(
    State(gateway): State<Arc<Gateway>>,
    Query(query): Query<DryRun>,
    JsonBody(request): JsonBody<AddDatastore>,
) -> Result<Response, Refusal> {
    let done = match query.dry_run {
        true => Tried::Would(gateway.would(Would::AddDatastore(request)).await?),
        false => Tried::Done(gateway.add_datastore(request).await?),
    };
    Ok(tried(done, StatusCode::CREATED))
}

/// One datastore.
#[utoipa::path(get, path = "/v1/datastores/{datastore}", tag = "datastores", params(("datastore" = String, Path, description = "Name")), responses((status = 200, body = DatastoreView), (status = 404, body = Problem)))]
async fn show(State(gateway): State<Arc<Gateway>>, Path(name): Path<String>) -> Answer<DatastoreView> {
    Ok(Json(gateway.show_datastore(&name).await?))
}

/// Forgets a datastore that nothing is on.
#[utoipa::path(delete, path = "/v1/datastores/{datastore}", tag = "datastores", params(("datastore" = String, Path, description = "Name"), DryRun), responses((status = 200, body = Touched), (status = 404, body = Problem), (status = 409, body = Problem)))]
async fn remove(
    State(gateway): State<Arc<Gateway>>,
    Path(name): Path<String>,
    Query(query): Query<DryRun>,
) -> Answer<Touched> {
    Ok(Json(gateway.remove_datastore(&name, query.dry_run).await?))
}

/// Proves anew that its store honours put-if-absent.
#[utoipa::path(post, path = "/v1/datastores/{datastore}/probe", tag = "datastores", params(("datastore" = String, Path, description = "Name")), responses((status = 200, body = DatastoreView), (status = 404, body = Problem)))]
async fn probe(State(gateway): State<Arc<Gateway>>, Path(name): Path<String>) -> Answer<DatastoreView> {
    Ok(Json(gateway.probe_datastore(&name).await?))
}

/// Whether a datastore takes new clones.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Maintenance {
    /// It takes none.
    on: bool,
}

/// Takes a datastore into maintenance, or out of it.
#[utoipa::path(post, path = "/v1/datastores/{datastore}/maintenance", tag = "datastores", params(("datastore" = String, Path, description = "Name"), DryRun), request_body = Maintenance, responses((status = 200, body = DatastoreView), (status = 404, body = Problem)))]
async fn maintenance(
    State(gateway): State<Arc<Gateway>>,
    Path(name): Path<String>,
    Query(query): Query<DryRun>,
    JsonBody(request): JsonBody<Maintenance>,
) -> Result<Response, Refusal> {
    let done = match query.dry_run {
        true => Tried::Would(gateway.would(Would::Maintenance { datastore: name, on: request.on }).await?),
        false => Tried::Done(gateway.set_maintenance(&name, request.on).await?),
    };
    Ok(tried(done, StatusCode::OK))
}
