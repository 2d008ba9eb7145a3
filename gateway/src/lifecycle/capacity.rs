//! How much space clones need, which limit binds first, and what linked cloning saves now.

use std::sync::Arc;

use clonegate_core::format::catalog::CloneEntry;
use clonegate_core::ids::Name;
use clonegate_core::{Error, Result};

use super::gateway::Gateway;
use super::views::{CapacityLine, CapacityQuery, CapacityView, Savings};

/// Least that a delta is reckoned with, bytes.
const DELTA_MIN: u64 = 3 << 30;
/// Averages that are usual for tasks, offices and power users, bytes.
const DELTA_USUAL: [u64; 3] = [5 << 30, 10 << 30, 12 << 30];
/// Identity of a machine, bytes.
const IDENTITY: u64 = 16 << 20;
/// Clones that must have been open for their growth to count as measured.
const MEASURED_MIN: usize = 10;

impl Gateway {
    /// Space for so many clones of a template: `bases × size + clones × delta`, twice the bases while an update is staged.
    pub(super) async fn do_capacity(self: Arc<Self>, query: CapacityQuery) -> Result<CapacityView> {
        let template = Name::new(query.template.as_str())?;
        if query.clones == 0 {
            return Err(Error::invalid("bad-count", "a capacity for no clones").hint("give --clones N"));
        }
        let version = self.version_for_clones(&template, None).await?;
        self.refresh_all().await?;
        let clones = u64::from(query.clones);
        let bases = u64::from(query.clones.div_ceil(version.slots));
        let staged = if query.staged_update { 2 } else { 1 };
        // In packs a base of a version is stored once for each datastore, however many bases there are.
        let stored = version.stored_bytes.max(1);
        let need = |delta: u64| {
            let deltas = clones.saturating_mul(delta.min(version.size).saturating_add(IDENTITY));
            stored.saturating_mul(staged).saturating_add(deltas)
        };
        let measured = self.measured_delta(&template).await;
        let mut lines = vec![line("minimum", DELTA_MIN.min(version.size), need(DELTA_MIN))];
        match (query.average, measured) {
            (Some(average), _) => lines.push(line("average (given)", average, need(average))),
            (None, Some(average)) => lines.push(line("average (measured)", average, need(average))),
            (None, None) => {
                lines.extend(
                    DELTA_USUAL.map(|average| line("average (usual)", average.min(version.size), need(average))),
                );
            }
        }
        lines.push(line("maximum", version.size, need(version.size)));
        let full = clones.saturating_mul(version.size);
        let free: u64 = self
            .datastores
            .all()
            .iter()
            .filter(|d| d.health() == clonegate_core::advice::Health::Online && d.entry().thin)
            .filter_map(|d| d.free())
            .map(|free| free.min(super::datastores::NO_END))
            .fold(0, u64::saturating_add);
        let binds = match lines.iter().find(|l| l.bytes > free) {
            Some(line) => format!("free space ({free} bytes) binds at the {}", line.case),
            None => format!("nothing binds: {bases} bases of {} slots are made as they are needed", version.slots),
        };
        Ok(CapacityView {
            template: format!("{template}:{}", version.number),
            clones: query.clones,
            bases: u32::try_from(bases).unwrap_or(u32::MAX),
            full_clones_bytes: full,
            free_bytes: free,
            lines,
            binds,
            now: self.savings().await?,
        })
    }

    /// Mean delta of the clones that are open here, when there are enough of them.
    async fn measured_delta(&self, template: &Name) -> Option<u64> {
        let all = self.catalog.remembered_all::<CloneEntry>();
        let of = all.iter().filter(|c| c.state.template == *template);
        let deltas: Vec<u64> = of.filter_map(|c| self.open.delta_bytes(c.state.record.id)).filter(|d| *d > 0).collect();
        (deltas.len() >= MEASURED_MIN).then(|| deltas.iter().sum::<u64>() / deltas.len() as u64)
    }

    /// What is stored now, beside what full clones of the same machines would take.
    async fn savings(&self) -> Result<Savings> {
        let all = self.catalog.list::<CloneEntry>().await?;
        let full: u64 = all.iter().map(|c| c.state.record.size).fold(0, u64::saturating_add);
        let mut stored = 0_u64;
        for datastore in self.datastores.all() {
            if datastore.check_online().is_ok() {
                stored = stored.saturating_add(datastore.stored_bytes().await?);
            }
        }
        let saved = full.saturating_sub(stored);
        let percent = u32::try_from(saved.saturating_mul(100).checked_div(full).unwrap_or(0)).unwrap_or(100);
        Ok(Savings {
            clones: u32::try_from(all.len()).unwrap_or(u32::MAX),
            full_clones_bytes: full,
            stored_bytes: stored,
            saved_percent: percent,
        })
    }
}

fn line(case: &str, delta: u64, bytes: u64) -> CapacityLine {
    CapacityLine { case: case.to_owned(), delta_bytes: delta, bytes }
}
