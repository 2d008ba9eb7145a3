//! Data disks: persistent thin volumes that belong to a clone and outlive its resets and updates.

use std::sync::Arc;

use clonegate_core::format::catalog::{CloneEntry, DiskEntry};
use clonegate_core::format::clone::{CloneRecord, VolumeKind};
use clonegate_core::format::envelope;
use clonegate_core::ids::Name;
use clonegate_core::limits::VOLUME_BYTES_MAX;
use clonegate_core::units::SECTOR_BYTES;
use clonegate_core::{Error, Result};

use super::gateway::Gateway;
use super::open::{Of, Open};
use super::views::{CreateDisk, DiskView, ListQuery, Page, Touched, page};
use crate::catalog::Named;
use crate::exports::CloneRef;
use crate::store::{PutNew, keys, making_room};
use crate::volume::{Volume, VolumeSetup};

impl Gateway {
    /// Makes a disk: its record, then its name.
    pub(super) async fn do_create_disk(self: Arc<Self>, request: CreateDisk, dry_run: bool) -> Result<DiskView> {
        let name = Name::new(request.name.as_str())?;
        if request.size == 0 || !request.size.is_multiple_of(SECTOR_BYTES) || request.size > VOLUME_BYTES_MAX {
            return Err(Error::invalid("bad-size", format!("a disk of {} bytes", request.size))
                .on(name.as_str())
                .hint(format!("a multiple of {SECTOR_BYTES}, at most {VOLUME_BYTES_MAX}")));
        }
        let clone = match &request.clone {
            Some(clone) => Some(self.find_clone(&clone.parse()?).await?.name),
            None => None,
        };
        let datastore = self.datastore_for_import(request.datastore.as_deref())?;
        let record = CloneRecord {
            id: self.clock.id(),
            nonce: self.clock.nonce(),
            name: name.clone(),
            kind: VolumeKind::DataDisk,
            size: request.size,
            base: None,
            slot: 0,
            durability: request.durability.map(Into::into).unwrap_or_default(),
            created_ms: self.clock.now_ms(),
        };
        let entry = DiskEntry {
            record: record.clone(),
            datastore: datastore.name.clone(),
            attached_to: clone,
            delete_with_clone: request.delete_with_clone,
            archived_ms: None,
        };
        if dry_run {
            if self.catalog.find::<DiskEntry>(&name).await?.is_some() {
                return Err(Error::exists("name-taken", "a disk of this name is there already").on(name.as_str()));
            }
            let planned = Named { name, number: 0, written_ms: 0, state: entry };
            return Ok(DiskView { dry_run, ..self.disk_view(&planned) });
        }
        let key = keys::clone(record.id);
        if let PutNew::Exists(_) = datastore.store.put_new(&key, envelope::encode(&record)?).await? {
            return Err(
                Error::internal("id-taken", "a volume with this random id is there already").on(key.to_string())
            );
        }
        match self.catalog.create(&name, entry).await {
            Ok(made) => Ok(self.disk_view(&made)),
            Err(error) => {
                datastore.store.delete(&key).await?;
                Err(error)
            }
        }
    }

    pub(super) async fn do_list_disks(self: Arc<Self>, query: ListQuery) -> Result<Page<DiskView>> {
        let all = self.catalog.list::<DiskEntry>().await?;
        Ok(page(all, &query, |disk| disk.name.as_str()).map(|disk| self.disk_view(&disk)))
    }

    pub(super) async fn do_show_disk(self: Arc<Self>, name: String) -> Result<DiskView> {
        let found = self.catalog.get(&Name::new(name)?).await?;
        Ok(self.disk_view(&found))
    }

    /// Gives a disk to a clone, also one that was archived; a disk belongs to one clone at a time.
    pub(super) async fn do_attach_disk(
        self: Arc<Self>,
        name: String,
        clone: String,
        dry_run: bool,
    ) -> Result<DiskView> {
        let name = Name::new(name)?;
        let clone = self.find_clone(&clone.parse()?).await?.name;
        let found: Named<DiskEntry> = self.catalog.get(&name).await?;
        // A clone that was deleted holds nothing any more, whatever a crash has left.
        let gone = match &found.state.attached_to {
            Some(other) if *other != clone => {
                self.catalog.find::<CloneEntry>(other).await?.is_none().then(|| other.clone())
            }
            _ => None,
        };
        let give = |disk: &mut DiskEntry| match &disk.attached_to {
            Some(other) if *other != clone && gone.as_ref() != Some(other) => {
                Err(Error::conflict("disk-attached", format!("{other} has it"))
                    .on(name.as_str())
                    .hint(format!("clonegate disk detach {name}")))
            }
            _ => {
                disk.attached_to = Some(clone.clone());
                disk.archived_ms = None;
                Ok(())
            }
        };
        self.change_disk(found, give, dry_run).await
    }

    /// Takes a disk from its clone; its bytes stay.
    pub(super) async fn do_detach_disk(self: Arc<Self>, name: String, dry_run: bool) -> Result<DiskView> {
        let found: Named<DiskEntry> = self.catalog.get(&Name::new(name)?).await?;
        self.check_disk_idle(&found)?;
        let take = |disk: &mut DiskEntry| {
            disk.attached_to = None;
            Ok(())
        };
        self.change_disk(found, take, dry_run).await
    }

    /// Puts a disk away: it is closed, so that all of it is in the store, belongs to no clone, and is served to nobody until it is attached again.
    pub(super) async fn do_archive_disk(self: Arc<Self>, name: String, dry_run: bool) -> Result<DiskView> {
        let found: Named<DiskEntry> = self.catalog.get(&Name::new(name)?).await?;
        self.check_disk_idle(&found)?;
        let id = found.state.record.id;
        if !dry_run && found.state.archived_ms.is_none() {
            // Opened once, so that what this gateway's journal may still have of it is uploaded by the close.
            self.open_disk(&format!("disk/{id}"), &CloneRef::Id(id)).await?;
            self.open.close_of(Of::Clone(id), &self.clock).await;
        }
        let now = self.clock.now_ms();
        let put_away = |disk: &mut DiskEntry| {
            disk.attached_to = None;
            disk.archived_ms = disk.archived_ms.or(Some(now));
            Ok(())
        };
        let view = self.change_disk(found, put_away, dry_run).await?;
        if !dry_run {
            // Whoever opened it between has it no longer.
            self.open.close_of(Of::Clone(id), &self.clock).await;
        }
        Ok(view)
    }

    async fn change_disk(
        &self,
        found: Named<DiskEntry>,
        mut change: impl FnMut(&mut DiskEntry) -> Result<()> + Send,
        dry_run: bool,
    ) -> Result<DiskView> {
        if dry_run {
            let mut planned = found;
            change(&mut planned.state)?;
            return Ok(DiskView { dry_run, ..self.disk_view(&planned) });
        }
        let (changed, ()) = self.catalog.change(&found.name, change).await?;
        Ok(self.disk_view(&changed))
    }

    fn check_disk_idle(&self, disk: &Named<DiskEntry>) -> Result<()> {
        let sessions = self.open.attached(disk.state.record.id);
        if sessions.is_empty() {
            return Ok(());
        }
        Err(Error::conflict("attached", format!("{} has it open", sessions.join(", ")))
            .on(disk.name.as_str())
            .hint("switch the machine off first"))
    }

    pub(super) async fn do_delete_disk(self: Arc<Self>, name: String, dry_run: bool) -> Result<Touched> {
        let name = Name::new(name)?;
        let found: Named<DiskEntry> = self.catalog.get(&name).await?;
        self.check_disk_idle(&found)?;
        let free = |disk: &DiskEntry| match &disk.attached_to {
            Some(clone) => Err(Error::conflict("referenced", format!("clone {clone} has it"))
                .on(name.as_str())
                .hint(format!("clonegate disk detach {name}"))),
            None => Ok(()),
        };
        free(&found.state)?;
        let bytes = self.open.delta_bytes(found.state.record.id).unwrap_or(0);
        if !dry_run {
            let going = async {
                let gone = self.catalog.delete(&name, free).await?;
                self.remove_disk(gone.state).await;
                Ok(())
            };
            making_room(going).await?;
        }
        Ok(Touched { dry_run, names: vec![name.to_string()], bytes, ..Touched::default() })
    }

    async fn remove_disk(&self, disk: DiskEntry) {
        self.open.forget(disk.record.id).await;
        let Ok(datastore) = self.datastores.get(&disk.datastore) else { return };
        self.remove_volume(&datastore, disk.record).await;
    }

    /// What becomes of the disks of a clone that was deleted: they stay, unless they were made to go with it.
    pub(super) async fn orphan_disks(&self, clone: &Name) -> Result<()> {
        for disk in self.catalog.list::<DiskEntry>().await? {
            if disk.state.attached_to.as_ref() != Some(clone) {
                continue;
            }
            self.orphan_disk(&disk, clone).await?;
        }
        Ok(())
    }

    /// What becomes of one disk whose clone is gone.
    pub(super) async fn orphan_disk(&self, disk: &Named<DiskEntry>, clone: &Name) -> Result<()> {
        let still = |entry: &DiskEntry| entry.attached_to.as_ref() == Some(clone);
        if disk.state.delete_with_clone {
            let check = |entry: &DiskEntry| match still(entry) {
                true => Ok(()),
                false => {
                    Err(Error::conflict("disk-attached", "it belongs to another clone by now").on(disk.name.as_str()))
                }
            };
            let gone = self.catalog.delete(&disk.name, check).await?;
            self.remove_disk(gone.state).await;
        } else {
            let take = |entry: &mut DiskEntry| {
                if still(entry) {
                    entry.attached_to = None;
                }
                Ok(())
            };
            self.catalog.change(&disk.name, take).await?;
        }
        Ok(())
    }

    /// The volume of a disk, opened if need be.
    pub(super) async fn open_disk(&self, text: &str, disk: &CloneRef) -> Result<Arc<Open>> {
        let found: Named<DiskEntry> = match disk {
            CloneRef::Name(name) => self.catalog.get(name).await?,
            CloneRef::Id(id) => {
                let all = self.catalog.list::<DiskEntry>().await?;
                let found = all.into_iter().find(|d| d.state.record.id == *id);
                found.ok_or_else(|| crate::catalog::unknown::<DiskEntry>(&id.to_string()))?
            }
        };
        if found.state.archived_ms.is_some() {
            return Err(Error::conflict("archived", "the disk was put away")
                .on(found.name.as_str())
                .hint(format!("`clonegate disk attach {} CLONE` brings it back", found.name)));
        }
        let id = found.state.record.id;
        let texts = [text.to_owned(), format!("disk/{}", found.name), format!("disk/{id}")];
        let _lock = self.open.lock(Of::Clone(id)).await;
        if let Some(open) = self.open.of(Of::Clone(id)) {
            self.open.insert(&texts, &open);
            return Ok(open);
        }
        let datastore = self.datastores.get(&found.state.datastore)?;
        datastore.check_online()?;
        let setup = VolumeSetup {
            store: datastore.store.clone(),
            record: found.state.record,
            bases: self.bases_on(&datastore),
            engine: Arc::clone(&self.engine),
        };
        let volume = Volume::open(setup).await?;
        let open = Open::new(Of::Clone(id), Arc::clone(&volume) as _, Some(volume));
        self.open.insert(&texts, &open);
        Ok(open)
    }

    fn disk_view(&self, disk: &Named<DiskEntry>) -> DiskView {
        let record = &disk.state.record;
        DiskView {
            dry_run: false,
            state: match (&disk.state.attached_to, disk.state.archived_ms) {
                (_, Some(_)) => "archived",
                (Some(_), None) => "attached",
                (None, None) => "free",
            }
            .to_owned(),
            archived_ms: disk.state.archived_ms,
            name: disk.name.to_string(),
            id: record.id.to_string(),
            size: record.size,
            datastore: disk.state.datastore.to_string(),
            clone: disk.state.attached_to.as_ref().map(Name::to_string),
            durability: record.durability.into(),
            delete_with_clone: disk.state.delete_with_clone,
            attached: self.open.attached(record.id),
            used_bytes: self.open.delta_bytes(record.id),
            disk: format!("/v1/disks/{}", disk.name),
            created_ms: record.created_ms,
        }
    }

    /// Whether a clone has disks, for what is said before it is deleted.
    pub(super) fn disks_of(&self, clone: &Named<CloneEntry>) -> Vec<String> {
        let all = self.catalog.remembered_all::<DiskEntry>();
        let of = all.iter().filter(|d| d.state.attached_to.as_ref() == Some(&clone.name));
        of.map(|d| d.name.to_string()).collect()
    }
}
