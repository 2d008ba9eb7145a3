//! The journal on a gateway's disk: flushed writes of all `local` clones until they are in the store.
//!
//! One journal per gateway. A thread takes whatever has been submitted, by however many clones, writes it and syncs it
//! once: that is the group commit. Files have a fixed size, are filled with zeroes before use and used again, so that a
//! sync has data to write and no metadata. See ADR 4.

mod file;
mod recover;
#[cfg(test)]
mod tests;
mod thin;
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

/// A batch of a volume; of two, the later is the greater. A life that begins anew may give numbers again that one before it gave: its epoch
/// is higher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BatchAt {
    pub(crate) epoch: Epoch,
    pub(crate) number: u64,
}

/// One batch for the journal.
pub(crate) struct Submission {
    pub(crate) clone: CloneId,
    pub(crate) at: BatchAt,
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
    standing: Mutex<Standing>,
}

/// How far the journal is ahead of the store.
#[derive(Default)]
struct Standing {
    /// The newest batch of each volume that was handed over and is not in the store.
    ahead: HashMap<CloneId, BatchAt>,
    /// Released since the last group: taken in there, so that nobody waits for a sync to say so.
    released: HashMap<CloneId, BatchAt>,
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
            standing: Mutex::default(),
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
        self.shared.standing.lock().ahead.insert(submission.clone, submission.at);
        self.shared.queue.lock().waiting.push(submission);
        if self.settings.inline {
            self.shared.append_waiting();
        } else {
            self.shared.ready.notify_one();
        }
    }

    /// Says that batches of a clone up to this one are in the store, or given up.
    pub(crate) fn release(&self, clone: CloneId, upto: BatchAt) {
        let mut standing = self.shared.standing.lock();
        let newest = standing.released.entry(clone).or_insert(upto);
        *newest = (*newest).max(upto);
        if standing.ahead.get(&clone).is_some_and(|ahead| *ahead <= upto) {
            standing.ahead.remove(&clone);
        }
    }

    /// The clones of which something was found at start, whole or broken.
    pub(crate) fn pending(&self) -> Vec<CloneId> {
        let mut clones: Vec<CloneId> = self.found.lock().keys().copied().collect();
        clones.extend(self.damage.lock().clones());
        clones.sort_unstable();
        clones.dedup();
        clones
    }

    /// The clones of which this process journaled something that is not in the store yet.
    pub(crate) fn ahead(&self) -> Vec<CloneId> {
        self.shared.standing.lock().ahead.keys().copied().collect()
    }

    /// Where the journal is damaged in what it may have held of a clone behind batch `mark`, in an epoch that was claimed at this time.
    pub(crate) fn damage(&self, clone: CloneId, mark: u64, claimed_ms: u64) -> Option<String> {
        self.damage.lock().befalls(clone, mark, claimed_ms)
    }

    /// Whether the journal has anything of this clone, which nobody has open, that may not be in the store: it was found at start, or an owner in
    /// this process ended before it was there.
    pub(crate) fn has_pending(&self, clone: CloneId) -> bool {
        let ahead = self.shared.standing.lock().ahead.contains_key(&clone);
        ahead || self.found.lock().contains_key(&clone) || self.damage.lock().is_known_of(clone)
    }

    /// What [`Journal::has_pending`] speaks of, in order. Waits for the disk: the journal's whole files may have to be read.
    ///
    /// # Errors
    /// What reading gives.
    pub(crate) fn read_pending(&self, clone: CloneId) -> Result<Vec<Entry>> {
        let mut refs = self.found.lock().get(&clone).cloned().unwrap_or_default();
        if !self.shared.standing.lock().ahead.contains_key(&clone) {
            return recover::read(&self.settings.path, &refs);
        }
        let files = self.shared.halt(clone);
        let read = recover::entries_of(&self.settings.path, self.id, &files, clone).and_then(|of_files| {
            refs.extend(of_files);
            recover::put_in_order(&mut refs);
            recover::read(&self.settings.path, &refs)
        });
        self.shared.files.lock().readers -= 1;
        read
    }

    /// Everything that the journal has of a clone, up to this batch, is in the store, or given up.
    pub(crate) fn settle(&self, clone: CloneId, upto: BatchAt) {
        self.release(clone, upto);
        let found = self.found.lock().remove(&clone).is_some();
        let known = self.damage.lock().is_known_of(clone);
        if !found && !known {
            return;
        }
        self.damage.lock().forget(clone);
        self.shared.files.lock().forget_found(clone);
    }

    /// Forgets a clone that is gone.
    pub(crate) fn forget(&self, clone: CloneId) {
        self.settle(clone, BatchAt { epoch: Epoch(u64::MAX), number: u64::MAX });
    }
}

impl Shared {
    /// The thread: everything that waits is one group.
    fn serve(&self) {
        let mut unmarked = false;
        loop {
            let idle = {
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
                queue.waiting.is_empty()
            };
            if idle {
                self.files.lock().mark();
            } else {
                self.append_waiting();
            }
            unmarked = !idle;
        }
    }

    /// Appends what waits, as one group. It is taken from the queue with the files held, so that whoever holds them sees all that is not in them.
    fn append_waiting(&self) {
        let mut files = self.files.lock();
        let group = std::mem::take(&mut self.queue.lock().waiting);
        files.release(std::mem::take(&mut self.standing.lock().released));
        files.append(group);
    }

    /// Takes back what waits of a clone whose owner ended: nobody is told that it is flushed. The files that have something of it which is not
    /// in the store: they stay until that is released, and as they are for as long as there are readers, of which there is one more now.
    fn halt(&self, clone: CloneId) -> Vec<u64> {
        let mut files = self.files.lock();
        let halted: Vec<Submission> = self.queue.lock().waiting.extract_if(.., |s| s.clone == clone).collect();
        files.release(std::mem::take(&mut self.standing.lock().released));
        let holding = files.holding(clone);
        files.readers += 1;
        drop(files);
        for submission in halted {
            (submission.done)(Err(Error::unavailable("stopping", "its owner ended")));
        }
        holding
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
        files.release(std::mem::take(&mut self.shared.standing.lock().released));
        files.mark();
        files.retire_current();
    }
}
