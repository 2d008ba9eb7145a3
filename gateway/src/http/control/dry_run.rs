//! `dry_run` where it means nothing is refused: a change that was only to be tried must not happen.

use std::collections::HashSet;
use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use utoipa::openapi::path::Parameter;
use utoipa::openapi::{OpenApi, RefOr};

use super::answer::Refusal;
use crate::http::trial;

/// The operations that know `dry_run`: method and path, as the document says.
#[derive(Debug, Default)]
pub(super) struct Known(HashSet<(&'static str, String)>);

impl Known {
    pub(super) fn of(document: &OpenApi) -> Self {
        let mut known = HashSet::new();
        for (path, item) in &document.paths.paths {
            for (method, operation) in
                [("POST", &item.post), ("PUT", &item.put), ("PATCH", &item.patch), ("DELETE", &item.delete)]
            {
                let parameters = operation.as_ref().and_then(|operation| operation.parameters.as_ref());
                let is_it = |one: &RefOr<Parameter>| matches!(one, RefOr::T(parameter) if parameter.name == "dry_run");
                if parameters.is_some_and(|all| all.iter().any(is_it)) {
                    known.insert((method, path.clone()));
                }
            }
        }
        Self(known)
    }
}

/// Refuses `dry_run` of a change that does not know it.
pub(super) async fn refuse_unknown(State(known): State<Arc<Known>>, request: Request, next: Next) -> Response {
    let asked = trial::is_asked(request.uri());
    let method = ["POST", "PUT", "PATCH", "DELETE"].into_iter().find(|method| request.method() == *method);
    let (true, Some(method)) = (asked, method) else { return next.run(request).await };
    let path = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    if path.is_none_or(|path| known.0.contains(&(method, path))) {
        return next.run(request).await;
    }
    Refusal(trial::refusal()).into_response()
}
