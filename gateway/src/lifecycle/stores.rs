//! Datastores and bases as operators see them: add, list, remove, maintenance, retire.

use std::sync::Arc;

use clonegate_core::advice::Health;
use clonegate_core::format::catalog::{CloneEntry, DatastoreEntry, DiskEntry, TemplateEntry};
use clonegate_core::ids::Name;
use clonegate_core::{Error, ErrorKind, Result};

use super::datastores::{self, Datastore, DatastoreSettings, OVERCOMMIT_PERCENT};
use super::gateway::Gateway;
use super::table::KnownBase;
use super::templates::{kind, refuse_used};
use super::views::{AddDatastore, BaseView, DatastoreView, ListQuery, Page, Touched, from_labels, page, to_labels};
use crate::store::{StoreConfig, exclusive};

impl Gateway {
    pub(super) async fn do_add_datastore(self: Arc<Self>, request: AddDatastore) -> Result<DatastoreView> {
        let (settings, entry) = self.to_be_datastore(request).await?;
        let datastore = datastores::open(&settings.name, &settings.store, entry.clone(), &self.clock, &self.opener)?;
        datastore.admit(self.settings.gateway, &self.settings.host).await?;
        datastore.table.load().await?;
        self.catalog.create(&datastore.name, entry).await?;
        self.datastores.insert(&datastore);
        Ok(view(&datastore))
    }

    pub(super) async fn do_plan_datastore(self: Arc<Self>, request: AddDatastore) -> Result<Touched> {
        let (settings, entry) = self.to_be_datastore(request).await?;
        let name = settings.name.clone();
        // Opening a directory makes it.
        let directory = entry.url.strip_prefix("file://").map(std::path::PathBuf::from);
        let found = if directory.is_some_and(|directory| !directory.is_dir()) {
            "its directory is made".to_owned()
        } else {
            let datastore = datastores::open(&name, &settings.store, entry, &self.clock, &self.opener)?;
            datastore.table.load().await?;
            format!("its store answers, and has {} bases", datastore.table.bases().len())
        };
        let notes = vec![found, "that it honours put-if-absent is proved when it is added".to_owned()];
        Ok(Touched { dry_run: true, names: vec![name.to_string()], notes, ..Touched::default() })
    }

    /// The datastore that is asked for, if neither its name nor its store is taken.
    async fn to_be_datastore(&self, request: AddDatastore) -> Result<(DatastoreSettings, DatastoreEntry)> {
        let name = Name::new(request.name.as_str())?;
        let store = StoreConfig {
            endpoint: request.endpoint,
            region: request.region,
            path_style: request.path_style.then_some(true),
            exclusive: request.exclusive,
            ..StoreConfig::new(request.url)
        };
        if self.catalog.find::<DatastoreEntry>(&name).await?.is_some() {
            return Err(Error::exists("name-taken", "a datastore of this name is there already").on(name.as_str()));
        }
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
        let others = self.catalog.list::<DatastoreEntry>().await?;
        let same = |url: &str| url.trim_end_matches('/') == entry.url.trim_end_matches('/');
        if let Some(other) = others.iter().find(|other| same(&other.state.url)) {
            return Err(Error::exists("store-taken", format!("{} is this store already", other.name)).on(entry.url));
        }
        Ok((settings, entry))
    }

    pub(super) async fn do_list_datastores(self: Arc<Self>, query: ListQuery) -> Result<Page<DatastoreView>> {
        self.open_datastores().await?;
        let all = self.datastores.all();
        for datastore in &all {
            look(datastore).await;
        }
        Ok(page(all, &query, |d| d.name.as_str()).map(|d| view(&d)))
    }

    pub(super) async fn do_show_datastore(self: Arc<Self>, name: String) -> Result<DatastoreView> {
        let datastore = self.known_datastore(&Name::new(name)?).await?;
        look(&datastore).await;
        Ok(view(&datastore))
    }

    /// A datastore, which another gateway may have added.
    async fn known_datastore(&self, name: &Name) -> Result<Arc<Datastore>> {
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

    pub(super) async fn do_probe_datastore(self: Arc<Self>, name: String, dry_run: bool) -> Result<DatastoreView> {
        let datastore = self.known_datastore(&Name::new(name)?).await?;
        if !dry_run {
            self.admit(&datastore).await?;
        }
        look(&datastore).await;
        Ok(view(&datastore))
    }

    pub(super) async fn do_set_maintenance(
        self: Arc<Self>,
        name: String,
        on: bool,
        dry_run: bool,
    ) -> Result<DatastoreView> {
        let datastore = self.known_datastore(&Name::new(name)?).await?;
        let set = |entry: &mut DatastoreEntry| {
            entry.maintenance = on;
            Ok(())
        };
        let (changed, ()) = self.catalog.change_or_try(&datastore.name, dry_run, set).await?;
        if !dry_run {
            datastore.set_entry(changed.state.clone());
        }
        let mut view = view(&datastore);
        if datastore.trouble().is_none() {
            word(if changed.state.maintenance { Health::Maintenance } else { Health::Online })
                .clone_into(&mut view.health);
        }
        Ok(view)
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
                datastore.table.remove(id).await?;
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

fn word(health: Health) -> &'static str {
    match health {
        Health::Online => "online",
        Health::Degraded => "degraded",
        Health::Maintenance => "maintenance",
        Health::Offline => "offline",
    }
}

fn view(datastore: &Datastore) -> DatastoreView {
    let entry = datastore.entry();
    let bases = datastore.table.bases();
    DatastoreView {
        name: datastore.name.to_string(),
        url: entry.url,
        health: word(datastore.health()).to_owned(),
        trouble: datastore.trouble().map(|trouble| trouble.to_string()),
        capacity: datastore.capacity(),
        free: datastore.free(),
        thin: entry.thin,
        exclusive: entry.exclusive,
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
