//! Bases.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Answer, DryRun, ListParams, Query};
use crate::http::problem::Problem;
use crate::lifecycle::Gateway;
use crate::lifecycle::views::{BaseView, Page, Touched};

pub(super) fn routes() -> OpenApiRouter<Arc<Gateway>> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(show)).routes(routes!(retire))
}

/// All bases.
#[utoipa::path(get, path = "/v1/bases", tag = "bases", params(ListParams), responses((status = 200, body = Page<BaseView>)))]
async fn list(State(gateway): State<Arc<Gateway>>, Query(params): Query<ListParams>) -> Answer<Page<BaseView>> {
    Ok(Json(gateway.list_bases(params.checked()?).await?))
}

/// One base.
#[utoipa::path(get, path = "/v1/bases/{base}", tag = "bases", params(("base" = String, Path, description = "Id")), responses((status = 200, body = BaseView), (status = 404, body = Problem)))]
async fn show(State(gateway): State<Arc<Gateway>>, Path(id): Path<String>) -> Answer<BaseView> {
    Ok(Json(gateway.show_base(&id).await?))
}

/// Gives a base no more clones.
#[utoipa::path(post, path = "/v1/bases/{base}/retire", tag = "bases", params(("base" = String, Path, description = "Id"), DryRun), responses((status = 200, body = Touched), (status = 404, body = Problem)))]
async fn retire(
    State(gateway): State<Arc<Gateway>>,
    Path(id): Path<String>,
    Query(query): Query<DryRun>,
) -> Answer<Touched> {
    Ok(Json(gateway.retire_base(&id, query.dry_run).await?))
}
