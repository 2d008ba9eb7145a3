//! How handlers answer: JSON, or a problem.

use axum::Json;
use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts};
use axum::response::{IntoResponse, Response};
use clonegate_core::Error;
use http::StatusCode;
use http::request::Parts;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use utoipa::IntoParams;

use crate::http::problem;
use crate::lifecycle::views::{ListQuery, Touched};

/// What every handler returns.
pub(crate) type Answer<T> = Result<Json<T>, Refusal>;

/// What a handler returns that makes something.
pub(crate) type Created<T> = Result<(StatusCode, Json<T>), Refusal>;

/// Which part of a list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListParams {
    /// Most items; 100 when absent, at most 10,000.
    limit: Option<usize>,
    /// The `next` of the page before.
    cursor: Option<String>,
}

impl ListParams {
    /// As the control layer wants it.
    pub(crate) fn checked(self) -> Result<ListQuery, Refusal> {
        list_query(self.limit, self.cursor)
    }
}

/// Which part of a list, for queries that ask for more than that.
pub(crate) fn list_query(limit: Option<usize>, cursor: Option<String>) -> Result<ListQuery, Refusal> {
    if limit.is_some_and(|limit| limit == 0 || limit > LIST_MAX) {
        let error = Error::invalid("bad-query", format!("`limit` is not from 1 to {LIST_MAX}"));
        return Err(Refusal(error.hint("ask for the rest with the `next` of this page as `cursor`")));
    }
    Ok(ListQuery { limit, cursor })
}

/// Most items of one page.
const LIST_MAX: usize = 10_000;

/// Whether a change is only to be tried.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct DryRun {
    /// Only say what would be touched.
    #[serde(default)]
    pub(crate) dry_run: bool,
}

/// How a change is answered that may only have been tried: 200 with what it would touch, or `status` with what it made.
pub(crate) fn tried<T: serde::Serialize>(answer: Tried<T>, status: StatusCode) -> Response {
    match answer {
        Tried::Would(touched) => Json(touched).into_response(),
        Tried::Done(made) => (status, Json(made)).into_response(),
    }
}

/// What came of a change that may only have been tried.
pub(crate) enum Tried<T> {
    /// Nothing was done.
    Would(Touched),
    /// It was done.
    Done(T),
}

/// An error on its way to the client.
#[derive(Debug)]
pub(crate) struct Refusal(pub(crate) Error);

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        problem::respond(&self.0).map(Body::from)
    }
}

/// A query string whose errors are problems.
#[derive(Debug)]
pub(crate) struct Query<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned + 'static> FromRequestParts<S> for Query<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        match axum::extract::Query::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(query)) => Ok(Self(query)),
            Err(rejection) => Err(Refusal(
                Error::invalid("bad-query", rejection.body_text()).hint("see /openapi.json for the parameters"),
            )),
        }
    }
}

/// A JSON body whose errors are problems.
#[derive(Debug)]
pub(crate) struct JsonBody<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned + 'static> FromRequest<S> for JsonBody<T> {
    type Rejection = Refusal;

    async fn from_request(request: axum::extract::Request, state: &S) -> Result<Self, Refusal> {
        match Json::<T>::from_request(request, state).await {
            Ok(Json(body)) => Ok(Self(body)),
            Err(rejection) => {
                let code = match rejection.status().as_u16() {
                    413 => "body-too-large",
                    415 => "unsupported-media-type",
                    _ => "bad-json",
                };
                let error = Error::invalid(code, rejection.body_text());
                Err(Refusal(
                    error.hint("send JSON as /openapi.json describes it, with `Content-Type: application/json`"),
                ))
            }
        }
    }
}
