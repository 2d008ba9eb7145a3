//! Bytes of disks over HTTP: answered at once from memory, or by the slow path that waits.

mod body;
mod get;
mod multipart;
mod put;
mod route;
mod validators;

use std::sync::Arc;

use clonegate_core::Error;
use http::header::{ALLOW, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;

pub(crate) use body::Body;
pub(crate) use get::at_once;
pub(crate) use route::DiskRoute;

use super::problem::{self, Problem};
use super::service::Shared;
use super::trial;
use super::watch::Watch;
use crate::device::read_only;
use crate::exports::ExportName;

const READ_ONLY_METHODS: &str = "GET, HEAD, OPTIONS";
const METHODS: &str = "GET, HEAD, PUT, OPTIONS";

/// Answers a request for a disk, whatever its method. `None` when its path is not one of a disk.
pub(crate) async fn serve(shared: &Shared, watch: &Arc<Watch>, request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let Some(route) = DiskRoute::parse(parts.uri.path()) else {
        return problem::respond(&Error::not_found("no-such-route", "there is no such path")).map(Body::full);
    };
    let class = route.class;
    let allow = if route.never_written() { READ_ONLY_METHODS } else { METHODS };
    let response = match parts.method {
        Method::GET | Method::HEAD => match open(shared, &route).await {
            Ok(device) => get::get(shared, watch, &device, class, (&parts.method, &parts.headers)).await,
            Err(error) => problem::respond(&error).map(Body::full),
        },
        Method::PUT if route.never_written() => {
            let status = StatusCode::METHOD_NOT_ALLOWED.as_u16();
            let problem = Problem { status, ..Problem::of(&read_only(route.export().as_str())) };
            let mut response = problem.into_response();
            response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
            response.map(Body::full)
        }
        Method::PUT if trial::is_asked(&parts.uri) => {
            problem::respond(&trial::refusal().on(route.export().as_str())).map(Body::full)
        }
        Method::PUT => match open(shared, &route).await {
            Ok(device) => put::put(shared, watch, &device, parts.headers, body).await,
            Err(error) => problem::respond(&error).map(Body::full),
        },
        Method::OPTIONS => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NO_CONTENT;
            response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
            response
        }
        method => {
            let error = Error::invalid("method-not-allowed", format!("a disk does not take {method}"))
                .hint("read it with GET, write to it with PUT and Content-Range");
            problem::method_not_allowed(&error, allow).map(Body::full)
        }
    };
    watch.ward.counters.answered(class, response.status().as_u16());
    response
}

async fn open(shared: &Shared, route: &DiskRoute<'_>) -> clonegate_core::Result<Arc<dyn crate::device::Device>> {
    let name: ExportName = route.export().as_str().parse()?;
    shared.exports.open(name).await
}
