//! Updates that run and that nobody does: their gateway died after it wrote one down and before it made the job.

use std::sync::Arc;

use clonegate_core::Result;
use clonegate_core::format::catalog::RolloutEntry;

use super::gateway::Gateway;
use super::jobs::STALE;
use super::rollouts::{runs, subject};
use super::views::ListJobs;

impl Gateway {
    /// Makes the jobs of updates that run without one: those of this gateway's last life at its start, those of others once they have been
    /// seen like that for as long as a dead gateway's jobs are left alone.
    pub(super) async fn adopt_rollouts(self: &Arc<Self>, at_start: bool) {
        if let Err(error) = self.look_at_rollouts(at_start).await {
            tracing::debug!(%error, "updates that nobody does could not be looked at");
        }
    }

    async fn look_at_rollouts(self: &Arc<Self>, at_start: bool) -> Result<()> {
        let mut all = self.catalog.list::<RolloutEntry>().await?;
        all.retain(|rollout| runs(rollout.state.state));
        self.unattended.lock().retain(|name, _| all.iter().any(|rollout| rollout.name == *name));
        for rollout in all {
            let (name, run) = (&rollout.name, rollout.state.run);
            let of = ListJobs { subject: Some(subject(name, run)), under_way: true, ..ListJobs::default() };
            if !Arc::clone(self).do_list_jobs(of).await?.items.is_empty() {
                self.unattended.lock().remove(name);
                continue;
            }
            let now = self.clock.instant();
            let since = {
                let mut seen = self.unattended.lock();
                let entry = seen.entry(name.clone()).or_insert((run, now));
                if entry.0 != run {
                    *entry = (run, now);
                }
                entry.1
            };
            let ours = rollout.state.gateway == self.settings.gateway;
            if (ours && at_start) || now.duration_since(since) >= STALE {
                tracing::info!(template = %name, "going on with an update that nobody does");
                self.start_rollout_job(name, run, rollout.state.total).await?;
            }
        }
        Ok(())
    }
}
