//! Makes bases and removes them. Brings the data of a template version to another datastore for that: each pack once, then the index that makes it
//! usable there.
//!
//! Packs and indexes keep their ids, so a copy can be told from another image, can be taken up again after a crash, and is the same
//! for whoever makes it.

use std::sync::Arc;

use clonegate_core::format::base::{BaseData, BaseRecord};
use clonegate_core::format::catalog::{TemplateEntry, TemplateVersion, VersionState};
use clonegate_core::format::index::Index;
use clonegate_core::ids::{BaseId, IndexId, Name};
use clonegate_core::{Error, ErrorKind, Result};
use futures::{StreamExt, TryStreamExt};

use super::datastores::Datastore;
use super::gateway::Gateway;
use crate::base::forget;
use crate::base::leftover;
use crate::base::making::Making;
use crate::catalog::Named;
use crate::store::keys;

/// Packs copied at once; each is held in memory.
const COPIES_AT_ONCE: usize = 3;

fn being_removed(index: IndexId) -> Error {
    Error::unavailable("image-being-removed", "the data of the version is just being removed from this datastore")
        .on(keys::index(index).to_string())
        .hint("try again")
}

impl Gateway {
    /// Makes a base of a version: its data is brought to the datastore if it is not there, then one put. The caller holds `making`.
    pub(super) async fn make_base(
        &self,
        datastore: &Arc<Datastore>,
        template: &Name,
        version: &TemplateVersion,
    ) -> Result<BaseRecord> {
        if let BaseData::Packed { index } = version.data {
            let source = self.datastores.get(&version.datastore)?;
            self.bring(&source, datastore, index).await?;
        }
        let record = BaseRecord {
            id: self.clock.id(),
            nonce: self.clock.nonce(),
            size: version.size,
            template: template.clone(),
            version: version.number,
            slots: version.slots,
            created_ms: self.clock.now_ms(),
            data: version.data.clone(),
        };
        datastore.table.create(record.clone()).await?;
        // Whoever deletes a version marks it and then looks for bases; we make a base and then look for the mark.
        let still: Option<Named<TemplateEntry>> = self.catalog.find(template).await?;
        if still.is_none_or(|t| t.state.version(version.number).is_none_or(|v| v.data != version.data)) {
            self.remove_base(datastore, record.id).await?;
            return Err(Error::conflict("version-deleted", format!("version {} is being deleted", version.number))
                .on(template.as_str()));
        }
        // The same with whoever removes its data: that one puts a note and then looks for bases.
        if let BaseData::Packed { index } = record.data
            && leftover::notes(&datastore.store).await?.iter().any(|noted| noted.removes(index, &[]))
        {
            datastore.table.remove(record.id).await?;
            return Err(being_removed(index));
        }
        tracing::info!(base = %record.id, %template, version = version.number, datastore = %datastore.name, "base made");
        Ok(record)
    }

    /// Makes sure that the index and its packs are on `to`. One HEAD when they are.
    async fn bring(&self, from: &Datastore, to: &Datastore, index: IndexId) -> Result<()> {
        let key = keys::index(index);
        match to.store.head(&key).await {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let body = from.store.get(&key).await?;
        let packs = Index::decode(&body).map_err(|e| e.on(key.to_string()))?.record.packs;
        tracing::info!(%index, packs = packs.len(), from = %from.name, to = %to.name, "copying an image");
        let making = Making::of_copy(&to.store, to.store.clock(), Some(self.maker()), index, packs.clone()).await?;
        let copied = async {
            futures::stream::iter(packs)
                .map(|pack| async move {
                    let key = keys::pack(pack);
                    if to.store.head(&key).await.is_ok() {
                        return Ok(());
                    }
                    to.store.put_new(&key, from.store.get(&key).await?).await.map(drop)
                })
                .buffer_unordered(COPIES_AT_ONCE)
                .try_collect::<Vec<()>>()
                .await?;
            // Last, so that an index is never there without its packs.
            let ours = to.store.put_new(&key, body).await?.is_created();
            match making.check().await {
                // Its packs were swept. One that was there before is of another copy, which looks after it.
                Err(error) if ours && error.code() == "image-swept" => {
                    to.store.delete(&key).await?;
                    Err(error)
                }
                checked => checked,
            }
        }
        .await;
        self.settle_image(to, making, copied).await
    }

    /// Removes an image that no template version names any more, where no base does either.
    pub(super) async fn drop_image(&self, datastore: &Datastore, index: IndexId) -> Result<()> {
        if datastore.check_online().is_err() {
            return Ok(());
        }
        self.forget_image(datastore, index).await
    }

    /// Deletes an index that nothing names, and its packs. After an error this gateway goes on with it in the background.
    async fn forget_image(&self, datastore: &Datastore, index: IndexId) -> Result<()> {
        let note = self.clock.id();
        let forgotten = forget(&datastore.store, index, self.maker(), note).await;
        if forgotten.is_err() {
            self.leftovers.give_up(&datastore.name, note, self.clock.instant());
        }
        forgotten.map(drop)
    }

    /// Removes a base that nothing is linked to; with its data, unless that is what its template version has.
    pub(super) async fn remove_base(&self, datastore: &Datastore, id: BaseId) -> Result<()> {
        let Some(index) = datastore.table.remove(id).await? else { return Ok(()) };
        let keeps = |version: &TemplateVersion| {
            version.state != VersionState::Deleting
                && version.datastore == datastore.name
                && matches!(version.data, BaseData::Packed { index: its } if its == index)
        };
        let templates = self.catalog.list::<TemplateEntry>().await?;
        if templates.iter().flat_map(|template| &template.state.versions).any(keeps) {
            return Ok(());
        }
        self.forget_image(datastore, index).await
    }
}
