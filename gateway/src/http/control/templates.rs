//! Templates and their versions.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use http::StatusCode;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Answer, Created, JsonBody, ListParams, Query};
use crate::http::problem::Problem;
use crate::lifecycle::Gateway;
use crate::lifecycle::views::{Page, ReferenceTemplate, TemplateView, Touched};

pub(super) fn routes() -> OpenApiRouter<Arc<Gateway>> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(show, delete))
        .routes(routes!(publish))
        .routes(routes!(rollback))
        .routes(routes!(reference))
}

/// All templates.
#[utoipa::path(get, path = "/v1/templates", tag = "templates", params(ListParams), responses((status = 200, body = Page<TemplateView>)))]
async fn list(State(gateway): State<Arc<Gateway>>, Query(params): Query<ListParams>) -> Answer<Page<TemplateView>> {
    Ok(Json(gateway.list_templates(params.checked()?).await?))
}

/// One template with its versions.
#[utoipa::path(get, path = "/v1/templates/{template}", tag = "templates", params(("template" = String, Path, description = "Name")), responses((status = 200, body = TemplateView), (status = 404, body = Problem)))]
async fn show(State(gateway): State<Arc<Gateway>>, Path(name): Path<String>) -> Answer<TemplateView> {
    Ok(Json(gateway.show_template(&name).await?))
}

/// What to delete of a template.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct DeleteQuery {
    /// This version alone; all of them when absent.
    version: Option<u32>,
    /// Only say what would be touched.
    #[serde(default)]
    dry_run: bool,
}

/// Deletes a template, or one version of it, that no clone needs.
#[utoipa::path(delete, path = "/v1/templates/{template}", tag = "templates", params(("template" = String, Path, description = "Name"), DeleteQuery), responses((status = 200, body = Touched), (status = 404, body = Problem), (status = 409, body = Problem)))]
async fn delete(
    State(gateway): State<Arc<Gateway>>,
    Path(name): Path<String>,
    Query(query): Query<DeleteQuery>,
) -> Answer<Touched> {
    Ok(Json(gateway.delete_template(&name, query.version, query.dry_run).await?))
}

/// Chooses a version.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Publish {
    /// Its number; the newest when absent.
    #[serde(default)]
    version: Option<u32>,
}

/// Gives new clones this version from now on.
#[utoipa::path(post, path = "/v1/templates/{template}/publish", tag = "templates", params(("template" = String, Path, description = "Name")), request_body = Publish, responses((status = 200, body = TemplateView), (status = 404, body = Problem)))]
async fn publish(
    State(gateway): State<Arc<Gateway>>,
    Path(name): Path<String>,
    JsonBody(request): JsonBody<Publish>,
) -> Answer<TemplateView> {
    Ok(Json(gateway.publish_template(&name, request.version).await?))
}

/// Gives new clones the version that was published before.
#[utoipa::path(post, path = "/v1/templates/{template}/rollback", tag = "templates", params(("template" = String, Path, description = "Name")), responses((status = 200, body = TemplateView), (status = 404, body = Problem), (status = 409, body = Problem)))]
async fn rollback(State(gateway): State<Arc<Gateway>>, Path(name): Path<String>) -> Answer<TemplateView> {
    Ok(Json(gateway.rollback_template(&name).await?))
}

/// A version made of an image that lies in a store already.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Reference {
    /// The raw image: `s3://bucket/key.raw`, `file:///dir/image.raw`.
    by_reference: String,
    /// The datastore that keeps the base record and the deltas; the first that is online when absent.
    #[serde(default)]
    datastore: Option<String>,
    /// One line for people.
    #[serde(default)]
    description: Option<String>,
    /// Whether new clones get this version at once. Absent: only if it is the first.
    #[serde(default)]
    publish: Option<bool>,
    /// Deltas that a base of it takes; 128 when absent.
    #[serde(default)]
    slots: Option<u32>,
}

/// Makes a version, and the template when it is the first.
#[utoipa::path(post, path = "/v1/templates/{template}/versions", tag = "templates", params(("template" = String, Path, description = "Name")), request_body = Reference, responses((status = 201, body = TemplateView), (status = 404, body = Problem), (status = 409, body = Problem)))]
async fn reference(
    State(gateway): State<Arc<Gateway>>,
    Path(name): Path<String>,
    JsonBody(request): JsonBody<Reference>,
) -> Created<TemplateView> {
    let Reference { by_reference: url, datastore, description, publish, slots } = request;
    let request = ReferenceTemplate { name, datastore, description, publish, slots, url };
    Ok((StatusCode::CREATED, Json(gateway.reference_template(request).await?)))
}
