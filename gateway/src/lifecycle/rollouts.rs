//! Updates of many clones: first ones, waves, pause, resume, promote, roll back. How far one is stands in the catalog, one record for each
//! template, so that there is one at a time and any gateway can go on with it.

use std::sync::Arc;
use std::time::Duration;

use clonegate_core::format::catalog::{CloneEntry, RolloutEntry, RolloutState, TemplateVersion};
use clonegate_core::format::job::JobUnit;
use clonegate_core::ids::{Name, Nonce};
use clonegate_core::{Error, ErrorKind, Result};
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::audit::{Act, Why};
use super::gateway::Gateway;
use super::jobs::{JobOrder, JobRun};
use super::update::{Moved, Stuck, check_size, may_be_moved_back};
use super::views::{RolloutAction, UpdateClones, UpdatedClones};
use super::would::refused;
use crate::catalog::Named;

/// Clones moved at once when nobody says.
const AT_ONCE: u32 = 16;
/// Most clones at once.
const AT_ONCE_MAX: u32 = 256;
/// Longest list of clones in one request.
const CLONES_MAX: usize = 10_000;
/// The kind of its jobs.
pub(super) const KIND: &str = "update";
/// How often it is looked whether an update rests.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How long a request waits for the end before it answers how far the update is.
const WAITED_FOR: Duration = Duration::from_secs(20);

/// One run of an update.
#[derive(Debug, Serialize, Deserialize)]
struct Spec {
    template: Name,
    run: Nonce,
}

impl Gateway {
    /// Starts an update, and waits a while for its end.
    pub(super) async fn do_update_clones(
        self: Arc<Self>,
        request: UpdateClones,
        dry_run: bool,
    ) -> Result<UpdatedClones> {
        let template = Name::new(request.template.as_str())?;
        let version = self.version_for_clones(&template, request.version).await?;
        if request.clones.len() > CLONES_MAX {
            return Err(Error::invalid("bad-count", format!("a list of {} clones", request.clones.len()))
                .hint(format!("at most {CLONES_MAX}; without a list all of the template go")));
        }
        let mut names = Vec::new();
        for clone in &request.clones {
            names.push(self.find_clone(&clone.parse()?).await?.name);
        }
        let now = self.clock.now_ms();
        let mut rollout = RolloutEntry {
            run: self.clock.nonce(),
            gateway: self.settings.gateway,
            state: RolloutState::Running,
            version: version.number,
            clones: names,
            pool: request.pool.as_deref().map(Name::new).transpose()?,
            canary: request.canary.unwrap_or(0),
            max_unavailable: request.max_unavailable.unwrap_or(AT_ONCE).clamp(1, AT_ONCE_MAX),
            at_next_power_on: request.at_next_power_on,
            promoted: request.promote || request.canary.is_none_or(|canary| canary == 0),
            total: 0,
            moved: 0,
            later: 0,
            failed: None,
            started_ms: now,
            changed_ms: now,
        };
        let clones = self.clones_of(&template, &rollout).await?;
        for clone in &clones {
            check_size(clone, &version)?;
        }
        let moving: Vec<_> =
            clones.into_iter().filter(|c| c.state.version != version.number || c.state.template != template).collect();
        rollout.total = u32::try_from(moving.len()).unwrap_or(u32::MAX);
        let mut plan = self.blast_radius(&template, &version, &rollout, &moving).await?;
        if dry_run {
            let other = self.catalog.find::<RolloutEntry>(&template).await?.filter(|other| is_open(other.state.state));
            plan.notes.extend(other.map(|other| refused(&busy(&template, other.state.state))));
            return Ok(plan);
        }
        self.begin(&template, &rollout).await?;
        let done = self.run_rollout_for_a_while(&template, rollout.run).await?;
        Ok(UpdatedClones { sessions: plan.sessions, delta_bytes: plan.delta_bytes, notes: plan.notes, ..done })
    }

    /// The clones that an update is about, by name.
    pub(super) async fn clones_of(&self, template: &Name, rollout: &RolloutEntry) -> Result<Vec<Named<CloneEntry>>> {
        let mut all = self.catalog.list::<CloneEntry>().await?;
        let named: std::collections::HashSet<&Name> = rollout.clones.iter().collect();
        all.retain(|c| {
            let chosen = if named.is_empty() { c.state.template == *template } else { named.contains(&c.name) };
            let in_pool = rollout.pool.is_none() || c.state.pool == rollout.pool;
            chosen && in_pool && c.state.record.base.is_some()
        });
        Ok(all)
    }

    /// What an update touches: clones, sessions, bytes, and what becomes of the old deltas.
    async fn blast_radius(
        &self,
        template: &Name,
        version: &TemplateVersion,
        rollout: &RolloutEntry,
        moving: &[Named<CloneEntry>],
    ) -> Result<UpdatedClones> {
        let stored = self.stored_deltas().await?;
        let mut plan = UpdatedClones {
            dry_run: true,
            template: template.to_string(),
            version: version.number,
            state: "planned".to_owned(),
            total: rollout.total,
            ..UpdatedClones::default()
        };
        let mut by_datastore = std::collections::BTreeMap::<Name, u32>::new();
        let (mut lost, mut held) = (0_u32, 0_u32);
        for clone in moving {
            let id = clone.state.record.id;
            plan.sessions += u32::try_from(self.open.attached(id).len()).unwrap_or(u32::MAX);
            plan.delta_bytes += self.open.delta_bytes(id).or(stored.get(&id).copied()).unwrap_or(0);
            *by_datastore.entry(clone.state.datastore.clone()).or_default() += 1;
            let ephemeral = clone.state.record.durability == clonegate_core::format::clone::Durability::Ephemeral;
            lost += u32::from(ephemeral);
            held += u32::from(self.held(&clone.state).is_some());
            if rollout.at_next_power_on || self.check_discard(clone).is_err() {
                plan.later.push(clone.name.to_string());
            } else {
                plan.updated.push(clone.name.to_string());
            }
        }
        for (name, count) in by_datastore {
            let datastore = self.datastores.get(&name)?;
            datastore.check_online()?;
            datastore.table.refresh().await?;
            let here = datastore.table.bases();
            let room: u32 = here.iter().filter(|b| Self::holds(b, template, version)).map(|b| b.room()).sum();
            plan.new_bases += count.saturating_sub(room).div_ceil(version.slots.max(1));
            if let clonegate_core::format::base::BaseData::Packed { index } = version.data
                && datastore.store.head(&crate::store::keys::index(index)).await.is_err()
            {
                plan.copy_bytes += version.stored_bytes;
            }
        }
        if let Some(first) =
            moving.iter().find(|c| c.state.record.durability != clonegate_core::format::clone::Durability::Ephemeral)
        {
            plan.notes.push(format!("of the old deltas: {}", self.what_becomes_of_it(&first.state)));
        }
        if lost > 0 {
            plan.notes.push(format!("{lost} clones are ephemeral: what they wrote is gone for good"));
        }
        if held > 0 {
            plan.notes.push(format!("{held} clones are held: they move when they are let go and switched off"));
        }
        Ok(plan)
    }

    /// Makes the record of an update; there is one of a template at a time.
    async fn begin(&self, template: &Name, rollout: &RolloutEntry) -> Result<()> {
        let start = |there: &mut RolloutEntry| {
            if is_open(there.state) {
                return Err(busy(template, there.state));
            }
            *there = rollout.clone();
            Ok(())
        };
        match self.catalog.change(template, start).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            started => return started.map(drop),
        }
        match self.catalog.create(template, rollout.clone()).await {
            Err(error) if error.kind() == ErrorKind::Exists => Err(busy(template, RolloutState::Running)),
            created => created.map(drop),
        }
    }

    /// Runs an update as a job; answers when it rests, or how far it is after a while.
    async fn run_rollout_for_a_while(self: &Arc<Self>, template: &Name, run: Nonce) -> Result<UpdatedClones> {
        let rollout: RolloutEntry = self.catalog.get(template).await?.state;
        match self.start_rollout_job(template, run, rollout.total).await {
            Ok(()) => {}
            // Another gateway took it for an update that nobody does.
            Err(error) if error.code() == "job-running" => {}
            Err(error) => {
                self.rest(template, run, RolloutState::Stopped, Some(error.to_string())).await?;
                return Err(error);
            }
        }
        let begun = self.clock.instant();
        let rests = || {
            let now = self.catalog.remembered::<RolloutEntry>(template);
            now.is_none_or(|now| !runs(now.state.state) || now.state.run != run)
        };
        while !rests() && begun.elapsed() < WAITED_FOR {
            self.clock.sleep(LOOK_AGAIN).await;
        }
        Arc::clone(self).do_show_update(template.to_string()).await
    }

    /// Makes the job of one run of an update.
    pub(super) async fn start_rollout_job(self: &Arc<Self>, template: &Name, run: Nonce, total: u32) -> Result<()> {
        let order = JobOrder {
            kind: KIND,
            subject: subject(template, run),
            spec: Spec { template: template.clone(), run },
            unit: JobUnit::Clones,
            total: Some(u64::from(total)),
        };
        self.start_job(order).await.map(drop)
    }

    /// Moves clones until the update rests. Whoever takes it over gives it another `run`.
    async fn run_rollout(self: &Arc<Self>, template: &Name, run: Nonce, job: &JobRun) -> Result<()> {
        loop {
            let rollout: RolloutEntry = self.catalog.get(template).await?.state;
            if rollout.run != run {
                return Ok(());
            }
            let ran = match rollout.state {
                RolloutState::Running => self.roll_out(template, &rollout, job).await,
                RolloutState::RollingBack => self.roll_back(template, &rollout, job).await,
                _ => return Ok(()),
            };
            if let Err(error) = ran {
                // Somebody goes on with the job, and finds the update running.
                if !job.is_last(&error) {
                    return Err(error);
                }
                tracing::warn!(%template, %error, "an update stopped");
                return self.rest(template, run, RolloutState::Stopped, Some(error.to_string())).await;
            }
        }
    }

    async fn roll_out(self: &Arc<Self>, template: &Name, rollout: &RolloutEntry, job: &JobRun) -> Result<()> {
        let version = self.version_for_clones(template, Some(rollout.version)).await?;
        let mut names: Vec<Name> = self
            .clones_of(template, rollout)
            .await?
            .into_iter()
            .filter(|c| c.state.version != version.number || c.state.template != *template)
            .filter(|c| c.state.pending_version != Some(version.number) || self.check_discard(c).is_ok())
            .map(|c| c.name)
            .collect();
        if rollout.at_next_power_on {
            names.retain(|name| {
                self.catalog
                    .remembered::<CloneEntry>(name)
                    .is_none_or(|c| c.state.pending_version != Some(version.number))
            });
        }
        let mut first = rollout.canary.saturating_sub(rollout.moved + rollout.later) as usize;
        if first == 0 && !rollout.promoted && !names.is_empty() {
            return self.rest(template, rollout.run, RolloutState::AwaitsPromotion, None).await;
        }
        let mut done = u64::from(rollout.moved + rollout.later);
        let why = Why::of(match &rollout.pool {
            Some(pool) => format!("update of pool {pool}"),
            None => "update".to_owned(),
        });
        while !names.is_empty() {
            job.check()?;
            let size = if first > 0 { 1 } else { rollout.max_unavailable as usize };
            let later = names.split_off(size.min(names.len()));
            let wave = std::mem::replace(&mut names, later);
            let (mut moved, mut noted, mut failed) = (0, 0, None);
            for (name, outcome) in self.move_wave(wave, template, &version, rollout.at_next_power_on, &why).await {
                match outcome {
                    Ok(Moved::Now) => moved += 1,
                    Ok(Moved::Later) => noted += 1,
                    Ok(Moved::Already) => {}
                    Err(error) => {
                        let error = if error.object().is_some() { error } else { error.on(name.as_str()) };
                        failed = failed.or(Some(error.to_string()));
                    }
                }
            }
            first = first.saturating_sub(1);
            done += u64::from(moved) + u64::from(noted);
            job.progress(done, Some(u64::from(rollout.total)));
            let waits = first == 0 && !rollout.promoted && failed.is_none();
            let goes_on = self
                .count(template, rollout.run, |there| {
                    there.moved += moved;
                    there.later += noted;
                    if failed.is_some() {
                        there.state = RolloutState::Stopped;
                        there.failed.clone_from(&failed);
                    } else if waits && !names.is_empty() && there.state == RolloutState::Running {
                        there.state = RolloutState::AwaitsPromotion;
                    }
                })
                .await?;
            if !goes_on {
                return Ok(());
            }
        }
        self.rest(template, rollout.run, RolloutState::Done, None).await
    }

    /// Takes the moves of an update back, with what the clones held before.
    async fn roll_back(self: &Arc<Self>, template: &Name, rollout: &RolloutEntry, job: &JobRun) -> Result<()> {
        let moved_here = |c: &Named<CloneEntry>| c.state.template == *template && may_be_moved_back(c, rollout);
        let mut lost = 0_u32;
        let all = self.catalog.list::<CloneEntry>().await?;
        for clone in
            all.iter().filter(|c| c.state.template == *template && c.state.pending_version == Some(rollout.version))
        {
            self.set_pending(&clone.name, None).await?;
        }
        let chunks: Vec<Vec<Named<CloneEntry>>> = all
            .into_iter()
            .filter(|c| moved_here(c) && c.state.pending_version.is_none())
            .collect::<Vec<_>>()
            .chunks(rollout.max_unavailable as usize)
            .map(<[_]>::to_vec)
            .collect();
        for chunk in chunks {
            job.check()?;
            let mut noted = 0;
            let backs = futures::future::join_all(chunk.iter().map(|clone| self.move_back(clone))).await;
            for (clone, back) in chunk.iter().zip(backs) {
                match back {
                    Ok(Back::Whole) => {}
                    Ok(Back::WithoutDelta) => lost += 1,
                    Ok(Back::Later) => noted += 1,
                    Err(error) => return Err(error.on(clone.name.as_str())),
                }
            }
            if !self.count(template, rollout.run, |there| there.later += noted).await? {
                return Ok(());
            }
        }
        let said =
            (lost > 0).then(|| format!("{lost} clones are back without what they held: it could not be had back"));
        self.rest(template, rollout.run, RolloutState::RolledBack, said).await
    }

    async fn move_back(self: &Arc<Self>, clone: &Named<CloneEntry>) -> Result<Back> {
        let Some(from) = clone.state.moved_from.clone() else { return Ok(Back::Whole) };
        if self.check_discard(clone).is_err() {
            self.set_pending(&clone.name, Some(from.version)).await?;
            return Ok(Back::Later);
        }
        let why = Why::of("the update was rolled back, with what it held");
        if self.take_move_back(clone, &from, &why).await.map_err(Stuck::into_error)? {
            return Ok(Back::Whole);
        }
        let version = self.version_for_clones(&from.template, Some(from.version)).await?;
        let why = Why::of("the update was rolled back, without what it held");
        self.rebase(clone, &from.template, &version, &why).await.map_err(Stuck::into_error)?;
        Ok(Back::WithoutDelta)
    }

    async fn set_pending(&self, clone: &Name, version: Option<u32>) -> Result<()> {
        let set = |entry: &mut CloneEntry| {
            entry.pending_version = version;
            Ok(())
        };
        match self.catalog.change(clone, set).await {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            changed => changed.map(drop),
        }
    }

    /// Changes the record of a running update; tells whether it goes on.
    async fn count(
        &self,
        template: &Name,
        run: Nonce,
        change: impl Fn(&mut RolloutEntry) + Send + Sync,
    ) -> Result<bool> {
        let now = self.clock.now_ms();
        let write = |there: &mut RolloutEntry| {
            if there.run != run {
                return Ok(false);
            }
            change(there);
            there.changed_ms = now;
            Ok(matches!(there.state, RolloutState::Running | RolloutState::RollingBack))
        };
        Ok(self.catalog.change(template, write).await?.1)
    }

    async fn rest(&self, template: &Name, run: Nonce, state: RolloutState, why: Option<String>) -> Result<()> {
        let set = |there: &mut RolloutEntry| {
            if matches!(there.state, RolloutState::Running | RolloutState::RollingBack) {
                there.state = state;
                there.failed.clone_from(&why);
            }
        };
        self.count(template, run, set).await.map(drop)
    }

    /// The newest update of a template's clones.
    pub(super) async fn do_show_update(self: Arc<Self>, template: String) -> Result<UpdatedClones> {
        let name = Name::new(template)?;
        let Some(rollout) = self.catalog.find::<RolloutEntry>(&name).await? else { return Err(no_update(&name)) };
        let rollout = rollout.state;
        let back = matches!(rollout.state, RolloutState::RollingBack | RolloutState::RolledBack);
        let mut view = UpdatedClones {
            template: name.to_string(),
            version: rollout.version,
            state: word(rollout.state).to_owned(),
            total: rollout.total,
            failed: rollout.failed.clone(),
            started_ms: rollout.started_ms,
            ..UpdatedClones::default()
        };
        view.notes.extend(self.jobs.waits_of(&subject(&name, rollout.run)));
        for clone in self.catalog.list::<CloneEntry>().await? {
            let state = &clone.state;
            let Some(from) = state.moved_from.as_ref().filter(|from| from.at_ms >= rollout.started_ms) else {
                if state.template == name && state.pending_version == Some(rollout.version) {
                    view.later.push(clone.name.to_string());
                }
                continue;
            };
            let there = state.version == rollout.version && state.template == name;
            let was_there = from.version == rollout.version;
            if (there && !back) || (back && was_there && !there) {
                view.updated.push(clone.name.to_string());
            } else if state.pending_version.is_some() {
                view.later.push(clone.name.to_string());
            }
        }
        Ok(view)
    }

    /// Pauses, resumes, promotes, rolls back or ends an update.
    pub(super) async fn do_steer_update(
        self: Arc<Self>,
        template: String,
        action: RolloutAction,
    ) -> Result<UpdatedClones> {
        let name = Name::new(template)?;
        let run = self.clock.nonce();
        let (gateway, now) = (self.settings.gateway, self.clock.now_ms());
        let steer = |there: &mut RolloutEntry| {
            let next = next_state(&name, action, there.state)?;
            there.promoted |= action == RolloutAction::Promote;
            there.state = next;
            there.failed = (action == RolloutAction::Cancel).then(|| "it was cancelled".to_owned());
            there.changed_ms = now;
            // The former runner sees another run and stops.
            (there.run, there.gateway) = (run, gateway);
            Ok(runs(next))
        };
        let (before, goes_on) = match self.catalog.change(&name, steer).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(no_update(&name)),
            steered => steered?,
        };
        let object = name.as_str();
        self.note(Act { action: said(action), object, reason: "", policy: "" }, &Ok(())).await;
        if !goes_on {
            return self.do_show_update(before.name.to_string()).await;
        }
        if action == RolloutAction::Resume {
            self.settle_moves(&name).await?;
        }
        self.run_rollout_for_a_while(&name, run).await
    }
}

/// Does one run of an update.
pub(super) fn work(gateway: Arc<Gateway>, job: Arc<JobRun>) -> BoxFuture<'static, Result<serde_json::Value>> {
    Box::pin(async move {
        let spec: Spec = job.spec()?;
        // Whoever had it before may have ended in the middle of a move.
        if job.cursor::<bool>()?.is_some() {
            gateway.settle_moves(&spec.template).await?;
        }
        job.save(&true).await?;
        gateway.run_rollout(&spec.template, spec.run, &job).await?;
        let view = gateway.do_show_update(spec.template.to_string()).await?;
        Ok(serde_json::json!({ "state": view.state, "updated": view.updated.len(), "later": view.later.len() }))
    })
}

/// What becomes of an update by an action.
pub(super) fn next_state(template: &Name, action: RolloutAction, now: RolloutState) -> Result<RolloutState> {
    use RolloutState as S;
    Ok(match (action, now) {
        (RolloutAction::Pause, S::Running | S::AwaitsPromotion) => S::Paused,
        (RolloutAction::Resume, S::RollingBack) => S::RollingBack,
        (RolloutAction::Resume, S::Paused | S::Stopped | S::Running) => S::Running,
        (RolloutAction::Promote, S::AwaitsPromotion) => S::Running,
        (RolloutAction::Rollback, state) if state != S::RolledBack => S::RollingBack,
        (RolloutAction::Cancel, state) if is_open(state) => S::Stopped,
        (_, state) => {
            return Err(Error::conflict("update-state", format!("the update is {}", word(state)))
                .on(template.as_str())
                .hint(format!("clonegate update show {template}")));
        }
    })
}

/// An action as the audit log has it.
fn said(action: RolloutAction) -> &'static str {
    match action {
        RolloutAction::Pause => "update pause",
        RolloutAction::Resume => "update resume",
        RolloutAction::Promote => "update promote",
        RolloutAction::Rollback => "update rollback",
        RolloutAction::Cancel => "update cancel",
    }
}

fn busy(template: &Name, state: RolloutState) -> Error {
    let state = match state {
        RolloutState::AwaitsPromotion => "waiting for its promotion",
        state => word(state),
    };
    Error::conflict("update-running", format!("an update of its clones is {state}"))
        .on(template.as_str())
        .hint(format!("clonegate update show {template}; clonegate update cancel {template} ends it"))
}

pub(super) fn no_update(template: &Name) -> Error {
    Error::not_found("no-update", "no update of its clones was begun")
        .on(template.as_str())
        .hint(format!("clonegate clone update --template {template}"))
}

/// How a clone came back.
enum Back {
    Whole,
    WithoutDelta,
    Later,
}

/// The subject of the job of one run: the record of the update says that there is one at a time.
pub(super) fn subject(template: &Name, run: Nonce) -> String {
    format!("update/{template}/{:02x}{:02x}{:02x}{:02x}", run.0[0], run.0[1], run.0[2], run.0[3])
}

/// Whether clones are being moved.
pub(super) fn runs(state: RolloutState) -> bool {
    matches!(state, RolloutState::Running | RolloutState::RollingBack)
}

/// Whether another update has to wait.
pub(super) fn is_open(state: RolloutState) -> bool {
    use RolloutState as S;
    matches!(state, S::Running | S::AwaitsPromotion | S::Paused | S::RollingBack)
}

pub(super) fn word(state: RolloutState) -> &'static str {
    match state {
        RolloutState::Running => "running",
        RolloutState::AwaitsPromotion => "awaits-promotion",
        RolloutState::Paused => "paused",
        RolloutState::Stopped => "stopped",
        RolloutState::Done => "done",
        RolloutState::RollingBack => "rolling-back",
        RolloutState::RolledBack => "rolled-back",
    }
}
