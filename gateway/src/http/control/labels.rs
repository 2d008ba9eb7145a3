//! Labels of a clone.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Answer, DryRun, JsonBody, Query};
use crate::http::problem::Problem;
use crate::lifecycle::Gateway;
use crate::lifecycle::views::{ChangeLabels, Touched};

pub(super) fn routes() -> OpenApiRouter<Arc<Gateway>> {
    OpenApiRouter::new().routes(routes!(change))
}

/// Sets and removes labels of a clone: what policies see of it, and which machine boots from it.
#[utoipa::path(
    post, path = "/v1/clones/{clone}/labels", tag = "clones",
    params(("clone" = String, Path, description = "Name or id"), DryRun), request_body = ChangeLabels,
    responses((status = 200, body = Touched), (status = 400, body = Problem), (status = 404, body = Problem))
)]
async fn change(
    State(gateway): State<Arc<Gateway>>,
    Path(clone): Path<String>,
    Query(query): Query<DryRun>,
    JsonBody(request): JsonBody<ChangeLabels>,
) -> Answer<Touched> {
    Ok(Json(gateway.change_labels(&clone, request, query.dry_run).await?))
}
