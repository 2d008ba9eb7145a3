//! The datastores that this gateway can reach: their stores, whether they answer, and how full they are.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use clonegate_core::advice::{Health, Label};
use clonegate_core::format::catalog::DatastoreEntry;
use clonegate_core::ids::{GatewayId, Name};
use clonegate_core::{Error, Result};
use parking_lot::{Mutex, RwLock};

use super::table::Table;
use crate::clock::Clock;
use crate::store::{Opener, Store, StoreConfig, keys};

/// Free bytes of a store whose capacity nobody knows.
pub(super) const NO_END: u64 = 1 << 60;
/// Overcommit of a datastore that does not say, percent.
pub(super) const OVERCOMMIT_PERCENT: u32 = 400;

/// What an operator says about one datastore, with the credentials of this gateway.
#[derive(Debug, Clone)]
pub struct DatastoreSettings {
    /// Its name.
    pub name: Name,
    /// How its store is reached.
    pub store: StoreConfig,
    /// Bytes that it may hold.
    pub capacity: Option<u64>,
    /// Whether unwritten bytes take no space.
    pub thin: bool,
    /// Bytes kept free for deltas that are there already.
    pub reserve: u64,
    /// How many times its capacity may be promised, percent.
    pub overcommit_percent: u32,
    /// Labels, for policies.
    pub labels: Vec<Label>,
}

impl DatastoreSettings {
    /// A datastore with the defaults.
    pub fn new(name: Name, store: StoreConfig) -> Self {
        Self {
            name,
            store,
            capacity: None,
            thin: true,
            reserve: 0,
            overcommit_percent: OVERCOMMIT_PERCENT,
            labels: Vec::new(),
        }
    }

    /// What the catalog keeps of it.
    pub(super) fn entry(&self, now_ms: u64) -> DatastoreEntry {
        DatastoreEntry {
            url: self.store.url.clone(),
            endpoint: self.store.endpoint.clone(),
            region: self.store.region.clone(),
            path_style: self.store.path_style.unwrap_or(self.store.endpoint.is_some()),
            exclusive: self.store.exclusive,
            capacity: self.capacity,
            thin: self.thin,
            maintenance: false,
            reserve: self.reserve,
            overcommit_percent: self.overcommit_percent,
            labels: self.labels.clone(),
            created_ms: now_ms,
        }
    }
}

/// How the store of a catalog entry is reached when this gateway's configuration says nothing about it.
pub(super) fn store_config(entry: &DatastoreEntry) -> StoreConfig {
    StoreConfig {
        endpoint: entry.endpoint.clone(),
        region: entry.region.clone(),
        path_style: Some(entry.path_style),
        exclusive: entry.exclusive,
        ..StoreConfig::new(entry.url.clone())
    }
}

/// One datastore as this gateway has it open.
#[derive(Debug)]
pub(super) struct Datastore {
    pub(super) name: Name,
    pub(super) store: Store,
    /// As the catalog says.
    entry: RwLock<DatastoreEntry>,
    /// Why it cannot be used now.
    trouble: Mutex<Option<Error>>,
    /// Bytes in it, as last counted.
    used: Mutex<Option<u64>>,
    pub(super) table: Table,
    /// Held while a base is made, so that one is made and not sixty-four.
    pub(super) making: tokio::sync::Mutex<()>,
}

impl Datastore {
    pub(super) fn new(name: Name, store: Store, entry: DatastoreEntry) -> Arc<Self> {
        let unknown = Error::unavailable("not-admitted", "it has not been tried yet").on(name.as_str());
        Arc::new(Self {
            table: Table::new(store.clone()),
            name,
            store,
            entry: RwLock::new(entry),
            trouble: Mutex::new(Some(unknown)),
            used: Mutex::default(),
            making: tokio::sync::Mutex::default(),
        })
    }

    pub(super) fn entry(&self) -> DatastoreEntry {
        self.entry.read().clone()
    }

    pub(super) fn set_entry(&self, entry: DatastoreEntry) {
        *self.entry.write() = entry;
    }

    /// Proves that the store may be used. Nothing is written to it before.
    pub(super) async fn admit(&self, gateway: GatewayId, host: &str) -> Result<()> {
        let admitted = self.store.admit(gateway, host).await;
        *self.trouble.lock() = admitted.as_ref().err().cloned();
        admitted.map(drop)
    }

    /// Why it cannot be used, when it cannot.
    pub(super) fn trouble(&self) -> Option<Error> {
        self.trouble.lock().clone()
    }

    /// Fails when it cannot be used.
    pub(super) fn check_online(&self) -> Result<()> {
        self.trouble().map_or(Ok(()), |trouble| {
            Err(Error::unavailable("datastore-offline", format!("the datastore cannot be used: {trouble}"))
                .on(self.name.as_str())
                .hint("`clonegate datastore probe` tries it again"))
        })
    }

    pub(super) fn health(&self) -> Health {
        if self.trouble.lock().is_some() {
            Health::Offline
        } else if self.entry.read().maintenance {
            Health::Maintenance
        } else {
            Health::Online
        }
    }

    /// Bytes that it may hold: as the operator says, else the file system's size.
    pub(super) fn capacity(&self) -> Option<u64> {
        let said = self.entry.read().capacity;
        said.or_else(|| self.file_system().map(|(size, _)| size))
    }

    /// Bytes still free, as far as this can be known.
    pub(super) fn free(&self) -> Option<u64> {
        let said = self.entry.read().capacity;
        let by_capacity = said.map(|capacity| capacity.saturating_sub(self.used.lock().unwrap_or(0)));
        let by_disk = self.file_system().map(|(_, free)| free);
        match (by_capacity, by_disk) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        }
    }

    /// Bytes that the sizes of its clones may add up to.
    pub(super) fn promise_limit(&self) -> Option<u64> {
        let entry = self.entry.read();
        let capacity = entry.capacity?;
        let limit = u128::from(capacity) * u128::from(entry.overcommit_percent.max(1)) / 100;
        Some(u64::try_from(limit).unwrap_or(u64::MAX))
    }

    /// Bytes that its clones may grow to.
    pub(super) fn promised(&self) -> u64 {
        let bases = self.table.bases();
        bases.iter().map(|b| u64::from(b.count()).saturating_mul(b.record.size)).fold(0, u64::saturating_add)
    }

    /// Counts the bytes in it again, when its operator set a capacity.
    pub(super) async fn count_used(&self) -> Result<()> {
        if self.entry.read().capacity.is_none() {
            return Ok(());
        }
        let used = self.stored_bytes().await?;
        *self.used.lock() = Some(used);
        Ok(())
    }

    /// Bytes of all objects in it: one LIST.
    pub(super) async fn stored_bytes(&self) -> Result<u64> {
        Ok(self.store.list(&keys::all()).await?.iter().map(|object| object.size).sum())
    }

    /// Size and free bytes of the file system below it.
    fn file_system(&self) -> Option<(u64, u64)> {
        let stat = rustix::fs::statvfs(self.store.directory()?).ok()?;
        Some((stat.f_blocks.saturating_mul(stat.f_frsize), stat.f_bavail.saturating_mul(stat.f_frsize)))
    }
}

/// All datastores, by name. Reading is a load; adding and removing copy the map.
#[derive(Debug, Default)]
pub(super) struct Datastores(ArcSwap<BTreeMap<Name, Arc<Datastore>>>);

impl Datastores {
    pub(super) fn all(&self) -> Vec<Arc<Datastore>> {
        self.0.load().values().cloned().collect()
    }

    pub(super) fn find(&self, name: &Name) -> Option<Arc<Datastore>> {
        self.0.load().get(name).cloned()
    }

    pub(super) fn get(&self, name: &Name) -> Result<Arc<Datastore>> {
        self.find(name).ok_or_else(|| crate::catalog::unknown::<DatastoreEntry>(name.as_str()))
    }

    pub(super) fn insert(&self, datastore: &Arc<Datastore>) {
        self.0.rcu(|map| {
            let mut map = BTreeMap::clone(map);
            map.insert(datastore.name.clone(), Arc::clone(datastore));
            map
        });
    }

    pub(super) fn remove(&self, name: &Name) {
        self.0.rcu(|map| {
            let mut map = BTreeMap::clone(map);
            map.remove(name);
            map
        });
    }
}

/// Opens the store of one datastore.
pub(super) fn open(
    name: &Name,
    config: &StoreConfig,
    entry: DatastoreEntry,
    clock: &Clock,
    opener: &Opener,
) -> Result<Arc<Datastore>> {
    let store = opener(config, clock).map_err(|e| if e.object().is_some() { e } else { e.on(name.as_str()) })?;
    Ok(Datastore::new(name.clone(), store, entry))
}
