//! Object stores as clonegate uses them: put-if-absent, checked reads, deadlines.
//!
//! Only four things are asked of a store: put if absent, get (a range of) an object, list names, delete. Nothing is
//! updated in place and nothing depends on a clock, so a directory, S3, GCS and Azure behave alike.

mod ballast;
mod batch;
pub mod config;
pub mod count;
mod create;
mod directory;
mod errors;
pub mod exclusive;
pub mod keys;
mod open;
mod page_cache;
mod probe;
mod read;
mod retry;
pub mod tls;

use std::fmt;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clonegate_core::{ErrorKind, Result};
use object_store::{ObjectStore, ObjectStoreExt};

pub use self::ballast::{makes_room, making_room};
pub use self::config::{Secret, StoreConfig};
pub use self::count::{Count, CountStore, Counts, Operation};
pub use self::create::PutNew;
pub use self::keys::{Key, Prefix};
pub use self::open::{check_store_url, split_object_url};
pub use self::probe::Admission;
pub(crate) use self::read::LISTED_MAX;
pub use self::read::{Listed, Meta};
use self::retry::Patience;
use crate::clock::Clock;

/// Opens the store that a configuration describes, as [`Store::open`] does.
pub type Opener = Arc<dyn Fn(&StoreConfig, &Clock) -> Result<Store> + Send + Sync>;

/// Requests that one call has in flight at most.
const IN_FLIGHT_MAX: usize = 64;

/// One store root (a bucket and a prefix, or a directory). Clones share connections and counters.
///
/// Every error names the object by its full name: the store's label and the key.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// use clonegate::{clock::Clock, store::{Store, StoreConfig, PutNew, keys}};
/// let store = Store::open(&StoreConfig::new("memory://"), &Clock::system())?;
/// let key = keys::foreign("images/small.raw")?;
/// assert_eq!(store.put_new(&key, "bytes".into()).await?, PutNew::Created);
/// assert_eq!(store.put_new(&key, "other".into()).await?, PutNew::Exists("bytes".into()));
/// # Ok::<(), clonegate_core::Error>(()) }).unwrap();
/// ```
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    objects: CountStore<Arc<dyn ObjectStore>>,
    label: String,
    clock: Clock,
    counts: Arc<Counts>,
    patience: Patience,
    /// The directory, when the store is one.
    directory: Option<PathBuf>,
    /// What a directory keeps for who makes room.
    ballast: Option<Arc<ballast::Ballast>>,
    /// When it is marked exclusive: who owns it.
    exclusive: Option<exclusive::Exclusive>,
    /// Learnt from the store: it matches `If-Match` only without the quotes (Ceph RGW does).
    bare_etags: AtomicBool,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.0.label)
    }
}

impl Store {
    /// Opens the store that `config` describes. Asks nothing of it yet, but makes the directory of a `file://` store.
    ///
    /// # Errors
    /// `Invalid` with code `bad-store-url` or `bad-store-setting`; what making the directory gives.
    pub fn open(config: &StoreConfig, clock: &Clock) -> Result<Self> {
        let opened = open::open(config)?;
        Ok(Self::assemble(opened, config, clock))
    }

    /// A store over any object store, called `label` in messages; for tests and rehearsals that put faults in its way.
    pub fn new(objects: Arc<dyn ObjectStore>, label: &str, clock: &Clock) -> Self {
        Self::over(objects, &StoreConfig::new(label), clock)
    }

    /// A store over any object store, called `config.url` in messages, with the deadlines and the exclusiveness of
    /// `config`; the settings for reaching it do not matter.
    pub fn over(objects: Arc<dyn ObjectStore>, config: &StoreConfig, clock: &Clock) -> Self {
        let opened = open::Opened { objects, label: config.url.clone(), directory: None };
        Self::assemble(opened, config, clock)
    }

    fn assemble(opened: open::Opened, config: &StoreConfig, clock: &Clock) -> Self {
        let counts = Arc::new(Counts::default());
        Self(Arc::new(Inner {
            objects: CountStore::new(opened.objects, Arc::clone(&counts)),
            label: opened.label,
            clock: clock.clone(),
            counts,
            patience: Patience::of(config),
            // A directory's put-if-absent is the file system's and always works.
            exclusive: config.exclusive.then(|| exclusive::Exclusive::new(opened.directory.is_none())),
            ballast: opened.directory.as_deref().map(|root| Arc::new(ballast::Ballast::of(root))),
            directory: opened.directory,
            bare_etags: AtomicBool::new(false),
        }))
    }

    /// What it is called in messages: its URL without credentials.
    pub fn label(&self) -> &str {
        &self.0.label
    }

    /// Tells it from other stores of this process, as long as it is open.
    pub(crate) fn identity(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }

    /// What was asked of it so far, through this store and its clones.
    pub fn counts(&self) -> &Counts {
        &self.0.counts
    }

    /// The clock that it was opened with.
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// The directory, when the store is one.
    pub fn directory(&self) -> Option<&FilePath> {
        self.0.directory.as_deref()
    }

    /// The full name of an object in messages.
    fn name(&self, key: &str) -> String {
        format!("{}/{key}", self.0.label)
    }

    /// Removes an object. That it is not there is success.
    ///
    /// On a directory the removal is not synced: after a crash of the host the object may be there again.
    ///
    /// # Errors
    /// `Unavailable`, `Denied`.
    pub async fn delete(&self, key: &Key) -> Result<()> {
        if let Some(exclusive) = &self.0.exclusive {
            exclusive.check(&self.0.label)?;
        }
        self.remove(key).await
    }

    /// As [`Store::delete`], whoever owns the store.
    async fn remove(&self, key: &Key) -> Result<()> {
        let name = self.name(key.as_str());
        let inner = &self.0;
        let done = inner
            .patience
            .persist(&inner.clock, &name, || async {
                let deleted = inner.patience.within(&name, 0, inner.objects.delete(key.path())).await?;
                deleted.map_err(|e| errors::map(e, &name))
            })
            .await;
        match done {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }
}
