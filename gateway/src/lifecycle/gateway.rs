//! One running gateway: its home, its datastores, its cache and what it has open.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use clonegate_core::format::catalog::DatastoreEntry;
use clonegate_core::ids::{CloneId, GatewayId, Name, Nonce};
use clonegate_core::{Error, Result};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::advisor::Advisor;
use super::audit::Audit;
use super::context;
use super::datastores::{self, Datastore, DatastoreSettings, Datastores};
use super::events::Events;
use super::jobs::{self, Jobs};
use super::leftovers::Leftovers;
use super::machines::Machines;
use super::open::OpenDevices;
use super::orders::Orders;
use super::pending::PutOff;
use super::turns::Turns;
use super::volumes::{Bases, Sources};
use super::waiting::{self, Waits};
use crate::catalog::Catalog;
use crate::clock::Clock;
use crate::delta::{DeltaSettings, Engine};
use crate::icache::ICache;
use crate::identity::IdentityKeys;
use crate::store::{Opener, Store, StoreConfig};

/// How often devices that another gateway took over are looked for.
const LOOK_FOR_DEAD: Duration = Duration::from_secs(1);
/// How often clones are looked at that have reset rules of their own.
const RESET_RULES: Duration = Duration::from_secs(30);
/// How often pools are filled up.
const FILL_POOLS: Duration = Duration::from_secs(60);
/// How often a datastore that does not answer is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(15);
/// How often the audit log is looked at for what is past its time.
const TEND_AUDIT: Duration = Duration::from_secs(6 * 3600);
/// How often deletions of versions are looked for that another gateway began and did not end.
const FINISH_DELETIONS: Duration = Duration::from_secs(3600);
/// How often the bytes in datastores are counted.
const COUNT_AGAIN: Duration = Duration::from_secs(300);

/// What a gateway needs to know to start.
#[derive(Debug, Clone)]
pub struct GatewaySettings {
    /// Where names, jobs and decisions are kept.
    pub home: StoreConfig,
    /// Datastores that this gateway's configuration names; the catalog may hold more.
    pub datastores: Vec<DatastoreSettings>,
    /// Where raw images may be referred to.
    pub sources: Vec<StoreConfig>,
    /// This gateway's lasting identity.
    pub gateway: GatewayId,
    /// Its host, for messages.
    pub host: String,
    /// Bytes of the iCache.
    pub icache_bytes: u64,
    /// How deltas are kept.
    pub delta: DeltaSettings,
    /// A clone that nobody has used for so long is closed.
    pub idle_close: Duration,
    /// A clean disconnect that nobody follows for so long is a power-off.
    pub power_off_grace: Duration,
    /// Deltas that a base takes, for templates that do not say.
    pub slots_per_base: u32,
}

/// One running gateway. Its verbs run as tasks of their own on the runtime that started it, so a caller that goes away cuts none in half.
pub struct Gateway {
    pub(super) me: Weak<Gateway>,
    pub(super) settings: GatewaySettings,
    pub(super) clock: Clock,
    pub(super) handle: Handle,
    pub(super) catalog: Catalog,
    pub(super) home: Store,
    /// How stores are opened.
    pub(super) opener: Opener,
    pub(super) datastores: Datastores,
    pub(super) icache: Arc<ICache>,
    pub(super) advisor: Arc<dyn Advisor>,
    pub(super) sources: Arc<Sources>,
    pub(super) bases: Mutex<HashMap<Name, Arc<Bases>>>,
    pub(super) open: OpenDevices,
    pub(super) engine: Arc<Engine>,
    pub(super) jobs: Jobs,
    pub(super) audit: Audit,
    pub(super) events: Events,
    /// Clones to be reset as soon as nobody has them open.
    pub(super) reset_waits: Mutex<HashSet<CloneId>>,
    /// Which machines may still run, and which are known to be off.
    pub(super) machines: Machines,
    /// Updates that wait, and why they came to nothing.
    pub(super) put_off: PutOff,
    /// Orders of several clones that this life of the process does.
    pub(super) orders: Orders,
    /// Updates that were seen to run without a job, and since when.
    pub(super) unattended: Mutex<HashMap<Name, (Nonce, Instant)>>,
    /// Pools that are being made larger or smaller.
    pub(super) growing: Turns,
    /// Images that came to nothing.
    pub(super) leftovers: Leftovers,
    /// What waits for room in a store.
    pub(super) waiting: Arc<Waits>,
    /// What was said to be about to be full.
    pub(super) alerted: Mutex<HashMap<(String, String), String>>,
    /// What identities are encrypted with.
    pub(super) identity_keys: OnceLock<IdentityKeys>,
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway").field("gateway", &self.settings.gateway).field("home", &self.home).finish()
    }
}

impl Gateway {
    /// Starts a gateway on the current runtime: proves that the home can be used, enters the datastores of the configuration in the
    /// catalog, and opens all that there are. A datastore that does not answer is tried again in the background.
    ///
    /// # Errors
    /// Those of the home; `Conflict` with code `datastore-differs` when the catalog knows another store under a configured name.
    pub async fn start(settings: GatewaySettings, advisor: Arc<dyn Advisor>, clock: Clock) -> Result<Arc<Self>> {
        Self::start_on(settings, advisor, clock, Arc::new(Store::open)).await
    }

    /// The same with stores that `opener` opens; for tests and rehearsals that put faults in their way.
    ///
    /// # Errors
    /// As [`Gateway::start`].
    pub async fn start_on(
        settings: GatewaySettings,
        advisor: Arc<dyn Advisor>,
        clock: Clock,
        opener: Opener,
    ) -> Result<Arc<Self>> {
        let home = opener(&settings.home, &clock)?;
        home.admit(settings.gateway, &settings.host).await?;
        let mut sources = settings.sources.clone();
        sources.extend(settings.datastores.iter().map(|d| d.store.clone()));
        let engine = Engine::open(settings.delta.clone(), settings.gateway, clock.clone(), Handle::current())?;
        let gateway = Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            catalog: Catalog::new(home.clone(), clock.clone()),
            jobs: Jobs::new(home.clone(), &clock),
            audit: Audit::new(home.clone(), settings.gateway, clock.clone()),
            events: Events::new(&clock),
            home,
            opener,
            datastores: Datastores::default(),
            icache: ICache::new(settings.icache_bytes),
            advisor,
            sources: Arc::new(Sources::new(sources, clock.clone())),
            bases: Mutex::default(),
            open: OpenDevices::default(),
            engine,
            reset_waits: Mutex::default(),
            machines: Machines::default(),
            put_off: PutOff::default(),
            orders: Orders::default(),
            unattended: Mutex::default(),
            growing: Turns::default(),
            leftovers: Leftovers::new(&clock),
            waiting: Arc::default(),
            alerted: Mutex::default(),
            identity_keys: OnceLock::new(),
            handle: Handle::current(),
            clock,
            settings,
        });
        for configured in &gateway.settings.datastores {
            gateway.enter(configured).await?;
        }
        gateway.open_datastores().await?;
        gateway.ship_pending();
        gateway.keep_house();
        gateway.resume_jobs().await;
        gateway.handle.spawn(Arc::clone(&gateway).finish_deletions());
        gateway.tend_leftovers();
        Ok(gateway)
    }

    /// Enters a configured datastore in the catalog once its store may be used, or brings its entry up to date.
    async fn enter(&self, configured: &DatastoreSettings) -> Result<()> {
        let wanted = configured.entry(self.clock.now_ms());
        match self.catalog.find::<DatastoreEntry>(&configured.name).await? {
            // A store that never answered may be a slip of the pen, and a name that stands in the catalog is hard to give another store.
            None => self.open_datastore(&configured.name, wanted).await,
            Some(there) if there.state.url != wanted.url => {
                Err(Error::conflict("datastore-differs", format!("the catalog says that it is {}", there.state.url))
                    .on(configured.name.as_str())
                    .hint("one name means one store to all gateways: give the new store another name"))
            }
            Some(_) => {
                let update = |entry: &mut DatastoreEntry| {
                    entry.capacity = wanted.capacity;
                    entry.thin = wanted.thin;
                    entry.reserve = wanted.reserve;
                    entry.overcommit_percent = wanted.overcommit_percent;
                    entry.labels.clone_from(&wanted.labels);
                    entry.exclusive = wanted.exclusive;
                    Ok(())
                };
                self.catalog.change(&configured.name, update).await.map(drop)
            }
        }
    }

    /// Opens the datastores of the catalog that are not open yet.
    pub(super) async fn open_datastores(&self) -> Result<()> {
        for named in self.catalog.list::<DatastoreEntry>().await? {
            match self.datastores.find(&named.name) {
                Some(datastore) => datastore.set_entry(named.state),
                None => self.open_datastore(&named.name, named.state).await?,
            }
        }
        Ok(())
    }

    /// Opens one. That it does not answer is no error here: it is offline then.
    async fn open_datastore(&self, name: &Name, entry: DatastoreEntry) -> Result<()> {
        let configured = self.settings.datastores.iter().find(|d| d.name == *name);
        let config = configured.map_or_else(|| datastores::store_config(&entry), |d| d.store.clone());
        let datastore = match datastores::open(name, &config, entry, &self.clock, &self.opener) {
            Ok(datastore) => datastore,
            Err(error) => {
                tracing::warn!(datastore = %name, %error, "a datastore cannot be opened here");
                return Ok(());
            }
        };
        match self.admit(&datastore).await {
            Err(error) if datastore.trouble().is_none() => return Err(error),
            Err(error) => tracing::warn!(datastore = %name, %error, "a datastore is offline"),
            Ok(()) => {}
        }
        self.datastores.insert(&datastore);
        Ok(())
    }

    /// Proves that a datastore may be used; one of the configuration that is not in the catalog yet is entered then.
    pub(super) async fn admit(&self, datastore: &Arc<Datastore>) -> Result<()> {
        datastore.admit(self.settings.gateway, &self.settings.host).await?;
        let name = &datastore.name;
        let ours = self.settings.datastores.iter().any(|configured| configured.name == *name);
        if !ours || self.catalog.find::<DatastoreEntry>(name).await?.is_some() {
            return Ok(());
        }
        match self.catalog.create(name, datastore.entry()).await {
            // Another gateway entered it in this moment.
            Err(error) if error.kind() == clonegate_core::ErrorKind::Exists => Ok(()),
            entered => entered.map(drop),
        }
    }

    /// What goes on in the background for as long as the gateway lives.
    fn keep_house(self: &Arc<Self>) {
        self.every(self.settings.idle_close, |gateway| async move { gateway.open.sweep(&gateway.clock).await });
        self.every(LOOK_FOR_DEAD, |gateway| async move { gateway.open.drop_all_dead() });
        self.every(RESET_RULES, Self::apply_reset_rules);
        self.every(jobs::LOOK, Self::tend_jobs);
        self.every(FILL_POOLS, Self::fill_pools);
        self.every(TEND_AUDIT, Self::tend_audit);
        self.every(FINISH_DELETIONS, Self::finish_deletions);
        self.every(TRY_AGAIN, |gateway| async move {
            // Another gateway may have added one, or taken one into maintenance.
            if let Err(error) = gateway.open_datastores().await {
                tracing::debug!(%error, "the datastores cannot be looked at now");
            }
            gateway.home.keep_ballast().await;
            for datastore in gateway.datastores.all() {
                datastore.store.keep_ballast().await;
                if datastore.trouble().is_some() && gateway.admit(&datastore).await.is_ok() {
                    tracing::info!(datastore = %datastore.name, "a datastore is online again");
                }
            }
        });
        self.every(COUNT_AGAIN, |gateway| async move {
            for datastore in gateway.datastores.all() {
                if let Err(error) = datastore.count_used().await {
                    tracing::debug!(datastore = %datastore.name, %error, "its bytes cannot be counted now");
                }
            }
            gateway.watch_capacity().await;
        });
    }

    fn every<F>(self: &Arc<Self>, period: Duration, work: impl Fn(Arc<Self>) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send,
    {
        let (me, clock) = (Weak::clone(&self.me), self.clock.clone());
        self.handle.spawn(async move {
            loop {
                clock.sleep(period).await;
                let Some(gateway) = me.upgrade() else { return };
                work(gateway).await;
            }
        });
    }

    /// Closes everything that is open, so that what was acknowledged is where its durability mode says.
    pub async fn stop(&self) {
        self.events.close();
        self.jobs.stop(&self.clock).await;
        self.note_running_machines().await;
        self.open.close_all(&self.clock).await;
    }

    /// This gateway's identity.
    pub fn id(&self) -> GatewayId {
        self.settings.gateway
    }

    /// The runtime that store IO runs on.
    pub fn runtime(&self) -> &Handle {
        &self.handle
    }

    /// The host memory cache.
    pub fn icache(&self) -> &Arc<ICache> {
        &self.icache
    }

    /// What the open volumes share.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// The home's store, for those who keep records of their own there.
    pub fn home(&self) -> &Store {
        &self.home
    }

    /// This gateway, to be kept by what outlives the call.
    ///
    /// # Errors
    /// `Unavailable` with code `stopping`.
    pub(super) fn me(&self) -> Result<Arc<Self>> {
        self.me
            .upgrade()
            .ok_or_else(|| Error::unavailable("stopping", "the gateway is stopping").hint("try another, or later"))
    }

    /// The stores that are open, under the names that operators gave them; the home is `home`.
    pub fn stores(&self) -> Vec<(String, Store)> {
        let datastores = self.datastores.all().into_iter().map(|d| (d.name.to_string(), d.store.clone()));
        std::iter::once(("home".to_owned(), self.home.clone())).chain(datastores).collect()
    }

    /// Runs a verb as a task of its own.
    pub(super) async fn run<T, F>(&self, verb: impl FnOnce(Arc<Self>) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let waits = Arc::<Waits>::default();
        let task = self.handle.spawn(waiting::within(Arc::clone(&waits), context::carry(verb(self.me()?))));
        self.while_patient(&waits, task).await
    }
}
