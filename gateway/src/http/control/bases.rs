//! Bases.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::Response;
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Answer, DryRun, JsonBody, ListParams, Query, Refusal};
use super::full_clones::answer;
use crate::http::problem::Problem;
use crate::lifecycle::Gateway;
use crate::lifecycle::views::{BaseView, JobView, Page, Touched, WarmCache};

pub(super) fn routes() -> OpenApiRouter<Arc<Gateway>> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(show)).routes(routes!(retire)).routes(routes!(warm))
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

/// How much of a base is fetched.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Warm {
    /// All that is not zero, instead of what boots touch.
    #[serde(default)]
    whole: bool,
}

/// Fetches a base into the iCache of this gateway before machines ask.
#[utoipa::path(post, path = "/v1/bases/{base}/warm", tag = "bases", params(("base" = String, Path, description = "Id"), DryRun), request_body = Warm, responses((status = 202, description = "The job", body = JobView), (status = 200, description = "What a dry run would fetch", body = Touched), (status = 404, body = Problem), (status = 409, body = Problem)))]
async fn warm(
    State(gateway): State<Arc<Gateway>>,
    Path(id): Path<String>,
    Query(query): Query<DryRun>,
    JsonBody(request): JsonBody<Warm>,
) -> Result<Response, Refusal> {
    let request = WarmCache { bases: vec![id], whole: request.whole, ..WarmCache::default() };
    answer(gateway.warm_cache(request, query.dry_run).await?)
}
