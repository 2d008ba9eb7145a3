//! Which machines may still run though they have nothing attached: a lost connection or a restart is not a power-off.

use std::collections::HashSet;

use clonegate_core::Error;
use clonegate_core::format::catalog::CloneEntry;
use clonegate_core::format::clone::Durability;
use clonegate_core::ids::CloneId;
use parking_lot::Mutex;

use super::gateway::Gateway;
use super::open::Of;
use crate::catalog::Named;
use crate::volume::Volume;

/// What this gateway was told of machines since it started.
#[derive(Debug, Default)]
pub(super) struct Machines(Mutex<Told>);

/// What was known of a machine before somebody attached.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Before {
    lost: bool,
    off: bool,
}

#[derive(Debug, Default)]
struct Told {
    /// Their last connection was lost, and nobody said since that they are off.
    lost: HashSet<CloneId>,
    /// They were switched off, and none came since.
    off: HashSet<CloneId>,
}

impl Machines {
    /// A machine attached. Answers what was known before, for [`Machines::again`].
    pub(super) fn attached(&self, id: CloneId) -> Before {
        let mut told = self.0.lock();
        Before { lost: told.lost.remove(&id), off: told.off.remove(&id) }
    }

    /// It was no machine that attached: what was known before holds.
    pub(super) fn again(&self, id: CloneId, before: Before) {
        let mut told = self.0.lock();
        if before.lost {
            told.lost.insert(id);
        }
        if before.off {
            told.off.insert(id);
        }
    }

    /// The connection of the last machine was lost.
    pub(super) fn lost(&self, id: CloneId) {
        self.0.lock().lost.insert(id);
    }

    /// The machine is off, by an event or a good-bye that nobody followed.
    pub(super) fn off(&self, id: CloneId) {
        let mut told = self.0.lock();
        told.lost.remove(&id);
        told.off.insert(id);
    }

    /// Whether its machine was seen to be switched off.
    pub(super) fn is_off(&self, id: CloneId) -> bool {
        self.0.lock().off.contains(&id)
    }

    fn is_lost(&self, id: CloneId) -> bool {
        self.0.lock().lost.contains(&id)
    }
}

impl Gateway {
    /// Why the machine of a clone may be running, when it may: then nothing discards by itself what the clone holds.
    pub(super) fn may_run(&self, clone: &Named<CloneEntry>) -> Option<String> {
        let id = clone.state.record.id;
        let attached = self.open.attached(id);
        if !attached.is_empty() {
            return Some(format!("{} has it open", attached.join(", ")));
        }
        if self.machines.is_off(id) {
            return None;
        }
        if self.machines.is_lost(id) {
            return Some("its machine lost the connection and may still run".to_owned());
        }
        clone.state.left_running.then(|| "its machine ran when the gateway stopped, and may still run".to_owned())
    }

    /// Fails when another gateway has the clone open: a machine may run there, for all that is known here.
    pub(super) async fn check_not_elsewhere(
        &self,
        clone: &Named<CloneEntry>,
        volume: &Volume,
    ) -> clonegate_core::Result<()> {
        // A `local` clone is not taken over from a journal that may hold its last writes; that is refused below.
        if clone.state.record.durability == Durability::Local {
            return Ok(());
        }
        volume.owner_elsewhere().await?.map_or(Ok(()), |gateway| {
            Err(Error::conflict("open-elsewhere", format!("the gateway {gateway} has it open"))
                .on(clone.name.as_str())
                .hint(format!(
                    "if that gateway is gone, or does nothing with it: clonegate clone take-over {}",
                    clone.name
                )))
        })
    }

    /// The machine of a clone is off.
    pub(super) async fn note_off(&self, clone: &Named<CloneEntry>) -> clonegate_core::Result<()> {
        self.machines.off(clone.state.record.id);
        if !clone.state.left_running {
            return Ok(());
        }
        let clear = |entry: &mut CloneEntry| {
            entry.left_running = false;
            Ok(())
        };
        self.catalog.change(&clone.name, clear).await.map(drop)
    }

    /// Writes down which machines run, for whoever serves their clones next.
    pub(super) async fn note_running_machines(&self) {
        for clone in self.catalog.remembered_all::<CloneEntry>() {
            let id = clone.state.record.id;
            let runs = self.open.of(Of::Clone(id)).is_some_and(|open| open.is_attached()) || self.machines.is_lost(id);
            if !runs || clone.state.left_running {
                continue;
            }
            let note = |entry: &mut CloneEntry| {
                entry.left_running |= entry.record.id == id;
                Ok(())
            };
            if let Err(error) = self.catalog.change(&clone.name, note).await {
                tracing::warn!(clone = %clone.name, %error, "that its machine runs could not be written down");
            }
        }
    }
}
