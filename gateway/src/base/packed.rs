//! Chunks of a packed base: by the index from bytes to hashes, by the iCache from hashes to bytes.
//!
//! Pages of the index are lines of the iCache like chunks are, so the memory of a base is its page table (24 bytes for each 64 MiB of
//! image) and whatever the cache keeps.

use std::sync::Arc;

use bytes::Bytes;
use clonegate_core::format::index::{ENTRY_BYTES, Entry, Index, IndexRecord, Page, PageRef};
use clonegate_core::ids::{IndexId, PackId};
use clonegate_core::units::ByteRange;
use clonegate_core::{Error, ErrorKind, Result};
use tokio::runtime::Handle;

use super::fetch::{self, Check, Wanted};
use crate::device::{Extent, Segments, Source, zeroes};
use crate::icache::{Asker, ICache, LineKey, Lookup, Pending};
use crate::store::{Store, keys};

/// Stored bytes of neighbouring index pages that come with a missing one: an image of some GiB has its whole index after the first read.
const PAGE_AHEAD_BYTES: u64 = 1024 * 1024;

#[derive(Debug)]
pub(super) struct Packed {
    store: Store,
    index: Index,
    record: Arc<IndexRecord>,
    cache: Arc<ICache>,
    runtime: Handle,
}

/// The part of one chunk that a range covers, as offsets within the chunk.
struct Part {
    chunk: u64,
    from: usize,
    to: usize,
}

enum Piece {
    Zeroes(u64),
    Ready(Bytes),
    Waiting(Pending, Part),
}

impl Packed {
    pub(super) async fn open(
        store: Store,
        id: IndexId,
        size: u64,
        cache: Arc<ICache>,
        runtime: Handle,
    ) -> Result<Self> {
        let index = read_index(&store, id).await?;
        if index.record.size != size {
            let message = format!("its index is of {} bytes, the base of {size}", index.record.size);
            return Err(Error::corrupt("bad-index", message).on(keys::index(id).to_string()));
        }
        let record = Arc::new(index.record.clone());
        Ok(Self { store, index, record, cache, runtime })
    }

    pub(super) fn record(&self) -> &IndexRecord {
        &self.record
    }

    pub(super) fn chunk_bytes(&self) -> u64 {
        u64::from(self.record.chunk_bytes)
    }

    fn parts(&self, range: ByteRange) -> impl Iterator<Item = Part> + use<> {
        let bytes = self.chunk_bytes();
        let offset_in = move |chunk: u64, at: u64| usize::try_from((at - chunk * bytes).min(bytes)).unwrap_or(0);
        let end = if range.is_empty() { 0 } else { range.end().div_ceil(bytes) };
        (range.start() / bytes..end).map(move |chunk| Part {
            chunk,
            from: offset_in(chunk, range.start().max(chunk * bytes)),
            to: offset_in(chunk, range.end()),
        })
    }

    fn page_of(&self, chunk: u64) -> (u64, u32) {
        let entries = u64::from(self.record.page_entries);
        (chunk / entries, u32::try_from(chunk % entries).unwrap_or(0))
    }

    fn page_key(&self, page: u64) -> LineKey {
        let mut key = *b"................................";
        key[..16].copy_from_slice(self.record.id.bytes());
        key[16..24].copy_from_slice(b"idx page");
        key[24..].copy_from_slice(&page.to_le_bytes());
        LineKey(key)
    }

    fn page_in_memory(&self, page: u64) -> Option<Page> {
        self.cache.get_uncounted(&self.page_key(page)).map(Page::trusted)
    }

    pub(super) fn try_read(&self, range: ByteRange) -> Option<Segments> {
        let mut segments = Segments::new();
        let mut open: Option<(u64, Page)> = None;
        for part in self.parts(range) {
            let (number, slot) = self.page_of(part.chunk);
            if self.index.page(number).is_none() {
                zeroes(&mut segments, (part.to - part.from) as u64);
                continue;
            }
            if open.as_ref().is_none_or(|(at, _)| *at != number) {
                open = Some((number, self.page_in_memory(number)?));
            }
            let (_, page) = open.as_ref()?;
            match page.entry(slot).ok()? {
                None => zeroes(&mut segments, (part.to - part.from) as u64),
                Some(entry) => segments.push(slice(&self.cache.get(&LineKey(entry.hash.0))?, &part).ok()?),
            }
        }
        Some(segments)
    }

    pub(super) async fn read(&self, range: ByteRange, asker: Asker) -> Result<Segments> {
        let mut segments = Segments::new();
        for piece in self.request(range, asker).await? {
            match piece {
                Piece::Zeroes(length) => zeroes(&mut segments, length),
                Piece::Ready(bytes) => segments.push(bytes),
                Piece::Waiting(pending, part) => segments.push(slice(&pending.await?, &part)?),
            }
        }
        Ok(segments)
    }

    /// Starts whatever is missing of `range`, for nobody yet.
    pub(super) async fn start_reading(&self, range: ByteRange) {
        // Fetches are tasks of their own: they go on when those who would wait for them are dropped.
        drop(self.request(range, Asker::Machine).await);
    }

    /// Starts whatever is missing of `range` and says in order what it consists of.
    async fn request(&self, range: ByteRange, asker: Asker) -> Result<Vec<Piece>> {
        let (mut pieces, mut wanted) = (Vec::new(), Vec::new());
        let mut open: Option<(u64, Option<Page>)> = None;
        for part in self.parts(range) {
            let (number, slot) = self.page_of(part.chunk);
            if open.as_ref().is_none_or(|(at, _)| *at != number) {
                // What is wanted so far is on its way while the page comes.
                self.start(std::mem::take(&mut wanted));
                open = Some((number, self.page(number, asker).await?));
            }
            let entry = match &open {
                Some((_, Some(page))) => page.entry(slot)?,
                _ => None,
            };
            let Some(entry) = entry else {
                pieces.push(Piece::Zeroes((part.to - part.from) as u64));
                continue;
            };
            let pending = match self.cache.begin(LineKey(entry.hash.0), asker) {
                Lookup::Hit(line) => {
                    pieces.push(Piece::Ready(slice(&line, &part)?));
                    continue;
                }
                Lookup::Join(pending) => pending,
                Lookup::Lead(claim, pending) => {
                    let check = Check::Chunk(part.chunk, entry.hash);
                    let plain_len = self.index.chunk_len(part.chunk);
                    wanted.push(Wanted { claim, pack: self.pack(&entry)?, frame: entry.frame, plain_len, check });
                    pending
                }
            };
            pieces.push(Piece::Waiting(pending, part));
        }
        self.start(wanted);
        Ok(pieces)
    }

    fn start(&self, wanted: Vec<Wanted>) {
        fetch::spawn(wanted, &self.store, &self.cache, &self.runtime);
    }

    fn pack(&self, entry: &Entry) -> Result<PackId> {
        self.index.pack(&entry.frame).ok_or_else(|| self.bad("an entry names a pack that is not there"))
    }

    /// Page `number` of the index; `None` when all its chunks are zeroes.
    async fn page(&self, number: u64, asker: Asker) -> Result<Option<Page>> {
        let Some(at) = self.index.page(number) else { return Ok(None) };
        if let Some(page) = self.page_in_memory(number) {
            return Ok(Some(page));
        }
        let pending = match self.cache.begin(self.page_key(number), asker) {
            Lookup::Hit(line) => return Ok(Some(Page::trusted(line))),
            Lookup::Join(pending) => pending,
            Lookup::Lead(claim, pending) => {
                let mut wanted = vec![self.wanted_page(claim, number, at)?];
                self.add_pages_ahead(number, at, &mut wanted)?;
                self.start(wanted);
                pending
            }
        };
        Ok(Some(Page::trusted(pending.await?)))
    }

    /// Neighbours in the pack cost nothing much more.
    fn add_pages_ahead(&self, number: u64, at: &PageRef, wanted: &mut Vec<Wanted>) -> Result<()> {
        let mut last = *at;
        for next in number + 1..self.index.pages() {
            let Some(at) = self.index.page(next) else { continue };
            let near = at.frame.pack == last.frame.pack && u64::from(at.frame.offset) == last.frame.end();
            let bytes: u64 = wanted.iter().map(|one| u64::from(one.frame.length)).sum();
            if !near || bytes + u64::from(at.frame.length) > PAGE_AHEAD_BYTES {
                break;
            }
            match self.cache.begin_quietly(self.page_key(next)) {
                Some(claim) => wanted.push(self.wanted_page(claim, next, at)?),
                None => break,
            }
            last = *at;
        }
        Ok(())
    }

    fn wanted_page(&self, claim: crate::icache::Claim, number: u64, at: &PageRef) -> Result<Wanted> {
        let entries = self.index.page_entries(number);
        let pack = self.index.pack(&at.frame).ok_or_else(|| self.bad("a page is in a pack that is not there"))?;
        let check = Check::Page(number, entries, Arc::clone(&self.record));
        Ok(Wanted { claim, pack, frame: at.frame, plain_len: entries as usize * ENTRY_BYTES, check })
    }

    pub(super) async fn extents(&self, range: ByteRange, asker: Asker) -> Result<Vec<Extent>> {
        let mut extents: Vec<Extent> = Vec::new();
        let mut add = |range: ByteRange, source: Source| Extent { range, source }.append_to(&mut extents);
        let page_bytes = u64::from(self.record.page_entries) * self.chunk_bytes();
        for number in range.start() / page_bytes..range.end().div_ceil(page_bytes) {
            let whole = ByteRange::new(number * page_bytes, (number + 1) * page_bytes).intersect(range);
            let Some(page) = self.page(number, asker).await? else {
                add(whole, Source::Zero);
                continue;
            };
            for part in self.parts(whole) {
                let start = part.chunk * self.chunk_bytes();
                let used = page.entry(self.page_of(part.chunk).1)?.is_some();
                let source = if used { Source::Base } else { Source::Zero };
                add(ByteRange::new(start + part.from as u64, start + part.to as u64), source);
            }
        }
        Ok(extents)
    }

    /// Fetches `chunk` unless it is in memory or on its way; never touches the statistics of demand.
    pub(super) async fn warm(&self, chunk: u64) -> Result<Warmed> {
        let (number, slot) = self.page_of(chunk);
        let Some(page) = self.page(number, Asker::Warming).await? else { return Ok(Warmed::Known) };
        let Some(entry) = page.entry(slot)? else { return Ok(Warmed::Known) };
        let key = LineKey(entry.hash.0);
        if self.cache.is_known(&key) {
            return Ok(Warmed::Known);
        }
        let Lookup::Lead(claim, pending) = self.cache.begin(key, Asker::Warming) else { return Ok(Warmed::Known) };
        let check = Check::Chunk(chunk, entry.hash);
        let plain_len = self.index.chunk_len(chunk);
        self.start(vec![Wanted { claim, pack: self.pack(&entry)?, frame: entry.frame, plain_len, check }]);
        pending.await.map(|_| Warmed::Fetched)
    }

    fn bad(&self, what: &str) -> Error {
        Error::corrupt("bad-index", what).on(keys::index(self.record.id).to_string())
    }
}

/// What warming a chunk did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Warmed {
    /// It was there.
    Known,
    /// It was fetched.
    Fetched,
}

fn slice(line: &Bytes, part: &Part) -> Result<Bytes> {
    if part.to > line.len() {
        // Two chunks of one hash have one length, so this is a bug and not bad input.
        return Err(Error::internal("short-line", format!("a line of {} bytes for chunk {}", line.len(), part.chunk)));
    }
    Ok(line.slice(part.from..part.to))
}

/// Reads and checks an index; once more when it is damaged.
pub(crate) async fn read_index(store: &Store, id: IndexId) -> Result<Index> {
    let key = keys::index(id);
    let decode = |object: &[u8]| {
        let index = Index::decode(object)?;
        if index.record.id != id {
            return Err(Error::corrupt("bad-index", format!("it says that it is {}", index.record.id)));
        }
        Ok(index)
    };
    match decode(&store.get(&key).await?) {
        Err(error) if error.kind() == ErrorKind::Corrupt => {
            tracing::warn!(%key, %error, "fetched again after a failed check");
            decode(&store.get(&key).await?).map_err(|e| e.on(key.to_string()))
        }
        decoded => decoded.map_err(|e| e.on(key.to_string())),
    }
}

/// The entries of page `number` of an index, for those who walk an index without a base (import, fsck).
pub(crate) async fn read_page(store: &Store, index: &Index, number: u64) -> Result<Option<Page>> {
    let Some(at) = index.page(number) else { return Ok(None) };
    let pack = index.pack(&at.frame).ok_or_else(|| Error::corrupt("bad-index", "a page is in no pack"))?;
    let range = ByteRange::new(u64::from(at.frame.offset), at.frame.end());
    let entries = index.page_entries(number);
    let stored = store.get_range(&keys::pack(pack), range, None).await?;
    let plain = super::frame::unpack(&stored, &at.frame, entries as usize * ENTRY_BYTES, None);
    plain
        .and_then(|plain| Page::new(plain, entries, &index.record))
        .map(Some)
        .map_err(|e| e.on(keys::pack(pack).to_string()))
}
