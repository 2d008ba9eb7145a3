//! How much space clones need, which limit binds first, and what linked cloning saves now.

use std::collections::HashMap;
use std::sync::Arc;

use clonegate_core::advice::Health;
use clonegate_core::format::catalog::{CloneEntry, TemplateVersion};
use clonegate_core::ids::{CloneId, Name};
use clonegate_core::{Error, Result};

use super::datastores::NO_END;
use super::events::EventKind;
use super::gateway::Gateway;
use super::views::{AlertView, CapacityLimit, CapacityLine, CapacityQuery, CapacityView, Savings};
use crate::store::keys;

/// Least that a delta is reckoned with, bytes.
const DELTA_MIN: u64 = 3 << 30;
/// Averages that are usual for tasks, offices and power users, bytes.
const DELTA_USUAL: [u64; 3] = [5 << 30, 10 << 30, 12 << 30];
/// Identity of a machine, bytes.
const IDENTITY: u64 = 16 << 20;
/// Clones with a delta that there must be for their growth to count as measured.
const MEASURED_MIN: usize = 10;
/// A delta younger than this says nothing about its growth, milliseconds.
const AGE_MIN_MS: u64 = 3_600_000;
const DAY_MS: u64 = 24 * 3_600_000;
/// From here on a datastore, or a delta that has a limit, is warned of, percent.
const WARNING_PERCENT: u64 = 80;
/// From here on it is critical.
const CRITICAL_PERCENT: u64 = 95;

impl Gateway {
    /// Bytes that each volume has in the store, of the datastores that can be reached: one LIST each.
    pub(super) async fn stored_deltas(&self) -> Result<HashMap<CloneId, u64>> {
        let mut stored = HashMap::new();
        for datastore in self.datastores.all() {
            if datastore.check_online().is_err() {
                continue;
            }
            for object in datastore.store.list(&keys::clones()).await? {
                if let Some(Ok(id)) = object.key.split('/').next().map(str::parse::<CloneId>) {
                    *stored.entry(id).or_default() += object.size;
                }
            }
        }
        Ok(stored)
    }

    /// Space for so many clones of a template, twice the bases while an update is staged; which limit is met first; and when it is full.
    pub(super) async fn do_capacity(self: Arc<Self>, query: CapacityQuery) -> Result<CapacityView> {
        let template = Name::new(query.template.as_str())?;
        if query.clones == 0 {
            return Err(Error::invalid("bad-count", "a capacity for no clones").hint("give --clones N"));
        }
        let version = self.version_for_clones(&template, None).await?;
        self.open_datastores().await?;
        self.refresh_all().await?;
        let clones = u64::from(query.clones);
        let bases = u64::from(query.clones.div_ceil(version.slots));
        let staged = if query.staged_update { 2 } else { 1 };
        // In packs a version is stored once in each datastore, however many bases there are.
        let stored = version.stored_bytes.max(1);
        let size = version.size;
        let line = |case: &str, delta: u64| {
            let delta = delta.min(size);
            let deltas = clones.saturating_mul(delta.saturating_add(IDENTITY));
            CapacityLine {
                case: case.to_owned(),
                delta_bytes: delta,
                bytes: stored.saturating_mul(staged).saturating_add(deltas),
                whole_bases_bytes: staged.saturating_mul(bases).saturating_mul(size).saturating_add(deltas),
            }
        };
        let grown = self.growth(&template).await?;
        let mut lines = vec![line("minimum", DELTA_MIN)];
        let average = match (query.average, grown.mean) {
            (Some(average), _) => {
                lines.push(line("average (given)", average));
                average
            }
            (None, Some(average)) => {
                lines.push(line("average (measured)", average));
                average
            }
            (None, None) => {
                lines.extend(DELTA_USUAL.map(|average| line("average (usual)", average)));
                DELTA_USUAL[0]
            }
        };
        lines.push(line("maximum", size));
        let limits = self.limits(&version, average.min(size));
        let most: u64 = limits.iter().map(|limit| limit.clones).fold(0, u64::saturating_add);
        let free = limits.iter().map(|limit| limit.free_bytes).fold(0, u64::saturating_add);
        // One that takes none at all binds nobody, unless there are no others.
        let some = limits.iter().filter(|limit| limit.clones > 0).min_by_key(|limit| limit.clones);
        let first = some.or_else(|| limits.first());
        let binds = match first {
            None => "no datastore takes linked clones".to_owned(),
            Some(first) if most < clones => {
                format!("{most} of the {clones} clones fit: {} on {} binds first", first.binds, first.datastore)
            }
            Some(first) => {
                let (datastore, binds, there) = (&first.datastore, &first.binds, first.clones);
                format!("all fit, and {most} would; {datastore} is full first, by {binds}, with {there} more")
            }
        };
        let per_day = grown.bytes_per_day;
        Ok(CapacityView {
            template: format!("{template}:{}", version.number),
            clones: query.clones,
            bases: u32::try_from(bases).unwrap_or(u32::MAX),
            full_clones_bytes: clones.saturating_mul(size),
            free_bytes: free,
            lines,
            binds,
            limits,
            growth_bytes_per_day: per_day,
            days_until_full: per_day.filter(|per_day| *per_day > 0).map(|per_day| free / per_day),
            now: self.savings().await?,
        })
    }

    /// How many more clones each datastore takes, and what it runs out of first.
    fn limits(&self, version: &TemplateVersion, average: u64) -> Vec<CapacityLimit> {
        let mut limits = Vec::new();
        for datastore in self.datastores.all() {
            let entry = datastore.entry();
            let why_none = match datastore.health() {
                Health::Online | Health::Degraded if !entry.thin => {
                    Some("it is not thin: unwritten bytes take space there")
                }
                Health::Online | Health::Degraded => None,
                Health::Maintenance => Some("it is in maintenance"),
                Health::Offline => Some("it does not answer"),
            };
            let free = datastore.free().unwrap_or(NO_END).min(NO_END).saturating_sub(entry.reserve);
            if let Some(why) = why_none {
                let datastore = datastore.name.to_string();
                limits.push(CapacityLimit { datastore, clones: 0, free_bytes: 0, binds: why.to_owned() });
                continue;
            }
            let here = datastore.table.bases().iter().any(|base| base.record.data == version.data);
            let base = if here { 0 } else { version.stored_bytes };
            // Identity disks are made when they are read; the estimate counts them as others store them.
            let by_space = free.saturating_sub(base) / average.max(1);
            let by_promise =
                datastore.promise_limit().map(|limit| limit.saturating_sub(datastore.promised()) / version.size.max(1));
            let (clones, binds) = match by_promise {
                Some(by_promise) if by_promise < by_space => (by_promise, "its overcommit"),
                _ => (by_space, "its free space"),
            };
            let (datastore, binds) = (datastore.name.to_string(), binds.to_owned());
            limits.push(CapacityLimit { datastore, clones, free_bytes: free, binds });
        }
        limits
    }

    /// Mean delta of the clones of a template when there are enough, and growth of all deltas since they were last empty.
    async fn growth(&self, template: &Name) -> Result<Growth> {
        let stored = self.stored_deltas().await?;
        let now = self.clock.now_ms();
        let (mut deltas, mut per_day) = (Vec::new(), 0_u128);
        let mut measured = 0_usize;
        for clone in self.catalog.list::<CloneEntry>().await? {
            let id = clone.state.record.id;
            let Some(bytes) = stored.get(&id).copied().max(self.open.delta_bytes(id)).filter(|bytes| *bytes > 0) else {
                continue;
            };
            if clone.state.template == *template {
                deltas.push(bytes);
            }
            let since = clone.state.last_reset_ms.unwrap_or(clone.state.record.created_ms);
            let age = now.saturating_sub(since);
            if age >= AGE_MIN_MS {
                per_day += u128::from(bytes) * u128::from(DAY_MS) / u128::from(age);
                measured += 1;
            }
        }
        let mean = (deltas.len() >= MEASURED_MIN).then(|| deltas.iter().sum::<u64>() / deltas.len() as u64);
        let bytes_per_day = (measured >= MEASURED_MIN).then(|| u64::try_from(per_day).unwrap_or(u64::MAX));
        Ok(Growth { mean, bytes_per_day })
    }

    /// What is about to be full: datastores, and clones whose delta nears its limit.
    pub(super) async fn do_alerts(self: Arc<Self>) -> Result<Vec<AlertView>> {
        let mut alerts = Vec::new();
        for datastore in self.datastores.all() {
            if datastore.check_online().is_err() {
                continue;
            }
            datastore.count_used().await?;
            let (Some(capacity), Some(free)) = (datastore.capacity(), datastore.free()) else { continue };
            let used = capacity.saturating_sub(free);
            alerts.extend(alert(
                "datastore",
                datastore.name.as_str(),
                used,
                capacity.saturating_sub(datastore.entry().reserve),
            ));
        }
        let stored = self.stored_deltas().await?;
        for clone in self.catalog.list::<CloneEntry>().await? {
            let id = clone.state.record.id;
            // A full clone holds all that it is from the beginning.
            if clone.state.record.base.is_none() {
                continue;
            }
            let Some(bytes) = stored.get(&id).copied().max(self.open.delta_bytes(id)) else { continue };
            let limit = clone.state.reset.at_bytes.unwrap_or(clone.state.record.size);
            alerts.extend(alert("clone", clone.name.as_str(), bytes, limit));
        }
        // Whatever its figures say, a datastore that refuses what is written to it is full.
        for (datastore, names) in self.waiting_for_room() {
            let there = alerts.iter().position(|alert| alert.kind == "datastore" && alert.name == datastore.as_str());
            let mut full = match there {
                Some(at) => alerts.remove(at),
                None => AlertView { kind: "datastore".to_owned(), name: datastore.to_string(), ..AlertView::default() },
            };
            full.level = "critical".to_owned();
            full.percent = full.percent.max(100);
            full.detail = Some(Self::say_who_waits(&names));
            alerts.insert(0, full);
        }
        Ok(alerts)
    }

    /// Says in the log what has come near its limit, or gone from it, since the last look.
    pub(super) async fn watch_capacity(self: Arc<Self>) {
        let alerts = match Arc::clone(&self).do_alerts().await {
            Ok(alerts) => alerts,
            Err(error) => {
                tracing::debug!(%error, "capacity cannot be looked at now");
                return;
            }
        };
        let mut said = self.alerted.lock();
        for alert in &alerts {
            let key = (alert.kind.clone(), alert.name.clone());
            if said.get(&key) != Some(&alert.level) {
                let data = serde_json::json!({ "kind": alert.kind, "level": alert.level, "percent": alert.percent });
                self.events.tell(EventKind::Capacity, &alert.name, data);
                tracing::warn!(level = %alert.level, kind = %alert.kind, name = %alert.name, percent = alert.percent, "it is getting full");
            }
        }
        *said = alerts.into_iter().map(|alert| ((alert.kind, alert.name), alert.level)).collect();
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

/// How deltas grow.
struct Growth {
    mean: Option<u64>,
    bytes_per_day: Option<u64>,
}

/// A level that is passed, if one is.
fn alert(kind: &str, name: &str, used: u64, limit: u64) -> Option<AlertView> {
    let percent = u64::try_from(u128::from(used) * 100 / u128::from(limit.max(1))).unwrap_or(u64::MAX);
    let level = match percent {
        CRITICAL_PERCENT.. => "critical",
        WARNING_PERCENT.. => "warning",
        _ => return None,
    };
    Some(AlertView {
        level: level.to_owned(),
        kind: kind.to_owned(),
        name: name.to_owned(),
        used_bytes: used,
        limit_bytes: limit,
        percent: u32::try_from(percent).unwrap_or(u32::MAX),
        detail: None,
    })
}
