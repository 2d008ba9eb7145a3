//! Image files on the command line: which format they are stated to be, and how far an import is.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;

use clonegate_core::{Error, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use parking_lot::Mutex;

use super::output;
use crate::import::{Input, Progress, ProgressNow, not_opened};

/// The formats that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// The bytes of the disk
    Raw,
    /// QEMU's format, version 2 or 3, without a backing file
    Qcow2,
}

impl Format {
    /// The word of the command line.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }

    /// What the ending of a file's name states. Its content is not looked at: a raw image may begin as anything.
    pub(super) fn of_ending(path: &Path) -> Result<Self> {
        match path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase).as_deref() {
            Some("raw" | "img" | "iso" | "bin" | "dd") => Ok(Self::Raw),
            Some("qcow2" | "qcow") => Ok(Self::Qcow2),
            Some(foreign @ ("vmdk" | "vdi" | "vhd" | "vhdx" | "vpc" | "qed" | "ova")) => {
                let error = Error::invalid("format-not-stated", format!("{foreign} images are not read"));
                Err(error
                    .on(path.display().to_string())
                    .hint("convert it: qemu-img convert -O qcow2 IMAGE IMAGE.qcow2"))
            }
            _ => Err(Error::invalid("format-not-stated", "the name does not tell the format of the image")
                .on(path.display().to_string())
                .hint("say --format raw or --format qcow2")),
        }
    }
}

/// Opens an image file for import; `-` is standard input.
pub(super) fn open(path: &Path, format: Format) -> Result<Input> {
    if path.as_os_str() == "-" {
        if format == Format::Qcow2 {
            return Err(Error::unsupported("qcow2-from-stdin", "qcow2 cannot be read from standard input")
                .hint("its tables are anywhere in the file: give the file, or convert: qemu-img convert -O raw"));
        }
        return Ok(Input::RawStream { reader: Box::new(tokio::io::stdin()), size: None });
    }
    std::fs::File::open(path).map_err(|e| not_opened(e).on(path.display().to_string()))?;
    Ok(match format {
        Format::Raw => Input::RawFile(path.to_owned()),
        Format::Qcow2 => Input::Qcow2File(path.to_owned()),
    })
}

/// Bytes that an image takes on this disk, without its holes; 0 for standard input.
pub(super) fn bytes_on_disk(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(path).map_or(0, |meta| meta.blocks().saturating_mul(512).min(meta.len()))
}

/// Shows how far an import is: a bar on a terminal, a line for each quarter otherwise.
#[derive(Clone)]
pub(super) struct Bar(Arc<Inner>);

struct Inner {
    bar: Option<ProgressBar>,
    said: Mutex<u64>,
}

impl Bar {
    pub(super) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(8));
            let style = ProgressStyle::with_template(
                "{bar:30} {percent:>3} %  {bytes} of {total_bytes}  {bytes_per_sec}  {eta} left  {msg}",
            );
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Self(Arc::new(Inner { bar, said: Mutex::new(0) }))
    }

    /// Takes the bar away.
    pub(super) fn finish(&self) {
        if let Some(bar) = &self.0.bar {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Bar {
    fn report(&self, now: ProgressNow) {
        if let Some(bar) = &self.0.bar {
            if let Some(total) = now.total_bytes {
                bar.set_length(total);
            }
            bar.set_position(now.done_bytes);
            bar.set_message(format!("{} stored", output::size(now.stored_bytes)));
            return;
        }
        let Some(total) = now.total_bytes.filter(|total| *total > 0) else { return };
        let quarter = now.done_bytes.saturating_mul(4) / total;
        let mut said = self.0.said.lock();
        if quarter > *said {
            *said = quarter;
            output::aside(&format!("  {} % of {}", quarter * 25, output::size(total)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_stated_by_the_ending_or_asked_for() {
        assert_eq!(Format::of_ending(Path::new("a/win11.QCOW2")).unwrap(), Format::Qcow2);
        assert_eq!(Format::of_ending(Path::new("disk.img")).unwrap(), Format::Raw);
        for unclear in ["disk", "disk.vmdk", "disk.vhd"] {
            assert_eq!(Format::of_ending(Path::new(unclear)).unwrap_err().code(), "format-not-stated");
        }
    }

    #[test]
    fn a_missing_image_is_said_before_anything_is_done() {
        let error = open(Path::new("/no/such/image.raw"), Format::Raw).unwrap_err();
        assert_eq!((error.code(), error.object()), ("no-image", Some("/no/such/image.raw")));
    }

    #[test]
    fn an_image_that_may_not_be_read_is_denied_with_what_to_do() {
        for (kind, code, exit) in [
            (std::io::ErrorKind::NotFound, "no-image", 3),
            (std::io::ErrorKind::PermissionDenied, "unreadable-image", 5),
            (std::io::ErrorKind::Other, "unreadable-image", 2),
        ] {
            let error = not_opened(kind.into());
            assert_eq!((error.code(), error.kind().exit_code()), (code, exit), "{error}");
            assert!(error.what_to_do().is_some(), "{error}");
        }
        // Root may read everything.
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("locked.raw");
        std::fs::write(&file, [0; 512]).unwrap();
        let mode = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o000);
        std::fs::set_permissions(&file, mode).unwrap();
        if let Err(error) = open(&file, Format::Raw) {
            let object = file.display().to_string();
            assert_eq!((error.kind().exit_code(), error.object()), (5, Some(object.as_str())));
        }
    }
}
