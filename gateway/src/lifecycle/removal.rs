//! Removes what a deleted volume has left in its datastore. Can be run any number of times.

use clonegate_core::Result;
use clonegate_core::format::clone::CloneRecord;
use futures::{StreamExt, TryStreamExt};

use super::datastores::Datastore;
use crate::store::keys;

/// Objects deleted at once.
const DELETES_AT_ONCE: usize = 32;

/// Removes the objects of a volume whose name is gone: its data first, its slot last, so that a crash leaves a trace to go on from.
pub(super) async fn remove(datastore: &Datastore, record: &CloneRecord) -> Result<()> {
    let store = &datastore.store;
    let own = keys::clone_dir(record.id);
    let listed = store.list(&own).await?;
    futures::stream::iter(listed)
        .map(|object| {
            let key = own.key(&object.key);
            async move { store.delete(&key?).await }
        })
        .buffer_unordered(DELETES_AT_ONCE)
        .try_collect::<Vec<()>>()
        .await?;
    if let Some(base) = record.base {
        datastore.table.give_back_if_ours(record, base).await?;
    }
    Ok(())
}
