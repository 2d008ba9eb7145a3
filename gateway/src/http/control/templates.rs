//! Templates and their versions.

use std::sync::Arc;

use axum::Json;
use axum::extract::{FromRequest, Path, Request, State};
use axum::response::Response;
use clonegate_core::Error;
use clonegate_core::format::sparse::MEDIA_TYPE;
use futures::{StreamExt, TryStreamExt};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Answer, DryRun, JsonBody, ListParams, Query, Refusal, Tried, tried};
use crate::http::problem::Problem;
use crate::import::{Input, NoProgress};
use crate::lifecycle::Gateway;
use crate::lifecycle::views::{ImportTemplate, Page, ReferenceTemplate, TemplateView, Touched, Would};

pub(super) fn routes() -> OpenApiRouter<Arc<Gateway>> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(show, delete))
        .routes(routes!(publish))
        .routes(routes!(rollback))
        .routes(routes!(seal))
        .routes(routes!(retention))
        .routes(routes!(add_version))
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
#[utoipa::path(post, path = "/v1/templates/{template}/publish", tag = "templates", params(("template" = String, Path, description = "Name"), DryRun), request_body = Publish, responses((status = 200, body = TemplateView), (status = 404, body = Problem)))]
async fn publish(
    State(gateway): State<Arc<Gateway>>,
    Path(name): Path<String>,
    Query(query): Query<DryRun>,
    JsonBody(request): JsonBody<Publish>,
) -> Result<Response, Refusal> {
    let done = match query.dry_run {
        true => Tried::Would(gateway.would(Would::Publish { template: name, version: request.version }).await?),
        false => Tried::Done(gateway.publish_template(&name, request.version).await?),
    };
    Ok(tried(done, StatusCode::OK))
}

/// Gives new clones the version that was published before.
#[utoipa::path(post, path = "/v1/templates/{template}/rollback", tag = "templates", params(("template" = String, Path, description = "Name"), DryRun), responses((status = 200, body = TemplateView), (status = 404, body = Problem), (status = 409, body = Problem)))]
async fn rollback(
    State(gateway): State<Arc<Gateway>>,
    Path(name): Path<String>,
    Query(query): Query<DryRun>,
) -> Result<Response, Refusal> {
    let done = match query.dry_run {
        true => Tried::Would(gateway.would(Would::RollBack { template: name }).await?),
        false => Tried::Done(gateway.rollback_template(&name).await?),
    };
    Ok(tried(done, StatusCode::OK))
}

/// Chooses a draft.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SealDraft {
    /// Its number; the newest draft when absent.
    #[serde(default)]
    version: Option<u32>,
    /// Whatever the checks find.
    #[serde(default)]
    force: bool,
}

/// Looks into a draft for what would make its clones the same machine, and seals it: from then on it can be published.
#[utoipa::path(post, path = "/v1/templates/{template}/seal", tag = "templates", params(("template" = String, Path, description = "Name"), DryRun), request_body = SealDraft, responses((status = 200, body = TemplateView), (status = 404, body = Problem), (status = 409, body = Problem)))]
async fn seal(
    State(gateway): State<Arc<Gateway>>,
    Path(name): Path<String>,
    Query(query): Query<DryRun>,
    JsonBody(request): JsonBody<SealDraft>,
) -> Result<Response, Refusal> {
    let done = match query.dry_run {
        true => Tried::Would(
            gateway.would(Would::Seal { template: name, version: request.version, force: request.force }).await?,
        ),
        false => Tried::Done(gateway.seal_template(&name, request.version, request.force).await?),
    };
    Ok(tried(done, StatusCode::OK))
}

/// How many old versions stay.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Retention {
    /// So many that no clone needs, besides the published one; all when absent.
    #[serde(default)]
    keep: Option<u32>,
}

/// Keeps so many versions that no clone needs, now and after each publish; older ones are deleted.
#[utoipa::path(post, path = "/v1/templates/{template}/retention", tag = "templates", params(("template" = String, Path, description = "Name"), DryRun), request_body = Retention, responses((status = 200, body = Touched), (status = 400, body = Problem), (status = 404, body = Problem)))]
async fn retention(
    State(gateway): State<Arc<Gateway>>,
    Path(name): Path<String>,
    Query(query): Query<DryRun>,
    JsonBody(request): JsonBody<Retention>,
) -> Answer<Touched> {
    Ok(Json(gateway.retain_template(&name, request.keep, query.dry_run).await?))
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
    /// Neither look into it nor seal it: it can be published when it is sealed.
    #[serde(default)]
    draft: bool,
    /// Seal it whatever the checks find.
    #[serde(default)]
    force: bool,
}

/// What is said about an upload, besides its bytes.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct UploadQuery {
    /// The datastore; the first that is online when absent.
    datastore: Option<String>,
    /// One line for people.
    description: Option<String>,
    /// Where it came from, for people: a file name.
    origin: Option<String>,
    /// Whether new clones get this version at once. Absent: only if it is the first.
    publish: Option<bool>,
    /// Deltas that a base of it takes; 128 when absent.
    slots: Option<u32>,
    /// Neither look into it nor seal it: it can be published when it is sealed.
    #[serde(default)]
    draft: bool,
    /// Seal it whatever the checks find.
    #[serde(default)]
    force: bool,
    /// Only say what would be made; of an upload nothing is read.
    #[serde(default)]
    dry_run: bool,
}

/// Makes a version, and the template when it is the first: of an uploaded image, a sparse frame stream, or of one that lies in a
/// store already.
#[utoipa::path(
    post, path = "/v1/templates/{template}/versions", tag = "templates",
    params(("template" = String, Path, description = "Name"), UploadQuery),
    request_body(content((Reference = "application/json"), (Vec<u8> = "application/vnd.clonegate.sparse")), description = "Where the image is, or the image itself"),
    responses((status = 201, body = TemplateView), (status = 200, description = "What a dry run would make", body = Touched), (status = 400, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem), (status = 415, body = Problem))
)]
async fn add_version(
    State(gateway): State<Arc<Gateway>>,
    Path(name): Path<String>,
    Query(query): Query<UploadQuery>,
    request: Request,
) -> Result<Response, Refusal> {
    let dry_run = query.dry_run;
    let made = if request.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == MEDIA_TYPE) {
        let UploadQuery { datastore, description, origin, publish, slots, draft, force, .. } = query;
        let upload = ImportTemplate { name, datastore, description, origin, publish, slots, draft, force };
        if dry_run {
            return Ok(tried(Tried::<()>::Would(gateway.would(Would::Import(upload)).await?), StatusCode::OK));
        }
        // Not by axum's body extractors: those have a limit.
        let stream = request.into_body().into_data_stream().map_err(|error| {
            Error::invalid("body-broken", "the upload broke off").because(error).hint("send it again: nothing was kept")
        });
        gateway.import_template(upload, Input::Frames(stream.boxed()), Arc::new(NoProgress)).await?
    } else {
        let JsonBody(reference) = JsonBody::<Reference>::from_request(request, &()).await?;
        let Reference { by_reference: url, datastore, description, publish, slots, draft, force } = reference;
        let reference = ReferenceTemplate { name, datastore, description, publish, slots, draft, force, url };
        if dry_run {
            return Ok(tried(Tried::<()>::Would(gateway.would(Would::Reference(reference)).await?), StatusCode::OK));
        }
        gateway.reference_template(reference).await?
    };
    Ok(tried(Tried::Done(made), StatusCode::CREATED))
}
