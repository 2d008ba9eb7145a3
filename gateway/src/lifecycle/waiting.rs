//! What waits for room in a store, and says so: to who asked for it, in its job, as an alert and in the log.
//!
//! A store without room refuses a write at once, and the write is tried again for as long as it takes, so that nothing that was accepted is lost.
//! Whoever waits for such a write goes through [`Gateway::for_room`].

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clonegate_core::format::catalog::{CloneEntry, DiskEntry};
use clonegate_core::ids::{CloneId, Name};
use clonegate_core::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::events::EventKind;
use super::gateway::Gateway;
use super::jobs::JobRun;
use crate::device::Device as _;
use crate::volume::Volume;

/// How long a request waits for room before it is answered.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often it is looked whether something waits.
pub(super) const LOOK: Duration = Duration::from_secs(1);
/// Names that are shown of a list.
const SHOWN: usize = 8;

/// One thing that waits.
#[derive(Debug, Clone)]
struct Waiting {
    datastore: Name,
    object: String,
    since: Instant,
}

/// Things that wait: of one request, of one job, or of the whole gateway.
#[derive(Debug, Default)]
pub(super) struct Waits {
    now: Mutex<BTreeMap<u64, Waiting>>,
    next: AtomicU64,
}

tokio::task_local! {
    static WAITS: Arc<Waits>;
}

/// Runs work whose waiting is noted in `waits`.
pub(super) async fn within<F: Future>(waits: Arc<Waits>, work: F) -> F::Output {
    WAITS.scope(waits, work).await
}

impl Waits {
    fn enter(self: &Arc<Self>, waiting: Waiting) -> Entered {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.now.lock().insert(number, waiting);
        Entered { waits: Arc::clone(self), number }
    }

    /// What waits, in one sentence.
    pub(super) fn sentence(&self) -> Option<String> {
        let now = self.now.lock();
        let first = now.values().next()?;
        let names: Vec<String> = now.values().map(|waiting| waiting.object.clone()).collect();
        Some(format!("waits for room on datastore {}: {}", first.datastore, listed(&names)))
    }

    /// What is answered when it takes too long.
    fn in_vain(&self, now: Instant) -> Option<Error> {
        let waits = self.now.lock();
        let first = waits.values().find(|waiting| now.saturating_duration_since(waiting.since) >= PATIENCE)?;
        let text = format!("datastore {} has no room; it is done when there is some", first.datastore);
        Some(Error::exhausted("store-full", text).on(first.object.clone()).hint(format!(
            "make room, as by deleting clones: clonegate datastore show {} says who waits",
            first.datastore
        )))
    }
}

/// Names for people.
pub(super) fn listed(names: &[String]) -> String {
    let mut text = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}

/// Takes what waited out when it is dropped.
struct Entered {
    waits: Arc<Waits>,
    number: u64,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.waits.now.lock().remove(&self.number);
    }
}

impl Gateway {
    /// Does `work` on a volume of this datastore. While its store has no room that is said wherever somebody may look.
    pub(super) async fn for_room<T>(
        &self,
        datastore: &Name,
        volume: &Volume,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        self.for_room_unless(datastore, volume, work, || Ok(())).await
    }

    /// The same of a job, which can be cancelled while it waits.
    pub(super) async fn for_room_of<T>(
        &self,
        run: &JobRun,
        datastore: &Name,
        volume: &Volume,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        self.for_room_unless(datastore, volume, work, || run.check()).await
    }

    async fn for_room_unless<T>(
        &self,
        datastore: &Name,
        volume: &Volume,
        work: impl Future<Output = Result<T>>,
        check: impl Fn() -> Result<()>,
    ) -> Result<T> {
        tokio::pin!(work);
        let mut entered: Vec<Entered> = Vec::new();
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = self.clock.sleep(LOOK) => {}
            }
            match volume.waits().filter(|error| error.kind() == ErrorKind::Exhausted) {
                None => entered.clear(),
                Some(error) if entered.is_empty() => {
                    let object = volume.info().name.clone();
                    tracing::warn!(%datastore, %object, %error, "it waits for room in the store");
                    let waiting = Waiting { datastore: datastore.clone(), object, since: self.clock.instant() };
                    let own = WAITS.try_with(Arc::clone).ok();
                    entered.extend(own.iter().chain([&self.waiting]).map(|waits| waits.enter(waiting.clone())));
                    let data = serde_json::json!({ "kind": "datastore", "level": "critical", "waits": waiting.object });
                    self.events.tell(EventKind::Capacity, datastore.as_str(), data);
                }
                Some(_) => {}
            }
            if !entered.is_empty() {
                check()?;
            }
        }
    }

    /// Waits for a verb that runs as a task of its own; answers earlier when it waits for room for too long. Then the task goes on.
    pub(super) async fn while_patient<T>(
        &self,
        waits: &Waits,
        mut task: tokio::task::JoinHandle<Result<T>>,
    ) -> Result<T> {
        loop {
            tokio::select! {
                biased;
                done = &mut task => {
                    return done.unwrap_or_else(|e| {
                        Err(Error::internal("verb-died", format!("the request was cut short: {e}")))
                    });
                }
                () = self.clock.sleep(LOOK) => {}
            }
            if let Some(error) = waits.in_vain(self.clock.instant()) {
                return Err(error);
            }
        }
    }

    /// Who waits for room, by datastore: requests, jobs, and machines whose writes do.
    pub(super) fn waiting_for_room(&self) -> BTreeMap<Name, Vec<String>> {
        let mut by_datastore: BTreeMap<Name, Vec<String>> = BTreeMap::new();
        for waiting in self.waiting.now.lock().values() {
            by_datastore.entry(waiting.datastore.clone()).or_default().push(waiting.object.clone());
        }
        let open = self.open.waiting();
        if !open.is_empty() {
            let clones = self.catalog.remembered_all::<CloneEntry>();
            let disks = self.catalog.remembered_all::<DiskEntry>();
            let clones = clones.into_iter().map(|clone| (clone.state.record.id, clone.state.datastore));
            let disks = disks.into_iter().map(|disk| (disk.state.record.id, disk.state.datastore));
            let places: std::collections::HashMap<CloneId, Name> = clones.chain(disks).collect();
            for (id, name) in open {
                if let Some(datastore) = places.get(&id) {
                    by_datastore.entry(datastore.clone()).or_default().push(name);
                }
            }
        }
        for names in by_datastore.values_mut() {
            names.sort();
            names.dedup();
        }
        by_datastore
    }

    /// What is said of a datastore on which these wait.
    pub(super) fn say_who_waits(names: &[String]) -> String {
        format!("it has no room: {} wait for some", listed(names))
    }
}

/// Flushes a copy that is being made, however long its store has no room.
pub(super) async fn flush(run: &JobRun, volume: &Volume) -> Result<()> {
    loop {
        match volume.flush().await {
            Err(error) if error.kind() == ErrorKind::Exhausted => run.check()?,
            flushed => return flushed,
        }
    }
}
