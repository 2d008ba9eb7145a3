//! Looks whether every object is owned and everything that is referred to is there; removes what a crash has left.
//!
//! Only what is older than a grace time is called an orphan: what is younger may belong to a request that is under way on another gateway.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use clonegate_core::format::base::BaseData;
use clonegate_core::format::catalog::{CloneEntry, DiskEntry, TemplateEntry};
use clonegate_core::format::clone::CloneRecord;
use clonegate_core::format::envelope;
use clonegate_core::format::index::Index;
use clonegate_core::format::making::MakingRecord;
use clonegate_core::ids::{BaseId, CloneId, IndexId, Name, PackId};
use clonegate_core::limits::MAKING_PACKS_MAX;
use clonegate_core::{ErrorKind, Result};

use super::datastores::Datastore;
use super::gateway::Gateway;
use super::verify::{NoWatch, Verifier};
use super::views::{Finding, FsckReport};
use crate::base::leftover::{self, Cleared};
use crate::catalog::Named;
use crate::store::{PutNew, keys, making_room};

/// What is younger may be under way, milliseconds.
const GRACE_MS: u64 = 3_600_000;

/// What all names refer to.
struct Owners {
    clones: HashMap<CloneId, Named<CloneEntry>>,
    disks: HashMap<CloneId, CloneRecord>,
    /// Volumes that jobs are making or moving.
    at_work: HashSet<CloneId>,
    templates: Vec<Named<TemplateEntry>>,
}

impl Owners {
    /// Whether the volume has a name that says this datastore, or is on its way there.
    fn owns(&self, id: CloneId, datastore: &Name) -> bool {
        self.clones.get(&id).is_some_and(|clone| clone.state.datastore == *datastore)
            || self.disks.contains_key(&id)
            || self.at_work.contains(&id)
    }

    fn record(&self, id: CloneId) -> Option<CloneRecord> {
        let clone = self.clones.get(&id).map(|clone| clone.state.record.clone());
        clone.or_else(|| self.disks.get(&id).cloned())
    }
}

/// One check of one datastore.
struct Check<'a> {
    deep: bool,
    gateway: &'a Gateway,
    datastore: &'a Arc<Datastore>,
    owners: &'a Owners,
    repair: bool,
    grace_ms: u64,
    report: &'a mut FsckReport,
}

impl Gateway {
    pub(super) async fn do_fsck(
        self: Arc<Self>,
        repair: bool,
        grace_ms: Option<u64>,
        deep: bool,
    ) -> Result<FsckReport> {
        let mut report = FsckReport::default();
        // Before the names are listed, of which there may be too many states for a list.
        if repair && let Err(error) = making_room(self.prune_catalog()).await {
            report.findings.push(Finding {
                object: "home/catalog".to_owned(),
                what: format!("states that were superseded days ago stay: {error}"),
                repaired: false,
            });
        }
        // Names first: what is put after this look is younger than the grace time.
        let clones = self.catalog.list::<CloneEntry>().await?;
        let owners = Owners {
            clones: clones.into_iter().map(|c| (c.state.record.id, c)).collect(),
            disks: self
                .catalog
                .list::<DiskEntry>()
                .await?
                .into_iter()
                .map(|d| (d.state.record.id, d.state.record))
                .collect(),
            templates: self.catalog.list::<TemplateEntry>().await?,
            at_work: self.job_volumes().await?,
        };
        for datastore in self.datastores.all() {
            if let Err(error) = datastore.check_online() {
                report.findings.push(Finding {
                    object: datastore.name.to_string(),
                    what: format!("not checked: {}", error.message()),
                    repaired: false,
                });
                continue;
            }
            let grace_ms = grace_ms.unwrap_or(GRACE_MS);
            let (gateway, datastore, owners) = (&*self, &datastore, &owners);
            Check { deep, gateway, datastore, owners, repair, grace_ms, report: &mut report }.run().await?;
        }
        self.check_home(repair, grace_ms.unwrap_or(GRACE_MS), &mut report).await?;
        report.clones = owners.clones.len() as u64;
        Ok(report)
    }
}

impl Check<'_> {
    async fn run(&mut self) -> Result<()> {
        self.datastore.table.refresh().await?;
        let slots = self.slots().await?;
        self.clones(&slots).await?;
        self.volumes().await?;
        self.bases().await?;
        // Before the indexes are listed: see `base::making`.
        let being_made = self.images_being_made().await?;
        let packs = self.indexes().await?;
        self.packs(packs, being_made).await
    }

    fn verifier(&mut self) -> Verifier<'_> {
        Verifier {
            store: &self.datastore.store,
            name: self.datastore.name.as_str(),
            deep: self.deep,
            repair: self.repair,
            grace_ms: self.grace_ms,
            watch: &NoWatch,
            report: self.report,
        }
    }

    fn found(&mut self, object: impl ToString, what: impl Into<String>, repaired: bool) {
        let object = format!("{}/{}", self.datastore.name, object.to_string());
        self.report.findings.push(Finding { object, what: what.into(), repaired });
    }

    /// Whether something made at this time may still be under way.
    fn is_young(&self, made_ms: u64) -> bool {
        made_ms.saturating_add(self.grace_ms) > self.gateway.clock.now_ms()
    }

    /// All slots that are taken; those whose name does not point back are orphans.
    async fn slots(&mut self) -> Result<HashMap<(BaseId, u32), CloneId>> {
        let mut taken = HashMap::new();
        for base in self.datastore.table.bases() {
            for record in self.datastore.table.slots(base.record.id).await? {
                self.report.objects += 1;
                taken.insert((base.record.id, record.slot), record.id);
                if self.owners.at_work.contains(&record.id) || self.points_back(&record, base.record.id) {
                    continue;
                }
                // A clone that moves is older than its new slot.
                let slot = self.datastore.store.head(&keys::slot(base.record.id, record.slot)).await;
                let made_ms = slot.map_or(record.created_ms, |slot| slot.modified_ms.max(record.created_ms));
                if !self.is_young(made_ms) {
                    self.orphan_slot(&record, base.record.id).await?;
                }
            }
        }
        Ok(taken)
    }

    fn points_back(&self, record: &CloneRecord, base: BaseId) -> bool {
        let clone = self.owners.clones.get(&record.id);
        clone.is_some_and(|c| {
            c.state.record.base == Some(base)
                && c.state.record.slot == record.slot
                && c.state.datastore == self.datastore.name
        })
    }

    async fn orphan_slot(&mut self, record: &CloneRecord, base: BaseId) -> Result<()> {
        if self.repair {
            if let Some(clone) = self.owners.clones.get(&record.id) {
                // The clone's record says another slot: only this one is left over, unless a move was cut and the log is here already.
                // Opening it finishes such a move, and then this slot is the one.
                drop(self.gateway.me()?.volume(clone).await?);
                // It may have come to the same base by another slot.
                let now = self.gateway.catalog.find::<CloneEntry>(&clone.name).await?;
                let has = |now: &Named<CloneEntry>| {
                    let its = &now.state.record;
                    its.id == record.id && its.base == Some(base) && its.slot == record.slot
                };
                if now.as_ref().is_some_and(has) {
                    self.found(
                        keys::slot(base, record.slot),
                        format!("the move of {} was cut short", record.name),
                        true,
                    );
                    return Ok(());
                }
                self.datastore.table.give_back_if_ours(record, base).await?;
            } else {
                let record = CloneRecord { base: Some(base), ..record.clone() };
                self.gateway.remove(self.datastore, &record).await?;
            }
        }
        self.found(
            keys::slot(base, record.slot),
            format!("no clone has this slot; it was made for {}", record.name),
            self.repair,
        );
        Ok(())
    }

    /// Every clone has its base and its slot.
    async fn clones(&mut self, slots: &HashMap<(BaseId, u32), CloneId>) -> Result<()> {
        let here: Vec<(Name, CloneRecord)> = self
            .owners
            .clones
            .values()
            .filter(|c| c.state.datastore == self.datastore.name)
            .map(|c| (c.name.clone(), c.state.record.clone()))
            .collect();
        for (name, record) in here {
            let Some(base) = record.base else { continue };
            if self.datastore.table.base(base).is_none() {
                self.found(keys::base(base), format!("the base of clone {name} is missing"), false);
                continue;
            }
            match slots.get(&(base, record.slot)) {
                Some(id) if *id == record.id => {}
                Some(_) => {
                    self.found(keys::slot(base, record.slot), format!("another clone has the slot of {name}"), false)
                }
                None => {
                    let mut repaired = false;
                    if self.repair {
                        let key = keys::slot(base, record.slot);
                        let put = self.datastore.store.put_new(&key, envelope::encode(&record)?).await?;
                        repaired = matches!(put, PutNew::Created);
                    }
                    self.found(keys::slot(base, record.slot), format!("the slot of clone {name} is missing"), repaired);
                }
            }
        }
        Ok(())
    }

    /// Every volume's data has an owner.
    async fn volumes(&mut self) -> Result<()> {
        for id in self.datastore.store.list_dirs(&keys::clones()).await? {
            let Ok(id) = id.parse::<CloneId>() else { continue };
            if self.owners.owns(id, &self.datastore.name) {
                match self.owners.record(id) {
                    Some(record) => self.verifier().volume(&record).await?,
                    None => self.report.objects += 1,
                }
                continue;
            }
            self.report.objects += 1;
            let own = keys::clone_dir(id);
            let listed = self.datastore.store.list(&own).await?;
            // The tombstone of a clone that was moved is left for readers on other gateways.
            let moved = self.owners.clones.contains_key(&id) && listed.iter().all(|object| object.key == "deleted");
            let mut newest = 0;
            for object in listed.iter().take(4) {
                if let Ok(meta) = self.datastore.store.head(&own.key(&object.key)?).await {
                    newest = newest.max(meta.modified_ms);
                }
            }
            // What fences a deleted volume stays for a while, whatever the grace of this check.
            let fenced = listed.iter().any(|object| object.key == "deleted")
                && newest.saturating_add(GRACE_MS) > self.gateway.clock.now_ms();
            if fenced {
                self.report.grace += listed.len() as u64;
            }
            if fenced || self.is_young(newest) {
                continue;
            }
            if self.repair {
                for object in &listed {
                    self.datastore.store.delete(&own.key(&object.key)?).await?;
                }
            }
            if !moved {
                self.found(&own, format!("{} objects of a volume that nobody has", listed.len()), self.repair);
            }
        }
        Ok(())
    }

    /// Every base is of a template version.
    async fn bases(&mut self) -> Result<()> {
        for base in self.datastore.table.bases() {
            self.report.objects += 1;
            let record = &base.record;
            let owned = |t: &Named<TemplateEntry>| {
                t.name == record.template && t.state.versions.iter().any(|v| Gateway::holds(&base, &t.name, v))
            };
            if self.owners.templates.iter().any(owned) || self.is_young(record.created_ms) {
                continue;
            }
            let mut repaired = false;
            if self.repair {
                self.datastore.table.retire(record.id, "fsck: its template version is gone").await?;
                if self.datastore.table.slots(record.id).await?.is_empty() {
                    self.gateway.remove_base(self.datastore, record.id).await?;
                    repaired = true;
                }
            }
            let what = format!("a base of {}:{}, which there is not", record.template, record.version);
            self.found(keys::base(record.id), what, repaired);
        }
        Ok(())
    }

    /// Every index is of a template version or a base, and has its packs. Gives the packs that are needed; `None` when an index cannot be
    /// read, for then nobody knows.
    async fn indexes(&mut self) -> Result<Option<HashSet<PackId>>> {
        let named = |data: &BaseData| match data {
            BaseData::Packed { index } => Some(*index),
            BaseData::Raw { .. } => None,
        };
        let of_templates = self.owners.templates.iter().flat_map(|t| &t.state.versions).filter_map(|v| named(&v.data));
        let bases = self.datastore.table.bases();
        let needed: HashSet<IndexId> = of_templates.chain(bases.iter().filter_map(|b| named(&b.record.data))).collect();
        let there: HashSet<PackId> =
            self.datastore.store.list(&keys::packs()).await?.iter().filter_map(|p| p.key.parse().ok()).collect();
        let mut packs = HashSet::new();
        let (mut readable, mut whole) = (true, Vec::new());
        for listed in self.datastore.store.list(&keys::indexes()).await? {
            let Ok(id) = listed.key.parse::<IndexId>() else { continue };
            self.report.objects += 1;
            let key = keys::index(id);
            let index = match Index::decode(&self.datastore.store.get(&key).await?) {
                Ok(index) => index,
                Err(error) => {
                    readable = false;
                    self.found(&key, format!("damaged: {}", error.message()), false);
                    continue;
                }
            };
            if !needed.contains(&id) && !self.is_young(self.datastore.store.head(&key).await?.modified_ms) {
                if self.repair {
                    self.datastore.store.delete(&key).await?;
                }
                self.found(&key, "an index that no template and no base names", self.repair);
                continue;
            }
            let missing = index.record.packs.iter().filter(|pack| !there.contains(pack)).count();
            if missing > 0 {
                self.found(&key, format!("{missing} of its packs are missing"), false);
            }
            packs.extend(index.record.packs.iter().copied());
            if self.deep {
                whole.push(index);
            }
        }
        self.verifier().images(&whole).await?;
        for base in &bases {
            if let Some(index) = named(&base.record.data)
                && self.datastore.store.head(&keys::index(index)).await.is_err()
            {
                self.found(keys::index(index), format!("the index of base {} is missing", base.record.id), false);
            }
        }
        Ok(readable.then_some(packs))
    }

    /// Whether images are being made, so that packs that no index names may be theirs.
    async fn images_being_made(&mut self) -> Result<bool> {
        let all = keys::makings();
        let mut young = false;
        for listed in self.datastore.store.list(&all).await? {
            let key = all.key(&listed.key)?;
            match self.datastore.store.head(&key).await {
                Ok(meta) if self.is_young(meta.modified_ms) => young = true,
                Ok(_) => {
                    if self.repair {
                        self.datastore.store.delete(&key).await?;
                    }
                    self.found(&key, "an image whose making was cut short", self.repair);
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        // One may have come in place of one that was taken away.
        Ok(young || self.repair && !self.datastore.store.list(&all).await?.is_empty())
    }

    /// Every pack is named by an index.
    async fn packs(&mut self, needed: Option<HashSet<PackId>>, being_made: bool) -> Result<()> {
        let Some(needed) = needed else { return Ok(()) };
        let mut left = Vec::new();
        for listed in self.datastore.store.list(&keys::packs()).await? {
            let Ok(id) = listed.key.parse::<PackId>() else { continue };
            self.report.objects += 1;
            let key = keys::pack(id);
            if !needed.contains(&id) && being_made {
                self.report.grace += 1;
                continue;
            }
            if needed.contains(&id) || self.is_young(self.datastore.store.head(&key).await?.modified_ms) {
                continue;
            }
            left.push((id, listed.size));
        }
        // An image whose making began since may count on them, or they are of it.
        let ids: Vec<PackId> = left.iter().map(|(id, _)| *id).collect();
        let mut removed = self.repair;
        for some in ids.chunks(MAKING_PACKS_MAX) {
            removed = removed && self.remove_packs(some).await?;
        }
        for (id, size) in left {
            self.found(keys::pack(id), format!("{size} bytes that no index names"), removed);
        }
        Ok(())
    }

    /// Tells whether they are gone, but for those that an image needs by now.
    async fn remove_packs(&self, packs: &[PackId]) -> Result<bool> {
        let (clock, maker) = (&self.gateway.clock, self.gateway.maker());
        let of: IndexId = clock.id();
        let note =
            MakingRecord { index: of, nonce: clock.nonce(), maker: Some(maker), removing: true, packs: packs.to_vec() };
        let store = &self.datastore.store;
        let cleared = making_room(leftover::clear(store, clock, maker, (of, 0), &note, (false, true))).await;
        let cleared =
            cleared.inspect_err(|_| self.gateway.leftovers.give_up(&self.datastore.name, of, clock.instant()))?;
        Ok(matches!(cleared, Cleared::Done { .. }))
    }
}
