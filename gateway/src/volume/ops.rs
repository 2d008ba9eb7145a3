//! What replaces or keeps the whole volume: reset, snapshot, restore, undo. One record each, whatever the delta's size.

use std::sync::Arc;

use clonegate_core::format::clone::Durability;
use clonegate_core::format::log::Change;
use clonegate_core::ids::{BaseId, Name};
use clonegate_core::limits::SNAPSHOTS_MAX;
use clonegate_core::{Error, Result};
use tokio::sync::oneshot;

use super::base::BaseRead;
use super::commit::{Command, Committer, closed};
use super::core::Core;
use super::fill::Needed;
use crate::delta::load::read_checkpoint;
use crate::device::Version;

/// A change of the whole volume.
#[derive(Debug)]
pub(super) enum Operation {
    /// Keep the present state under a name, as if it had been done at a time, milliseconds since 1970 UTC.
    Snapshot(Name, Option<u64>),
    /// Give a snapshot up.
    DropSnapshot(Name),
    /// Be what a snapshot says.
    Restore(Name),
    /// Drop the delta; be this base, or the present one.
    Reset(Option<Arc<dyn BaseRead>>),
    /// Take the last reset or restore back.
    Undo,
    /// Let the base go: the delta holds all of it.
    Promote(Needed),
}

impl Core {
    /// Has the committer do it, alone when it replaces what is accepted.
    pub(super) async fn operate(self: &Arc<Self>, operation: Operation) -> Result<()> {
        self.own().await?;
        let replaces = !matches!(operation, Operation::Snapshot(..) | Operation::DropSnapshot(_));
        // A task of its own, so that the gate is not let go before the record is where it belongs.
        let core = Arc::clone(self);
        let task = self.engine.handle.spawn(async move {
            let _gate = if replaces { Some(core.gate.write().await) } else { None };
            let (reply, answer) = oneshot::channel();
            let sent = core.commands.lock().as_ref().is_some_and(|c| c.send(Command::Do(operation, reply)).is_ok());
            if !sent {
                return Err(closed(&core));
            }
            answer.await.map_err(|_| closed(&core))?
        });
        task.await.map_err(|_| super::read::stopping())?
    }

    pub(super) fn unknown_snapshot(&self, name: &Name) -> Error {
        Error::not_found("unknown-snapshot", format!("there is no snapshot {name}"))
            .on(self.record.name.to_string())
            .hint(format!("clonegate clone snapshots {}", self.record.name))
    }
}

impl Committer {
    pub(super) async fn operate(&mut self, operation: Operation) -> Result<()> {
        match operation {
            Operation::Snapshot(name, made_ms) => self.snapshot(name, made_ms).await,
            Operation::DropSnapshot(name) => {
                if self.core.state.read().log.kept(Some(&name)).is_none() {
                    return Err(self.core.unknown_snapshot(&name));
                }
                self.drain().await?;
                let (record, upto) = self.record(Change::DropSnapshot { name }, 0, None);
                self.put_alone(record, upto).await
            }
            Operation::Restore(name) => self.restore(Some(name)).await,
            Operation::Undo => self.restore(None).await,
            Operation::Promote(needed) => self.promote(&needed).await,
            Operation::Reset(base) => self.reset(base).await,
        }
    }

    async fn snapshot(&mut self, name: Name, made_ms: Option<u64>) -> Result<()> {
        if self.core.mode == Durability::Ephemeral {
            return Err(Error::unsupported("ephemeral", "an ephemeral volume keeps nothing, so it has no snapshots")
                .on(self.core.record.name.to_string())
                .hint("create the clone with durability local or object"));
        }
        let full = {
            let state = self.core.state.read();
            let named = state.log.kept.iter().filter(|k| k.kept.name.is_some()).count();
            named >= SNAPSHOTS_MAX && state.log.kept(Some(&name)).is_none()
        };
        if full {
            return Err(Error::exhausted("too-many-snapshots", format!("a clone has at most {SNAPSHOTS_MAX}"))
                .on(self.core.record.name.to_string())
                .hint("drop one first"));
        }
        self.drain().await?;
        let (mut record, upto) = self.record(Change::Snapshot { name }, 0, None);
        record.time_ms = made_ms.unwrap_or(record.time_ms);
        self.put_alone(record, upto).await
    }

    /// One record, put only when everything that it speaks of is in the log.
    async fn promote(&mut self, needed: &Needed) -> Result<()> {
        self.drain().await?;
        {
            let state = self.core.state.read();
            let name = || self.core.record.name.to_string();
            if state.log.kept.iter().any(|k| k.kept.name.is_some() && k.kept.base.is_some()) {
                return Err(Error::conflict("has-snapshots", "snapshots of it need the base").on(name()));
            }
            let base = state.base.as_ref().map(|base| base.id());
            if base != Some(needed.base) || needed.missing(&state).is_some() {
                return Err(Error::conflict("base-needed", "the delta does not hold all of the base").on(name()));
            }
        }
        let (record, upto) = self.record(Change::Promote, 0, Some(None));
        self.put_alone(record, upto).await?;
        let mut state = self.core.state.write();
        state.base = None;
        self.core.publish(&state);
        Ok(())
    }

    fn undo_until_ms(&self) -> u64 {
        let window = u64::try_from(self.core.engine.settings.undo_window.as_millis()).unwrap_or(u64::MAX);
        if window == 0 || self.core.mode == Durability::Ephemeral {
            return 0;
        }
        self.core.engine.clock.now_ms().saturating_add(window)
    }

    async fn reset(&mut self, base: Option<Arc<dyn BaseRead>>) -> Result<()> {
        // What can be undone to is what was accepted, so that goes into the log first; otherwise it is dropped unread.
        let undo_until_ms = self.undo_until_ms();
        if undo_until_ms > 0 {
            self.drain().await?
        } else {
            self.settle().await?
        }
        let base = match base {
            Some(base) => Some(base),
            None => self.core.state.read().base.clone(),
        };
        let id = base.as_ref().map(|base| base.id());
        let (record, upto) = self.record(Change::Reset { undo_until_ms }, 1, Some(id));
        self.replace(record, upto, base).await
    }

    async fn restore(&mut self, name: Option<Name>) -> Result<()> {
        let undo_until_ms = self.undo_until_ms();
        self.drain().await?;
        let (what, base) = {
            let state = self.core.state.read();
            let kept = state.log.kept(name.as_ref());
            let now = self.core.engine.clock.now_ms();
            match (kept, name) {
                (Some(kept), Some(name)) => (Change::Restore { name, undo_until_ms }, kept.kept.base),
                (Some(kept), None) if kept.kept.until_ms > now => (Change::Undo, kept.kept.base),
                (None, Some(name)) => return Err(self.core.unknown_snapshot(&name)),
                _ => {
                    return Err(Error::conflict("nothing-to-undo", "there is no reset or restore to take back")
                        .on(self.core.record.name.to_string()));
                }
            }
        };
        let needs = self.core.state.read().log.needs(&what);
        if let Some(at) = needs {
            let loaded = read_checkpoint(&self.core.store, self.core.record.id, at, None).await?;
            self.core.state.write().log.load_kept(at, &loaded);
        }
        let device = self.core.base(base).await?;
        let (record, upto) = self.record(what, 1, Some(base));
        self.replace(record, upto, device).await
    }

    /// Puts a record that makes the volume another one, and forgets what was accepted before it.
    async fn replace(
        &mut self,
        record: clonegate_core::format::log::CommitRecord,
        upto: u64,
        base: Option<Arc<dyn BaseRead>>,
    ) -> Result<()> {
        let (change, time_ms) = (record.change, record.time_ms);
        let life = super::own::life(&self.core.record, self.next.epoch);
        self.forget_parts(upto);
        self.put_alone(record, upto).await?;
        let mut state = self.core.state.write();
        state.open.take();
        state.sealed.take();
        state.queue.clear();
        state.unjournaled.clear();
        state.queue_bytes = 0;
        state.open_bytes = 0;
        state.open_since = None;
        state.open_room = super::room::Room::default();
        state.next_batch = state.next_batch.max(upto + 1);
        state.base = base;
        state.version = Version { life, change };
        state.modified_ms = time_ms;
        self.core.publish(&state);
        Ok(())
    }
}

impl Core {
    /// The base of this id, from the provider.
    pub(super) async fn base(&self, id: Option<BaseId>) -> Result<Option<Arc<dyn BaseRead>>> {
        match id {
            None => Ok(None),
            Some(id) => {
                let now = self.state.read().base.clone();
                match now {
                    Some(base) if base.id() == id => Ok(Some(base)),
                    _ => self.bases.base(id).await.map(Some),
                }
            }
        }
    }
}
