//! A small page for people: what there is, and how full.

use axum::response::IntoResponse;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};

/// The console.
#[utoipa::path(get, path = "/", tag = "system", responses((status = 200, description = "A page for people", content_type = "text/html")))]
pub(super) async fn console() -> impl IntoResponse {
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        // The page may talk to this server alone, and runs no script but its own.
        (
            CONTENT_SECURITY_POLICY,
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; frame-ancestors 'none'",
        ),
        (CACHE_CONTROL, "no-cache"),
    ];
    (headers, include_str!("console.html"))
}

/// What makes the console move.
#[utoipa::path(get, path = "/console.js", tag = "system", responses((status = 200, description = "Its script", content_type = "text/javascript")))]
pub(super) async fn script() -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/javascript; charset=utf-8"), (CACHE_CONTROL, "no-cache")], include_str!("console.js"))
}

/// How the console looks.
#[utoipa::path(get, path = "/console.css", tag = "system", responses((status = 200, description = "Its style", content_type = "text/css")))]
pub(super) async fn style() -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/css; charset=utf-8"), (CACHE_CONTROL, "no-cache")], include_str!("console.css"))
}
