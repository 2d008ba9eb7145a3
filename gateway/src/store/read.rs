//! Reading: whole objects, ranges, facts and lists, each checked against what the store promised.

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering::Relaxed;

use bytes::{Bytes, BytesMut};
use clonegate_core::limits::OBJECT_BYTES_MAX;
use clonegate_core::units::ByteRange;
use clonegate_core::{Error, ErrorKind, Result};
use futures::TryStreamExt;
use object_store::{GetOptions, GetRange, GetResult, GetResultPayload, ObjectMeta, ObjectStore};

use super::errors::{self, Failure};
use super::keys::{self, Key, Prefix};
use super::{Inner, Store};

/// Names that one list gives at most; one of more is refused (`list-too-long`).
pub(crate) const LISTED_MAX: usize = 2_000_000;

/// What a listing of directories, whose pages come as one answer, may take beyond a request, in the measure of bodies.
const LIST_ALLOWANCE_BYTES: u64 = 60 << 20;

/// Facts of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// Size, bytes.
    pub size: u64,
    /// Names these bytes, when the store gives one: other bytes have another.
    pub etag: Option<String>,
    /// When it was written, milliseconds since 1970 UTC by the store's clock.
    pub modified_ms: u64,
}

impl Meta {
    fn of(meta: ObjectMeta) -> Self {
        Self { modified_ms: modified_ms(&meta), size: meta.size, etag: meta.e_tag }
    }
}

fn modified_ms(meta: &ObjectMeta) -> u64 {
    u64::try_from(meta.last_modified.timestamp_millis()).unwrap_or(0)
}

/// One object in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name below the prefix that was listed; [`Prefix::key`] makes the key of it.
    pub key: String,
    /// Size, bytes.
    pub size: u64,
    /// When it was written, milliseconds since 1970 UTC by the store's clock; 0 when the store does not say.
    pub modified_ms: u64,
}

impl Store {
    /// Reads a whole object.
    ///
    /// # Errors
    /// `NotFound`; `Exhausted` with code `object-too-large` above [`OBJECT_BYTES_MAX`]; `Unavailable`, `Denied`.
    pub async fn get(&self, key: &Key) -> Result<Bytes> {
        let name = self.name(key.as_str());
        let inner = &self.0;
        inner.patience.persist(&inner.clock, &name, || inner.get_once(key, &name)).await
    }

    /// Reads a whole object, or nothing when it is not there.
    ///
    /// # Errors
    /// As [`Store::get`], without `NotFound`.
    pub async fn find(&self, key: &Key) -> Result<Option<Bytes>> {
        match self.get(key).await {
            Ok(body) => Ok(Some(body)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads exactly `range` of an object, and only if its ETag is `etag` when one is given.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` with code `source-changed` when the ETag is another; `Corrupt` with code `object-too-short`
    /// when the object ends before the range does; `Unavailable`, `Denied`.
    pub async fn get_range(&self, key: &Key, range: ByteRange, etag: Option<&str>) -> Result<Bytes> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let name = self.name(key.as_str());
        let inner = &self.0;
        inner
            .patience
            .persist(&inner.clock, &name, || async {
                if let (Some(root), None) = (&inner.directory, etag) {
                    return inner.get_file_part(root, key, range, &name).await;
                }
                let got = match etag {
                    Some(etag) => inner.get_pinned(key, range, etag, &name).await?,
                    None => inner.get_part(key, range, None, &name).await?.map_err(|e| part_failure(e, &name))?,
                };
                if got.range != range.as_range() {
                    if got.meta.size < range.end() {
                        return Err(Failure::lasting(errors::too_short().on(&name)));
                    }
                    return Err(Failure::lasting(ignores_range(&name)));
                }
                inner.body(got, &name).await
            })
            .await
    }

    /// The facts of an object.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`, `Denied`.
    pub async fn head(&self, key: &Key) -> Result<Meta> {
        let name = self.name(key.as_str());
        let inner = &self.0;
        inner.patience.persist(&inner.clock, &name, || inner.head_once(key, &name)).await
    }

    /// What time it is by the store's clock, milliseconds since 1970 UTC: when it says that a small object was written that is put now
    /// and taken away again. For who judges how old objects are without trusting the clock of this host.
    ///
    /// # Errors
    /// As [`Store::put_new`] and [`Store::head`].
    pub async fn now_ms(&self) -> Result<u64> {
        let clock = self.clock();
        let key = keys::probe(clock.id(), "clock");
        self.put_new(&key, Bytes::copy_from_slice(&clock.nonce().0)).await?;
        let meta = self.head(&key).await;
        if let Err(error) = self.delete(&key).await {
            tracing::debug!(%key, %error, "what was put to see the store's clock stays");
        }
        Ok(meta?.modified_ms)
    }

    /// The objects below a prefix, at any depth, in no promised order.
    ///
    /// # Errors
    /// `Exhausted` with code `list-too-long`; `Unavailable`, `Denied`.
    pub async fn list(&self, prefix: &Prefix) -> Result<Vec<Listed>> {
        match self.list_some(prefix, LISTED_MAX).await? {
            (listed, true) => Ok(listed),
            (_, false) => {
                let message = format!("more than {LISTED_MAX} objects below one prefix");
                Err(Error::exhausted("list-too-long", message).on(self.name(prefix.as_str())))
            }
        }
    }

    /// As [`Store::list`], but of at most `most` objects, and whether these are all: for who takes some away where they are too many.
    ///
    /// # Errors
    /// `Unavailable`, `Denied`.
    pub async fn list_some(&self, prefix: &Prefix, most: usize) -> Result<(Vec<Listed>, bool)> {
        let name = self.name(prefix.as_str());
        let inner = &self.0;
        let path = (!prefix.as_str().is_empty()).then_some(prefix.path());
        inner
            .patience
            .persist(&inner.clock, &name, || async {
                let mut listed = Vec::new();
                let mut stream = inner.objects.list(path);
                loop {
                    let next = inner.patience.within(&name, 0, stream.try_next()).await?;
                    let Some(meta) = next.map_err(|e| errors::map(e, &name))? else { break };
                    if listed.len() == most {
                        return Ok((listed, false));
                    }
                    let relative = relative(prefix.as_str(), meta.location.as_ref());
                    listed.push(Listed { key: relative.to_owned(), size: meta.size, modified_ms: modified_ms(&meta) });
                }
                Ok((listed, true))
            })
            .await
    }

    /// The names of the directories directly below a prefix. On a directory an empty one may be among them.
    ///
    /// # Errors
    /// `Unavailable`, `Denied`.
    pub async fn list_dirs(&self, prefix: &Prefix) -> Result<Vec<String>> {
        let name = self.name(prefix.as_str());
        let inner = &self.0;
        let path = (!prefix.as_str().is_empty()).then_some(prefix.path());
        inner
            .patience
            .persist(&inner.clock, &name, || async {
                let listing = inner.objects.list_with_delimiter(path);
                // All pages come as one answer; each may take as long as a request.
                let result = inner.patience.within(&name, LIST_ALLOWANCE_BYTES, listing).await?;
                let result = result.map_err(|e| errors::map(e, &name))?;
                let last = |path: &object_store::path::Path| path.filename().map(str::to_owned);
                Ok(result.common_prefixes.iter().filter_map(last).collect())
            })
            .await
    }
}

impl Inner {
    pub(super) async fn get_once(&self, key: &Key, name: &str) -> Result<Bytes, Failure> {
        let got = self.patience.within(name, 0, self.objects.get_opts(key.path(), GetOptions::default())).await?;
        let got = got.map_err(|e| errors::map(e, name))?;
        if got.meta.size > OBJECT_BYTES_MAX {
            let message = format!("{} bytes; at most {OBJECT_BYTES_MAX} are read at once", got.meta.size);
            return Err(Failure::lasting(Error::exhausted("object-too-large", message).on(name)));
        }
        if got.range != (0..got.meta.size) {
            return Err(short(name, got.range.end.saturating_sub(got.range.start), got.meta.size));
        }
        self.body(got, name).await
    }

    pub(super) async fn head_once(&self, key: &Key, name: &str) -> Result<Meta, Failure> {
        let options = GetOptions { head: true, ..GetOptions::default() };
        let got = self.patience.within(name, 0, self.objects.get_opts(key.path(), options)).await?;
        got.map(|got| Meta::of(got.meta)).map_err(|e| errors::map(e, name))
    }

    async fn get_part(
        &self,
        key: &Key,
        range: ByteRange,
        etag: Option<&str>,
        name: &str,
    ) -> Result<object_store::Result<GetResult>, Failure> {
        let options = GetOptions {
            range: Some(GetRange::Bounded(range.as_range())),
            if_match: etag.map(str::to_owned),
            ..GetOptions::default()
        };
        self.patience.within(name, 0, self.objects.get_opts(key.path(), options)).await
    }

    /// The body, of exactly the length that was promised, and not slower than a body may be.
    async fn body(&self, got: GetResult, name: &str) -> Result<Bytes, Failure> {
        let promised = got.range.end.saturating_sub(got.range.start);
        self.patience.within(name, promised, body(got, name)).await?
    }

    /// Some services (Ceph RGW) match `If-Match` only against the ETag without its quotes. That is found out at the first
    /// mismatch of an object whose ETag is right, and remembered. Whatever the store does with the condition, the ETag of
    /// the answer is compared again.
    async fn get_pinned(&self, key: &Key, range: ByteRange, etag: &str, name: &str) -> Result<GetResult, Failure> {
        let bare = etag.trim_matches('"');
        let sent = if self.bare_etags.load(Relaxed) { bare } else { etag };
        let got = match self.get_part(key, range, Some(sent), name).await? {
            Err(object_store::Error::Precondition { .. }) if sent != bare => {
                let now = self.head_once(key, name).await?;
                if !now.etag.is_some_and(|now| same_etag(&now, etag)) {
                    return Err(Failure::lasting(errors::source_changed().on(name)));
                }
                let got = self.get_part(key, range, Some(bare), name).await?;
                if got.is_ok() {
                    self.bare_etags.store(true, Relaxed);
                }
                got
            }
            got => got,
        };
        let got = got.map_err(|e| part_failure(e, name))?;
        match &got.meta.e_tag {
            Some(now) if same_etag(now, etag) => Ok(got),
            _ => Err(Failure::lasting(errors::source_changed().on(name))),
        }
    }
}

fn same_etag(one: &str, other: &str) -> bool {
    one.trim_matches('"') == other.trim_matches('"')
}

/// A range that begins past the end is an error of its own in each store, and none of them is an error type.
fn part_failure(cause: object_store::Error, name: &str) -> Failure {
    if let object_store::Error::Generic { source, .. } = &cause {
        let text = source.to_string().to_ascii_lowercase();
        if text.contains("non-partial response") || (text.starts_with("requested ") && text.contains(", got ")) {
            return Failure::lasting(ignores_range(name));
        }
        if text.contains("invalid range")
            || text.contains("range was invalid")
            || text.contains("wanted range starting")
        {
            return Failure::lasting(errors::too_short().on(name));
        }
    }
    errors::map(cause, name)
}

fn ignores_range(name: &str) -> Error {
    Error::unsupported("store-ignores-range", "the store answers a ranged read with other bytes than were asked for")
        .on(name)
        .hint("a proxy or cache between here and the store may strip the Range header")
}

fn short(name: &str, got: u64, promised: u64) -> Failure {
    let failure = errors::short_body(got, promised);
    Failure { error: failure.error.on(name), ..failure }
}

fn relative<'a>(prefix: &str, location: &'a str) -> &'a str {
    location.strip_prefix(prefix).unwrap_or(location).trim_start_matches('/')
}

/// The body, of exactly the length that was promised.
async fn body(got: GetResult, name: &str) -> Result<Bytes, Failure> {
    let promised = got.range.end.saturating_sub(got.range.start);
    let body = match got.payload {
        GetResultPayload::File(file, _) => return file_body(file, got.range.start, promised, &got.meta, name).await,
        GetResultPayload::Stream(mut stream) => {
            let mut parts: Vec<Bytes> = Vec::new();
            let mut length = 0u64;
            while let Some(part) = stream.try_next().await.map_err(|e| body_failure(e, name))? {
                length += part.len() as u64;
                if length > promised {
                    return Err(short(name, length, promised));
                }
                parts.push(part);
            }
            if parts.len() == 1 { parts.swap_remove(0) } else { join(&parts, length) }
        }
    };
    let length = body.len() as u64;
    if length == promised { Ok(body) } else { Err(short(name, length, promised)) }
}

/// A body that breaks off is worth another try, whatever the error is called.
fn body_failure(cause: object_store::Error, name: &str) -> Failure {
    let failure = errors::map(cause, name);
    Failure { transient: failure.transient || failure.error.kind() == ErrorKind::Unavailable, ..failure }
}

fn join(parts: &[Bytes], length: u64) -> Bytes {
    let mut whole = BytesMut::with_capacity(usize::try_from(length).unwrap_or(0));
    for part in parts {
        whole.extend_from_slice(part);
    }
    whole.freeze()
}

/// Reads from an open file and looks afterwards whether it is still the file that was promised: somebody else's image may
/// be written while it is read.
async fn file_body(
    file: std::fs::File,
    start: u64,
    promised: u64,
    meta: &ObjectMeta,
    name: &str,
) -> Result<Bytes, Failure> {
    let (size, modified) = (meta.size, meta.last_modified.timestamp_nanos_opt());
    let read = tokio::task::spawn_blocking(move || -> io::Result<Option<Bytes>> {
        let length = usize::try_from(promised).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let mut body = vec![0; length];
        file.read_exact_at(&mut body, start)?;
        let now = file.metadata()?;
        let now_modified = now.modified()?.duration_since(std::time::UNIX_EPOCH).ok();
        let unmoved = match (modified, now_modified) {
            (Some(then), Some(now)) => u128::try_from(then).is_ok_and(|then| then == now.as_nanos()),
            _ => true,
        };
        Ok((unmoved && now.len() == size).then(|| Bytes::from(body)))
    })
    .await;
    match read {
        Ok(Ok(Some(body))) => Ok(body),
        Ok(Ok(None)) => Err(Failure::lasting(errors::source_changed().on(name))),
        Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(Failure::lasting(errors::too_short().on(name)))
        }
        Ok(Err(error)) => {
            let failure = errors::by_io(error.kind(), error.raw_os_error());
            Err(Failure { error: failure.error.on(name).because(error), ..failure })
        }
        Err(_) => Err(Failure::passing(Error::unavailable("stopping", "the program is stopping").on(name))),
    }
}
