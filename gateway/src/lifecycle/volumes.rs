//! Opens the devices behind export names: clones, bases, templates.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use clonegate_core::format::base::BaseRecord;
use clonegate_core::format::catalog::CloneEntry;
use clonegate_core::ids::{BaseId, Name};
use clonegate_core::{Error, Result};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::datastores::Datastore;
use super::gateway::Gateway;
use super::open::{Of, Open};
use super::table::unknown_base;
use crate::base::{Base, BaseDevice, RawSources};
use crate::exports::{CloneRef, ExportName};
use crate::icache::ICache;
use crate::store::{Store, StoreConfig};
use crate::volume::{BaseProvider, BaseRead, Volume, VolumeSetup};

/// A clone with this label may be written by several machines at a time: a cluster file system is on it.
const WRITERS: (&str, &str) = ("writers", "many");

/// The open bases of one datastore; each is opened once and shared by all its clones.
#[derive(Debug)]
pub(super) struct Bases {
    datastore: Arc<Datastore>,
    sources: Arc<Sources>,
    icache: Arc<ICache>,
    handle: Handle,
    open: Mutex<HashMap<BaseId, Arc<tokio::sync::Mutex<Weak<Base>>>>>,
}

impl Bases {
    pub(super) fn new(datastore: Arc<Datastore>, sources: Arc<Sources>, icache: Arc<ICache>, handle: Handle) -> Self {
        Self { datastore, sources, icache, handle, open: Mutex::default() }
    }

    /// The base of this id, opened if need be.
    pub(super) async fn open(&self, id: BaseId) -> Result<Arc<Base>> {
        let place = Arc::clone(self.open.lock().entry(id).or_default());
        let mut place = place.lock().await;
        if let Some(base) = place.upgrade() {
            return Ok(base);
        }
        let record = self.datastore.table.record(id).await?;
        let base = Base::open(
            self.datastore.store.clone(),
            BaseRecord::clone(&record),
            &*self.sources,
            Arc::clone(&self.icache),
            self.handle.clone(),
        )
        .await?;
        base.keep_boot_set(self.datastore.store.clock());
        *place = Arc::downgrade(&base);
        Ok(base)
    }
}

impl BaseProvider for Bases {
    fn base(&self, id: BaseId) -> BoxFuture<'_, Result<Arc<dyn BaseRead>>> {
        Box::pin(async move { Ok(self.open(id).await? as Arc<dyn BaseRead>) })
    }
}

/// The places that raw images may be referred to in: what the configuration names, and nothing else.
#[derive(Debug)]
pub(super) struct Sources {
    permitted: Vec<StoreConfig>,
    clock: crate::clock::Clock,
}

impl Sources {
    pub(super) fn new(permitted: Vec<StoreConfig>, clock: crate::clock::Clock) -> Self {
        Self { permitted, clock }
    }
}

impl RawSources for Sources {
    fn open(&self, url: &str) -> Result<Store> {
        let wanted = url.trim_end_matches('/');
        // The same place or below it; `s3://a` does not permit `s3://ab`.
        let within = |permitted: &StoreConfig| {
            let root = permitted.url.trim_end_matches('/');
            wanted.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
                || (!root.starts_with("file:") && root.starts_with(&format!("{wanted}/")))
        };
        let permitted = self.permitted.iter().find(|p| within(p)).ok_or_else(|| {
            Error::denied("source-not-permitted", "images by reference are not permitted there")
                .on(url)
                .hint("name it under `sources` in the configuration, or import the image instead")
        })?;
        if wanted.split('/').any(|part| part == "..") {
            return Err(Error::invalid("bad-store-url", "a source has no `..` in it").on(url));
        }
        Store::open(&StoreConfig { url: url.to_owned(), exclusive: false, ..permitted.clone() }, &self.clock)
    }
}

impl Gateway {
    /// The bases of a datastore.
    pub(super) fn bases_on(&self, datastore: &Arc<Datastore>) -> Arc<Bases> {
        let mut all = self.bases.lock();
        let bases = all.entry(datastore.name.clone()).or_insert_with(|| {
            Arc::new(Bases::new(
                Arc::clone(datastore),
                Arc::clone(&self.sources),
                Arc::clone(&self.icache),
                self.handle.clone(),
            ))
        });
        Arc::clone(bases)
    }

    /// The device of an export, opened if need be.
    pub(super) async fn open_export(self: Arc<Self>, name: ExportName) -> Result<Arc<Open>> {
        let text = name.to_string();
        match self.open.find(&text) {
            Some(open) if open.is_dead() => self.open.drop_dead(open.of),
            Some(open) => return Ok(open),
            None => {}
        }
        match name {
            ExportName::Clone(clone) => self.open_clone(&text, &clone).await,
            ExportName::Base(id) => self.open_base(&text, id).await,
            ExportName::Template(template) => self.open_template(&text, &template).await,
            ExportName::Disk(disk) => self.open_disk(&text, &disk).await,
            ExportName::Identity(clone) => self.open_identity(&text, &clone).await,
            ExportName::Snapshot(clone, snapshot) => Box::pin(self.open_snapshot(&text, &clone, &snapshot)).await,
        }
    }

    /// Opens an export for a machine. When it was seen to be off, this is a power-on, and what waits for it is done; otherwise it may be
    /// one that comes back after a lost connection or a restart, whose bytes must be the same as before.
    pub(super) async fn open_for_machine(self: Arc<Self>, name: ExportName, write: bool) -> Result<Arc<Open>> {
        if let (ExportName::Clone(clone), true) = (&name, write) {
            let found = self.find_clone(clone).await?;
            if found.state.pending_version.is_some() && self.machines.is_off(found.state.record.id) {
                self.do_what_waits(&found).await?;
            }
        }
        self.open_export(name).await
    }

    async fn open_base(&self, text: &str, id: BaseId) -> Result<Arc<Open>> {
        let _lock = self.open.lock(Of::Base(id)).await;
        if let Some(open) = self.open.find(text) {
            return Ok(open);
        }
        let (datastore, _) = self.find_base(id).await?;
        let base = self.bases_on(&datastore).open(id).await?;
        let open = Open::new(Of::Base(id), Arc::new(BaseDevice::new(base, text)), None);
        self.open.insert(&[text.to_owned()], &open);
        Ok(open)
    }

    /// The published version, by any base of it.
    async fn open_template(&self, text: &str, template: &Name) -> Result<Arc<Open>> {
        let version = self.version_for_clones(template, None).await?;
        let find = || {
            self.datastores.all().into_iter().filter(|d| d.check_online().is_ok()).find_map(|datastore| {
                let mut bases = datastore.table.bases().into_iter();
                let base = bases.find(|base| Self::holds(base, template, &version))?;
                Some((datastore, base.record.id))
            })
        };
        let found = match find() {
            Some(found) => found,
            None => {
                self.refresh_all().await?;
                match find() {
                    Some(found) => found,
                    None => {
                        let datastore = self.datastores.get(&version.datastore)?;
                        let _making = datastore.making.lock().await;
                        let record = self.make_base(&datastore, template, &version).await?;
                        (Arc::clone(&datastore), record.id)
                    }
                }
            }
        };
        let base = self.bases_on(&found.0).open(found.1).await?;
        let open = Open::new(Of::Base(found.1), Arc::new(BaseDevice::new(base, text)), None);
        self.open.insert(&[text.to_owned()], &open);
        Ok(open)
    }

    async fn open_clone(self: &Arc<Self>, text: &str, clone: &CloneRef) -> Result<Arc<Open>> {
        let found = self.find_clone(clone).await?;
        let entry: CloneEntry = found.state.clone();
        let id = entry.record.id;
        let texts = [text.to_owned(), found.name.to_string(), id.to_string()];
        let _lock = self.open.lock(Of::Clone(id)).await;
        if let Some(open) = self.open.of(Of::Clone(id)) {
            self.open.insert(&texts, &open);
            return Ok(open);
        }
        let datastore = self.datastores.get(&entry.datastore)?;
        datastore.check_online()?;
        let setup = |record| VolumeSetup {
            store: datastore.store.clone(),
            record,
            bases: self.bases_on(&datastore),
            engine: Arc::clone(&self.engine),
        };
        let mut volume = Volume::open(setup(entry.record)).await?;
        if let Some(record) = self.settle_base(&found, &volume).await? {
            volume.close().await?;
            drop(volume);
            volume = Volume::open(setup(record)).await?;
        }
        let device: Arc<dyn crate::device::Device> = Arc::clone(&volume) as _;
        let many = entry.labels.iter().any(|label| label.key == WRITERS.0 && label.value == WRITERS.1);
        let open = if many {
            Open::shared(Of::Clone(id), device, volume)
        } else {
            Open::new(Of::Clone(id), device, Some(volume))
        };
        self.open.insert(&texts, &open);
        Ok(open)
    }

    /// The base of this id and its datastore, wherever it is.
    pub(super) async fn find_base(&self, id: BaseId) -> Result<(Arc<Datastore>, super::table::KnownBase)> {
        let known =
            || self.datastores.all().into_iter().find_map(|d| d.table.base(id).map(|base| (Arc::clone(&d), base)));
        if let Some(found) = known() {
            return Ok(found);
        }
        self.refresh_all().await?;
        known().ok_or_else(|| unknown_base(id))
    }

    /// Looks at all datastores again.
    pub(super) async fn refresh_all(&self) -> Result<()> {
        for datastore in self.datastores.all() {
            if datastore.check_online().is_ok() {
                datastore.table.refresh().await?;
            }
        }
        Ok(())
    }
}
