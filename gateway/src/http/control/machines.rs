//! What happens to a clone over its life: updates, power, holds; and templates made of clones.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use http::StatusCode;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Answer, Created, DryRun, JsonBody, Query};
use crate::http::problem::Problem;
use crate::lifecycle::Gateway;
use crate::lifecycle::views::{
    CapacityQuery, CapacityView, LifetimeView, PowerEvent, PowerOutcome, TemplateView, ToTemplate, Touched,
    UpdateClones, UpdatedClones,
};

pub(super) fn routes() -> OpenApiRouter<Arc<Gateway>> {
    OpenApiRouter::new()
        .routes(routes!(update))
        .routes(routes!(to_template))
        .routes(routes!(power))
        .routes(routes!(hold))
        .routes(routes!(release))
        .routes(routes!(lifetime))
        .routes(routes!(capacity))
}

/// Moves clones to another version of their template: metadata only, and the old deltas can be had back for a while.
#[utoipa::path(post, path = "/v1/updates", tag = "clones", params(DryRun), request_body = UpdateClones, responses((status = 200, body = UpdatedClones), (status = 404, body = Problem), (status = 409, body = Problem)))]
async fn update(
    State(gateway): State<Arc<Gateway>>,
    Query(query): Query<DryRun>,
    JsonBody(request): JsonBody<UpdateClones>,
) -> Answer<UpdatedClones> {
    Ok(Json(gateway.update_clones(request, query.dry_run).await?))
}

/// Makes a template version of what a clone reads as now; only what changed is stored.
#[utoipa::path(post, path = "/v1/clones/{clone}/to-template", tag = "clones", params(("clone" = String, Path, description = "Name or id")), request_body = ToTemplate, responses((status = 201, body = TemplateView), (status = 404, body = Problem), (status = 409, body = Problem)))]
async fn to_template(
    State(gateway): State<Arc<Gateway>>,
    Path(clone): Path<String>,
    JsonBody(request): JsonBody<ToTemplate>,
) -> Created<TemplateView> {
    Ok((StatusCode::CREATED, Json(gateway.clone_to_template(&clone, request).await?)))
}

/// What happened to a machine.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Power {
    /// The event.
    event: PowerEvent,
}

/// Tells that a machine was switched on or off, or that its user logged off; policies decide what follows.
#[utoipa::path(post, path = "/v1/clones/{clone}/power", tag = "clones", params(("clone" = String, Path, description = "Name or id")), request_body = Power, responses((status = 200, body = PowerOutcome), (status = 404, body = Problem)))]
async fn power(
    State(gateway): State<Arc<Gateway>>,
    Path(clone): Path<String>,
    JsonBody(request): JsonBody<Power>,
) -> Answer<PowerOutcome> {
    Ok(Json(gateway.power_clone(&clone, request.event).await?))
}

/// Why a clone is held.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Hold {
    /// For people.
    reason: String,
}

/// Holds a clone: nothing discards what it has written.
#[utoipa::path(post, path = "/v1/clones/{clone}/hold", tag = "clones", params(("clone" = String, Path, description = "Name or id")), request_body = Hold, responses((status = 200, body = Touched), (status = 404, body = Problem)))]
async fn hold(
    State(gateway): State<Arc<Gateway>>,
    Path(clone): Path<String>,
    JsonBody(request): JsonBody<Hold>,
) -> Answer<Touched> {
    Ok(Json(gateway.hold_clone(&clone, Some(request.reason)).await?))
}

/// Lets a held clone go.
#[utoipa::path(post, path = "/v1/clones/{clone}/release", tag = "clones", params(("clone" = String, Path, description = "Name or id")), responses((status = 200, body = Touched), (status = 404, body = Problem)))]
async fn release(State(gateway): State<Arc<Gateway>>, Path(clone): Path<String>) -> Answer<Touched> {
    Ok(Json(gateway.hold_clone(&clone, None).await?))
}

/// How long a delta is to last.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Lasting {
    /// Until a reset, or until power-off.
    lifetime: LifetimeView,
}

/// Says whether a clone's delta is meant to last.
#[utoipa::path(post, path = "/v1/clones/{clone}/lifetime", tag = "clones", params(("clone" = String, Path, description = "Name or id")), request_body = Lasting, responses((status = 200, body = Touched), (status = 404, body = Problem)))]
async fn lifetime(
    State(gateway): State<Arc<Gateway>>,
    Path(clone): Path<String>,
    JsonBody(request): JsonBody<Lasting>,
) -> Answer<Touched> {
    Ok(Json(gateway.set_lifetime(&clone, request.lifetime).await?))
}

/// What is asked about space.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct CapacityParams {
    /// The template.
    template: String,
    /// How many clones.
    clones: u32,
    /// Average delta, bytes; measured or usual ones when absent.
    average: Option<u64>,
    /// Two versions are there at once while an update is staged.
    #[serde(default)]
    staged_update: bool,
}

/// How much space clones of a template need, which limit is met first, and what linked cloning saves now.
#[utoipa::path(get, path = "/v1/capacity", tag = "capacity", params(CapacityParams), responses((status = 200, body = CapacityView), (status = 404, body = Problem)))]
async fn capacity(State(gateway): State<Arc<Gateway>>, Query(params): Query<CapacityParams>) -> Answer<CapacityView> {
    let CapacityParams { template, clones, average, staged_update } = params;
    Ok(Json(gateway.capacity(CapacityQuery { template, clones, average, staged_update }).await?))
}
