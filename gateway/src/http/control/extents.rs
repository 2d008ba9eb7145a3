//! Where the bytes of a clone come from.

use axum::Json;
use axum::extract::{Path, State};
use clonegate_core::units::ByteRange;
use clonegate_core::{Error, Result};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Control;
use super::answer::{Answer, Query};
use crate::device::{Device, Source};
use crate::exports::{CloneRef, ExportName};

/// Extents of one answer unless the client says otherwise, and at most.
const EXTENTS: usize = 1000;
const EXTENTS_MAX: usize = 10_000;
/// Bytes of the volume that are asked of the device at a time.
const STEP_BYTES: u64 = 256 * 1024 * 1024;
/// Steps of one request: it ends with a cursor rather than walk a huge volume in one go.
const STEPS_MAX: usize = 4096;

/// Which part of the volume.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct ExtentsQuery {
    /// Most extents; 1000 when absent, at most 10,000.
    limit: Option<usize>,
    /// The `next` of the page before.
    cursor: Option<u64>,
}

/// A run of bytes with one source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct ExtentView {
    /// First byte.
    offset: u64,
    /// Bytes.
    length: u64,
    /// `delta`, `base` or `zero`.
    source: SourceView,
}

/// Where bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum SourceView {
    /// Written by the clone.
    Delta,
    /// From its base.
    Base,
    /// Zero, stored nowhere.
    Zero,
}

impl From<Source> for SourceView {
    fn from(source: Source) -> Self {
        match source {
            Source::Delta => Self::Delta,
            Source::Base => Self::Base,
            Source::Zero => Self::Zero,
        }
    }
}

/// Extents of a volume, in order and without a gap.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Extents {
    /// Size of the volume, bytes.
    size: u64,
    /// The runs.
    items: Vec<ExtentView>,
    /// Give this as `cursor` for the rest; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<u64>,
}

/// What is in the delta, what is in the base, what is zero.
#[utoipa::path(
    get, path = "/v1/clones/{clone}/extents", tag = "clones", params(("clone" = String, Path, description = "Name or id"), ExtentsQuery),
    responses((status = 200, body = Extents), (status = 404, body = crate::http::problem::Problem))
)]
pub(super) async fn extents(
    State(control): State<Control>,
    Path(clone): Path<String>,
    Query(query): Query<ExtentsQuery>,
) -> Answer<Extents> {
    let name: CloneRef = clone.parse()?;
    answer(&control, ExportName::Clone(name), query).await
}

/// What of the published version of a template is zero.
#[utoipa::path(
    get, path = "/v1/templates/{template}/extents", tag = "templates", params(("template" = String, Path, description = "Name"), ExtentsQuery),
    responses((status = 200, body = Extents), (status = 404, body = crate::http::problem::Problem))
)]
pub(super) async fn template_extents(
    State(control): State<Control>,
    Path(template): Path<String>,
    Query(query): Query<ExtentsQuery>,
) -> Answer<Extents> {
    answer(&control, ExportName::Template(template.parse()?), query).await
}

/// What of a base is zero.
#[utoipa::path(
    get, path = "/v1/bases/{base}/extents", tag = "bases", params(("base" = String, Path, description = "Id"), ExtentsQuery),
    responses((status = 200, body = Extents), (status = 404, body = crate::http::problem::Problem))
)]
pub(super) async fn base_extents(
    State(control): State<Control>,
    Path(base): Path<String>,
    Query(query): Query<ExtentsQuery>,
) -> Answer<Extents> {
    answer(&control, ExportName::Base(base.parse()?), query).await
}

async fn answer(control: &Control, name: ExportName, query: ExtentsQuery) -> Answer<Extents> {
    let device = control.exports.open(name).await?;
    let limit = query.limit.unwrap_or(EXTENTS).clamp(1, EXTENTS_MAX);
    Ok(Json(walk(&*device, query.cursor.unwrap_or(0), limit).await?))
}

async fn walk(device: &dyn Device, from: u64, limit: usize) -> Result<Extents> {
    let size = device.info().size;
    if from > size {
        return Err(
            Error::invalid("bad-cursor", "the cursor is past the end of the volume").hint("begin anew without one")
        );
    }
    let mut items: Vec<ExtentView> = Vec::new();
    let mut position = from;
    for _ in 0..STEPS_MAX {
        if position >= size {
            break;
        }
        let step = ByteRange::new(position, size.min(position.saturating_add(STEP_BYTES)));
        for extent in device.extents(step).await? {
            let source = SourceView::from(extent.source);
            let full = items.len() == limit;
            match items.last_mut() {
                Some(last) if last.source == source => last.length += extent.range.len(),
                _ if full => {
                    return Ok(Extents { size, next: Some(extent.range.start()), items });
                }
                _ => items.push(ExtentView { offset: extent.range.start(), length: extent.range.len(), source }),
            }
        }
        position = step.end();
    }
    Ok(Extents { size, next: (position < size).then_some(position), items })
}
