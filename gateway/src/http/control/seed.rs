//! The seed of a clone for cloud-init's NoCloud by HTTP: `ds=nocloud-net;s=http://HOST:PORT/seed/CLONE/`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use clonegate_core::Error;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::Refusal;
use crate::http::problem::Problem;
use crate::lifecycle::Gateway;

pub(super) fn routes() -> OpenApiRouter<Arc<Gateway>> {
    OpenApiRouter::new().routes(routes!(seed))
}

/// One file of a clone's cloud-init seed: `meta-data`, `user-data`, `vendor-data`, or `network-config` when the identity says something about the network.
///
/// Whoever reads it learns the machine's private SSH host key and the password hashes of its users.
#[utoipa::path(
    get, path = "/seed/{clone}/{file}", tag = "boot",
    params(("clone" = String, Path, description = "Name or id"), ("file" = String, Path, description = "meta-data, user-data, vendor-data or network-config")),
    responses(
        (status = 200, body = String, content_type = "text/plain", description = "YAML, or what the operator gave as user-data"),
        (status = 404, body = Problem),
    )
)]
async fn seed(
    State(gateway): State<Arc<Gateway>>,
    Path((clone, file)): Path<(String, String)>,
) -> Result<Response, Refusal> {
    let text = match file.as_str() {
        "meta-data" => Some(gateway.identity(&clone).await?.meta_data()),
        "user-data" => Some(gateway.identity(&clone).await?.user_data()),
        "vendor-data" => Some(gateway.identity(&clone).await?.vendor_data()),
        "network-config" => gateway.identity(&clone).await?.network_config(),
        _ => None,
    };
    let text = text.ok_or_else(|| {
        Error::not_found("no-such-seed", "the seed has no such file")
            .on(format!("{clone}/{file}"))
            .hint("meta-data, user-data, vendor-data, and network-config when the identity has a network")
    })?;
    let mut response = Response::new(Body::from(text));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}
