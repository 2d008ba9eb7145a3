//! The journal on a gateway's disk: flushed writes of all `local` clones until they are in the store.
//!
//! One journal per gateway. A thread takes whatever has been submitted, by however many clones, writes it and syncs it
//! once: that is the group commit. Files have a fixed size, are filled with zeroes before use and used again, so that a
//! sync has data to write and no metadata. See ADR 4.

mod file;
mod recover;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clonegate_core::format::journal::Entry;
use clonegate_core::format::log::Run;
use clonegate_core::ids::{CloneId, Epoch, Nonce};
use clonegate_core::{Error, Result};
use parking_lot::{Condvar, Mutex};

use self::recover::{Damage, EntryRef};
use self::writer::Files;
use crate::clock::Clock;

/// When nothing was submitted for so long, it is noted that the last group was synced: no flush waits for that.
const IDLE: Duration = Duration::from_millis(100);

/// How the journal is kept.
#[derive(Debug, Clone)]
pub(crate) struct JournalSettings {
    /// Its directory; made when it is not there.
    pub(crate) path: PathBuf,
    /// Whose it is: a journal of another owner is refused.
    pub(crate) owner: String,
    /// Size of a file, bytes.
    pub(crate) file_bytes: u64,
    /// Write and sync where it is submitted rather than in a thread; for simulations, where time stands still.
    pub(crate) inline: bool,
    /// Says that the disk has no room left; for simulations.
    pub(crate) full: Arc<AtomicBool>,
}

/// One batch for the journal.
pub(crate) struct Submission {
    pub(crate) clone: CloneId,
    pub(crate) epoch: Epoch,
    pub(crate) number: u64,
    pub(crate) change: u64,
    pub(crate) time_ms: u64,
    pub(crate) runs: Vec<Run>,
    /// Told when it is synced, or that it will not be.
    pub(crate) done: Box<dyn FnOnce(Result<()>) + Send>,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<Submission>,
    stopping: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    ready: Condvar,
    /// Held while a group is written and synced.
    files: Mutex<Files>,
    /// Released since the last group: taken in there, so that nobody waits for a sync to say so.
    released: Mutex<HashMap<CloneId, u64>>,
}

/// See the module.
pub(crate) struct Journal {
    id: Nonce,
    settings: JournalSettings,
    shared: Arc<Shared>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
    /// What was found at start and is not known to be in the store.
    found: Mutex<HashMap<CloneId, Vec<EntryRef>>>,
    /// What was there and can no longer be read.
    damage: Mutex<Damage>,
    _lock: std::fs::File,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Journal({})", self.settings.path.display())
    }
}

pub(crate) fn io_error(path: &Path, error: std::io::Error) -> Error {
    let full = error.kind() == std::io::ErrorKind::StorageFull;
    let made = if full {
        Error::exhausted("disk-full", "the disk of the journal is full").hint("make room there")
    } else if error.kind() == std::io::ErrorKind::PermissionDenied {
        Error::denied("journal-io", "the journal cannot be written").hint("let the gateway's user write there")
    } else {
        Error::unavailable("journal-io", "the journal cannot be read or written")
    };
    made.on(path.display().to_string()).because(error)
}

impl Journal {
    /// Opens the journal, or makes it, and reads what is in it.
    ///
    /// # Errors
    /// `Conflict` with code `journal-in-use` or `journal-of-another`; `Exhausted`, `Denied`, `Unavailable`. Damage in what it holds is
    /// none: see [`Journal::damage`].
    pub(crate) fn open(settings: JournalSettings, clock: &Clock) -> Result<Self> {
        let (id, lock) = file::enter(&settings, clock)?;
        let recovered = recover::scan(&settings.path, id)?;
        let files = Files::new(settings.clone(), id, clock.clone(), recovered.files);
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue::default()),
            ready: Condvar::new(),
            files: Mutex::new(files),
            released: Mutex::new(HashMap::new()),
        });
        let thread = if settings.inline {
            None
        } else {
            let shared = Arc::clone(&shared);
            let spawned = std::thread::Builder::new().name("journal".to_owned()).spawn(move || shared.serve());
            Some(spawned.map_err(|e| io_error(&settings.path, e))?)
        };
        let (found, damage) = (Mutex::new(recovered.entries), Mutex::new(recovered.damage));
        Ok(Self { id, settings, shared, thread: Mutex::new(thread), found, damage, _lock: lock })
    }

    /// Names the journal in claims.
    pub(crate) fn id(&self) -> Nonce {
        self.id
    }

    /// Hands a batch over. Batches of one clone have to come in their order.
    pub(crate) fn submit(&self, submission: Submission) {
        if self.settings.inline {
            self.shared.append(vec![submission]);
            return;
        }
        self.shared.queue.lock().waiting.push(submission);
        self.shared.ready.notify_one();
    }

    /// Says that batches of a clone up to `number` are in the store.
    pub(crate) fn release(&self, clone: CloneId, number: u64) {
        let mut released = self.shared.released.lock();
        let newest = released.entry(clone).or_default();
        *newest = (*newest).max(number);
    }

    /// The clones of which something was found at start, whole or broken.
    pub(crate) fn pending(&self) -> Vec<CloneId> {
        let mut clones: Vec<CloneId> = self.found.lock().keys().copied().collect();
        clones.extend(self.damage.lock().clones());
        clones.sort_unstable();
        clones.dedup();
        clones
    }

    /// Where the journal is damaged in what it may have held of a clone behind batch `mark`, in an epoch that was claimed at this time.
    pub(crate) fn damage(&self, clone: CloneId, mark: u64, claimed_ms: u64) -> Option<String> {
        self.damage.lock().befalls(clone, mark, claimed_ms)
    }

    /// Whether anything of this clone was found at start.
    pub(crate) fn has_pending(&self, clone: CloneId) -> bool {
        self.found.lock().contains_key(&clone) || self.damage.lock().is_known_of(clone)
    }

    /// What was found of a clone at start, in order.
    ///
    /// # Errors
    /// What reading gives.
    pub(crate) fn read_pending(&self, clone: CloneId) -> Result<Vec<Entry>> {
        let refs = self.found.lock().get(&clone).cloned().unwrap_or_default();
        recover::read(&self.settings.path, &refs)
    }

    /// What was found of a clone at start is in the store, or given up.
    pub(crate) fn forget_pending(&self, clone: CloneId) {
        let found = self.found.lock().remove(&clone).is_some();
        let known = self.damage.lock().is_known_of(clone);
        if !found && !known {
            return;
        }
        self.damage.lock().forget(clone);
        self.shared.files.lock().forget_found(clone);
    }
}

impl Shared {
    /// The thread: everything that waits is one group.
    fn serve(&self) {
        let mut unmarked = false;
        loop {
            let group = {
                let mut queue = self.queue.lock();
                while queue.waiting.is_empty() && !queue.stopping {
                    if !unmarked {
                        self.ready.wait(&mut queue);
                    } else if self.ready.wait_for(&mut queue, IDLE).timed_out() {
                        break;
                    }
                }
                if queue.waiting.is_empty() && queue.stopping {
                    return;
                }
                std::mem::take(&mut queue.waiting)
            };
            if group.is_empty() {
                self.files.lock().mark();
                unmarked = false;
            } else {
                self.append(group);
                unmarked = true;
            }
        }
    }

    fn append(&self, group: Vec<Submission>) {
        let mut files = self.files.lock();
        let released = std::mem::take(&mut *self.released.lock());
        files.release(released);
        files.append(group);
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.shared.queue.lock().stopping = true;
        self.shared.ready.notify_all();
        if let Some(thread) = self.thread.lock().take() {
            // It may be the thread itself that lets go of the last handle: then it ends by itself.
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
        let mut files = self.shared.files.lock();
        files.release(std::mem::take(&mut *self.shared.released.lock()));
        files.mark();
        files.retire_current();
    }
}
