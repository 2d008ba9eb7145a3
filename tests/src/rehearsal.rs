//! Gateways over stores in memory that can be copied, so that one beginning is lived through again and again with the gateway
//! dying at another request each time.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clonegate::clock::Clock;
use clonegate::delta::DeltaSettings;
use clonegate::lifecycle::advisor::BuiltIn;
use clonegate::lifecycle::{DatastoreSettings, Gateway, GatewaySettings};
use clonegate::store::{Opener, Store, StoreConfig};
use clonegate_core::Result;
use clonegate_core::ids::{GatewayId, Name};
use object_store::ObjectStore;
use object_store::memory::InMemory;
use tempfile::TempDir;

use crate::faults::{FaultStore, Faults};

/// The stores of a rehearsal by name, the home and the datastores, and the journals of its gateways, if they have any.
pub struct Stores(BTreeMap<String, Arc<InMemory>>, Option<TempDir>);

impl fmt::Debug for Stores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// The name of the store that holds the catalog.
const HOME: &str = "home";

impl Stores {
    /// A home and these datastores, all empty.
    pub fn new(datastores: &[&str]) -> Self {
        let names = std::iter::once(HOME).chain(datastores.iter().copied());
        Self(names.map(|name| (name.to_owned(), Arc::default())).collect(), None)
    }

    /// The same with a journal for each gateway.
    ///
    /// # Panics
    /// When there is no temporary directory.
    #[must_use]
    pub fn with_journals(self) -> Self {
        Self(self.0, Some(tempfile::tempdir().expect("a temporary directory")))
    }

    /// Where the journal of a gateway is.
    fn journal(&self, number: u8) -> Option<PathBuf> {
        Some(self.1.as_ref()?.path().join(format!("journal-{number}")))
    }

    /// Another world that is like this one now.
    ///
    /// # Panics
    /// When a journal cannot be copied.
    pub fn fork(&self) -> Self {
        let journals = self.1.as_ref().map(|from| {
            let to = tempfile::tempdir().expect("a temporary directory");
            copy(from.path(), to.path());
            to
        });
        Self(self.0.iter().map(|(name, store)| (name.clone(), Arc::new(store.fork()))).collect(), journals)
    }

    /// Opens these stores, each with what [`wrap`](FaultStore) puts in its way.
    fn opener(
        &self,
        wrap: impl Fn(&str, Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> + Send + Sync + 'static,
    ) -> Opener {
        let stores = self.0.clone();
        Arc::new(move |config: &StoreConfig, clock: &Clock| {
            let name = config.url.trim_start_matches("memory://");
            let store = stores.get(name).ok_or_else(|| clonegate_core::Error::invalid("no-such-store", name))?;
            let objects = wrap(name, Arc::<InMemory>::clone(store));
            Ok(Store::over(objects, config, clock))
        })
    }

    /// Starts gateway `number` whose every request meets `faults`; started again with the same number it is the same one.
    ///
    /// # Errors
    /// As [`Gateway::start`].
    pub async fn gateway(&self, number: u8, faults: &Arc<Faults>) -> Result<Arc<Gateway>> {
        let faults = Arc::clone(faults);
        self.gateway_behind(number, move |_, store| Arc::new(FaultStore::new(store, Arc::clone(&faults)))).await
    }

    /// Starts gateway `number` with what `wrap` puts in the way to the store of each name.
    ///
    /// # Errors
    /// As [`Gateway::start`].
    ///
    /// # Panics
    /// When a datastore has no good name.
    pub async fn gateway_behind(
        &self,
        number: u8,
        wrap: impl Fn(&str, Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> + Send + Sync + 'static,
    ) -> Result<Arc<Gateway>> {
        let url = |name: &str| StoreConfig::new(format!("memory://{name}"));
        let datastores = self.0.keys().filter(|name| *name != HOME);
        let settings = GatewaySettings {
            home: url(HOME),
            datastores: datastores
                .map(|name| DatastoreSettings::new(Name::new(name.as_str()).expect("a good name"), url(name)))
                .collect(),
            sources: Vec::new(),
            gateway: GatewayId::from_bytes([number; 16]),
            host: format!("host-{number}"),
            icache_bytes: 16 << 20,
            delta: DeltaSettings {
                journal: self.journal(number),
                journal_inline: true,
                journal_file_bytes: 1 << 20,
                ..DeltaSettings::default()
            },
            idle_close: Duration::from_secs(300),
            power_off_grace: Duration::from_millis(50),
            slots_per_base: 3,
        };
        Gateway::start_on(settings, Arc::new(BuiltIn), Clock::system(), self.opener(wrap)).await
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("a directory").flatten() {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            fs::create_dir(&to).expect("a directory");
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).expect("a file");
        }
    }
}
