//! Chunks that need not be stored again: those of this image, and those of other images of the datastore.
//!
//! The table stops growing at [`KNOWN_CHUNKS_MAX`] (32 GiB of 64 KiB chunks, about 60 MiB of memory), so an image of any size imports in
//! bounded memory; beyond it repeated chunks are stored again, which costs space only. At most half of it is filled from other images, the newest
//! bases first.
//!
//! Referring to a pack that another image brought is safe against the deletion of that image, without a lock: see [`Shared::check`].

use std::collections::HashMap;
use std::sync::Arc;

use clonegate_core::format::base::{BaseData, BaseRecord};
use clonegate_core::format::envelope;
use clonegate_core::format::index::{FrameRef, Index};
use clonegate_core::ids::{BaseId, ChunkHash, IndexId, PackId};
use clonegate_core::{Error, ErrorKind, Result};
use futures::{StreamExt, TryStreamExt};
use parking_lot::RwLock;

use crate::base::packed::{read_index, read_page};
use crate::icache::KeyHash;
use crate::store::{Key, Store, keys};

/// Chunks that are remembered.
const KNOWN_CHUNKS_MAX: usize = 512 * 1024;
/// Of them, chunks of other images.
const SHARED_CHUNKS_MAX: usize = KNOWN_CHUNKS_MAX / 2;
/// Other images that are looked at.
const SHARED_INDEXES_MAX: usize = 8;
/// Bases whose records are looked at to find them.
const BASES_MAX: usize = 512;
/// Requests at a time.
const AT_ONCE: usize = 16;

/// Where a chunk is: its frame, whose `pack` counts into a table of the import.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) frame: FrameRef,
    /// Whether another image brought it.
    pub(super) shared: bool,
}

/// Every chunk whose place is known.
#[derive(Debug, Default)]
pub(super) struct Known {
    places: RwLock<HashMap<[u8; 32], Place, KeyHash>>,
}

impl Known {
    pub(super) fn contains(&self, hash: &ChunkHash) -> bool {
        self.places.read().contains_key(&hash.0)
    }

    pub(super) fn get(&self, hash: &ChunkHash) -> Option<Place> {
        self.places.read().get(&hash.0).copied()
    }

    /// Remembers a place, as long as there is room.
    pub(super) fn add(&self, hash: &ChunkHash, place: Place) {
        let most = if place.shared { SHARED_CHUNKS_MAX } else { KNOWN_CHUNKS_MAX };
        let mut places = self.places.write();
        if places.len() < most {
            places.entry(hash.0).or_insert(place);
        }
    }

    fn has_room_for_shared(&self) -> bool {
        self.places.read().len() < SHARED_CHUNKS_MAX
    }
}

/// The other images that chunks may be shared with.
#[derive(Debug, Default)]
pub(super) struct Shared {
    indexes: Vec<IndexId>,
    /// Of each pack, the index that named it.
    named_by: HashMap<PackId, IndexId>,
}

impl Shared {
    /// Learns the chunks of the newest bases of the datastore that have the same size of chunk. `pack` gives each pack its number.
    pub(super) async fn learn(
        store: &Store,
        chunk_bytes: u32,
        known: &Known,
        mut pack: impl FnMut(PackId) -> u32,
    ) -> Result<Self> {
        let mut shared = Self::default();
        for id in newest_indexes(store).await? {
            if shared.indexes.len() >= SHARED_INDEXES_MAX || !known.has_room_for_shared() {
                break;
            }
            // Another image that is damaged or being deleted must not stop this one.
            let index = match read_index(store, id).await {
                Ok(index) if index.record.chunk_bytes == chunk_bytes => Arc::new(index),
                Ok(_) => continue,
                Err(error) => {
                    tracing::warn!(index = %id, %error, "not deduplicated against this index");
                    continue;
                }
            };
            if let Err(error) = shared.learn_one(store, &index, known, &mut pack).await {
                tracing::warn!(index = %id, %error, "deduplicated against a part of this index only");
            }
        }
        Ok(shared)
    }

    async fn learn_one(
        &mut self,
        store: &Store,
        index: &Arc<Index>,
        known: &Known,
        pack: &mut impl FnMut(PackId) -> u32,
    ) -> Result<()> {
        self.indexes.push(index.record.id);
        let numbers: Vec<u32> = index.record.packs.iter().map(|id| pack(*id)).collect();
        for id in &index.record.packs {
            self.named_by.entry(*id).or_insert(index.record.id);
        }
        let pages: Vec<u64> = (0..index.pages()).filter(|number| index.page(*number).is_some()).collect();
        let mut pages = futures::stream::iter(pages)
            .map(|number| {
                let (store, index) = (store.clone(), Arc::clone(index));
                async move { read_page(&store, &index, number).await.map(|page| (number, page)) }
            })
            .buffered(AT_ONCE);
        while let Some((number, page)) = pages.try_next().await? {
            let Some(page) = page else { continue };
            for slot in 0..index.page_entries(number) {
                let Some(entry) = page.entry(slot)? else { continue };
                let Some(pack) = numbers.get(entry.frame.pack as usize) else { continue };
                known.add(&entry.hash, Place { frame: FrameRef { pack: *pack, ..entry.frame }, shared: true });
            }
            if !known.has_room_for_shared() {
                break;
            }
        }
        Ok(())
    }

    /// Looks, after our own index was put, whether the packs of others that it names are there to stay.
    ///
    /// Whoever deletes an image deletes its index first, then lists all indexes, then deletes the packs that none of them names. If ours was
    /// put before that list, its packs are kept. If it was put after, the other index was gone before ours came, and is missing here.
    ///
    /// # Errors
    /// `Conflict` with code `dedup-raced`: our index must not be used.
    pub(super) async fn check(&self, store: &Store, used: &[PackId]) -> Result<()> {
        let foreign: Vec<(PackId, IndexId)> =
            used.iter().filter_map(|pack| self.named_by.get(pack).map(|index| (*pack, *index))).collect();
        let mut wanted: Vec<Key> = foreign.iter().map(|(pack, _)| keys::pack(*pack)).collect();
        wanted.extend(
            self.indexes.iter().filter(|id| foreign.iter().any(|(_, by)| by == *id)).map(|id| keys::index(*id)),
        );
        let mut looks = futures::stream::iter(wanted)
            .map(|key| {
                let store = store.clone();
                async move { store.head(&key).await.map_err(|error| (key, error)) }
            })
            .buffer_unordered(AT_ONCE);
        while let Some(look) = looks.next().await {
            match look {
                Ok(_) => {}
                Err((key, error)) if error.kind() == ErrorKind::NotFound => {
                    let message = "an image that this one shares chunks with was deleted meanwhile";
                    return Err(Error::conflict("dedup-raced", message).on(key.to_string()).hint("import it again"));
                }
                Err((_, error)) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The indexes of the newest bases, newest first.
async fn newest_indexes(store: &Store) -> Result<Vec<IndexId>> {
    let bases = store.list_dirs(&keys::bases()).await?;
    let bases: Vec<BaseId> = bases.iter().filter_map(|id| id.parse().ok()).take(BASES_MAX).collect();
    let records = futures::stream::iter(bases)
        .map(|id| {
            let store = store.clone();
            async move {
                let object = store.find(&keys::base(id)).await.ok()??;
                envelope::decode::<BaseRecord>(&object).ok()
            }
        })
        .buffer_unordered(AT_ONCE);
    let mut records: Vec<BaseRecord> = records.filter_map(futures::future::ready).collect().await;
    records.sort_by_key(|record| std::cmp::Reverse((record.created_ms, record.id)));
    let mut indexes = Vec::new();
    for record in records {
        if let BaseData::Packed { index } = record.data
            && !indexes.contains(&index)
        {
            indexes.push(index);
        }
    }
    Ok(indexes)
}
