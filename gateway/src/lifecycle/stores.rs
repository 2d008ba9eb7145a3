//! Datastores and bases as operators see them: add, list, remove, maintenance, retire.

use std::sync::Arc;

use clonegate_core::advice::Health;
use clonegate_core::format::catalog::{CloneEntry, DatastoreEntry, DiskEntry, TemplateEntry};
use clonegate_core::ids::Name;
use clonegate_core::{Error, ErrorKind, Result};

use super::datastores::{self, Datastore, DatastoreSettings, OVERCOMMIT_PERCENT};
use super::gateway::Gateway;
use super::references::refuse_used;
use super::table::KnownBase;
use super::templates::kind;
use super::views::{AddDatastore, BaseView, DatastoreView, ListQuery, Page, Touched, from_labels, page, to_labels};
use crate::store::{StoreConfig, exclusive};

impl Gateway {
    pub(super) async fn do_add_datastore(self: Arc<Self>, request: AddDatastore) -> Result<DatastoreView> {
        let name = Name::new(request.name.as_str())?;
        let store = StoreConfig {
            endpoint: request.endpoint,
            region: request.region,
            path_style: request.path_style.then_some(true),
            exclusive: request.exclusive,
            ..StoreConfig::new(request.url)
        };
        self.check_datastore_free(&name, &store.url).await?;
        let overcommit = if request.overcommit_percent == 0 { OVERCOMMIT_PERCENT } else { request.overcommit_percent };
        let settings = DatastoreSettings {
            capacity: request.capacity,
            thin: request.thin.unwrap_or(true),
            reserve: request.reserve,
            overcommit_percent: overcommit,
            labels: to_labels(&request.labels),
            ..DatastoreSettings::new(name.clone(), store)
        };
        let entry = settings.entry(self.clock.now_ms());
        let datastore = datastores::open(&name, &settings.store, entry.clone(), &self.clock, &self.opener)?;
        datastore.admit(self.settings.gateway, &self.settings.host).await?;
        datastore.table.load().await?;
        self.catalog.create(&name, entry).await?;
        self.datastores.insert(&datastore);
        Ok(view(&datastore))
    }

    /// Refuses a name and a store that are datastores already.
    pub(super) async fn check_datastore_free(&self, name: &Name, url: &str) -> Result<()> {
        if self.catalog.find::<DatastoreEntry>(name).await?.is_some() {
            return Err(Error::exists("name-taken", "a datastore of this name is there already").on(name.as_str()));
        }
        let others = self.catalog.list::<DatastoreEntry>().await?;
        let same = |other: &str| other.trim_end_matches('/') == url.trim_end_matches('/');
        match others.iter().find(|other| same(&other.state.url)) {
            Some(other) => Err(Error::exists("store-taken", format!("{} is this store already", other.name)).on(url)),
            None => Ok(()),
        }
    }

    pub(super) async fn do_list_datastores(self: Arc<Self>, query: ListQuery) -> Result<Page<DatastoreView>> {
        self.open_datastores().await?;
        let all = self.datastores.all();
        for datastore in &all {
            look(datastore).await;
        }
        let waiting = self.waiting_for_room();
        Ok(page(all, &query, |d| d.name.as_str())
            .map(|d| DatastoreView { waiting: waiting.get(&d.name).cloned().unwrap_or_default(), ..view(&d) }))
    }

    pub(super) async fn do_show_datastore(self: Arc<Self>, name: String) -> Result<DatastoreView> {
        let datastore = self.known_datastore(&Name::new(name)?).await?;
        look(&datastore).await;
        let waiting = self.waiting_for_room().remove(&datastore.name).unwrap_or_default();
        Ok(DatastoreView { waiting, ..view(&datastore) })
    }

    /// A datastore, which another gateway may have added.
    pub(super) async fn known_datastore(&self, name: &Name) -> Result<Arc<Datastore>> {
        if self.datastores.find(name).is_none() {
            self.open_datastores().await?;
        }
        self.datastores.get(name)
    }

    pub(super) async fn do_remove_datastore(self: Arc<Self>, name: String, dry_run: bool) -> Result<Touched> {
        let name = Name::new(name)?;
        let datastore = self.known_datastore(&name).await?;
        // One that does not answer is judged by the catalog alone: a wrong URL must not stay for ever.
        let online = datastore.check_online().is_ok();
        if online {
            datastore.table.refresh().await?;
        }
        let templates = self.catalog.list::<TemplateEntry>().await?;
        let mut users: Vec<String> = datastore.table.bases().iter().map(|b| b.record.id.to_string()).collect();
        let clones = self.catalog.list::<CloneEntry>().await?;
        users.extend(clones.iter().filter(|c| c.state.datastore == name).map(|c| format!("clone {}", c.name)));
        let disks = self.catalog.list::<DiskEntry>().await?;
        users.extend(disks.iter().filter(|d| d.state.datastore == name).map(|d| format!("disk {}", d.name)));
        for template in &templates {
            let versions = template.state.versions.iter().filter(|v| v.datastore == name);
            users.extend(versions.map(|v| format!("template {}:{}", template.name, v.number)));
        }
        users.sort();
        refuse_used(name.as_str(), "bases, template versions, clones and disks", &users)?;
        let mut touched = Touched { dry_run, names: vec![name.to_string()], ..Touched::default() };
        if !online {
            touched.notes.push("its store does not answer; whatever lies there stays there".to_owned());
        }
        if self.settings.datastores.iter().any(|configured| configured.name == name) {
            touched.notes.push("the configuration of this gateway names it: the next start enters it again".to_owned());
        }
        if !dry_run {
            match self.catalog.delete(&name, |_: &DatastoreEntry| Ok(())).await {
                // One of the configuration whose store never answered is not in the catalog.
                Err(error) if error.kind() == ErrorKind::NotFound && !online => {}
                gone => drop(gone?),
            }
            if online {
                // So that another gateway may take it. One that was exclusive to another was never online here.
                exclusive::release(&datastore.store, self.settings.gateway).await?;
            }
            self.datastores.remove(&name);
            self.bases.lock().remove(&name);
        }
        Ok(touched)
    }

    pub(super) async fn do_probe_datastore(self: Arc<Self>, name: String) -> Result<DatastoreView> {
        let datastore = self.known_datastore(&Name::new(name)?).await?;
        self.admit(&datastore).await?;
        look(&datastore).await;
        Ok(view(&datastore))
    }

    pub(super) async fn do_set_maintenance(self: Arc<Self>, name: String, on: bool) -> Result<DatastoreView> {
        let datastore = self.known_datastore(&Name::new(name)?).await?;
        let set = |entry: &mut DatastoreEntry| {
            entry.maintenance = on;
            Ok(())
        };
        let (changed, ()) = self.catalog.change(&datastore.name, set).await?;
        datastore.set_entry(changed.state);
        Ok(view(&datastore))
    }

    pub(super) async fn do_list_bases(self: Arc<Self>, query: ListQuery) -> Result<Page<BaseView>> {
        let templates = self.catalog.list::<TemplateEntry>().await?;
        let mut all = Vec::new();
        for datastore in self.datastores.all() {
            look(&datastore).await;
            all.extend(datastore.table.bases().iter().map(|base| base_view(&datastore, base, &templates)));
        }
        all.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(page(all, &query, |base| base.id.as_str()))
    }

    pub(super) async fn do_show_base(self: Arc<Self>, id: String) -> Result<BaseView> {
        let (datastore, _) = self.find_base(id.parse()?).await?;
        look(&datastore).await;
        let base = datastore
            .table
            .base(id.parse()?)
            .ok_or_else(|| Error::not_found("unknown-base", "there is no such base any more").on(id))?;
        Ok(base_view(&datastore, &base, &self.catalog.list::<TemplateEntry>().await?))
    }

    pub(super) async fn do_retire_base(self: Arc<Self>, id: String, dry_run: bool) -> Result<Touched> {
        let id = id.parse()?;
        let (datastore, _) = self.find_base(id).await?;
        let clones: Vec<String> = datastore.table.slots(id).await?.iter().map(|r| r.name.to_string()).collect();
        let note = match clones.len() {
            0 => "it has no clones: it is removed".to_owned(),
            n => format!("{n} clones stay on it; it is removed when they have gone"),
        };
        if !dry_run {
            datastore.table.retire(id, "an operator retired it").await?;
            // Looked at again: the mark is there, so no clone comes any more.
            if datastore.table.slots(id).await?.is_empty() {
                self.open.forget_base(id);
                self.remove_base(&datastore, id).await?;
            }
        }
        Ok(Touched { dry_run, names: vec![id.to_string()], notes: vec![note], ..Touched::default() })
    }
}

/// Looks at a datastore again, as far as it answers.
async fn look(datastore: &Datastore) {
    if datastore.check_online().is_ok()
        && let Err(error) = datastore.table.refresh().await
    {
        tracing::warn!(datastore = %datastore.name, %error, "its bases cannot be listed");
    }
}

fn view(datastore: &Datastore) -> DatastoreView {
    let entry = datastore.entry();
    let bases = datastore.table.bases();
    DatastoreView {
        name: datastore.name.to_string(),
        url: entry.url,
        health: match datastore.health() {
            Health::Online => "online",
            Health::Degraded => "degraded",
            Health::Maintenance => "maintenance",
            Health::Offline => "offline",
        }
        .to_owned(),
        trouble: datastore.trouble().map(|trouble| trouble.to_string()),
        capacity: datastore.capacity(),
        free: datastore.free(),
        thin: entry.thin,
        exclusive: entry.exclusive,
        reserve: entry.reserve,
        overcommit_percent: entry.overcommit_percent,
        promised: datastore.promised(),
        waiting: Vec::new(),
        bases: u32::try_from(bases.len()).unwrap_or(u32::MAX),
        clones: bases.iter().map(KnownBase::count).sum(),
        labels: from_labels(&entry.labels),
        created_ms: entry.created_ms,
    }
}

fn base_view(datastore: &Datastore, base: &KnownBase, templates: &[crate::catalog::Named<TemplateEntry>]) -> BaseView {
    let record = &base.record;
    let owned = templates
        .iter()
        .any(|t| t.name == record.template && t.state.versions.iter().any(|v| Gateway::holds(base, &t.name, v)));
    let state = match (owned, base.retired, base.room()) {
        (false, ..) => "orphan",
        (_, true, _) => "retired",
        (_, _, 0) => "full",
        _ => "ready",
    };
    BaseView {
        id: record.id.to_string(),
        template: record.template.to_string(),
        version: record.version,
        datastore: datastore.name.to_string(),
        state: state.to_owned(),
        size: record.size,
        kind: kind(&record.data).to_owned(),
        slots: record.slots,
        taken: base.count(),
        created_ms: record.created_ms,
    }
}
