//! The control interface: an axum router, and the OpenAPI document made from its handlers.

pub(super) mod answer;
mod disks;
mod extents;
mod files;
mod system;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use clonegate_core::Error;
use clonegate_core::limits::HTTP_CONTROL_BODY_BYTES_MAX;
use utoipa::OpenApi;
use utoipa::openapi::OpenApi as Document;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::boot::{self, Boot, BootSettings};
use super::problem::Problem;
use crate::clock::Clock;
use crate::exports::Exports;
use crate::lifecycle::Gateway;
use crate::metrics::Metrics;
use answer::Refusal;

/// What handlers work on.
#[derive(Debug, Clone)]
pub(crate) struct Control {
    pub(crate) exports: Arc<dyn Exports>,
    pub(crate) metrics: Arc<Metrics>,
}

#[derive(OpenApi)]
#[openapi(
    info(title = "clonegate", description = "Linked-clone volumes out of object stores."),
    components(schemas(Problem)),
    paths(
        disks::clone_disk_get,
        disks::clone_disk_head,
        disks::clone_disk_put,
        disks::identity_get,
        disks::identity_head,
        disks::disk_get,
        disks::disk_head,
        disks::disk_put,
        disks::base_disk_get,
        disks::base_disk_head,
        disks::template_disk_get,
        disks::template_disk_head,
    )
)]
struct Described;

/// All routes, with what each says about itself.
fn routes() -> OpenApiRouter<Control> {
    OpenApiRouter::with_openapi(Described::openapi())
        .routes(routes!(system::metrics))
        .routes(routes!(system::healthz))
        .routes(routes!(system::readyz))
        .routes(routes!(system::openapi))
        .routes(routes!(extents::extents))
        .routes(routes!(files::partitions))
        .routes(routes!(files::file))
}

/// The document alone.
pub(crate) fn document() -> Document {
    let mut document = routes().into_openapi();
    document.merge(boot::routes().into_openapi());
    document.info.version = env!("CARGO_PKG_VERSION").to_owned();
    document
}

/// The router. Without a gateway (in tests of the data routes) there are no nouns.
pub(crate) fn router(
    exports: Arc<dyn Exports>,
    gateway: Option<Arc<Gateway>>,
    metrics: Arc<Metrics>,
    boot: BootSettings,
    clock: Clock,
) -> Router {
    let (mut router, _) = routes().with_state(Control { exports, metrics }).split_for_parts();
    if let Some(gateway) = gateway {
        let (routes, _) = boot::routes().with_state(Boot::new(boot, gateway, clock)).split_for_parts();
        router = router.merge(routes);
    }
    router
        .layer(axum::Extension(system::Description::of(&document())))
        .layer(DefaultBodyLimit::max(HTTP_CONTROL_BODY_BYTES_MAX))
        .fallback(no_such_route)
        .method_not_allowed_fallback(method_not_allowed)
}

async fn no_such_route() -> Refusal {
    Refusal(Error::not_found("no-such-route", "there is no such path").hint("see /openapi.json for the ones there are"))
}

async fn method_not_allowed() -> Refusal {
    Refusal(Error::invalid("method-not-allowed", "the path does not take this method").hint("see the Allow header"))
}
