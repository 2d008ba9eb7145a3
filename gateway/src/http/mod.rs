//! HTTP: connections with limits, disk bytes, the control interface.
//!
//! A request for a disk that is open and in memory is answered before any router, without waiting and almost without
//! allocating; see `disk`. Everything else goes to an axum router whose OpenAPI document is made from its handlers.

mod auth;
mod boot;
mod control;
mod disk;
mod download;
mod io;
mod plugins;
pub mod problem;
mod room;
mod server;
mod service;
mod settings;
mod trial;
mod watch;

use std::sync::Arc;

use clonegate_core::Result;

use crate::clock::Clock;
use crate::exports::Exports;
use crate::lifecycle::Gateway;
use crate::metrics::Metrics;

pub use auth::Tokens;
pub use boot::{BootSettings, Unknown, blanks, unknown_blank};
pub use server::HttpServer;
pub use settings::{HttpSettings, Secure};

/// Serves `exports`, and the control interface of `gateway`. Handlers run on the runtime that this is called on.
///
/// # Errors
/// `Unavailable` with code `address-in-use` or `cannot-listen`.
pub fn serve(
    settings: &HttpSettings,
    exports: Arc<dyn Exports>,
    gateway: Option<Arc<Gateway>>,
    metrics: &Arc<Metrics>,
    clock: &Clock,
) -> Result<HttpServer> {
    let boot = settings.boot.clone();
    let router = control::router(
        Arc::clone(&exports),
        gateway,
        settings.policies.clone(),
        Arc::clone(metrics),
        boot,
        clock.clone(),
    );
    HttpServer::start(settings, exports, router, metrics, clock.clone())
}

/// The OpenAPI document of the whole interface, as JSON.
pub fn openapi() -> String {
    control::document().to_pretty_json().unwrap_or_default()
}
