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

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::path::Path;
    use std::sync::Arc;
    use std::time::SystemTime;

    use clonegate_core::format::catalog::DatastoreEntry;
    use clonegate_core::ids::{GatewayId, Name};

    use super::*;
    use crate::clock::Clock;
    use crate::delta::DeltaSettings;
    use crate::lifecycle::advisor::BuiltIn;
    use crate::lifecycle::{DatastoreSettings, GatewaySettings};
    use crate::store::StoreConfig;

    async fn gateway(dir: &Path) -> Arc<Gateway> {
        let url = |part: &str| StoreConfig::new(format!("file://{}/{part}", dir.display()));
        let settings = GatewaySettings {
            home: url("home"),
            datastores: vec![DatastoreSettings::new(Name::new("local").unwrap(), url("store"))],
            sources: Vec::new(),
            gateway: GatewayId::from_bytes([1; 16]),
            host: "here".to_owned(),
            icache_bytes: 1 << 20,
            delta: DeltaSettings { journal: None, ..DeltaSettings::default() },
            idle_close: Duration::from_secs(300),
            power_off_grace: Duration::from_secs(30),
            slots_per_base: 128,
        };
        Gateway::start(settings, Arc::new(BuiltIn), Clock::simulated(1)).await.unwrap()
    }

    /// Changes the datastore so often, and makes all its states a month old.
    async fn change(gateway: &Gateway, states: &Path, times: u32) {
        for n in 0..times {
            let set = |entry: &mut DatastoreEntry| {
                entry.overcommit_percent = 200 + n;
                Ok(())
            };
            gateway.catalog.change(&Name::new("local").unwrap(), set).await.unwrap();
        }
        let old =
            SystemTime::UNIX_EPOCH + Duration::from_millis(gateway.clock.now_ms()) - Duration::from_secs(30 * 86_400);
        for state in fs::read_dir(states).unwrap() {
            File::options().write(true).open(state.unwrap().path()).unwrap().set_modified(old).unwrap();
        }
    }

    fn names(states: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(states).unwrap().map(|state| state.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        names
    }

    #[tokio::test(start_paused = true)]
    async fn a_gateway_takes_away_what_was_superseded_by_itself_and_fsck_with_repair_only() {
        let dir = tempfile::tempdir().unwrap();
        let states = dir.path().join("home/catalog/datastore");
        let first = gateway(dir.path()).await;
        change(&first, &states, 5).await;
        assert_eq!(names(&states).len(), 6);
        Arc::clone(&first).do_fsck(false, None, false).await.unwrap();
        assert_eq!(names(&states).len(), 6, "a look changes nothing");
        Arc::clone(&first).do_fsck(true, None, false).await.unwrap();
        assert_eq!((names(&states), first.states_pruned()), (vec!["local.1".to_owned(), "local.6".to_owned()], 4));
        change(&first, &states, 3).await;
        first.clock.sleep(FIRST + PERIOD).await;
        while names(&states).len() > 2 {
            first.clock.sleep(Duration::from_secs(60)).await;
        }
        assert_eq!(names(&states), ["local.1", "local.9"]);
    }
}
