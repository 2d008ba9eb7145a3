//! The check of everything stored.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Answer, Query};
use crate::lifecycle::Gateway;
use crate::lifecycle::views::FsckReport;

pub(super) fn routes() -> OpenApiRouter<Arc<Gateway>> {
    OpenApiRouter::new().routes(routes!(fsck))
}

/// How to check.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct FsckQuery {
    /// Remove what has no owner and mend what can be mended.
    #[serde(default)]
    repair: bool,
    /// What is younger may belong to a request under way, milliseconds; an hour when absent.
    grace_ms: Option<u64>,
    /// Read every block and chunk and verify its checksum.
    #[serde(default)]
    deep: bool,
    /// Look only, whatever `repair` says.
    #[serde(default)]
    dry_run: bool,
}

/// Looks whether everything stored is owned and there.
#[utoipa::path(post, path = "/v1/fsck", tag = "fsck", params(FsckQuery), responses((status = 200, body = FsckReport)))]
async fn fsck(State(gateway): State<Arc<Gateway>>, Query(query): Query<FsckQuery>) -> Answer<FsckReport> {
    Ok(Json(gateway.fsck(query.repair && !query.dry_run, query.grace_ms, query.deep).await?))
}
