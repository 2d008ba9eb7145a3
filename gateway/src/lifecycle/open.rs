//! What is open now: devices by the texts that edges ask for, and the machines that have them attached.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use clonegate_core::ids::{BaseId, CloneId};
use clonegate_core::{Error, ErrorKind, Result};
use futures::StreamExt;
use parking_lot::Mutex;

use super::turns::Turns;
use crate::clock::Clock;
use crate::device::{Device, Version};
use crate::exports::Attach;
use crate::volume::Volume;

/// How long a close waits for answers that are under way.
const LINGER: Duration = Duration::from_secs(5);

/// How long a close that nobody asked for waits for a store that takes nothing.
const PATIENCE: Duration = Duration::from_secs(10);
/// Devices closed at the same time.
const CLOSES_AT_ONCE: usize = 32;

/// What an open device is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Of {
    Clone(CloneId),
    Base(BaseId),
    /// Never looked for: each who opens it gets its own.
    Identity(CloneId),
    /// The version is that of its bytes, which never changes.
    Snapshot(CloneId, Version),
}

/// A machine that has a device attached.
#[derive(Debug, Clone)]
struct Session {
    number: u64,
    client: String,
    /// It has written.
    write: bool,
}

/// The machines that have a device attached, and whether more may come.
#[derive(Debug, Default)]
struct Sessions {
    machines: Vec<Session>,
    /// The machine that wrote last since it was opened.
    wrote: Option<String>,
    /// Its bytes are being replaced.
    barred: bool,
    /// It is closed, or about to be: look for it again.
    gone: bool,
}

/// Keeps machines out of a device while its bytes are replaced.
#[derive(Debug)]
pub(super) struct Barred(Arc<Open>);

impl Drop for Barred {
    fn drop(&mut self) {
        self.0.sessions.lock().barred = false;
    }
}

/// The code of the refusal while a device is barred or closing; it passes by itself.
pub(super) const BEING_CHANGED: &str = "being-changed";

/// One open device.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) device: Arc<dyn Device>,
    pub(super) volume: Option<Arc<Volume>>,
    pub(super) of: Of,
    /// Whether anybody asked for it since the last sweep.
    used: AtomicBool,
    sessions: Mutex<Sessions>,
    /// Several machines may write: what is on it is made for that.
    shared: bool,
}

impl Open {
    pub(super) fn new(of: Of, device: Arc<dyn Device>, volume: Option<Arc<Volume>>) -> Arc<Self> {
        Arc::new(Self { device, volume, of, used: AtomicBool::new(true), sessions: Mutex::default(), shared: false })
    }

    /// An open volume that several machines may write to.
    pub(super) fn shared(of: Of, device: Arc<dyn Device>, volume: Arc<Volume>) -> Arc<Self> {
        let sessions = Mutex::default();
        Arc::new(Self { device, volume: Some(volume), of, used: AtomicBool::new(true), sessions, shared: true })
    }

    /// Enters a machine.
    ///
    /// # Errors
    /// `Conflict` with code [`BEING_CHANGED`]: open it again, it passes.
    pub(super) fn enter(&self, attach: &Attach, number: u64) -> Result<()> {
        let mut sessions = self.sessions.lock();
        if sessions.barred || sessions.gone {
            return Err(self.being_changed());
        }
        sessions.machines.push(Session { number, client: attach.client.clone(), write: false });
        Ok(())
    }

    /// Makes a session one of the machine that writes. One machine at a time may.
    pub(super) fn claim(&self, number: u64) -> Result<()> {
        let mut sessions = self.sessions.lock();
        let Sessions { machines, wrote, .. } = &mut *sessions;
        let Some(client) = machines.iter().find(|s| s.number == number).map(|s| s.client.clone()) else {
            return Ok(());
        };
        if let Some(other) = machines.iter().find(|s| s.write && s.client != client).filter(|_| !self.shared) {
            return Err(Error::denied("attached-elsewhere", format!("{} writes to it", other.client))
                .on(self.device.info().name.clone())
                .hint("two machines that write to one disk destroy it: detach the other first"));
        }
        machines.iter_mut().filter(|s| s.number == number).for_each(|s| s.write = true);
        *wrote = Some(client);
        Ok(())
    }

    /// Takes a machine out; tells whether it is the one that wrote last and no other session of it is left.
    pub(super) fn leave(&self, number: u64) -> bool {
        let mut sessions = self.sessions.lock();
        let Some(at) = sessions.machines.iter().position(|s| s.number == number) else { return false };
        let gone = sessions.machines.swap_remove(at);
        sessions.wrote.as_ref() == Some(&gone.client) && !sessions.machines.iter().any(|s| s.client == gone.client)
    }

    /// Keeps machines out until the answer is dropped, so that none attaches while the bytes are replaced.
    ///
    /// # Errors
    /// `Conflict` with code `attached`, naming the machines, or with [`BEING_CHANGED`].
    pub(super) fn bar(self: &Arc<Self>) -> Result<Barred> {
        let mut sessions = self.sessions.lock();
        if !sessions.machines.is_empty() {
            drop(sessions);
            return Err(attached(&self.device.info().name, &self.clients()));
        }
        if sessions.barred || sessions.gone {
            return Err(self.being_changed());
        }
        sessions.barred = true;
        Ok(Barred(Arc::clone(self)))
    }

    fn being_changed(&self) -> Error {
        Error::conflict(BEING_CHANGED, "its bytes are being replaced")
            .on(self.device.info().name.clone())
            .hint("try again in a moment")
    }

    /// Whether it can no longer be used: another gateway took the clone over.
    pub(super) fn is_dead(&self) -> bool {
        self.volume.as_ref().is_some_and(|volume| volume.status().dead.is_some())
    }

    fn clients(&self) -> Vec<String> {
        let mut clients: Vec<String> = self.sessions.lock().machines.iter().map(|s| s.client.clone()).collect();
        clients.sort();
        clients.dedup();
        clients
    }

    fn is_idle(&self) -> bool {
        !self.used.swap(false, Ordering::Relaxed) && !self.is_in_use()
    }

    /// Whether a machine has it open.
    pub(super) fn is_attached(&self) -> bool {
        !self.sessions.lock().machines.is_empty()
    }

    fn is_in_use(&self) -> bool {
        let sessions = self.sessions.lock();
        sessions.barred || !sessions.machines.is_empty()
    }
}

/// The refusal while machines have a clone open.
pub(super) fn attached(name: &str, clients: &[String]) -> Error {
    Error::conflict("attached", format!("{} has it open", clients.join(", ")))
        .on(name)
        .hint("switch the machine off first")
}

type Names = HashMap<Box<str>, Arc<Open>>;

/// All open devices.
pub(super) struct OpenDevices {
    /// By the texts that were asked for. Reading it takes no lock: it is on the way of every HTTP request.
    names: ArcSwap<Names>,
    /// Keeps one export from being opened twice at once; by the clone or base, so that one whose store does not answer holds up no other.
    opening: Turns<[u8; 16]>,
    numbers: AtomicU64,
    /// Sessions that each clone ever had here.
    begun: Mutex<HashMap<Of, u64>>,
}

impl Default for OpenDevices {
    fn default() -> Self {
        Self {
            names: ArcSwap::default(),
            opening: Turns::default(),
            numbers: AtomicU64::new(1),
            begun: Mutex::default(),
        }
    }
}

impl fmt::Debug for OpenDevices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names.load().keys()).finish()
    }
}

impl OpenDevices {
    /// The open device of this text. The hot path of HTTP.
    pub(super) fn peek(&self, text: &str) -> Option<Arc<dyn Device>> {
        let names = self.names.load();
        let open = names.get(text)?;
        // Written only when it changes something, so that cores do not fight over the line.
        if !open.used.load(Ordering::Relaxed) {
            open.used.store(true, Ordering::Relaxed);
        }
        Some(Arc::clone(&open.device))
    }

    /// The same with everything known about it.
    pub(super) fn find(&self, text: &str) -> Option<Arc<Open>> {
        self.names.load().get(text).cloned()
    }

    /// What is open of a clone or base.
    pub(super) fn of(&self, of: Of) -> Option<Arc<Open>> {
        self.names.load().values().find(|open| open.of == of).cloned()
    }

    /// Held while something is opened or closed.
    pub(super) async fn lock(&self, of: Of) -> tokio::sync::OwnedMutexGuard<()> {
        let bytes = match of {
            Of::Clone(id) | Of::Identity(id) | Of::Snapshot(id, _) => *id.bytes(),
            Of::Base(id) => *id.bytes(),
        };
        self.opening.of(&bytes).await
    }

    /// Lets an open device be found by these texts.
    pub(super) fn insert(&self, texts: &[String], open: &Arc<Open>) {
        self.names.rcu(|names| {
            let mut names = Names::clone(names);
            for text in texts {
                names.insert(text.as_str().into(), Arc::clone(open));
            }
            names
        });
    }

    fn remove(&self, of: Of) -> Option<Arc<Open>> {
        let found = self.of(of)?;
        self.names.rcu(|names| {
            let mut names = Names::clone(names);
            names.retain(|_, open| open.of != of);
            names
        });
        Some(found)
    }

    /// Counts a session that begins.
    pub(super) fn note_session(&self, of: Of) {
        *self.begun.lock().entry(of).or_default() += 1;
    }

    /// Sessions that a clone ever had here.
    pub(super) fn sessions_begun(&self, id: CloneId) -> u64 {
        self.begun.lock().get(&Of::Clone(id)).copied().unwrap_or(0)
    }

    /// A number for a session.
    pub(super) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// The machines that have a clone open.
    pub(super) fn attached(&self, id: CloneId) -> Vec<String> {
        self.of(Of::Clone(id)).map(|open| open.clients()).unwrap_or_default()
    }

    /// Bytes of an open clone's delta, with what is accepted and not in the store yet.
    pub(super) fn delta_bytes(&self, id: CloneId) -> Option<u64> {
        let status = self.of(Of::Clone(id))?.volume.as_ref()?.status();
        Some(status.delta_bytes.saturating_add(status.dirty_bytes))
    }

    /// Volumes whose writes wait because their store has no room.
    pub(super) fn waiting(&self) -> Vec<(CloneId, String)> {
        let names = self.names.load();
        let mut waiting: Vec<(CloneId, String)> = names
            .values()
            .filter_map(|open| open.volume.as_ref())
            .filter(|volume| volume.waits().is_some_and(|error| error.kind() == ErrorKind::Exhausted))
            .map(|volume| (volume.record().id, volume.info().name.clone()))
            .collect();
        waiting.sort();
        waiting.dedup();
        waiting
    }

    /// Forgets a clone whose name is gone. What it has accepted is not wanted any more, so nothing waits for its store.
    pub(super) async fn forget(&self, id: CloneId) {
        let volume = self.remove(Of::Clone(id)).and_then(|open| open.volume.clone());
        if let Some(volume) = volume {
            volume.give_up().await;
        }
        // Whoever is opening or closing it has come to an end.
        let _lock = self.lock(Of::Clone(id)).await;
        if let Some(volume) = self.remove(Of::Clone(id)).and_then(|open| open.volume.clone()) {
            volume.give_up().await;
        }
    }

    /// Forgets the snapshots of a clone, which lie somewhere else now.
    pub(super) fn forget_snapshots(&self, id: CloneId) {
        self.names.rcu(|names| {
            let mut names = Names::clone(names);
            names.retain(|_, open| !matches!(open.of, Of::Snapshot(of, _) if of == id));
            names
        });
    }

    /// Forgets a base that is gone.
    pub(super) fn forget_base(&self, id: BaseId) {
        drop(self.remove(Of::Base(id)));
    }

    /// Forgets what is found by this text, so that the next request looks again.
    pub(super) fn forget_text(&self, text: &str) {
        self.names.rcu(|names| {
            let mut names = Names::clone(names);
            names.remove(text);
            names
        });
    }

    /// Forgets a device that can no longer be used, so that the next request opens it anew.
    pub(super) fn drop_dead(&self, of: Of) {
        drop(self.remove(of));
    }

    /// Forgets all of those.
    pub(super) fn drop_all_dead(&self) {
        let dead: Vec<Of> = self.names.load().values().filter(|open| open.is_dead()).map(|open| open.of).collect();
        for of in dead {
            self.drop_dead(of);
        }
    }

    /// Closes what nobody has used since the last sweep. Templates and snapshots are looked up again in any case: another gateway may have
    /// published, or given one up.
    pub(super) async fn sweep(&self, clock: &Clock) {
        self.names.rcu(|names| {
            let mut names = Names::clone(names);
            names.retain(|text, open| !text.starts_with("template/") && !matches!(open.of, Of::Snapshot(..)));
            names
        });
        let idle: Vec<Arc<Open>> = {
            let names = self.names.load();
            let mut seen = std::collections::HashSet::new();
            // One that waits for its store would hold up those that are closed after it.
            let waits = |open: &Open| open.volume.as_ref().is_some_and(|volume| volume.waits().is_some());
            names.values().filter(|open| seen.insert(open.of) && open.is_idle() && !waits(open)).cloned().collect()
        };
        // One whose store does not answer holds up none of the others, and not the next sweep.
        let close = |open: Arc<Open>| async move {
            // A machine may have come in this moment.
            let (of, in_use) = (open.of, {
                let mut sessions = open.sessions.lock();
                let in_use = sessions.barred || !sessions.machines.is_empty();
                sessions.gone |= !in_use;
                in_use
            });
            drop(open);
            if !in_use {
                self.close(of, clock, PATIENCE).await;
            }
        };
        futures::stream::iter(idle).for_each_concurrent(CLOSES_AT_ONCE, close).await;
    }

    /// Closes everything, flushing it. A store without room, or without an answer, is not waited for for ever: what was flushed is in the journal,
    /// or was never acknowledged.
    pub(super) async fn close_all(&self, clock: &Clock) {
        let all: Vec<Of> = self.names.load().values().map(|open| open.of).collect();
        // A store that is slow for one is not slow for all of them one after the other.
        futures::stream::iter(all).for_each_concurrent(CLOSES_AT_ONCE, |of| self.close(of, clock, PATIENCE)).await;
    }

    /// Closes one device, so that the next request opens it anew.
    pub(super) async fn close_of(&self, of: Of, clock: &Clock) {
        self.close(of, clock, Duration::MAX).await;
    }

    /// Closes one device. Until it is closed nobody can open it again; answers under way are waited for. When nothing has come into its store for
    /// `patience` it is left as it is.
    async fn close(&self, of: Of, clock: &Clock, patience: Duration) {
        let _lock = self.lock(of).await;
        let Some(open) = self.remove(of) else { return };
        open.sessions.lock().gone = true;
        let Some(volume) = open.volume.clone() else { return };
        let begun = clock.instant();
        // Two are in `open` (the volume is its device), one is `volume` here.
        while Arc::strong_count(&open.device) > 3 && begun.elapsed() < LINGER {
            clock.sleep(Duration::from_millis(20)).await;
        }
        let closing = volume.close();
        tokio::pin!(closing);
        let mut moved = clock.instant();
        loop {
            tokio::select! {
                biased;
                closed = &mut closing => {
                    if let Err(error) = closed {
                        tracing::warn!(volume = %open.device.info().name, %error, "it did not close cleanly");
                    }
                    return;
                }
                () = clock.sleep(Duration::from_secs(1)) => {}
            }
            match volume.waits() {
                None => moved = clock.instant(),
                Some(error) if moved.elapsed() >= patience => {
                    tracing::warn!(volume = %open.device.info().name, %error, "it is not closed: its store takes nothing");
                    return;
                }
                Some(_) => {}
            }
        }
    }
}
