//! What makes clones machines of their own. The disk that is made of it is at `/v1/clones/{clone}/identity`, its seed below `/seed/{clone}/`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Answer, DryRun, JsonBody, Query};
use crate::http::problem::Problem;
use crate::lifecycle::Gateway;
use crate::lifecycle::views::{IdentitySpec, IdentityView, RenewIdentity, SetIdentity, TemplateIdentityView, Touched};

pub(super) fn routes() -> OpenApiRouter<Arc<Gateway>> {
    OpenApiRouter::new().routes(routes!(show, set, clear)).routes(routes!(renew)).routes(routes!(
        show_default,
        set_default,
        clear_default
    ))
}

/// The identity of a clone. Private keys are not shown, password hashes as `stored`.
#[utoipa::path(get, path = "/v1/clones/{clone}/identity-spec", tag = "identity", params(("clone" = String, Path, description = "Name or id")), responses((status = 200, body = IdentityView), (status = 404, body = Problem)))]
async fn show(State(gateway): State<Arc<Gateway>>, Path(clone): Path<String>) -> Answer<IdentityView> {
    Ok(Json(gateway.show_identity(&clone).await?))
}

/// Says all about the identity of a clone; with `renew`, its guest takes itself for a new machine.
#[utoipa::path(put, path = "/v1/clones/{clone}/identity-spec", tag = "identity", params(("clone" = String, Path, description = "Name or id"), DryRun), request_body = SetIdentity, responses((status = 200, body = IdentityView), (status = 400, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem)))]
async fn set(
    State(gateway): State<Arc<Gateway>>,
    Path(clone): Path<String>,
    Query(query): Query<DryRun>,
    JsonBody(request): JsonBody<SetIdentity>,
) -> Answer<IdentityView> {
    Ok(Json(gateway.set_identity(&clone, request, query.dry_run).await?))
}

/// Forgets what was said: the identity follows from the clone's id and name.
#[utoipa::path(delete, path = "/v1/clones/{clone}/identity-spec", tag = "identity", params(("clone" = String, Path, description = "Name or id"), DryRun), responses((status = 200, body = Touched), (status = 404, body = Problem), (status = 409, body = Problem)))]
async fn clear(
    State(gateway): State<Arc<Gateway>>,
    Path(clone): Path<String>,
    Query(query): Query<DryRun>,
) -> Answer<Touched> {
    Ok(Json(gateway.clear_identity(&clone, query.dry_run).await?))
}

/// Makes it a new machine: another instance-id and machine-id, and other SSH host keys unless they are to be kept.
#[utoipa::path(post, path = "/v1/clones/{clone}/identity-spec/renew", tag = "identity", params(("clone" = String, Path, description = "Name or id"), DryRun), request_body = RenewIdentity, responses((status = 200, body = IdentityView), (status = 404, body = Problem), (status = 409, body = Problem)))]
async fn renew(
    State(gateway): State<Arc<Gateway>>,
    Path(clone): Path<String>,
    Query(query): Query<DryRun>,
    JsonBody(request): JsonBody<RenewIdentity>,
) -> Answer<IdentityView> {
    Ok(Json(gateway.renew_identity(&clone, request, query.dry_run).await?))
}

/// The identity that new clones of a template get.
#[utoipa::path(get, path = "/v1/templates/{template}/identity-spec", tag = "identity", params(("template" = String, Path, description = "Name")), responses((status = 200, body = TemplateIdentityView), (status = 404, body = Problem)))]
async fn show_default(
    State(gateway): State<Arc<Gateway>>,
    Path(template): Path<String>,
) -> Answer<TemplateIdentityView> {
    Ok(Json(gateway.show_template_identity(&template).await?))
}

/// Says which identity new clones of a template get; those that are there keep theirs.
#[utoipa::path(put, path = "/v1/templates/{template}/identity-spec", tag = "identity", params(("template" = String, Path, description = "Name"), DryRun), request_body = IdentitySpec, responses((status = 200, body = TemplateIdentityView), (status = 400, body = Problem), (status = 404, body = Problem)))]
async fn set_default(
    State(gateway): State<Arc<Gateway>>,
    Path(template): Path<String>,
    Query(query): Query<DryRun>,
    JsonBody(spec): JsonBody<IdentitySpec>,
) -> Answer<TemplateIdentityView> {
    Ok(Json(gateway.set_template_identity(&template, spec, query.dry_run).await?))
}

/// New clones of a template get what follows from their id and name again.
#[utoipa::path(delete, path = "/v1/templates/{template}/identity-spec", tag = "identity", params(("template" = String, Path, description = "Name"), DryRun), responses((status = 200, body = Touched), (status = 404, body = Problem)))]
async fn clear_default(
    State(gateway): State<Arc<Gateway>>,
    Path(template): Path<String>,
    Query(query): Query<DryRun>,
) -> Answer<Touched> {
    Ok(Json(gateway.clear_template_identity(&template, query.dry_run).await?))
}
