//! How handlers answer: JSON, or a problem.

use axum::Json;
use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts};
use axum::response::{IntoResponse, Response};
use clonegate_core::Error;
use http::request::Parts;
use serde::de::DeserializeOwned;

use crate::http::problem;

/// What every handler returns.
pub(crate) type Answer<T> = Result<Json<T>, Refusal>;

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
