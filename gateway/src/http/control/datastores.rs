//! Datastores.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Answer, DryRun, JsonBody, ListParams, MadeOrPlan, Query, made, plan};
use crate::http::problem::Problem;
use crate::lifecycle::Gateway;
use crate::lifecycle::views::{AddDatastore, DatastoreView, Page, Touched};

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
#[utoipa::path(post, path = "/v1/datastores", tag = "datastores", params(DryRun), request_body = AddDatastore, responses((status = 201, body = DatastoreView), (status = 200, description = "What a dry run would add; its store is read, not probed", body = Touched), (status = 409, body = Problem)))]
async fn add(
    State(gateway): State<Arc<Gateway>>,
    Query(query): Query<DryRun>,
    JsonBody(request): JsonBody<AddDatastore>,
) -> MadeOrPlan {
    if query.dry_run {
        return plan(gateway.plan_datastore(request).await?);
    }
    made(gateway.add_datastore(request).await?)
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
#[utoipa::path(post, path = "/v1/datastores/{datastore}/probe", tag = "datastores", params(("datastore" = String, Path, description = "Name"), DryRun), responses((status = 200, description = "How it is; a dry run does not probe", body = DatastoreView), (status = 404, body = Problem)))]
async fn probe(
    State(gateway): State<Arc<Gateway>>,
    Path(name): Path<String>,
    Query(query): Query<DryRun>,
) -> Answer<DatastoreView> {
    Ok(Json(gateway.probe_datastore_or_try(&name, query.dry_run).await?))
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
) -> Answer<DatastoreView> {
    Ok(Json(gateway.set_maintenance_or_try(&name, request.on, query.dry_run).await?))
}
