//! Jobs: long work that goes on after its request was answered.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::{HeaderValue, LOCATION};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Answer, DryRun, Query, list_query};
use crate::http::problem::Problem;
use crate::lifecycle::Gateway;
use crate::lifecycle::views::{JobView, ListJobs, Page, Touched};

pub(super) fn routes() -> OpenApiRouter<Arc<Gateway>> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(show)).routes(routes!(cancel))
}

/// The answer to a request whose work goes on: 202, where to ask, and the job.
pub(super) fn accepted(job: JobView) -> Response {
    let location = HeaderValue::from_str(&format!("/v1/jobs/{}", job.id)).ok();
    let mut response = (StatusCode::ACCEPTED, Json(job)).into_response();
    if let Some(location) = location {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

/// Which jobs.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct JobParams {
    /// Most items; 100 when absent, at most 10,000.
    limit: Option<usize>,
    /// The `next` of the page before.
    cursor: Option<String>,
    /// Only those of this subject.
    subject: Option<String>,
    /// Only those that are not over.
    #[serde(default)]
    under_way: bool,
}

/// All jobs, the newest first.
#[utoipa::path(get, path = "/v1/jobs", tag = "jobs", params(JobParams), responses((status = 200, body = Page<JobView>)))]
async fn list(State(gateway): State<Arc<Gateway>>, Query(params): Query<JobParams>) -> Answer<Page<JobView>> {
    let JobParams { limit, cursor, subject, under_way } = params;
    Ok(Json(gateway.list_jobs(ListJobs { list: list_query(limit, cursor)?, subject, under_way }).await?))
}

/// One job.
#[utoipa::path(get, path = "/v1/jobs/{job}", tag = "jobs", params(("job" = String, Path, description = "Id")), responses((status = 200, body = JobView), (status = 404, body = Problem)))]
async fn show(State(gateway): State<Arc<Gateway>>, Path(job): Path<String>) -> Answer<JobView> {
    Ok(Json(gateway.show_job(&job).await?))
}

/// Wants a job to end; it does at the next point where that does no harm.
#[utoipa::path(post, path = "/v1/jobs/{job}/cancel", tag = "jobs", params(("job" = String, Path, description = "Id"), DryRun), responses((status = 200, body = Touched), (status = 404, body = Problem)))]
async fn cancel(
    State(gateway): State<Arc<Gateway>>,
    Path(job): Path<String>,
    Query(query): Query<DryRun>,
) -> Answer<Touched> {
    Ok(Json(gateway.cancel_job(&job, query.dry_run).await?))
}
