//! EFI programs and images for UEFI HTTP boot, out of a directory of the operator.

use std::path::{Component, Path as FilePath, PathBuf};

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use clonegate_core::units::ByteRange;
use clonegate_core::{Error, Result};
use futures::stream;
use http::Method;
use tokio::fs::File;
use tokio::io::AsyncReadExt;

use super::Boot;
use crate::http::control::answer::Refusal;
use crate::http::download::{Download, content_type};

/// Bytes of one piece of a streamed file.
const PIECE_BYTES: usize = 128 * 1024;

/// A file of the configured directory, with the content type that firmware insists on.
#[utoipa::path(
    get, path = "/efi/{*file}", tag = "boot", params(("file" = String, Path, description = "Path in the directory")),
    responses(
        (status = 200, body = [u8], description = "The file"),
        (status = 404, body = crate::http::problem::Problem),
    )
)]
pub(super) async fn file(
    State(boot): State<Boot>,
    Path(name): Path<String>,
    method: Method,
    headers: http::HeaderMap,
) -> Result<Response, Refusal> {
    let missing = |hint: &str| {
        Error::not_found("no-such-file", "there is no such file under /efi/").on(name.clone()).hint(hint.to_owned())
    };
    let none = || missing("put it into the directory that boot.efi of the configuration names");
    let dir = boot.0.settings.efi.as_deref();
    let dir = dir.ok_or_else(|| missing("boot.efi of the configuration names no directory"))?;
    let path = inside(dir, &name).ok_or_else(none)?;
    // Looked at before it is opened: to open a pipe is to wait for its other end.
    if !tokio::fs::metadata(&path).await.is_ok_and(|facts| facts.is_file()) {
        return Err(Refusal(none()));
    }
    let file = File::open(&path).await.map_err(|error| {
        Error::unavailable("file-unreadable", "the file is there and cannot be read").on(name.clone()).because(error)
    })?;
    let facts = file.metadata().await.map_err(|_| none())?;
    let changed =
        facts.modified().ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok()).unwrap_or_default();
    let download = Download {
        size: facts.len(),
        etag: format!("\"{:x}-{:x}\"", changed.as_nanos(), facts.len()),
        content_type: content_type(&name),
    };
    Ok(download.answer(&method, &headers, |range| Body::from_stream(pieces(file, range))))
}

/// `name` below `dir`, links followed, if it stays below it.
fn inside(dir: &FilePath, name: &str) -> Option<PathBuf> {
    let relative = FilePath::new(name);
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    if !plain || name.contains('\0') {
        return None;
    }
    let dir = dir.canonicalize().ok()?;
    let path = dir.join(relative).canonicalize().ok()?;
    path.starts_with(&dir).then_some(path)
}

fn pieces(file: File, range: ByteRange) -> impl futures::Stream<Item = std::io::Result<bytes::Bytes>> + Send {
    stream::try_unfold((file, range, true), |(mut file, left, first)| async move {
        if left.is_empty() {
            return Ok(None);
        }
        if first {
            tokio::io::AsyncSeekExt::seek(&mut file, std::io::SeekFrom::Start(left.start())).await?;
        }
        let length = usize::try_from(left.len()).unwrap_or(usize::MAX).min(PIECE_BYTES);
        let mut piece = vec![0; length];
        file.read_exact(&mut piece).await?;
        let rest = ByteRange::new(left.start() + length as u64, left.end());
        Ok(Some((bytes::Bytes::from(piece), (file, rest, false))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_the_directory_is_reached() {
        let outer = tempfile::tempdir().unwrap();
        let dir = outer.path().join("efi");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(outer.path().join("secret"), "secret").unwrap();
        std::fs::write(dir.join("boot.efi"), "MZ").unwrap();
        std::os::unix::fs::symlink(outer.path().join("secret"), dir.join("link")).unwrap();
        assert!(inside(&dir, "boot.efi").is_some());
        for name in ["../secret", "/etc/passwd", "link", "", "a/../boot.efi", "./../secret", "boot.efi/../../secret"] {
            assert!(inside(&dir, name).is_none_or(|path| path.starts_with(dir.canonicalize().unwrap())), "{name}");
        }
        assert!(inside(&dir, "link").is_none(), "a link that leads out");
    }
}
