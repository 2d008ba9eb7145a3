//! What happens to a clone over its life: updates, power, holds; and templates made of clones.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::Response;
use http::StatusCode;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Answer, DryRun, JsonBody, Query, Refusal, Tried, tried};
use crate::http::problem::Problem;
use crate::lifecycle::Gateway;
use crate::lifecycle::views::{
    AlertView, CapacityQuery, CapacityView, LifetimeView, PowerEvent, PowerOutcome, ResetRulesView, RolloutAction,
    SnapshotView, TemplateView, ToTemplate, Touched, UpdateClones, UpdatedClones, Would,
};

pub(super) fn routes() -> OpenApiRouter<Arc<Gateway>> {
    OpenApiRouter::new()
        .routes(routes!(update))
        .routes(routes!(show_update))
        .routes(routes!(steer_update))
        .routes(routes!(undo))
        .routes(routes!(drop_snapshot))
        .routes(routes!(to_template))
        .routes(routes!(power))
        .routes(routes!(hold))
        .routes(routes!(release))
        .routes(routes!(lifetime))
        .routes(routes!(capacity))
        .routes(routes!(alerts))
}

/// Moves clones to another version of their template: metadata only, and the old deltas can be had back for a while.
#[utoipa::path(post, path = "/v1/updates", tag = "clones", params(DryRun), request_body = UpdateClones, responses((status = 200, description = "How far it is after at most 20 s", body = UpdatedClones), (status = 404, body = Problem), (status = 409, body = Problem)))]
async fn update(
    State(gateway): State<Arc<Gateway>>,
    Query(query): Query<DryRun>,
    JsonBody(request): JsonBody<UpdateClones>,
) -> Answer<UpdatedClones> {
    Ok(Json(gateway.update_clones(request, query.dry_run).await?))
}

/// How far the newest update of a template's clones is.
#[utoipa::path(get, path = "/v1/updates/{template}", tag = "clones", params(("template" = String, Path, description = "Name")), responses((status = 200, body = UpdatedClones), (status = 404, body = Problem)))]
async fn show_update(State(gateway): State<Arc<Gateway>>, Path(template): Path<String>) -> Answer<UpdatedClones> {
    Ok(Json(gateway.show_update(&template).await?))
}

/// What is done to an update.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Steer {
    /// The action.
    action: RolloutAction,
}

/// Pauses, resumes, promotes, rolls back or ends the newest update of a template's clones.
#[utoipa::path(post, path = "/v1/updates/{template}", tag = "clones", params(("template" = String, Path, description = "Name"), DryRun), request_body = Steer, responses((status = 200, body = UpdatedClones), (status = 404, body = Problem), (status = 409, body = Problem)))]
async fn steer_update(
    State(gateway): State<Arc<Gateway>>,
    Path(template): Path<String>,
    Query(query): Query<DryRun>,
    JsonBody(request): JsonBody<Steer>,
) -> Result<Response, Refusal> {
    let done = match query.dry_run {
        true => Tried::Would(gateway.would(Would::Steer { template, action: request.action }).await?),
        false => Tried::Done(gateway.steer_update(&template, request.action).await?),
    };
    Ok(tried(done, StatusCode::OK))
}

/// Takes the last reset, restore or update of a clone back, with what it held then.
#[utoipa::path(post, path = "/v1/clones/{clone}/undo", tag = "clones", params(("clone" = String, Path, description = "Name or id"), DryRun), responses((status = 200, body = Touched), (status = 404, body = Problem), (status = 409, body = Problem)))]
async fn undo(
    State(gateway): State<Arc<Gateway>>,
    Path(clone): Path<String>,
    Query(query): Query<DryRun>,
) -> Answer<Touched> {
    Ok(Json(gateway.undo_clone(&clone, query.dry_run).await?))
}

/// Gives a snapshot of a clone up.
#[utoipa::path(delete, path = "/v1/clones/{clone}/snapshots/{snapshot}", tag = "clones", params(("clone" = String, Path, description = "Name or id"), ("snapshot" = String, Path, description = "Name"), DryRun), responses((status = 200, body = SnapshotView), (status = 404, body = Problem)))]
async fn drop_snapshot(
    State(gateway): State<Arc<Gateway>>,
    Path((clone, snapshot)): Path<(String, String)>,
    Query(query): Query<DryRun>,
) -> Result<Response, Refusal> {
    let done = match query.dry_run {
        true => Tried::Would(gateway.would(Would::DropSnapshot { clone, snapshot }).await?),
        false => Tried::Done(gateway.drop_snapshot(&clone, &snapshot).await?),
    };
    Ok(tried(done, StatusCode::OK))
}

/// Makes a template version of what a clone reads as now; only what changed is stored.
#[utoipa::path(post, path = "/v1/clones/{clone}/to-template", tag = "clones", params(("clone" = String, Path, description = "Name or id"), DryRun), request_body = ToTemplate, responses((status = 200, description = "What a dry run would touch", body = Touched), (status = 201, body = TemplateView), (status = 404, body = Problem), (status = 409, body = Problem)))]
async fn to_template(
    State(gateway): State<Arc<Gateway>>,
    Path(clone): Path<String>,
    Query(query): Query<DryRun>,
    JsonBody(request): JsonBody<ToTemplate>,
) -> Result<Response, Refusal> {
    let done = match query.dry_run {
        true => Tried::Would(gateway.would(Would::ToTemplate { clone, request }).await?),
        false => Tried::Done(gateway.clone_to_template(&clone, request).await?),
    };
    Ok(tried(done, StatusCode::CREATED))
}

/// What happened to a machine.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Power {
    /// The event.
    event: PowerEvent,
}

/// Tells that a machine was switched on or off, or that its user logged off; policies decide what follows.
#[utoipa::path(post, path = "/v1/clones/{clone}/power", tag = "clones", params(("clone" = String, Path, description = "Name or id"), DryRun), request_body = Power, responses((status = 200, body = PowerOutcome), (status = 404, body = Problem)))]
async fn power(
    State(gateway): State<Arc<Gateway>>,
    Path(clone): Path<String>,
    Query(query): Query<DryRun>,
    JsonBody(request): JsonBody<Power>,
) -> Result<Response, Refusal> {
    let done = match query.dry_run {
        true => Tried::Would(gateway.would(Would::Power { clone, event: request.event }).await?),
        false => Tried::Done(gateway.power_clone(&clone, request.event).await?),
    };
    Ok(tried(done, StatusCode::OK))
}

/// Why a clone is held.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Hold {
    /// For people.
    reason: String,
}

/// Holds a clone: nothing discards what it has written.
#[utoipa::path(post, path = "/v1/clones/{clone}/hold", tag = "clones", params(("clone" = String, Path, description = "Name or id"), DryRun), request_body = Hold, responses((status = 200, body = Touched), (status = 404, body = Problem)))]
async fn hold(
    State(gateway): State<Arc<Gateway>>,
    Path(clone): Path<String>,
    Query(query): Query<DryRun>,
    JsonBody(request): JsonBody<Hold>,
) -> Result<Response, Refusal> {
    let done = match query.dry_run {
        true => Tried::Would(gateway.would(Would::Hold { clone, why: Some(request.reason) }).await?),
        false => Tried::Done(gateway.hold_clone(&clone, Some(request.reason)).await?),
    };
    Ok(tried(done, StatusCode::OK))
}

/// Lets a held clone go.
#[utoipa::path(post, path = "/v1/clones/{clone}/release", tag = "clones", params(("clone" = String, Path, description = "Name or id"), DryRun), responses((status = 200, body = Touched), (status = 404, body = Problem)))]
async fn release(
    State(gateway): State<Arc<Gateway>>,
    Path(clone): Path<String>,
    Query(query): Query<DryRun>,
) -> Result<Response, Refusal> {
    let done = match query.dry_run {
        true => Tried::Would(gateway.would(Would::Hold { clone, why: None }).await?),
        false => Tried::Done(gateway.hold_clone(&clone, None).await?),
    };
    Ok(tried(done, StatusCode::OK))
}

/// How long a delta is to last. What is absent stays as it is.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Lasting {
    /// Until a reset, or until power-off.
    #[serde(default)]
    lifetime: Option<LifetimeView>,
    /// When it is discarded besides.
    #[serde(default)]
    reset: Option<ResetRulesView>,
}

/// Says whether a clone's delta is meant to last, and when it is discarded besides.
#[utoipa::path(post, path = "/v1/clones/{clone}/lifetime", tag = "clones", params(("clone" = String, Path, description = "Name or id"), DryRun), request_body = Lasting, responses((status = 200, body = Touched), (status = 404, body = Problem)))]
async fn lifetime(
    State(gateway): State<Arc<Gateway>>,
    Path(clone): Path<String>,
    Query(query): Query<DryRun>,
    JsonBody(request): JsonBody<Lasting>,
) -> Result<Response, Refusal> {
    let done = match query.dry_run {
        true => Tried::Would(
            gateway
                .would(Would::Lifetime { clone, lifetime: request.lifetime.map(Into::into), rules: request.reset })
                .await?,
        ),
        false => Tried::Done(gateway.set_lifetime(&clone, request.lifetime.map(Into::into), request.reset).await?),
    };
    Ok(tried(done, StatusCode::OK))
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

/// What is about to be full: datastores, and clones whose delta nears its limit.
#[utoipa::path(get, path = "/v1/alerts", tag = "capacity", responses((status = 200, body = Vec<AlertView>)))]
async fn alerts(State(gateway): State<Arc<Gateway>>) -> Answer<Vec<AlertView>> {
    Ok(Json(gateway.alerts().await?))
}
