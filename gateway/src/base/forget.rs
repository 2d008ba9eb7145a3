//! Deletes the index and the packs of an image that no base holds any more.
//!
//! Packs are shared between images, so the order matters; [ADR 10](../../../docs/adr/0010-indexes.md) tells why no lock is needed.

use std::collections::HashSet;

use clonegate_core::format::base::{BaseData, BaseRecord};
use clonegate_core::format::envelope;
use clonegate_core::format::making::{Maker, MakingRecord};
use clonegate_core::ids::{BaseId, IndexId, PackId};
use clonegate_core::{ErrorKind, Result};
use futures::{StreamExt, TryStreamExt};

use super::leftover::{self, Cleared};
use super::packed::read_index;
use crate::store::{Store, keys};

/// Requests at a time.
const AT_ONCE: usize = 16;

/// What forgetting an image did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// Whether the index is gone; it stays while another base names it, or the image is being made again.
    pub index: bool,
    /// Packs deleted.
    pub packs: u64,
}

/// To be called after a base record was deleted: deletes the index that it named unless another base names it, and then those of its packs
/// that no other index names. The note `of` says so meanwhile; after an error or a death it can be gone on from, by [`leftover::clear`].
///
/// # Errors
/// Those of the store. No pack is deleted when a base or an index cannot be read: it might name what would be deleted.
pub async fn forget(store: &Store, id: IndexId, by: Maker, of: IndexId) -> Result<Forgotten> {
    let (clock, key) = (store.clock(), keys::index(id));
    match store.head(&key).await {
        Ok(_) if !is_named(store, id).await? => {}
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => return Ok(Forgotten::default()),
    }
    let packs = match read_index(store, id).await {
        Ok(index) => index.record.packs,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Forgotten::default()),
        Err(error) if error.kind() == ErrorKind::Corrupt => {
            tracing::warn!(index = %id, %error, "a damaged index is deleted; fsck --repair removes its packs");
            Vec::new()
        }
        Err(error) => return Err(error),
    };
    let note = MakingRecord { index: id, nonce: clock.nonce(), maker: Some(by), removing: true, packs };
    // The index goes before the list of the others: an import that leans on these packs puts its own index before it looks for this one.
    match leftover::clear(store, clock, by, (of, 0), &note, (true, false)).await? {
        Cleared::Done { packs } => Ok(Forgotten { index: true, packs }),
        Cleared::Anothers | Cleared::NotNow => Ok(Forgotten::default()),
    }
}

/// Whether a base of the datastore has this index.
pub(super) async fn is_named(store: &Store, id: IndexId) -> Result<bool> {
    let bases = store.list_dirs(&keys::bases()).await?;
    let bases: Vec<BaseId> = bases.iter().filter_map(|id| id.parse().ok()).collect();
    let mut records = futures::stream::iter(bases)
        .map(|base| {
            let store = store.clone();
            async move {
                let Some(object) = store.find(&keys::base(base)).await? else { return Ok(false) };
                let record: BaseRecord = envelope::decode(&object).map_err(|e| e.on(keys::base(base).to_string()))?;
                Ok(matches!(record.data, BaseData::Packed { index } if index == id))
            }
        })
        .buffer_unordered(AT_ONCE);
    while let Some(named) = records.try_next().await? {
        if named {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Every pack that an index of the datastore names, other than index `but`.
pub(super) async fn used_packs(store: &Store, but: Option<IndexId>) -> Result<HashSet<PackId>> {
    let listed = store.list(&keys::indexes()).await?;
    let indexes: Vec<IndexId> =
        listed.iter().filter_map(|one| one.key.parse().ok()).filter(|id| Some(*id) != but).collect();
    let mut read = futures::stream::iter(indexes)
        .map(|id| {
            let store = store.clone();
            async move {
                match read_index(&store, id).await {
                    Ok(index) => Ok(index.record.packs),
                    Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
                    Err(error) => Err(error),
                }
            }
        })
        .buffer_unordered(AT_ONCE);
    let mut used = HashSet::new();
    while let Some(packs) = read.try_next().await? {
        used.extend(packs);
    }
    Ok(used)
}
