//! Somebody's raw image as a base, by reference: read by ranges with its ETag pinned, never copied, never written.
//!
//! Once the source is found to be another than it was, every read of this base is an error until it is opened again, also of lines that
//! are still in memory: half an old image and half a new one is worse than none.

use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use clonegate_core::limits::{CHUNK_BYTES, VOLUME_BYTES_MAX};
use clonegate_core::units::{ByteRange, SECTOR_BYTES};
use clonegate_core::{Error, ErrorKind, Result};
use tokio::runtime::Handle;

use super::fetch::RUN_BYTES_MAX;
use crate::device::Segments;
use crate::icache::{Asker, Claim, ICache, LineKey, Lookup, Pending};
use crate::store::keys::{self, Key};
use crate::store::{Meta, Store};

const LINE: u64 = CHUNK_BYTES as u64;

/// Opens the stores that raw images may be referred to in; implemented by the control layer from its configuration.
pub trait RawSources: Send + Sync + fmt::Debug {
    /// The store of this URL (`s3://bucket`, `file:///directory`), as in the base record.
    ///
    /// # Errors
    /// `Denied` when the configuration does not permit it; whatever opening it gives.
    fn open(&self, url: &str) -> Result<Store>;
}

/// Permits no source at all.
#[derive(Debug, Clone, Copy)]
pub struct NoRawSources;

impl RawSources for NoRawSources {
    fn open(&self, url: &str) -> Result<Store> {
        Err(Error::denied("source-not-permitted", "images by reference are not permitted here").on(url))
    }
}

/// What a base record needs to know of a raw image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawImage {
    /// Size, bytes.
    pub size: u64,
    /// Its strong ETag now.
    pub etag: String,
}

/// Looks whether an object can be a base by reference. Reads its first sector only.
///
/// # Errors
/// `Invalid` with the codes of import (`empty-image`, `bad-image-size`, `wrong-format`); `Unsupported` with code `no-etag` when
/// the store gives none that is strong.
pub async fn inspect(store: &Store, key: &Key) -> Result<RawImage> {
    let Meta { size, etag, .. } = store.head(key).await?;
    crate::import::check_size(size).map_err(|e| e.on(key.to_string()))?;
    let strong = etag.filter(|etag| !etag.is_empty() && !etag.starts_with("W/"));
    let etag = strong.ok_or_else(|| {
        Error::unsupported("no-etag", "the store gives this object no strong ETag, so a change could not be noticed")
            .on(key.to_string())
            .hint("import it without --by-reference")
    })?;
    let head = store.get_range(key, ByteRange::new(0, SECTOR_BYTES), Some(&etag)).await?;
    crate::import::check_is_raw(&head).map_err(|e| e.on(key.to_string()))?;
    Ok(RawImage { size, etag })
}

#[derive(Debug)]
pub(super) struct Raw {
    source: Arc<RawSource>,
    size: u64,
    prefix: [u8; 24],
    cache: Arc<ICache>,
    runtime: Handle,
}

#[derive(Debug)]
struct RawSource {
    store: Store,
    key: Key,
    etag: String,
    changed: OnceLock<Error>,
}

/// A line to fetch: its number and the right to.
type Wanted = (u64, Claim);

impl Raw {
    /// Opens the image and looks whether it is still the one in the record.
    pub(super) async fn open(
        sources: &dyn RawSources,
        (url, key, etag): (&str, &str, &str),
        size: u64,
        cache: Arc<ICache>,
        runtime: Handle,
    ) -> Result<Self> {
        if size == 0 || size > VOLUME_BYTES_MAX {
            return Err(Error::corrupt("bad-record", format!("a base of {size} bytes")));
        }
        let key_text = key;
        let key = keys::foreign(key)?;
        let store = sources.open(url)?;
        let source = RawSource { store, key, etag: etag.to_owned(), changed: OnceLock::new() };
        match source.store.head(&source.key).await {
            Ok(meta) if meta.size != size => return Err(source.note_change("it has another size")),
            Ok(meta) if meta.etag.as_deref().is_none_or(|now| now.trim_matches('"') != etag.trim_matches('"')) => {
                return Err(source.note_change("it has another ETag"));
            }
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(source.note_change("it is gone")),
            Err(error) => return Err(error),
        }
        let mut hasher = blake3::Hasher::new_derive_key("clonegate 2026 iCache line of a raw image");
        for part in [url, key_text, etag] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        let mut prefix = [0; 24];
        prefix.copy_from_slice(&hasher.finalize().as_bytes()[..24]);
        Ok(Self { source: Arc::new(source), size, prefix, cache, runtime })
    }

    fn key(&self, line: u64) -> LineKey {
        let mut key = [0; 32];
        key[..24].copy_from_slice(&self.prefix);
        key[24..].copy_from_slice(&line.to_le_bytes());
        LineKey(key)
    }

    fn slice(&self, bytes: &Bytes, line: u64, range: ByteRange) -> Result<Bytes> {
        let whole = self.line_range(line);
        let part = whole.intersect(range);
        let at = |offset: u64| usize::try_from(offset - whole.start()).unwrap_or(usize::MAX);
        if bytes.len() as u64 != whole.len() {
            return Err(Error::internal("short-line", format!("line {line} has {} bytes", bytes.len())));
        }
        Ok(bytes.slice(at(part.start())..at(part.end())))
    }

    fn line_range(&self, line: u64) -> ByteRange {
        ByteRange::new(line * LINE, ((line + 1) * LINE).min(self.size))
    }

    pub(super) fn try_read(&self, range: ByteRange) -> Option<Segments> {
        if self.source.changed.get().is_some() {
            return None;
        }
        let mut segments = Segments::new();
        for line in range.start() / LINE..range.end().div_ceil(LINE) {
            segments.push(self.slice(&self.cache.get(&self.key(line))?, line, range).ok()?);
        }
        Some(segments)
    }

    pub(super) async fn read(&self, range: ByteRange, asker: Asker) -> Result<Segments> {
        self.source.check()?;
        let pieces = self.request(range, asker);
        let mut segments = Segments::new();
        for (line, piece) in pieces {
            let bytes = match piece {
                Ok(bytes) => bytes,
                Err(pending) => self.wait(pending).await?,
            };
            segments.push(self.slice(&bytes, line, range)?);
        }
        // Others may have noticed a change while this waited.
        self.source.check()?;
        Ok(segments)
    }

    /// Starts whatever is missing of `range`, for nobody yet.
    pub(super) fn start_reading(&self, range: ByteRange) {
        if self.source.check().is_ok() {
            drop(self.request(range, Asker::Machine));
        }
    }

    /// Starts whatever is missing of `range` and gives its lines in order, there or on their way.
    fn request(&self, range: ByteRange, asker: Asker) -> Vec<(u64, Result<Bytes, Pending>)> {
        let (mut pieces, mut wanted) = (Vec::new(), Vec::new());
        for line in range.start() / LINE..range.end().div_ceil(LINE) {
            let piece = match self.cache.begin(self.key(line), asker) {
                Lookup::Hit(bytes) => Ok(bytes),
                Lookup::Join(pending) => Err(pending),
                Lookup::Lead(claim, pending) => {
                    wanted.push((line, claim));
                    Err(pending)
                }
            };
            pieces.push((line, piece));
        }
        self.start(wanted);
        pieces
    }

    async fn wait(&self, pending: Pending) -> Result<Bytes> {
        let result = pending.await;
        self.source.check()?;
        result
    }

    fn start(&self, wanted: Vec<Wanted>) {
        let mut run: Vec<Wanted> = Vec::new();
        for one in wanted {
            let joins = run
                .first()
                .zip(run.last())
                .is_some_and(|(first, last)| one.0 == last.0 + 1 && (one.0 + 1 - first.0) * LINE <= RUN_BYTES_MAX);
            if !joins && !run.is_empty() {
                self.spawn(std::mem::take(&mut run));
            }
            run.push(one);
        }
        if !run.is_empty() {
            self.spawn(run);
        }
    }

    fn spawn(&self, run: Vec<Wanted>) {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { return };
        let range = ByteRange::new(first.0 * LINE, self.line_range(last.0).end());
        let (source, cache) = (Arc::clone(&self.source), Arc::clone(&self.cache));
        self.runtime.spawn(async move {
            let fetched = source.fetch(range).await;
            cache.count_store_read(fetched.as_ref().map_or(0, |bytes| bytes.len() as u64));
            for (line, claim) in run {
                let from = usize::try_from(line * LINE - range.start()).unwrap_or(usize::MAX);
                claim.fulfil(match &fetched {
                    // Each line owns its memory, or the cache would hold more than it accounts.
                    Ok(bytes) => {
                        let to = (from.saturating_add(CHUNK_BYTES as usize)).min(bytes.len());
                        Ok(Bytes::copy_from_slice(bytes.get(from..to).unwrap_or_default()))
                    }
                    Err(error) => Err(error.clone()),
                });
            }
        });
    }

    /// Fetches `line` unless it is in memory or on its way; never touches the statistics of demand.
    pub(super) async fn warm(&self, line: u64) -> Result<super::packed::Warmed> {
        use super::packed::Warmed;
        let range = self.line_range(line);
        if range.is_empty() || self.cache.is_known(&self.key(line)) {
            return Ok(Warmed::Known);
        }
        self.read(range, Asker::Warming).await.map(|_| Warmed::Fetched)
    }
}

impl RawSource {
    async fn fetch(&self, range: ByteRange) -> Result<Bytes> {
        match self.store.get_range(&self.key, range, Some(&self.etag)).await {
            Err(error) if error.code() == "source-changed" => Err(self.note_change("it has another ETag")),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(self.note_change("it is gone")),
            Err(error) if error.kind() == ErrorKind::Corrupt => Err(self.note_change("it is shorter")),
            fetched => fetched,
        }
    }

    fn check(&self) -> Result<()> {
        self.changed.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    fn note_change(&self, how: &str) -> Error {
        let error = || {
            Error::conflict("source-changed", format!("the image is not the one that this base was made of: {how}"))
                .on(format!("{}/{}", self.store.label(), self.key))
                .hint("put the old image back, or import the new one as a new template version")
        };
        self.changed.get_or_init(error).clone()
    }
}
