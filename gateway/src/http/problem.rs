//! Errors as RFC 9457 problem details.

use bytes::Bytes;
use clonegate_core::{Error, ErrorKind};
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Response, StatusCode};
use serde::Serialize;
use utoipa::ToSchema;

/// What a failed request answers: `application/problem+json`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Problem {
    /// A URI for the kind of problem: `urn:clonegate:problem:` and the code.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind of problem in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// The stable code, for programs.
    pub code: String,
    /// What happened, in a sentence.
    pub detail: String,
    /// The object that it happened to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Problem {
    /// The answer for `error`.
    pub fn of(error: &Error) -> Self {
        Self {
            kind: format!("urn:clonegate:problem:{}", error.code()),
            title: error.kind().to_string(),
            status: status_of(error).as_u16(),
            code: error.code().to_owned(),
            detail: error.message().to_owned(),
            object: error.object().map(str::to_owned),
            hint: error.what_to_do().map(str::to_owned),
        }
    }

    /// The response that carries it.
    pub fn into_response(self) -> Response<Bytes> {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = Response::new(Bytes::from(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"clonegate\""));
        }
        response
    }
}

/// The response for `error`.
pub fn respond(error: &Error) -> Response<Bytes> {
    if matches!(error.kind(), ErrorKind::Internal | ErrorKind::Corrupt | ErrorKind::Unavailable) {
        tracing::warn!(code = error.code(), %error, "a request failed");
    }
    Problem::of(error).into_response()
}

/// The response for a method that a route does not have.
pub fn method_not_allowed(error: &Error, allow: &'static str) -> Response<Bytes> {
    let mut response = respond(error);
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    response
}

/// The status for `error`: that of its kind, unless HTTP has a better word for its code.
fn status_of(error: &Error) -> StatusCode {
    let status = match error.code() {
        "beyond-end" | "range-unsatisfiable" | "too-many-ranges" | "overlapping-ranges" => 416,
        "no-token" | "wrong-token" => 401,
        "version-changed" | "precondition-failed" => 412,
        "body-too-large" => 413,
        "method-not-allowed" => 405,
        "unsupported-media-type" => 415,
        _ => error.kind().http_status(),
    };
    StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_says_what_happened_to_what_and_what_to_do() {
        let error = Error::not_found("no-such-clone", "there is no such clone").on("desk-7").hint("list the clones");
        let problem = Problem::of(&error);
        insta::assert_json_snapshot!(problem, @r#"
        {
          "type": "urn:clonegate:problem:no-such-clone",
          "title": "not found",
          "status": 404,
          "code": "no-such-clone",
          "detail": "there is no such clone",
          "object": "desk-7",
          "hint": "list the clones"
        }
        "#);
        let response = problem.into_response();
        assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
    }

    #[test]
    fn codes_that_http_has_a_word_for_get_its_status() {
        for (error, status) in [
            (Error::invalid("beyond-end", ""), 416),
            (Error::conflict("version-changed", ""), 412),
            (Error::conflict("referenced", ""), 409),
            (Error::unavailable("store-timeout", ""), 503),
        ] {
            assert_eq!(respond(&error).status().as_u16(), status, "{error:?}");
        }
    }
}
