//! The audit log over HTTP, and the entries of requests that no verb has noted itself.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Json;
use axum::body::{Body, HttpBody, to_bytes};
use axum::extract::{FromRequestParts, MatchedPath, Path, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::{Method, StatusCode};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Answer, Query, list_query};
use crate::lifecycle::views::{AuditView, ListAudit, Page};
use crate::lifecycle::{Gateway, context};

/// Longest answer that is looked into for its error code, bytes.
const PROBLEM_BYTES_MAX: usize = 64 * 1024;
/// Longest answer that is looked into for the name of what was made, bytes.
const MADE_BYTES_MAX: u64 = 4 * 1024 * 1024;

pub(super) fn routes() -> OpenApiRouter<Arc<Gateway>> {
    OpenApiRouter::new().routes(routes!(list))
}

/// Which entries.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct AuditParams {
    /// Most items; 100 when absent, at most 10,000.
    limit: Option<usize>,
    /// The `next` of the page before.
    cursor: Option<String>,
    /// Only what was done to this.
    object: Option<String>,
    /// Only this action, as `clone reset`.
    action: Option<String>,
}

/// Who did what, the newest first.
#[utoipa::path(get, path = "/v1/audit", tag = "audit", params(AuditParams), responses((status = 200, body = Page<AuditView>)))]
async fn list(State(gateway): State<Arc<Gateway>>, Query(params): Query<AuditParams>) -> Answer<Page<AuditView>> {
    let AuditParams { limit, cursor, object, action } = params;
    Ok(Json(gateway.list_audit(ListAudit { list: list_query(limit, cursor)?, object, action }).await?))
}

/// Notes every change that was asked for and that its verb has not noted: also what was refused.
pub(super) async fn note(State(gateway): State<Option<Arc<Gateway>>>, request: Request, next: Next) -> Response {
    let Some(gateway) = gateway.filter(|_| is_change(&request)) else { return next.run(request).await };
    let (mut parts, body) = request.into_parts();
    let path = parts.extensions.get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let named = Path::<HashMap<String, String>>::from_request_parts(&mut parts, &()).await;
    let action = path.as_deref().map(|path| action(&parts.method, path));
    let object = named.ok().and_then(|Path(named)| named.into_values().next());
    let response = next.run(Request::from_parts(parts, body)).await;
    let Some(action) = action else { return response };
    let request = context::current();
    let audited = request
        .as_ref()
        .is_some_and(|request| request.is_audited() || (action == "clone create" && request.has_created()));
    if audited && response.status().is_success() {
        return response;
    }
    let (response, code, concerned) = outcome(response).await;
    let (response, job) = job(response).await;
    let (response, object) = match object.or(concerned) {
        Some(object) => (response, Some(object)),
        None => made(response).await,
    };
    gateway.audit_request(&context::by(), &action, object.as_deref().unwrap_or("-"), &code, &job).await;
    response
}

fn is_change(request: &Request) -> bool {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    let dry = request.uri().query().is_some_and(|query| query.split('&').any(|pair| pair == "dry_run=true"));
    !reads && !dry
}

/// Noun and verb of a route: `POST /v1/clones/{clone}/reset` is `clone reset`.
fn action(method: &Method, path: &str) -> String {
    // Routes whose words are not those of the command.
    match (method, path) {
        (&Method::POST, "/v1/updates") => return "clone update".to_owned(),
        (&Method::POST, "/v1/updates/{template}") => return "update steer".to_owned(),
        (&Method::POST, "/v1/templates/{template}/versions") => return "template import".to_owned(),
        (&Method::DELETE, "/v1/clones/{clone}/snapshots/{snapshot}") => return "clone snapshot drop".to_owned(),
        _ => {}
    }
    let words: Vec<&str> =
        path.split('/').filter(|part| !part.is_empty() && *part != "v1" && !part.starts_with('{')).collect();
    let noun = words.first().copied().unwrap_or("request");
    let noun = noun.strip_suffix('s').filter(|noun| noun.len() > 2).unwrap_or(noun);
    let verb = match (words.get(1..).unwrap_or_default(), method) {
        ([], &Method::POST) if noun == "fsck" => "run".to_owned(),
        ([], &Method::POST) => "create".to_owned(),
        ([], &Method::DELETE) => "delete".to_owned(),
        ([], method) => method.as_str().to_lowercase(),
        (verbs, _) => verbs.join(" "),
    };
    format!("{noun} {verb}")
}

/// The job that goes on after this answer, in a sentence.
async fn job(response: Response) -> (Response, String) {
    #[derive(Deserialize)]
    struct Job {
        id: String,
    }
    if response.status() != StatusCode::ACCEPTED {
        return (response, String::new());
    }
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, PROBLEM_BYTES_MAX).await.unwrap_or_default();
    let said = serde_json::from_slice::<Job>(&body).map(|job| format!("as job {}", job.id)).unwrap_or_default();
    (Response::from_parts(parts, Body::from(body)), said)
}

/// `ok`, or the code of the problem that the answer tells, and to what it happened.
async fn outcome(response: Response) -> (Response, String, Option<String>) {
    if response.status().is_success() {
        return (response, "ok".to_owned(), None);
    }
    #[derive(Deserialize)]
    struct Told {
        code: String,
        object: Option<String>,
    }
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, PROBLEM_BYTES_MAX).await.unwrap_or_default();
    let told = serde_json::from_slice::<Told>(&body);
    let (code, object) =
        told.map_or_else(|_| (parts.status.as_u16().to_string(), None), |told| (told.code, told.object));
    (Response::from_parts(parts, Body::from(body)), code, object)
}

/// What an answer says was made, for requests whose path names nothing: the answer is looked into when it is short.
async fn made(response: Response) -> (Response, Option<String>) {
    #[derive(Deserialize)]
    struct Made {
        name: Option<String>,
        subject: Option<String>,
        template: Option<String>,
        #[serde(default)]
        names: Vec<String>,
    }
    let short = response.body().size_hint().exact().is_some_and(|size| size <= MADE_BYTES_MAX);
    if !short || !response.status().is_success() {
        return (response, None);
    }
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap_or_default();
    let made = serde_json::from_slice::<Made>(&body).ok().and_then(|made| {
        let names = match made.names.as_slice() {
            [] => None,
            [one] => Some(one.clone()),
            [first, .., last] => Some(format!("{first} … {last}")),
        };
        made.name.or(made.subject).or(names).or(made.template)
    });
    (Response::from_parts(parts, Body::from(body)), made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_reads_as_noun_and_verb() {
        for (method, path, expect) in [
            (Method::POST, "/v1/clones", "clone create"),
            (Method::DELETE, "/v1/clones/{clone}", "clone delete"),
            (Method::POST, "/v1/clones/{clone}/reset", "clone reset"),
            (Method::POST, "/v1/full-clones", "full-clone create"),
            (Method::POST, "/v1/jobs/{job}/cancel", "job cancel"),
            (Method::POST, "/v1/updates", "clone update"),
            (Method::POST, "/v1/templates/{template}/versions", "template import"),
            (Method::POST, "/v1/datastores/{datastore}/rebalance", "datastore rebalance"),
            (Method::POST, "/v1/fsck", "fsck run"),
        ] {
            assert_eq!(action(&method, path), expect);
        }
    }
}
