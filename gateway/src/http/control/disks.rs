//! What the OpenAPI document says about the disk routes. They are served before the router (see `http::disk`); a test holds the
//! two together.
#![expect(dead_code, reason = "these functions only carry descriptions; the routes are matched by hand")]

use crate::http::problem::Problem;

/// The bytes of a clone.
#[utoipa::path(
    get, path = "/v1/clones/{clone}/disk", tag = "disks",
    params(
        ("clone" = String, Path, description = "Name or id"),
        ("version" = Option<String>, Query, description = "As If-Match with this entity tag, which stands here without its quotes"),
        ("Range" = Option<String>, Header, description = "Up to 16 byte ranges"),
        ("If-Range" = Option<String>, Header, description = "Honour Range only for this entity tag or date")
    ),
    responses(
        (status = 200, description = "All of it", content_type = "application/octet-stream"),
        (status = 206, description = "One range, or several as multipart/byteranges", content_type = "application/octet-stream"),
        (status = 304, description = "Not modified"),
        (status = 404, description = "No such disk", body = Problem),
        (status = 412, description = "A precondition failed", body = Problem),
        (status = 416, description = "No range begins within the disk", body = Problem)
    )
)]
pub(super) fn clone_disk_get() {}

/// Size and validators of the bytes of a clone.
#[utoipa::path(
    head, path = "/v1/clones/{clone}/disk", tag = "disks",
    params(
        ("clone" = String, Path, description = "Name or id"),
        ("version" = Option<String>, Query, description = "As If-Match with this entity tag, which stands here without its quotes"),
        ("Range" = Option<String>, Header, description = "Up to 16 byte ranges"),
        ("If-Range" = Option<String>, Header, description = "Honour Range only for this entity tag or date")
    ),
    responses(
        (status = 200, description = "All of it", content_type = "application/octet-stream"),
        (status = 206, description = "One range, or several as multipart/byteranges", content_type = "application/octet-stream"),
        (status = 304, description = "Not modified"),
        (status = 404, description = "No such disk", body = Problem),
        (status = 412, description = "A precondition failed", body = Problem),
        (status = 416, description = "No range begins within the disk", body = Problem)
    )
)]
pub(super) fn clone_disk_head() {}

/// Writes some bytes of a clone.
#[utoipa::path(
    put, path = "/v1/clones/{clone}/disk", tag = "disks",
    params(
        ("clone" = String, Path, description = "Name or id"),
        ("Content-Range" = String, Header, description = "`bytes FIRST-LAST/SIZE`: where the body belongs"),
        ("If-Match" = Option<String>, Header, description = "Write only if the disk has this entity tag")
    ),
    request_body(content_type = "application/octet-stream"),
    responses(
        (status = 204, description = "Written, and as durable as the clone promises"),
        (status = 400, description = "No Content-Range, or a body of another length; nothing is written", body = Problem),
        (status = 412, description = "A precondition failed", body = Problem),
        (status = 416, description = "Beyond the end", body = Problem)
    )
)]
pub(super) fn clone_disk_put() {}

/// The bytes of a clone's identity disk.
#[utoipa::path(
    get, path = "/v1/clones/{clone}/identity", tag = "disks",
    params(
        ("clone" = String, Path, description = "Name or id"),
        ("Range" = Option<String>, Header, description = "Up to 16 byte ranges"),
        ("If-Range" = Option<String>, Header, description = "Honour Range only for this entity tag or date")
    ),
    responses(
        (status = 200, description = "All of it", content_type = "application/octet-stream"),
        (status = 206, description = "One range, or several as multipart/byteranges", content_type = "application/octet-stream"),
        (status = 304, description = "Not modified"),
        (status = 404, description = "No such disk", body = Problem),
        (status = 412, description = "A precondition failed", body = Problem),
        (status = 416, description = "No range begins within the disk", body = Problem)
    )
)]
pub(super) fn identity_get() {}

/// Size and validators of the bytes of a clone's identity disk.
#[utoipa::path(
    head, path = "/v1/clones/{clone}/identity", tag = "disks",
    params(
        ("clone" = String, Path, description = "Name or id"),
        ("Range" = Option<String>, Header, description = "Up to 16 byte ranges"),
        ("If-Range" = Option<String>, Header, description = "Honour Range only for this entity tag or date")
    ),
    responses(
        (status = 200, description = "All of it", content_type = "application/octet-stream"),
        (status = 206, description = "One range, or several as multipart/byteranges", content_type = "application/octet-stream"),
        (status = 304, description = "Not modified"),
        (status = 404, description = "No such disk", body = Problem),
        (status = 412, description = "A precondition failed", body = Problem),
        (status = 416, description = "No range begins within the disk", body = Problem)
    )
)]
pub(super) fn identity_head() {}

/// The bytes of a data disk.
#[utoipa::path(
    get, path = "/v1/disks/{disk}", tag = "disks",
    params(
        ("disk" = String, Path, description = "Name or id"),
        ("Range" = Option<String>, Header, description = "Up to 16 byte ranges"),
        ("If-Range" = Option<String>, Header, description = "Honour Range only for this entity tag or date")
    ),
    responses(
        (status = 200, description = "All of it", content_type = "application/octet-stream"),
        (status = 206, description = "One range, or several as multipart/byteranges", content_type = "application/octet-stream"),
        (status = 304, description = "Not modified"),
        (status = 404, description = "No such disk", body = Problem),
        (status = 412, description = "A precondition failed", body = Problem),
        (status = 416, description = "No range begins within the disk", body = Problem)
    )
)]
pub(super) fn disk_get() {}

/// Size and validators of the bytes of a data disk.
#[utoipa::path(
    head, path = "/v1/disks/{disk}", tag = "disks",
    params(
        ("disk" = String, Path, description = "Name or id"),
        ("Range" = Option<String>, Header, description = "Up to 16 byte ranges"),
        ("If-Range" = Option<String>, Header, description = "Honour Range only for this entity tag or date")
    ),
    responses(
        (status = 200, description = "All of it", content_type = "application/octet-stream"),
        (status = 206, description = "One range, or several as multipart/byteranges", content_type = "application/octet-stream"),
        (status = 304, description = "Not modified"),
        (status = 404, description = "No such disk", body = Problem),
        (status = 412, description = "A precondition failed", body = Problem),
        (status = 416, description = "No range begins within the disk", body = Problem)
    )
)]
pub(super) fn disk_head() {}

/// Writes some bytes of a data disk.
#[utoipa::path(
    put, path = "/v1/disks/{disk}", tag = "disks",
    params(
        ("disk" = String, Path, description = "Name or id"),
        ("Content-Range" = String, Header, description = "`bytes FIRST-LAST/SIZE`: where the body belongs"),
        ("If-Match" = Option<String>, Header, description = "Write only if the disk has this entity tag")
    ),
    request_body(content_type = "application/octet-stream"),
    responses(
        (status = 204, description = "Written, and as durable as the clone promises"),
        (status = 400, description = "No Content-Range, or a body of another length; nothing is written", body = Problem),
        (status = 412, description = "A precondition failed", body = Problem),
        (status = 416, description = "Beyond the end", body = Problem)
    )
)]
pub(super) fn disk_put() {}

/// The bytes of a base.
#[utoipa::path(
    get, path = "/v1/bases/{base}/disk", tag = "disks",
    params(
        ("base" = String, Path, description = "Id"),
        ("Range" = Option<String>, Header, description = "Up to 16 byte ranges"),
        ("If-Range" = Option<String>, Header, description = "Honour Range only for this entity tag or date")
    ),
    responses(
        (status = 200, description = "All of it", content_type = "application/octet-stream"),
        (status = 206, description = "One range, or several as multipart/byteranges", content_type = "application/octet-stream"),
        (status = 304, description = "Not modified"),
        (status = 404, description = "No such disk", body = Problem),
        (status = 412, description = "A precondition failed", body = Problem),
        (status = 416, description = "No range begins within the disk", body = Problem)
    )
)]
pub(super) fn base_disk_get() {}

/// Size and validators of the bytes of a base.
#[utoipa::path(
    head, path = "/v1/bases/{base}/disk", tag = "disks",
    params(
        ("base" = String, Path, description = "Id"),
        ("Range" = Option<String>, Header, description = "Up to 16 byte ranges"),
        ("If-Range" = Option<String>, Header, description = "Honour Range only for this entity tag or date")
    ),
    responses(
        (status = 200, description = "All of it", content_type = "application/octet-stream"),
        (status = 206, description = "One range, or several as multipart/byteranges", content_type = "application/octet-stream"),
        (status = 304, description = "Not modified"),
        (status = 404, description = "No such disk", body = Problem),
        (status = 412, description = "A precondition failed", body = Problem),
        (status = 416, description = "No range begins within the disk", body = Problem)
    )
)]
pub(super) fn base_disk_head() {}

/// The bytes of a template's published version.
#[utoipa::path(
    get, path = "/v1/templates/{template}/disk", tag = "disks",
    params(
        ("template" = String, Path, description = "Name"),
        ("Range" = Option<String>, Header, description = "Up to 16 byte ranges"),
        ("If-Range" = Option<String>, Header, description = "Honour Range only for this entity tag or date")
    ),
    responses(
        (status = 200, description = "All of it", content_type = "application/octet-stream"),
        (status = 206, description = "One range, or several as multipart/byteranges", content_type = "application/octet-stream"),
        (status = 304, description = "Not modified"),
        (status = 404, description = "No such disk", body = Problem),
        (status = 412, description = "A precondition failed", body = Problem),
        (status = 416, description = "No range begins within the disk", body = Problem)
    )
)]
pub(super) fn template_disk_get() {}

/// Size and validators of the bytes of a template's published version.
#[utoipa::path(
    head, path = "/v1/templates/{template}/disk", tag = "disks",
    params(
        ("template" = String, Path, description = "Name"),
        ("Range" = Option<String>, Header, description = "Up to 16 byte ranges"),
        ("If-Range" = Option<String>, Header, description = "Honour Range only for this entity tag or date")
    ),
    responses(
        (status = 200, description = "All of it", content_type = "application/octet-stream"),
        (status = 206, description = "One range, or several as multipart/byteranges", content_type = "application/octet-stream"),
        (status = 304, description = "Not modified"),
        (status = 404, description = "No such disk", body = Problem),
        (status = 412, description = "A precondition failed", body = Problem),
        (status = 416, description = "No range begins within the disk", body = Problem)
    )
)]
pub(super) fn template_disk_head() {}
