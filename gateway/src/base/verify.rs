//! Reads every chunk that an index names and checks it, without a cache and without a gateway.

use std::collections::{BTreeMap, HashSet};

use clonegate_core::format::index::{ENTRY_BYTES, Entry, FrameRef, Index, Page};
use clonegate_core::ids::PackId;
use clonegate_core::units::ByteRange;
use clonegate_core::{Error, ErrorKind, Result};

use super::frame::unpack;
use crate::store::{Key, Store, keys};

/// Stored bytes that one request fetches at most.
const FETCH_BYTES: u64 = 4 << 20;

/// What is wrong with one frame.
#[derive(Debug, Clone)]
pub struct BadFrame {
    /// The pack that holds it.
    pub key: Key,
    /// Where, and what is wrong.
    pub what: String,
}

/// What [`verify_index`] found.
#[derive(Debug, Default)]
pub struct Verified {
    /// Chunks whose bytes are those that the index names.
    pub chunks: u64,
    /// What is wrong.
    pub bad: Vec<BadFrame>,
}

/// Checks every page and every chunk of an index: checksum of the stored bytes, plain length, hash of the plain bytes. Frames in `seen`
/// were checked before, for another index. `step` is told how many chunks more are done.
///
/// # Errors
/// What the store gives; damage and missing packs are in the answer.
pub async fn verify_index(
    store: &Store,
    index: &Index,
    seen: &mut HashSet<(PackId, u32)>,
    step: &(dyn Fn(u64) + Send + Sync),
) -> Result<Verified> {
    let mut verified = Verified::default();
    for number in 0..index.pages() {
        let Some(page) = index.page(number) else { continue };
        let entries = index.page_entries(number);
        let Some(pack) = index.pack(&page.frame) else { continue };
        let key = keys::pack(pack);
        let read = store.get_range(&key, range_of(&page.frame), None).await;
        let page = read
            .and_then(|stored| unpack(&stored, &page.frame, entries as usize * ENTRY_BYTES, None))
            .and_then(|plain| Page::new(plain, entries, &index.record));
        match page {
            Ok(page) => chunks_of(store, index, number, &page, seen, &mut verified, step).await?,
            Err(error) => note(&mut verified, &key, &format!("page {number} of index {}", index.record.id), &error)?,
        }
    }
    Ok(verified)
}

fn range_of(frame: &FrameRef) -> ByteRange {
    ByteRange::new(u64::from(frame.offset), frame.end())
}

fn note(verified: &mut Verified, key: &Key, which: &str, error: &Error) -> Result<()> {
    match error.kind() {
        ErrorKind::Corrupt | ErrorKind::NotFound | ErrorKind::Invalid => {
            verified.bad.push(BadFrame { key: key.clone(), what: format!("{which}: {}", error.message()) });
            Ok(())
        }
        _ => Err(error.clone()),
    }
}

async fn chunks_of(
    store: &Store,
    index: &Index,
    number: u64,
    page: &Page,
    seen: &mut HashSet<(PackId, u32)>,
    verified: &mut Verified,
    step: &(dyn Fn(u64) + Send + Sync),
) -> Result<()> {
    let first = number * u64::from(index.record.page_entries);
    let mut by_pack: BTreeMap<PackId, Vec<(u64, Entry)>> = BTreeMap::new();
    for slot in 0..index.page_entries(number) {
        let Some(entry) = page.entry(slot)? else { continue };
        let Some(pack) = index.pack(&entry.frame) else { continue };
        if seen.insert((pack, entry.frame.offset)) {
            by_pack.entry(pack).or_default().push((first + u64::from(slot), entry));
        }
    }
    for (pack, mut entries) in by_pack {
        let key = keys::pack(pack);
        entries.sort_by_key(|(_, entry)| entry.frame.offset);
        let mut rest = entries.as_slice();
        while let Some((_, head)) = rest.first() {
            let begin = u64::from(head.frame.offset);
            let count = rest.iter().take_while(|(_, entry)| entry.frame.end() <= begin + FETCH_BYTES).count().max(1);
            let (run, after) = rest.split_at(count);
            let end = run.iter().map(|(_, entry)| entry.frame.end()).max().unwrap_or(begin);
            match store.get_range(&key, ByteRange::new(begin, end), None).await {
                Err(error) => note(verified, &key, &format!("{count} chunks at {begin}"), &error)?,
                Ok(stored) => {
                    for (chunk, entry) in run {
                        let at = |offset: u64| usize::try_from(offset - begin).unwrap_or(usize::MAX);
                        let frame = &entry.frame;
                        let bytes = stored.get(at(u64::from(frame.offset))..at(frame.end())).unwrap_or_default();
                        match unpack(bytes, frame, index.chunk_len(*chunk), Some(&entry.hash)) {
                            Ok(_) => verified.chunks += 1,
                            Err(error) => note(verified, &key, &format!("chunk {chunk} at {}", frame.offset), &error)?,
                        }
                    }
                }
            }
            step(count as u64);
            rest = after;
        }
    }
    Ok(())
}
