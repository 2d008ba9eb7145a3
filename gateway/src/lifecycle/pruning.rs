//! Takes away, in the background, states of names that were superseded days ago.

use std::sync::Weak;
use std::time::Duration;

use clonegate_core::Result;

use super::gateway::Gateway;
use crate::store::making_room;

/// The first look comes so long after the start, when those who start have what they need.
const FIRST: Duration = Duration::from_secs(300);
/// And then so often: before the listing that comes with it is too old to look for names from.
const PERIOD: Duration = Duration::from_secs(6 * 3600);

impl Gateway {
    /// Looks from now on.
    pub(super) fn tend_catalog(&self) {
        let (me, clock) = (Weak::clone(&self.me), self.clock.clone());
        self.handle.spawn(making_room(async move {
            clock.sleep(FIRST).await;
            loop {
                let Some(gateway) = me.upgrade() else { return };
                if let Err(error) = gateway.prune_catalog().await {
                    tracing::warn!(%error, "states of names that were superseded days ago stay for now");
                }
                drop(gateway);
                clock.sleep(PERIOD).await;
            }
        }));
    }

    pub(super) async fn prune_catalog(&self) -> Result<()> {
        let pruned = self.catalog.prune().await?;
        if pruned > 0 {
            tracing::info!(pruned, "states of names that were superseded days ago were taken away");
        }
        Ok(())
    }

    /// States of names that this gateway took away since it started.
    pub fn states_pruned(&self) -> u64 {
        self.catalog.pruned()
    }
}
