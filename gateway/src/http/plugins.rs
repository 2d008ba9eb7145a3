//! Routes about policies: the plugins and their state, installing and taking back, and the decisions that were made.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::response::IntoResponse;
use clonegate_core::advice::Slot;
use clonegate_core::{Error, Result};
use clonegate_policy_host::{InstallOptions, PluginStatus, PolicyHost};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::control::answer::{Answer, Query, Refusal};
use super::problem::Problem;

/// Largest component that is taken in; the sandbox may take less.
const COMPONENT_BYTES_MAX: usize = 32 << 20;
/// Decisions in one answer, at most and when nothing is said.
const DECISIONS_MAX: usize = 10_000;
const DECISIONS: usize = 100;
/// Decisions in one answer, bytes: a large gateway's are tens of kilobytes each.
const DECISIONS_BYTES_MAX: usize = 64 << 20;

/// All routes, with what each says about itself.
pub(super) fn routes() -> OpenApiRouter<Arc<PolicyHost>> {
    OpenApiRouter::new()
        .routes(routes!(list, install))
        .routes(routes!(show, remove))
        .routes(routes!(rollback))
        .routes(routes!(decisions))
        .routes(routes!(decision))
        .layer(DefaultBodyLimit::max(COMPONENT_BYTES_MAX))
}

/// Runs what compiles, replays or reads files where it holds up nobody.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let lost = |e| Error::internal("task-lost", "the work ended early").because(e);
    tokio::task::spawn_blocking(work).await.map_err(lost)?
}

/// Every plugin: installed, embedded, or named by a chain.
#[utoipa::path(get, path = "/v1/plugins", tag = "plugins", responses((status = 200, description = "Plugins with their places in chains, counts and problems", content_type = "application/json")))]
async fn list(State(host): State<Arc<PolicyHost>>) -> Json<Vec<PluginStatus>> {
    Json(host.list())
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
struct Install {
    /// The name to install it under; its own when there is none.
    name: Option<String>,
    /// Take a version that answers recorded questions otherwise than the installed one.
    accept_differences: bool,
    /// Do everything but the exchange.
    dry_run: bool,
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
struct Trial {
    /// Change nothing; say what would be done, or why it cannot be.
    dry_run: bool,
}

/// Installs a component: load, check settings, replay of the last decisions, exchange. What fails leaves the old one at work.
#[utoipa::path(post, path = "/v1/plugins", tag = "plugins", params(Install), request_body(content = String, content_type = "application/wasm"), responses((status = 200, description = "What was installed, and what came of the replay", content_type = "application/json"), (status = 400, description = "Refused; the old one stays", body = Problem)))]
async fn install(
    State(host): State<Arc<PolicyHost>>,
    Query(query): Query<Install>,
    component: Bytes,
) -> Answer<serde_json::Value> {
    let options = InstallOptions { accept_differences: query.accept_differences, dry_run: query.dry_run };
    let report = aside(move || host.install(query.name.as_deref(), &component, options)).await?;
    Ok(Json(serde_json::to_value(report).unwrap_or_default()))
}

/// One plugin: what it is and does, its settings, its places in chains, what a call may take there, and counts.
#[utoipa::path(get, path = "/v1/plugins/{plugin}", tag = "plugins", params(("plugin" = String, Path, description = "Its name")), responses((status = 200, description = "The plugin", content_type = "application/json"), (status = 404, description = "No such plugin", body = Problem)))]
async fn show(State(host): State<Arc<PolicyHost>>, Path(plugin): Path<String>) -> Result<Json<PluginStatus>, Refusal> {
    let wanted = plugin.clone();
    let found = aside(move || Ok(host.show(&wanted))).await?;
    let none = || {
        Error::not_found("no-such-plugin", "there is no such plugin")
            .on(plugin)
            .hint("`clonegate plugin list` shows all")
    };
    Ok(Json(found.ok_or_else(none)?))
}

/// Removes an installed plugin; chains that name it go on without it.
#[utoipa::path(delete, path = "/v1/plugins/{plugin}", tag = "plugins", params(("plugin" = String, Path, description = "Its name"), Trial), responses((status = 204, description = "Removed"), (status = 403, description = "It is part of the program", body = Problem), (status = 404, description = "No such plugin", body = Problem)))]
async fn remove(
    State(host): State<Arc<PolicyHost>>,
    Path(plugin): Path<String>,
    Query(trial): Query<Trial>,
) -> Result<StatusCode, Refusal> {
    aside(move || host.remove(&plugin, trial.dry_run)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Brings the version before back.
#[utoipa::path(post, path = "/v1/plugins/{plugin}/rollback", tag = "plugins", params(("plugin" = String, Path, description = "Its name"), Trial), responses((status = 200, description = "The version that is at work now, or would be", content_type = "application/json"), (status = 404, description = "No such plugin", body = Problem), (status = 409, description = "There is no version before", body = Problem)))]
async fn rollback(
    State(host): State<Arc<PolicyHost>>,
    Path(plugin): Path<String>,
    Query(trial): Query<Trial>,
) -> Answer<serde_json::Value> {
    let info = aside(move || host.rollback(&plugin, trial.dry_run)).await?;
    Ok(Json(serde_json::to_value(info).unwrap_or_default()))
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
struct Which {
    /// `placement`, `rollover` or `reset`; all when there is none.
    slot: Option<String>,
    /// Not older than this, milliseconds since 1970 UTC.
    since_ms: u64,
    /// The newest so many, at most 10,000 and 64 MiB; 100 when nothing is said.
    limit: Option<usize>,
}

/// The newest decisions, oldest of them first: one JSON object a line, as `clonegate plugin replay` reads them.
#[utoipa::path(get, path = "/v1/decisions", tag = "plugins", params(Which), responses((status = 200, description = "JSON lines", content_type = "application/jsonl"), (status = 400, description = "No such slot", body = Problem)))]
async fn decisions(
    State(host): State<Arc<PolicyHost>>,
    Query(which): Query<Which>,
) -> Result<impl IntoResponse, Refusal> {
    let slot = match &which.slot {
        None => None,
        Some(word) => Some(Slot::parse(word).ok_or_else(|| {
            Error::invalid("bad-query", format!("{word:?} is no slot")).hint("say placement, rollover or reset")
        })?),
    };
    let limit = which.limit.unwrap_or(DECISIONS).min(DECISIONS_MAX);
    let lines = aside(move || host.decisions(slot, which.since_ms, limit, DECISIONS_BYTES_MAX)).await?;
    let mut text = Vec::with_capacity(lines.iter().map(|line| line.len() + 1).sum());
    for line in lines {
        text.extend_from_slice(line.trim_ascii_end());
        text.push(b'\n');
    }
    Ok(([(CONTENT_TYPE, "application/jsonl")], text))
}

/// One decision: who was asked what, and what each said.
#[utoipa::path(get, path = "/v1/decisions/{decision}", tag = "plugins", params(("decision" = String, Path, description = "Its id")), responses((status = 200, description = "The decision", content_type = "application/json"), (status = 404, description = "Not recorded, or no longer", body = Problem)))]
async fn decision(State(host): State<Arc<PolicyHost>>, Path(id): Path<String>) -> Answer<serde_json::Value> {
    let wanted = id.clone();
    let found = aside(move || host.decision(&wanted)).await?;
    let none = || Error::not_found("no-such-decision", "there is no such decision, or no longer").on(id);
    Ok(Json(serde_json::from_slice(&found.ok_or_else(none)?).unwrap_or_default()))
}
