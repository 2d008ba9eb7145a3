//! Fetches missing lines: neighbours by one ranged GET, each line verified, each waiter woken as soon as its line is there.

use std::sync::Arc;

use bytes::Bytes;
use clonegate_core::format::index::{FrameRef, IndexRecord, Page};
use clonegate_core::ids::{ChunkHash, PackId};
use clonegate_core::units::ByteRange;
use clonegate_core::{Error, ErrorKind, Result};
use tokio::runtime::Handle;

use super::frame;
use crate::icache::{Claim, ICache};
use crate::store::{Store, keys};

/// Most stored bytes that one GET brings; neighbours beyond it are fetched by another at the same time.
pub(super) const RUN_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Frames unpacked before others get their turn on the thread.
const TURN_FRAMES: usize = 4;

/// What the plain bytes of a frame must be.
#[derive(Debug, Clone)]
pub(super) enum Check {
    /// The chunk with this number and hash.
    Chunk(u64, ChunkHash),
    /// This page of the index, with this many entries.
    Page(u64, u32, Arc<IndexRecord>),
}

/// One line to fetch from a pack.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) claim: Claim,
    pub(super) pack: PackId,
    pub(super) frame: FrameRef,
    pub(super) plain_len: usize,
    pub(super) check: Check,
}

/// Starts fetching all of `wanted`, in as few GETs as its places allow, in tasks that nobody can cancel.
pub(super) fn spawn(mut wanted: Vec<Wanted>, store: &Store, cache: &Arc<ICache>, runtime: &Handle) {
    wanted.sort_by_key(|one| (one.pack, one.frame.offset));
    let mut run: Vec<Wanted> = Vec::new();
    for one in wanted {
        let joins = run.first().zip(run.last()).is_some_and(|(first, last)| {
            one.pack == last.pack
                && u64::from(one.frame.offset) == last.frame.end()
                && one.frame.end() - u64::from(first.frame.offset) <= RUN_BYTES_MAX
        });
        if !joins && !run.is_empty() {
            runtime.spawn(fetch_run(std::mem::take(&mut run), store.clone(), Arc::clone(cache)));
        }
        run.push(one);
    }
    if !run.is_empty() {
        runtime.spawn(fetch_run(run, store.clone(), Arc::clone(cache)));
    }
}

async fn fetch_run(run: Vec<Wanted>, store: Store, cache: Arc<ICache>) {
    let (Some(first), Some(last)) = (run.first(), run.last()) else { return };
    let (pack, start) = (first.pack, u64::from(first.frame.offset));
    let range = ByteRange::new(start, last.frame.end());
    let fetched = store.get_range(&keys::pack(pack), range, None).await;
    cache.count_store_read(fetched.as_ref().map_or(0, |bytes| bytes.len() as u64));
    for (number, one) in run.into_iter().enumerate() {
        if number % TURN_FRAMES == TURN_FRAMES - 1 {
            tokio::task::yield_now().await;
        }
        let line = match &fetched {
            Ok(bytes) => match unpack(&one, part(bytes, start, &one.frame)) {
                Ok(line) => Ok(line),
                Err(first_failure) => fetch_again(&one, &store, &cache, first_failure).await,
            },
            // A pack that is too short may still hold some of the run.
            Err(error) if error.kind() == ErrorKind::Corrupt => fetch_again(&one, &store, &cache, error.clone()).await,
            Err(error) => Err(error.clone()),
        };
        one.claim.fulfil(line);
    }
}

/// The second and last try of a line that did not verify.
async fn fetch_again(one: &Wanted, store: &Store, cache: &ICache, first_failure: Error) -> Result<Bytes> {
    tracing::warn!(pack = %one.pack, what = %one.what(), error = %first_failure, "fetched again after a failed check");
    let range = ByteRange::new(u64::from(one.frame.offset), one.frame.end());
    let fetched = store.get_range(&keys::pack(one.pack), range, None).await;
    cache.count_store_read(fetched.as_ref().map_or(0, |bytes| bytes.len() as u64));
    match fetched {
        Ok(bytes) => unpack(one, &bytes),
        Err(error) if error.kind() == ErrorKind::Corrupt => Err(one.corrupt(&error)),
        Err(error) => Err(error),
    }
}

fn part<'a>(bytes: &'a Bytes, start: u64, frame: &FrameRef) -> &'a [u8] {
    let from = usize::try_from(u64::from(frame.offset) - start).unwrap_or(usize::MAX);
    bytes.get(from..from.saturating_add(frame.length as usize)).unwrap_or_default()
}

fn unpack(one: &Wanted, stored: &[u8]) -> Result<Bytes> {
    let plain = match &one.check {
        Check::Chunk(_, hash) => frame::unpack(stored, &one.frame, one.plain_len, Some(hash)),
        Check::Page(_, entries, record) => frame::unpack(stored, &one.frame, one.plain_len, None)
            .and_then(|plain| Page::new(plain, *entries, record).map(|page| page.bytes().clone())),
    };
    plain.map_err(|error| one.corrupt(&error))
}

impl Wanted {
    fn what(&self) -> String {
        match &self.check {
            Check::Chunk(number, _) => format!("chunk {number}"),
            Check::Page(number, ..) => format!("index page {number}"),
        }
    }

    fn corrupt(&self, cause: &Error) -> Error {
        let message =
            format!("{} at {}..{} is damaged: {}", self.what(), self.frame.offset, self.frame.end(), cause.message());
        Error::corrupt("bad-chunk", message)
            .on(keys::pack(self.pack).to_string())
            .hint("run `clonegate fsck`; importing the image again mends it")
    }
}
