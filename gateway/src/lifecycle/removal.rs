//! Removes what a deleted volume has left in its datastore. Can be run any number of times.
//!
//! The tombstone comes first and in the foreground: one request, whatever the size. Then every epoch is closed, so that a stalled owner can
//! commit nothing more; then the data goes, and the slot. What keeps a stalled owner out stays for a while and goes last.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use clonegate_core::Result;
use clonegate_core::format::clone::CloneRecord;
use futures::{StreamExt, TryStreamExt};

use super::datastores::Datastore;
use super::gateway::Gateway;
use crate::delta::fence;
use crate::store::{Key, keys, making_room};

/// Objects deleted at once.
const DELETES_AT_ONCE: usize = 32;
/// How long what fences a deleted volume stays. A gateway that is stalled for longer finds nothing, and what it writes then is found by `fsck`.
const FENCE_STAYS: Duration = Duration::from_secs(3600);
/// Attempts, and the pause between them.
const ATTEMPTS: u32 = 40;
const PAUSE: Duration = Duration::from_secs(15);

impl Gateway {
    /// Ends a volume whose name is gone: puts its tombstone, and removes the rest in the background. What a crash leaves is found by `fsck`.
    pub(super) async fn remove_volume(&self, datastore: &Arc<Datastore>, record: CloneRecord) {
        self.engine.forget(record.id);
        if let Err(error) = fence::bury(&datastore.store, &record, &self.clock).await {
            tracing::warn!(volume = %record.name, %error, "its tombstone could not be put yet");
        }
        let (me, datastore) = (std::sync::Weak::clone(&self.me), Arc::clone(datastore));
        self.handle.spawn(making_room(async move {
            for _ in 0..ATTEMPTS {
                let Some(gateway) = me.upgrade() else { return };
                match gateway.remove(&datastore, &record).await {
                    Ok(()) => break,
                    Err(error) => {
                        tracing::warn!(volume = %record.name, %error, "what it left could not be removed now");
                        gateway.clock.sleep(PAUSE).await;
                    }
                }
            }
            let Some(clock) = me.upgrade().map(|gateway| gateway.clock.clone()) else { return };
            clock.sleep(FENCE_STAYS).await;
            if me.strong_count() > 0
                && let Err(error) = remove_fence(&datastore, &record).await
            {
                tracing::debug!(volume = %record.name, %error, "its tombstone stays for `fsck`");
            }
        }));
    }

    /// Removes the objects of a volume whose name is gone: its data first, its slot last, so that a crash leaves a trace to go on from. Its
    /// fence stays.
    pub(super) async fn remove(&self, datastore: &Datastore, record: &CloneRecord) -> Result<()> {
        let store = &datastore.store;
        fence::bury(store, record, &self.clock).await?;
        let stays = fence::fence(store, record, self.settings.gateway, &self.clock).await?;
        let stays: HashSet<Key> = stays.into_iter().collect();
        delete_all(datastore, record, &stays).await?;
        if let Some(base) = record.base {
            datastore.table.give_back_if_ours(record, base).await?;
        }
        Ok(())
    }
}

/// Removes the objects of a volume that nobody ever had open, as a copy that was given up: its data first, its slot last.
pub(super) async fn remove(datastore: &Datastore, record: &CloneRecord) -> Result<()> {
    delete_all(datastore, record, &HashSet::new()).await?;
    match record.base {
        Some(base) => datastore.table.give_back_if_ours(record, base).await.map(drop),
        None => Ok(()),
    }
}

/// Removes what [`Gateway::remove`] left, the tombstone last.
async fn remove_fence(datastore: &Datastore, record: &CloneRecord) -> Result<()> {
    let tombstone = keys::deleted(record.id);
    delete_all(datastore, record, &HashSet::from([tombstone.clone()])).await?;
    datastore.store.delete(&tombstone).await
}

async fn delete_all(datastore: &Datastore, record: &CloneRecord, but: &HashSet<Key>) -> Result<()> {
    let (store, own) = (&datastore.store, keys::clone_dir(record.id));
    let listed = store.list(&own).await?;
    let keys: Vec<Key> = listed.iter().map(|object| own.key(&object.key)).collect::<Result<_>>()?;
    futures::stream::iter(keys.into_iter().filter(|key| !but.contains(key)))
        .map(|key| async move { store.delete(&key).await })
        .buffer_unordered(DELETES_AT_ONCE)
        .try_collect::<Vec<()>>()
        .await
        .map(drop)
}
