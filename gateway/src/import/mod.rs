//! Turns a raw or qcow2 image, treated as hostile, into packs and an index.
//!
//! ```text
//! source ──pieces──> chunks ──batches──> hash, zero check, dedup, zstd ──in order──> pack writer ──> index
//! (holes are skipped)                    (a few threads)                             (uploads while the next fills)
//! ```
//!
//! Memory is bounded whatever the size of the image: a few batches of 1 MiB, at most five packs, one page of the index, its page
//! table, and a table of known chunks that stops growing. Nothing that is written is visible before the caller writes a base record that
//! names the index, so an import that is cut leaves only packs that nothing refers to.
//!
//! The format of an image is stated by the caller and never guessed, and nothing that an image names is ever opened.

mod chunks;
mod dedup;
mod packs;
mod pages;
pub mod qcow2;
mod run;
mod source;
mod upload;

use std::fmt;
use std::path::PathBuf;

use bytes::Bytes;
use clonegate_core::format::making::Maker;
use clonegate_core::ids::IndexId;
use clonegate_core::limits::{CHUNK_BYTES, VOLUME_BYTES_MAX};
use clonegate_core::units::SECTOR_BYTES;
use clonegate_core::{Error, Result};
use futures::stream::BoxStream;
use tokio::io::AsyncRead;

use crate::base::making::Making;
use crate::clock::Clock;
use crate::store::Store;

pub(crate) use source::not_opened;
pub use upload::upload;

/// An image to import.
pub enum Input {
    /// A raw image in a file or block device; its holes are not read.
    RawFile(PathBuf),
    /// A qcow2 image in a file.
    Qcow2File(PathBuf),
    /// A raw image that comes in order, as from standard input.
    RawStream {
        /// Its bytes.
        reader: Box<dyn AsyncRead + Send + Unpin>,
        /// Its size, bytes, when it is known beforehand.
        size: Option<u64>,
    },
    /// The body of an upload, in the format of [`clonegate_core::format::sparse`]; see [`upload`].
    Frames(BoxStream<'static, Result<Bytes>>),
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RawFile(path) => f.debug_tuple("RawFile").field(path).finish(),
            Self::Qcow2File(path) => f.debug_tuple("Qcow2File").field(path).finish(),
            Self::RawStream { size, .. } => f.debug_struct("RawStream").field("size", size).finish(),
            Self::Frames(_) => f.write_str("Frames"),
        }
    }
}

/// How an import is done.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// Bytes in a chunk, a power of two from 4 KiB to 1 MiB.
    pub chunk_bytes: u32,
    /// zstd level.
    pub level: i32,
    /// Look for chunks that other images of the datastore have already.
    pub dedup: bool,
    /// Largest image, bytes; a larger one is refused (`image-too-large`).
    pub size_max: u64,
    /// Whose next life removes what this one leaves, if it is cut.
    pub maker: Option<Maker>,
}

impl Default for ImportOptions {
    fn default() -> Self {
        Self { chunk_bytes: CHUNK_BYTES, level: 1, dedup: true, size_max: VOLUME_BYTES_MAX, maker: None }
    }
}

/// An image that is in the datastore, and not yet visible.
#[derive(Debug, Clone)]
pub struct Imported {
    /// Its index, for the base record.
    pub index: IndexId,
    /// Size of the image, bytes.
    pub size: u64,
    /// What it took.
    pub stats: ImportStats,
}

/// What an import did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct ImportStats {
    /// Bytes read of the image, holes left out.
    pub read_bytes: u64,
    /// Chunks that hold something.
    pub chunks: u64,
    /// Of them, chunks found in this image before.
    pub chunks_repeated: u64,
    /// Of them, chunks that other images of the datastore had.
    pub chunks_shared: u64,
    /// Bytes put into the datastore: packs and index.
    pub stored_bytes: u64,
    /// Packs written.
    pub packs: u64,
}

/// How far an import is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProgressNow {
    /// Size of the image, bytes, when it is known.
    pub total_bytes: Option<u64>,
    /// Bytes of the image done, holes included.
    pub done_bytes: u64,
    /// Bytes stored so far.
    pub stored_bytes: u64,
}

/// Hears how far an import is, some times a second at most; must return soon.
pub trait Progress: Send + Sync {
    /// Called after each batch.
    fn report(&self, now: ProgressNow);
}

/// Hears nothing.
#[derive(Debug, Clone, Copy)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn report(&self, _now: ProgressNow) {}
}

/// Imports an image: writes its packs and then its index. Nothing is visible before the caller writes a base record.
///
/// # Errors
/// `Invalid` and `Unsupported` for images that are refused, with what to do; those of the store. What was written is deleted again as
/// far as the store lets it.
///
/// # Cancel safety
/// May be dropped: packs without an index are left, which the maker's next life or `fsck --repair` removes.
pub async fn run(
    store: &Store,
    input: Input,
    options: ImportOptions,
    progress: &dyn Progress,
    clock: &Clock,
) -> Result<Imported> {
    let (imported, making) = run::run(store, input, options, progress, clock).await?;
    making.end().await;
    Ok(imported)
}

/// As [`run`], for who names the image: it is being made until that is done.
///
/// # Errors
/// As [`run`].
pub(crate) async fn make(
    store: &Store,
    input: Input,
    options: ImportOptions,
    progress: &dyn Progress,
    clock: &Clock,
) -> Result<(Imported, Making)> {
    run::run(store, input, options, progress, clock).await
}

/// The size of a disk image must be a positive multiple of a sector and no larger than a volume may be.
pub(crate) fn check_size(size: u64) -> Result<()> {
    if size == 0 {
        return Err(Error::invalid("empty-image", "the image is empty"));
    }
    if !size.is_multiple_of(SECTOR_BYTES) {
        let more = SECTOR_BYTES - size % SECTOR_BYTES;
        return Err(Error::invalid(
            "bad-image-size",
            format!("{size} bytes are no whole number of {SECTOR_BYTES}-byte sectors"),
        )
        .hint(format!("it may be cut; if it is not, pad it: truncate -s +{more} IMAGE")));
    }
    if size > VOLUME_BYTES_MAX {
        return Err(Error::invalid(
            "image-too-large",
            format!("{size} bytes; a volume has at most {VOLUME_BYTES_MAX}"),
        ));
    }
    Ok(())
}

/// Refuses a "raw" image that begins as another format does: served as it is, no machine could boot it.
pub(crate) fn check_is_raw(head: &[u8]) -> Result<()> {
    const OTHERS: [(&str, &[u8]); 6] = [
        ("qcow2", b"QFI\xfb"),
        ("vmdk", b"KDMV"),
        ("vmdk", b"# Disk DescriptorFile"),
        ("vhdx", b"vhdxfile"),
        ("vpc", b"conectix"),
        ("qed", b"QED\0"),
    ];
    let Some((name, _)) = OTHERS.iter().find(|(_, magic)| head.starts_with(magic)) else { return Ok(()) };
    let mend = if *name == "qcow2" {
        "say --format qcow2".to_owned()
    } else {
        format!("convert it: qemu-img convert -f {name} -O qcow2 IMAGE IMAGE.qcow2")
    };
    Err(Error::invalid("wrong-format", format!("it was said to be raw, and begins as a {name} image does")).hint(mend))
}

#[cfg(test)]
pub(crate) mod tests;
