//! Clones: create, list, show, delete.
//!
//! Create puts the slot, then the identity if there is one, then the name; the name is what makes the clone exist. A crash in between leaves a slot whose name does not point
//! back, which `fsck` finds. Delete takes the name away first, and what is left is removed behind the caller's back.

use std::sync::Arc;
use std::time::Duration;

use clonegate_core::advice::{Lifetime, RolloverTrigger};
use clonegate_core::format::base::BaseData;
use clonegate_core::format::catalog::{CloneEntry, ResetRules};
use clonegate_core::format::clone::{CloneRecord, VolumeKind};
use clonegate_core::ids::{CloneId, Name};
use clonegate_core::{Error, ErrorKind, Result};

use super::context;
use super::events::EventKind;
use super::gateway::Gateway;
use super::labels::check_labels;
use super::names;
use super::orders::Ids;
use super::placement::{Claimed, Group, Order};
use super::views::{
    CloneView, CreateClones, CreatedClones, IdentitySpec, ListQuery, Page, Touched, from_labels, page, to_labels,
};
use super::would::refused;
use crate::catalog::{Named, unknown};
use crate::exports::CloneRef;
use crate::store::{keys, making_room};

/// What a delta is expected to grow to when nobody says, bytes; or half the image, whichever is less.
pub(super) const EXPECTED_DELTA: u64 = 5 << 30;

/// How long an order waits for bases that are prepared ahead.
const ROLLOVER_WAITED_FOR: Duration = Duration::from_secs(1);

impl Gateway {
    /// Makes clones: all of them, or none.
    pub(super) async fn do_create_clones(
        self: Arc<Self>,
        request: CreateClones,
        dry_run: bool,
    ) -> Result<CreatedClones> {
        let names = names::expand(&request.name, request.count, request.first)?;
        check_labels(&request.labels)?;
        let template = Name::new(request.template.as_str())?;
        let version = self.version_for_clones(&template, request.version).await?;
        let order = Order {
            template,
            expected_delta: request.expected_delta.unwrap_or_else(|| EXPECTED_DELTA.min(version.size / 2)),
            version,
            pool: None,
            lifetime: request.lifetime.map_or(Lifetime::Persistent, Into::into),
            labels: to_labels(&request.labels),
        };
        let durability = request.durability.map(Into::into).unwrap_or_default();
        let rules = request.reset.checked()?;
        let finish = move |entry: CloneEntry| CloneEntry { reset: rules.clone(), ..entry };
        let ids = Ids(self.clock.nonce());
        if dry_run || names.len() == 1 {
            let made = self
                .create_with_identity(&order, (&names, ids), durability, &finish, request.identity, dry_run)
                .await?;
            self.note_created(&made).await;
            return Ok(made);
        }
        // What is refused at once is no job.
        self.check_names_free(&names).await?;
        self.spec_for_clones(&order.template, &names, request.identity.clone()).await?;
        let (template, identity) = (order.template.clone(), request.identity);
        let made = self.do_order(
            &template,
            (request.name, request.count, request.first),
            ids.0,
            Box::new(move |gateway| {
                Box::pin(async move {
                    gateway.create_with_identity(&order, (&names, ids), durability, &finish, identity, false).await
                })
            }),
        );
        let made = made.await?;
        self.note_created(&made).await;
        Ok(made)
    }

    /// Notes in the audit log which clones were made, and why policy put them where they are.
    pub(super) async fn note_created(&self, made: &CreatedClones) {
        let object = match made.names.as_slice() {
            [] => return,
            [one] => one.clone(),
            [first, .., last] => format!("{first} … {last}"),
        };
        if made.dry_run {
            return;
        }
        let places = made.placements.iter();
        let places = places.map(|place| format!("{} on {}: {}", place.clones, place.datastore, place.reason));
        let reason = places.collect::<Vec<_>>().join("; ");
        let policy = made.placements.first().map(|place| place.by.clone()).unwrap_or_default();
        if let Some(request) = context::current() {
            request.note_created();
        }
        self.write_audit(context::by(), "clone create", &object, "ok", &reason, &policy).await;
    }

    /// Makes the clones of these names with the identity that the template says; `finish` completes the catalog entry of each.
    pub(super) async fn create_in_order(
        &self,
        order: &Order,
        names: &[Name],
        durability: clonegate_core::format::clone::Durability,
        finish: &(dyn Fn(CloneEntry) -> CloneEntry + Send + Sync),
        dry_run: bool,
    ) -> Result<CreatedClones> {
        let ids = Ids(self.clock.nonce());
        self.create_with_identity(order, (names, ids), durability, finish, None, dry_run).await
    }

    /// The same with this identity; the template's when none is given.
    async fn create_with_identity(
        &self,
        order: &Order,
        (names, ids): (&[Name], Ids),
        durability: clonegate_core::format::clone::Durability,
        finish: &(dyn Fn(CloneEntry) -> CloneEntry + Send + Sync),
        identity: Option<IdentitySpec>,
        dry_run: bool,
    ) -> Result<CreatedClones> {
        self.check_names_free(names).await?;
        let identity = self.spec_for_clones(&order.template, names, identity).await?;
        for datastore in self.datastores.all() {
            if datastore.check_online().is_ok() {
                datastore.table.load().await?;
            }
        }
        let text: Vec<String> = names.iter().map(Name::to_string).collect();
        if dry_run {
            let plan = self.plan(order, names).await?;
            return Ok(CreatedClones {
                dry_run,
                clones: Vec::new(),
                names: text,
                copy_bytes: self.bytes_to_copy(order, &plan).await?,
                most_bytes: order.version.size.saturating_mul(names.len() as u64),
                new_bases: u32::try_from(plan.iter().filter(|g| g.base.is_none()).count()).unwrap_or(u32::MAX),
                placements: plan.iter().map(super::placement::Group::view).collect(),
            });
        }
        let (claimed, placements, new_bases) = self
            .claim_all(order, names, &|name, base, slot| CloneRecord {
                id: ids.of(name),
                nonce: self.clock.nonce(),
                name: name.clone(),
                kind: VolumeKind::LinkedClone,
                size: order.version.size,
                base: Some(base),
                slot,
                durability,
                created_ms: self.clock.now_ms(),
            })
            .await?;
        let identities = match self.make_identities(&claimed, identity.as_ref()).await {
            Ok(identities) => identities,
            Err(error) => {
                for group in &claimed {
                    group.datastore.table.give_back(&group.records, group.base).await;
                }
                return Err(error);
            }
        };
        let finish = |entry: CloneEntry| {
            let identity = identities.get(&entry.record.id).copied();
            finish(CloneEntry { identity, ..entry })
        };
        let clones = match self.name_all(order, &claimed, &finish).await {
            Ok(clones) => clones,
            Err(error) => {
                self.drop_identities(&identities).await;
                return Err(error);
            }
        };
        let mut bases: Vec<_> = claimed.iter().map(|c| c.base).collect();
        bases.sort_unstable();
        bases.dedup();
        // Mostly one small object; where it is a copy to another datastore, that goes on without the caller.
        let (me, template, version) = (self.me()?, order.template.clone(), order.version.clone());
        let ahead = self.handle.spawn(async move {
            me.roll_over(&template, &version, RolloverTrigger::DeltaAdded, &bases).await;
        });
        tokio::select! {
            _ = ahead => {}
            () = self.clock.sleep(ROLLOVER_WAITED_FOR) => {}
        }
        let most_bytes = order.version.size.saturating_mul(text.len() as u64);
        Ok(CreatedClones { dry_run, clones, names: text, placements, new_bases, copy_bytes: 0, most_bytes })
    }

    /// Bytes of the image that datastores of a plan lack.
    async fn bytes_to_copy(&self, order: &Order, plan: &[Group]) -> Result<u64> {
        let BaseData::Packed { index } = order.version.data else { return Ok(0) };
        let mut lacking = std::collections::HashSet::new();
        for group in plan {
            match group.datastore.store.head(&keys::index(index)).await {
                Err(error) if error.kind() == ErrorKind::NotFound => drop(lacking.insert(group.datastore.name.clone())),
                there => there.map(drop)?,
            }
        }
        Ok(order.version.stored_bytes.saturating_mul(lacking.len() as u64))
    }

    /// Gives the claimed slots their names. When one name is taken, all is undone.
    async fn name_all(
        &self,
        order: &Order,
        claimed: &[Claimed],
        finish: &(dyn Fn(CloneEntry) -> CloneEntry + Send + Sync),
    ) -> Result<Vec<CloneView>> {
        let entry = |group: &Claimed, record: &CloneRecord| CloneEntry {
            record: record.clone(),
            datastore: group.datastore.name.clone(),
            template: order.template.clone(),
            version: order.version.number,
            lifetime: order.lifetime,
            pool: order.pool.clone(),
            labels: order.labels.clone(),
            hold: None,
            hold_until_ms: None,
            reset: ResetRules::default(),
            last_reset_ms: None,
            pending_version: None,
            moved_from: None,
            left_running: false,
            assigned: None,
            identity: None,
        };
        let entries: Vec<(Name, CloneEntry)> = claimed
            .iter()
            .flat_map(|group| group.records.iter().map(|r| (r.name.clone(), finish(entry(group, r)))))
            .collect();
        let mut named = Vec::new();
        let mut failed: Option<Error> = None;
        for answer in self.catalog.create_all(entries).await {
            match answer {
                Ok(clone) => named.push(clone),
                Err(error) => failed = Some(failed.unwrap_or(error)),
            }
        }
        if let Some(error) = failed {
            for clone in &named {
                if let Err(error) = self.catalog.delete(&clone.name, |_: &CloneEntry| Ok(())).await {
                    tracing::warn!(clone = %clone.name, %error, "a clone of a failed order stays");
                }
            }
            for group in claimed {
                group.datastore.table.give_back(&group.records, group.base).await;
            }
            return Err(error);
        }
        for clone in &named {
            let (kind, data) = (EventKind::CloneCreated, serde_json::json!({ "template": order.template }));
            self.events.tell(kind, clone.name.as_str(), data);
        }
        let mut views: Vec<CloneView> = named.iter().map(|clone| self.clone_view(clone)).collect();
        views.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(views)
    }

    /// Refuses names that are taken before anything is done. A race is settled later, when the names are put.
    async fn check_names_free(&self, names: &[Name]) -> Result<()> {
        let taken = match names {
            [name] => self.catalog.find::<CloneEntry>(name).await?.map(|clone| clone.name),
            names => {
                let all = self.catalog.list::<CloneEntry>().await?;
                let known: std::collections::HashSet<&Name> = all.iter().map(|clone| &clone.name).collect();
                names.iter().find(|name| known.contains(name)).cloned()
            }
        };
        taken.map_or(Ok(()), |name| {
            Err(Error::exists("name-taken", "a clone of this name is there already")
                .on(name.as_str())
                .hint("choose another name, or delete that one first"))
        })
    }

    pub(super) async fn do_list_clones(self: Arc<Self>, query: ListQuery) -> Result<Page<CloneView>> {
        let all = self.catalog.list::<CloneEntry>().await?;
        Ok(page(all, &query, |clone| clone.name.as_str()).map(|clone| self.clone_view(&clone)))
    }

    pub(super) async fn do_show_clone(self: Arc<Self>, clone: String) -> Result<CloneView> {
        let found = self.find_clone(&clone.parse()?).await?;
        Ok(self.clone_view(&found))
    }

    /// The clone of this name or id.
    pub(super) async fn find_clone(&self, clone: &CloneRef) -> Result<Named<CloneEntry>> {
        match clone {
            CloneRef::Name(name) => self.catalog.get(name).await,
            CloneRef::Id(id) => {
                if let Some(name) = self.clone_name(*id) {
                    let found: Option<Named<CloneEntry>> = self.catalog.find(&name).await?;
                    if let Some(found) = found.filter(|found| found.state.record.id == *id) {
                        return Ok(found);
                    }
                }
                let all = self.catalog.list::<CloneEntry>().await?;
                all.into_iter()
                    .find(|found| found.state.record.id == *id)
                    .ok_or_else(|| unknown::<CloneEntry>(&id.to_string()))
            }
        }
    }

    /// The name that this gateway remembers for an id.
    fn clone_name(&self, id: CloneId) -> Option<Name> {
        use clonegate_core::format::catalog::Entry;
        let of_id = |entry: &Entry| matches!(entry, Entry::Clone(clone) if clone.record.id == id);
        self.catalog.remembered_where::<CloneEntry>(of_id).map(|clone| clone.name)
    }

    /// Deletes a clone, also where there is no room for a record of it.
    pub(super) async fn do_delete_clone(self: Arc<Self>, clone: String, dry_run: bool) -> Result<Touched> {
        making_room(self.delete_clone_now(clone, dry_run)).await
    }

    async fn delete_clone_now(self: Arc<Self>, clone: String, dry_run: bool) -> Result<Touched> {
        let found = self.find_clone(&clone.parse()?).await?;
        let id = found.state.record.id;
        let attached = self.open.attached(id);
        let bytes = self.open.delta_bytes(id).unwrap_or(0);
        let touched = Touched {
            dry_run,
            names: vec![found.name.to_string()],
            sessions: u32::try_from(attached.len()).unwrap_or(u32::MAX),
            bytes,
            notes: self.disks_of(&found).into_iter().map(|disk| format!("it has the data disk {disk}")).collect(),
        };
        if dry_run {
            let refusal = self.check_ordered(&found).err();
            let notes = refusal.iter().map(refused).chain(touched.notes).collect();
            return Ok(Touched { notes, ..touched });
        }
        if !attached.is_empty() {
            return Err(super::open::attached(found.name.as_str(), &attached));
        }
        let check = |entry: &CloneEntry| {
            if entry.record.id != id {
                return Err(unknown::<CloneEntry>(&clone));
            }
            self.held(entry).map_or(Ok(()), |why| {
                Err(Error::conflict("held", format!("it is held: {why}"))
                    .on(found.name.as_str())
                    .hint(format!("`clonegate clone release {}` lets it go", found.name)))
            })
        };
        let deleted = match self.catalog.delete(&found.name, check).await {
            // The same request again, or two at once: it is gone, which is what was wanted.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(touched),
            deleted => deleted?,
        };
        self.open.forget(id).await;
        self.put_off.forget(id);
        self.orphan_disks(&found.name).await?;
        if let Some(identity) = deleted.state.identity {
            self.drop_identity(identity.record).await;
        }
        if let Ok(datastore) = self.datastores.get(&deleted.state.datastore) {
            self.remove_volume(&datastore, deleted.state.record).await;
        }
        self.events.tell(EventKind::CloneDeleted, found.name.as_str(), serde_json::json!({}));
        Ok(touched)
    }

    /// A clone for people.
    pub(super) fn clone_view(&self, clone: &Named<CloneEntry>) -> CloneView {
        let CloneEntry { record, .. } = &clone.state;
        CloneView {
            name: clone.name.to_string(),
            id: record.id.to_string(),
            kind: if record.base.is_some() { "linked" } else { "full" }.to_owned(),
            template: clone.state.template.to_string(),
            version: clone.state.version,
            datastore: clone.state.datastore.to_string(),
            base: record.base.map(|id| id.to_string()),
            slot: record.slot,
            size: record.size,
            durability: record.durability.into(),
            lifetime: clone.state.lifetime.into(),
            pool: clone.state.pool.as_ref().map(Name::to_string),
            labels: from_labels(&clone.state.labels),
            attached: self.open.attached(record.id),
            delta_bytes: self.open.delta_bytes(record.id),
            hold: self.held(&clone.state).map(str::to_owned),
            pending_version: clone.state.pending_version,
            pending_failed: self.put_off.why(&clone.state),
            reset: (&clone.state.reset).into(),
            may_run: self.may_run(clone),
            moved_from: clone.state.moved_from.as_ref().map(|from| from.version),
            lost_tail: self.has_lost_tail(&clone.state),
            disk: format!("/v1/clones/{}/disk", clone.name),
            created_ms: record.created_ms,
            last_reset_ms: clone.state.last_reset_ms,
        }
    }
}
