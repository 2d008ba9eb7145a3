//! Files inside the volume of a clone.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use clonegate_core::{Error, Result};
use http::{HeaderMap, Method};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Control;
use super::answer::{Answer, Query, Refusal};
use crate::device::Device;
use crate::exports::{CloneRef, ExportName};
use crate::files::{self, Found, Names, PartitionView, Place};
use crate::http::download::{Download, content_type};

/// The partitions of a volume.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Partitions {
    /// By number.
    items: Vec<PartitionView>,
}

async fn device(control: &Control, clone: &str) -> Result<Arc<dyn Device>> {
    let name: CloneRef = clone.parse()?;
    control.exports.open(ExportName::Clone(name)).await
}

/// The partitions of a clone's volume and the file systems on them.
#[utoipa::path(
    get, path = "/v1/clones/{clone}/files", tag = "clones",
    params(("clone" = String, Path, description = "Name or id")),
    responses((status = 200, body = Partitions), (status = 404, body = crate::http::problem::Problem))
)]
pub(super) async fn partitions(State(control): State<Control>, Path(clone): Path<String>) -> Answer<Partitions> {
    let device = device(&control, &clone).await?;
    Ok(Json(Partitions { items: files::partitions(device).await? }))
}

/// Which version is wanted.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct Pinned {
    /// What the ETag of the clone's disk says: any other version is refused. For clients that cannot send `If-Match`.
    #[serde(default)]
    version: Option<String>,
}

/// A file in a clone's volume, or the names in a directory: ext2/3/4 and FAT.
#[utoipa::path(
    get, path = "/v1/clones/{clone}/files/{partition}/{*path}", tag = "clones",
    params(
        ("clone" = String, Path, description = "Name or id"),
        ("partition" = String, Path, description = "Number, file-system label, or - for the first that has the path"),
        ("path" = String, Path, description = "Path in that file system"),
        Pinned,
    ),
    responses(
        (status = 200, body = [u8], description = "The file, or JSON with the names in a directory"),
        (status = 404, body = crate::http::problem::Problem),
    )
)]
pub(super) async fn file(
    State(control): State<Control>,
    Path((clone, partition, path)): Path<(String, String, String)>,
    Query(query): Query<Pinned>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    look(&control, &clone, &partition, &path, query, (&method, &headers)).await
}

/// The names at the root of a file system in a clone's volume: ext2/3/4 and FAT.
#[utoipa::path(
    get, path = "/v1/clones/{clone}/files/{partition}", tag = "clones",
    params(
        ("clone" = String, Path, description = "Name or id"),
        ("partition" = String, Path, description = "Number, file-system label, or - for the first file system"),
        Pinned,
    ),
    responses(
        (status = 200, body = Names),
        (status = 404, body = crate::http::problem::Problem),
    )
)]
pub(super) async fn root(
    State(control): State<Control>,
    Path((clone, partition)): Path<(String, String)>,
    Query(query): Query<Pinned>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    look(&control, &clone, &partition, "/", query, (&method, &headers)).await
}

async fn look(
    control: &Control,
    clone: &str,
    partition: &str,
    path: &str,
    query: Pinned,
    (method, headers): (&Method, &HeaderMap),
) -> Result<Response, Refusal> {
    let place: Place = partition.parse()?;
    let device = device(control, clone).await?;
    match files::open(device, place, path).await? {
        Found::Directory(names) => Ok(Json(names).into_response()),
        Found::File(file) => {
            let version = file.version.to_string();
            if query.version.is_some_and(|pinned| pinned != version) {
                let error =
                    Error::conflict("precondition-failed", "the volume is not of the version that is asked for");
                return Err(Refusal(error.on(clone).hint("it was written to or reset meanwhile: begin anew")));
            }
            let download = Download {
                size: file.size,
                etag: format!("\"{version}-{:x}\"", file.size),
                content_type: content_type(path),
            };
            Ok(download.answer(method, headers, |range| Body::from_stream(file.stream(range))))
        }
    }
}
