//! The control interface: an axum router, and the OpenAPI document made from its handlers.

pub(super) mod answer;
mod audit;
mod bases;
mod cache;
mod clones;
mod console;
mod data_disks;
mod datastores;
mod disks;
mod dry_run;
mod events;
mod extents;
mod files;
mod fsck;
mod full_clones;
mod idempotency;
mod identity;
mod jobs;
mod labels;
mod machines;
mod pools;
mod request;
mod seed;
mod system;
mod templates;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::get;
use clonegate_core::Error;
use clonegate_core::limits::HTTP_CONTROL_BODY_BYTES_MAX;
use clonegate_policy_host::PolicyHost;
use utoipa::OpenApi;
use utoipa::openapi::OpenApi as Document;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::boot::{self, Boot, BootSettings};
use super::plugins;
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

/// Routes that need no gateway.
fn system() -> OpenApiRouter<Control> {
    OpenApiRouter::with_openapi(Described::openapi())
        .routes(routes!(system::metrics))
        .routes(routes!(system::healthz))
        .routes(routes!(system::readyz))
        .routes(routes!(system::openapi))
        .routes(routes!(extents::extents))
        .routes(routes!(extents::template_extents))
        .routes(routes!(extents::base_extents))
        .routes(routes!(files::partitions))
        .routes(routes!(files::root))
        .routes(routes!(files::file))
        // Whoever explores by hand ends the names of directories so.
        .route("/v1/clones/{clone}/files/", get(files::partitions))
        .route("/v1/clones/{clone}/files/{partition}/", get(files::root))
        .routes(routes!(console::console))
        .routes(routes!(console::script))
        .routes(routes!(console::style))
}

/// Routes of the nouns.
fn nouns() -> OpenApiRouter<Arc<Gateway>> {
    OpenApiRouter::new()
        .merge(datastores::routes())
        .merge(templates::routes())
        .merge(bases::routes())
        .merge(clones::routes())
        .merge(cache::routes())
        .merge(fsck::routes())
        .merge(machines::routes())
        .merge(labels::routes())
        .merge(data_disks::routes())
        .merge(jobs::routes())
        .merge(audit::routes())
        .merge(events::routes())
        .merge(full_clones::routes())
        .merge(pools::routes())
        .merge(identity::routes())
        .merge(seed::routes())
}

/// The document alone, of the whole interface.
pub(crate) fn document() -> Document {
    let mut document = system().into_openapi();
    document.merge(nouns().into_openapi());
    document.merge(boot::routes().into_openapi());
    document.merge(plugins::routes().into_openapi());
    finish(&mut document);
    document
}

/// What is said of the interface as a whole.
fn finish(document: &mut Document) {
    document.info.version = env!("CARGO_PKG_VERSION").to_owned();
    let token = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("Wanted where the gateway's `auth.tokens` is set, for all but what a machine reads to boot"));
    let components = document.components.get_or_insert_default();
    components.add_security_scheme("token", SecurityScheme::Http(token.build()));
    let nobody = SecurityRequirement::default();
    document.security = Some(vec![nobody, SecurityRequirement::new("token", std::iter::empty::<String>())]);
}

/// The router. Without a gateway (in tests of the data routes) there are no nouns.
pub(crate) fn router(
    exports: Arc<dyn Exports>,
    gateway: Option<Arc<Gateway>>,
    policies: Option<Arc<PolicyHost>>,
    metrics: Arc<Metrics>,
    boot: BootSettings,
    clock: Clock,
) -> Router {
    let noted = gateway.clone();
    let mut all = system().with_state(Control { exports, metrics });
    if let Some(gateway) = gateway {
        all = all.merge(nouns().with_state(Arc::clone(&gateway)));
        all = all.merge(boot::routes().with_state(Boot::new(boot, gateway, clock)));
    }
    if let Some(policies) = policies {
        all = all.merge(plugins::routes().with_state(policies));
    }
    let (router, mut document) = all.split_for_parts();
    finish(&mut document);
    let known = Arc::new(dry_run::Known::of(&document));
    router
        .layer(axum::middleware::from_fn_with_state(known, dry_run::refuse_unknown))
        .layer(axum::middleware::from_fn_with_state(noted, audit::note))
        .layer(axum::middleware::from_fn_with_state(Arc::new(idempotency::Kept::default()), idempotency::once))
        .layer(axum::middleware::from_fn(request::enter))
        .layer(axum::Extension(system::Description::of(&document)))
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
