//! Writes packs: one fills while those before it are uploaded.

use std::time::Duration;

use bytes::BytesMut;
use clonegate_core::format::index::{Encoding, FrameRef, PageRef};
use clonegate_core::ids::PackId;
use clonegate_core::limits::PACK_BYTES_MAX;
use clonegate_core::{Error, Result};
use futures::StreamExt;
use tokio::task::{JoinError, JoinSet};

use crate::base::making::PackIds;
use crate::clock::Clock;
use crate::store::{PutNew, Store, keys};

/// Bytes of a pack that is full. A quarter of what a pack may have: five of them are in memory at most, and little is left to be written
/// when the last chunk is compressed.
const PACK_BYTES: usize = PACK_BYTES_MAX as usize / 4;
/// How long uploads of an import that failed are waited for.
const LATE: Duration = Duration::from_secs(30);
/// Packs uploaded at a time.
const UPLOADS: usize = 4;

/// Every pack of an import by its number, and the ones being written. Dropping it ends the uploads.
pub(super) struct Packs {
    store: Store,
    clock: Clock,
    ids: PackIds,
    /// Packs by number; frames refer to these numbers until the index is written.
    table: Vec<PackId>,
    written: Vec<PackId>,
    /// Each gives back the memory of its pack, unless the store still has it.
    uploads: JoinSet<Result<Option<BytesMut>>>,
    /// Memory of packs that are uploaded: fresh memory costs a page fault for every 4 KiB.
    spare: Vec<BytesMut>,
    stored_bytes: u64,
    chunks: Filling,
    /// Index pages, kept together so that one GET brings many.
    pages: Filling,
}

#[derive(Default)]
struct Filling {
    /// Its number, once something is in it.
    number: Option<u32>,
    body: BytesMut,
}

/// Which of the two packs that are being filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Chunks,
    Pages,
}

impl Packs {
    pub(super) fn new(store: &Store, clock: &Clock, ids: PackIds) -> Self {
        Self {
            store: store.clone(),
            clock: clock.clone(),
            ids,
            table: Vec::new(),
            written: Vec::new(),
            uploads: JoinSet::new(),
            spare: Vec::new(),
            stored_bytes: 0,
            chunks: Filling::default(),
            pages: Filling::default(),
        }
    }

    /// The number of a pack that another image brought.
    pub(super) fn number_of(&mut self, pack: PackId) -> u32 {
        let at = self.table.iter().position(|known| *known == pack).unwrap_or_else(|| {
            self.table.push(pack);
            self.table.len() - 1
        });
        u32::try_from(at).unwrap_or(u32::MAX)
    }

    /// Takes a frame and says where it will be.
    pub(super) async fn add(&mut self, kind: Kind, encoding: Encoding, crc: u32, stored: &[u8]) -> Result<FrameRef> {
        if self.filling(kind).body.len() + stored.len() > PACK_BYTES {
            self.seal(kind).await?;
        }
        let pack = match self.filling(kind).number {
            Some(number) => number,
            None => {
                let next = u32::try_from(self.table.len()).unwrap_or(u32::MAX);
                self.table.push(self.ids.next(&self.clock).await?);
                if kind == Kind::Chunks {
                    self.chunks.body = self.spare.pop().unwrap_or_else(|| BytesMut::with_capacity(PACK_BYTES));
                }
                self.filling(kind).number = Some(next);
                next
            }
        };
        let filling = self.filling(kind);
        let (Ok(offset), Ok(length)) = (u32::try_from(filling.body.len()), u32::try_from(stored.len())) else {
            return Err(Error::internal("frame-too-large", format!("a frame of {} bytes", stored.len())));
        };
        filling.body.extend_from_slice(stored);
        self.stored_bytes += u64::from(length);
        Ok(FrameRef { pack, offset, length, crc, encoding })
    }

    fn filling(&mut self, kind: Kind) -> &mut Filling {
        match kind {
            Kind::Chunks => &mut self.chunks,
            Kind::Pages => &mut self.pages,
        }
    }

    /// Uploads the pack that is being filled, waiting while too many are under way.
    async fn seal(&mut self, kind: Kind) -> Result<()> {
        let Filling { number: Some(number), body } = std::mem::take(self.filling(kind)) else { return Ok(()) };
        while let Some(ended) = self.uploads.try_join_next() {
            self.ended(ended)?;
        }
        while self.uploads.len() >= UPLOADS {
            self.wait_for_one().await?;
        }
        let id = self.table[number as usize];
        self.written.push(id);
        let store = self.store.clone();
        self.uploads.spawn(async move {
            let body = body.freeze();
            match store.put_new(&keys::pack(id), body.clone()).await? {
                PutNew::Created => Ok(body.try_into_mut().ok()),
                PutNew::Exists(_) => {
                    Err(Error::internal("pack-exists", "a fresh pack is there already").on(keys::pack(id).to_string()))
                }
            }
        });
        Ok(())
    }

    async fn wait_for_one(&mut self) -> Result<()> {
        match self.uploads.join_next().await {
            None => Ok(()),
            Some(ended) => self.ended(ended),
        }
    }

    fn ended(&mut self, ended: Result<Result<Option<BytesMut>>, JoinError>) -> Result<()> {
        let body = ended.map_err(|_| Error::unavailable("stopping", "an upload was given up"))??;
        self.spare.extend(body.filter(|body| body.capacity() >= PACK_BYTES).map(|mut body| {
            body.clear();
            body
        }));
        Ok(())
    }

    /// Uploads what is left. Pages go behind the chunks when both fit one pack; then their references are moved.
    pub(super) async fn finish(&mut self, pages: &mut [Option<PageRef>]) -> Result<()> {
        let fits = self.chunks.body.len() + self.pages.body.len() <= PACK_BYTES;
        if let (Some(to), Some(from), true) = (self.chunks.number, self.pages.number, fits) {
            let moved = u32::try_from(self.chunks.body.len()).unwrap_or(u32::MAX);
            let body = std::mem::take(&mut self.pages).body;
            self.chunks.body.extend_from_slice(&body);
            for page in pages.iter_mut().flatten().filter(|page| page.frame.pack == from) {
                page.frame.pack = to;
                page.frame.offset += moved;
            }
        }
        self.seal(Kind::Chunks).await?;
        self.seal(Kind::Pages).await?;
        while !self.uploads.is_empty() {
            self.wait_for_one().await?;
        }
        Ok(())
    }

    /// The pack of a number.
    pub(super) fn id(&self, number: u32) -> Option<PackId> {
        self.table.get(number as usize).copied()
    }

    /// Bytes of frames so far.
    pub(super) fn stored_bytes(&self) -> u64 {
        self.stored_bytes
    }

    /// Packs written so far.
    pub(super) fn written(&self) -> usize {
        self.written.len()
    }

    /// Deletes what was written; tells whether the store let it, and nothing can arrive afterwards.
    pub(super) async fn undo(mut self) -> bool {
        // One that is given up may be carried out all the same: each is waited for.
        let ended = async { while self.uploads.join_next().await.is_some() {} };
        let ended = tokio::time::timeout(LATE, ended).await.is_ok();
        self.uploads.shutdown().await;
        let store = &self.store;
        futures::stream::iter(self.written)
            .map(|id| async move {
                let deleted = store.delete(&keys::pack(id)).await;
                deleted.inspect_err(|error| tracing::warn!(pack = %id, %error, "left over from an import that failed"))
            })
            .buffer_unordered(8)
            .fold(ended, |all, deleted| std::future::ready(all && deleted.is_ok()))
            .await
    }
}
