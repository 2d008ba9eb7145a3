//! Puts flushed writes that only this gateway's journal has into the store, whether or not anybody opens their clones.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use clonegate_core::format::catalog::{CloneEntry, DiskEntry};
use clonegate_core::ids::CloneId;
use clonegate_core::{ErrorKind, Result};

use super::gateway::Gateway;
use crate::exports::{CloneRef, ExportName};
use crate::store::keys;

/// How long to wait for a store that does not answer.
const AGAIN: Duration = Duration::from_secs(15);

/// What became of one volume's entries.
enum Outcome {
    Shipped,
    /// The volume was deleted.
    GivenUp,
    /// No store here has it.
    Unknown,
    /// Something of them is lost, and an operator has to say yes to that.
    Held,
}

impl Gateway {
    /// Begins to ship what the journal holds of volumes that nobody has open; goes on in the background for as long as the gateway lives, since an
    /// owner may end here before everything that it flushed is in the store.
    pub(super) fn ship_pending(self: &Arc<Self>) {
        let pending = self.engine.pending_clones().len();
        if pending > 0 {
            tracing::info!(volumes = pending, "the journal holds flushed writes that may not be in the store yet");
        }
        let (me, clock) = (std::sync::Weak::clone(&self.me), self.clock.clone());
        self.handle.spawn(async move {
            // Those for which nothing more can be done here; it is said once.
            let mut told: HashSet<CloneId> = HashSet::new();
            loop {
                let Some(gateway) = me.upgrade() else { return };
                let pending = gateway.engine.pending_clones();
                told.retain(|id| pending.contains(id));
                for id in pending {
                    if !told.contains(&id) && !gateway.ship_or_say_why(id).await {
                        told.insert(id);
                    }
                }
                drop(gateway);
                clock.sleep(AGAIN).await;
            }
        });
    }

    /// False when trying again is of no use.
    async fn ship_or_say_why(self: &Arc<Self>, id: CloneId) -> bool {
        match self.ship(id).await {
            Ok(Outcome::Shipped) => tracing::info!(volume = %id, "flushed writes of the journal are in the store"),
            Ok(Outcome::GivenUp) => self.engine.forget(id),
            Ok(Outcome::Unknown) => {
                tracing::warn!(volume = %id,
                    "the journal holds flushed writes of a volume that no store here has; they stay in it");
                return false;
            }
            Ok(Outcome::Held) => {
                tracing::error!(volume = %id,
                    "the journal does not hold all that it should of a volume: `clonegate clone accept-loss` says what");
                return false;
            }
            Err(error) if error.kind() == ErrorKind::Unavailable => {}
            Err(error) => {
                tracing::error!(volume = %id, %error, "flushed writes of the journal could not be put into the store");
                return false;
            }
        }
        true
    }

    async fn ship(self: &Arc<Self>, id: CloneId) -> Result<Outcome> {
        let clones = self.catalog.list::<CloneEntry>().await?;
        let disks = self.catalog.list::<DiskEntry>().await?;
        let name = if clones.iter().any(|clone| clone.state.record.id == id) {
            ExportName::Clone(CloneRef::Id(id))
        } else if disks.iter().any(|disk| disk.state.record.id == id) {
            ExportName::Disk(CloneRef::Id(id))
        } else {
            return self.look_for_tombstone(id).await;
        };
        // Opening it puts them into the store; it is closed when nobody uses it.
        Arc::clone(self).open_export(name).await?;
        let held = self.engine.pending_clones().contains(&id);
        Ok(if held { Outcome::Held } else { Outcome::Shipped })
    }

    /// Only a volume that is known to be deleted is given up: a wrong configuration must lose nothing.
    async fn look_for_tombstone(&self, id: CloneId) -> Result<Outcome> {
        for datastore in self.datastores.all() {
            datastore.check_online()?;
            match datastore.store.head(&keys::deleted(id)).await {
                Ok(_) => return Ok(Outcome::GivenUp),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Outcome::Unknown)
    }
}
