//! Moves clones to another base: to another version of their template, or back.
//!
//! A move is metadata only: a slot on the new base, one commit in the clone's log that replaces its bytes (it can be undone for a while), the
//! clone's record, and the old slot given back. The commit decides: a crash around it leaves a second slot, and opening the clone finishes
//! what the log says.

use std::sync::Arc;

use clonegate_core::format::catalog::{CloneEntry, MovedFrom, RolloutEntry, TemplateVersion};
use clonegate_core::format::clone::CloneRecord;
use clonegate_core::ids::{BaseId, Name};
use clonegate_core::{Error, ErrorKind, Result};
use futures::StreamExt;

use super::audit::{Act, Why};
use super::datastores::Datastore;
use super::gateway::Gateway;
use super::open::{Barred, Of};
use super::placement::Order;
use super::would::size as bytes;
use crate::catalog::Named;
use crate::volume::Volume;

/// Clones looked at side by side before they move.
const LOOKS_AT_ONCE: usize = 32;

/// How the bytes of a clone are replaced.
#[derive(Debug, Clone)]
pub(super) enum Change {
    /// By those of the base.
    Reset,
    /// By what they were before the last reset, restore or update.
    Undo,
    /// By a snapshot.
    Restore(Name),
}

impl Change {
    async fn apply(self, volume: &Volume, base: BaseId) -> Result<()> {
        match self {
            Self::Reset => volume.reset(Some(base)).await,
            Self::Undo => volume.undo().await,
            Self::Restore(name) => volume.restore(name).await,
        }
    }
}

/// What became of one clone of an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moved {
    /// It is there.
    Now,
    /// It moves when its machine is off.
    Later,
    /// It was there already, or is gone.
    Already,
}

/// Why a clone is not moved.
#[derive(Debug)]
pub(super) enum Stuck {
    /// Nothing of it was begun: it is as it was.
    Before(Error),
    /// Its log was about to be changed. What is in it is known when it is opened anew.
    Midway(Error),
}

impl Stuck {
    pub(super) fn error(&self) -> &Error {
        match self {
            Self::Before(error) | Self::Midway(error) => error,
        }
    }

    pub(super) fn into_error(self) -> Error {
        match self {
            Self::Before(error) | Self::Midway(error) => error,
        }
    }
}

impl From<Error> for Stuck {
    fn from(error: Error) -> Self {
        Self::Before(error)
    }
}

/// A slot on another base.
struct Place {
    base: BaseId,
    record: CloneRecord,
}

impl Gateway {
    /// Moves clones to a version, all at once; those whose machine may run are noted. The answers are in no order.
    pub(super) async fn move_wave(
        self: &Arc<Self>,
        clones: Vec<Name>,
        template: &Name,
        version: &TemplateVersion,
        later: bool,
        why: &Why,
    ) -> Vec<(Name, Result<Moved>)> {
        let mut done = Vec::new();
        let mut going: Vec<Named<CloneEntry>> = Vec::new();
        let looks = clones.into_iter().map(|name| async move {
            let look = self.look_before_move(&name, template, version, later).await;
            (name, look)
        });
        for (name, look) in futures::stream::iter(looks).buffered(LOOKS_AT_ONCE).collect::<Vec<_>>().await {
            match look {
                Ok(Some(clone)) => going.push(clone),
                Ok(None) => done.push((name, Ok(Moved::Already))),
                Err(error) if error.code() == "attached" => done.push((name, Ok(Moved::Later))),
                Err(error) => done.push((name, Err(error))),
            }
        }
        let mut places = Vec::new();
        while let Some(first) = going.first() {
            let datastore = first.state.datastore.clone();
            let (here, rest): (Vec<_>, Vec<_>) = going.into_iter().partition(|c| c.state.datastore == datastore);
            going = rest;
            match self.places(&datastore, &here, template, version).await {
                Ok(taken) => places.extend(here.into_iter().zip(taken)),
                Err(error) => done.extend(here.into_iter().map(|clone| (clone.name, Err(error.clone())))),
            }
        }
        let moves = places.into_iter().map(|(clone, place)| async move {
            let moved = self.move_one(&clone, template, version, place, why).await;
            (clone.name, moved.map_err(Stuck::into_error))
        });
        done.extend(futures::stream::iter(moves).buffer_unordered(256).collect::<Vec<_>>().await);
        done
    }

    /// The clone, when it is to move now; `Conflict` with code `attached` after it was noted for later.
    async fn look_before_move(
        self: &Arc<Self>,
        name: &Name,
        template: &Name,
        version: &TemplateVersion,
        later: bool,
    ) -> Result<Option<Named<CloneEntry>>> {
        let Some(clone) = self.catalog.find::<CloneEntry>(name).await? else { return Ok(None) };
        if clone.state.version == version.number && clone.state.template == *template {
            return Ok(None);
        }
        check_size(&clone, version)?;
        let why = match self.check_discard(&clone) {
            Ok(()) if !later => return Ok(Some(clone)),
            Ok(()) => "it moves when it is next switched on".to_owned(),
            Err(error) => error.message().to_owned(),
        };
        // What it would be refused for then is refused now. One that cannot be opened now is looked at when it moves.
        if let Ok((_open, volume)) = self.volume(&clone).await {
            check_no_snapshots(&clone, &volume)?;
        }
        self.note_pending(&clone, template, version.number).await?;
        Err(Error::conflict("attached", why))
    }

    /// Notes the version that a clone moves to when its machine is off.
    async fn note_pending(&self, clone: &Named<CloneEntry>, template: &Name, number: u32) -> Result<()> {
        if clone.state.template != *template {
            let message = format!("it is of {}, and waits for versions of that only", clone.state.template);
            return Err(Error::conflict("other-template", message).on(clone.name.as_str()).hint(format!(
                "switch its machine off, then: clonegate clone update --template {template} {}",
                clone.name
            )));
        }
        let note = |entry: &mut CloneEntry| {
            entry.pending_version = (entry.version != number).then_some(number);
            Ok(())
        };
        self.catalog.change(&clone.name, note).await?;
        // Whoever deletes a version marks it and then looks for who needs it; we note that it is needed and then look for the mark. One sees
        // the other.
        match self.version_for_clones(template, Some(number)).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let forget = |entry: &mut CloneEntry| {
                    entry.pending_version = entry.pending_version.filter(|pending| *pending != number);
                    Ok(())
                };
                self.catalog.change(&clone.name, forget).await?;
                Err(error)
            }
            there => there.map(drop),
        }
    }

    /// Moves a clone to the slot that was taken for it, or notes it for later when its machine may run after all.
    async fn move_one(
        self: &Arc<Self>,
        clone: &Named<CloneEntry>,
        template: &Name,
        version: &TemplateVersion,
        place: Place,
        why: &Why,
    ) -> std::result::Result<Moved, Stuck> {
        let datastore = self.datastores.get(&clone.state.datastore)?;
        let quiet = async {
            let (barred, volume) = self.quiet(clone).await?;
            let status = volume.status();
            if status.cut && !self.machines.is_off(clone.state.record.id) {
                return Err(Error::conflict("attached", "a gateway that had it open did not close it"));
            }
            self.check_not_elsewhere(clone, &volume).await?;
            check_no_snapshots(clone, &volume)?;
            Ok::<_, Error>((barred, volume))
        };
        let moved = match quiet.await {
            Ok((barred, volume)) => {
                self.carry(clone, (barred, volume), place, (template, version.number), Change::Reset, why).await
            }
            Err(error) => {
                datastore.table.give_back(std::slice::from_ref(&place.record), place.base).await;
                Err(Stuck::Before(error))
            }
        };
        match moved {
            Ok(()) => Ok(Moved::Now),
            // Another gateway has it, or a machine came in this moment.
            Err(stuck) if matches!(stuck.error().code(), "attached" | "lost-tail" | "open-elsewhere") => {
                self.note_pending(clone, template, version.number).await?;
                Ok(Moved::Later)
            }
            Err(stuck)
                if stuck.error().kind() == ErrorKind::NotFound
                    && self.catalog.find::<CloneEntry>(&clone.name).await?.is_none() =>
            {
                Ok(Moved::Already)
            }
            Err(stuck) => Err(stuck),
        }
    }

    /// Moves one idle clone to a base of this version.
    pub(super) async fn rebase(
        self: &Arc<Self>,
        clone: &Named<CloneEntry>,
        template: &Name,
        version: &TemplateVersion,
        why: &Why,
    ) -> std::result::Result<(), Stuck> {
        check_size(clone, version)?;
        let here = std::slice::from_ref(clone);
        let places = self.places(&clone.state.datastore, here, template, version).await?;
        let place = places.into_iter().next().ok_or_else(|| Error::internal("no-slot", "a claim gave nothing"))?;
        match self.move_one(clone, template, version, place, why).await? {
            Moved::Later => Err(Error::conflict("attached", "its machine may run").on(clone.name.as_str()).into()),
            Moved::Now | Moved::Already => Ok(()),
        }
    }

    /// Slots for clones of one datastore on bases of this version, in their order; all or none.
    async fn places(
        &self,
        datastore: &Name,
        clones: &[Named<CloneEntry>],
        template: &Name,
        version: &TemplateVersion,
    ) -> Result<Vec<Place>> {
        let datastore = self.datastores.get(datastore)?;
        datastore.check_online()?;
        datastore.table.load().await?;
        let Some(any) = clones.first() else { return Ok(Vec::new()) };
        let order = Order {
            template: template.clone(),
            version: version.clone(),
            pool: any.state.pool.clone(),
            lifetime: any.state.lifetime,
            expected_delta: 0,
            labels: any.state.labels.clone(),
        };
        let make = |name: &Name, base: BaseId, slot: u32| {
            let old = clones.iter().find(|c| c.name == *name).map(|c| &c.state.record);
            // Only names of `clones` are asked for.
            let old = old.unwrap_or(&any.state.record);
            let size = old.size.max(version.size);
            CloneRecord { nonce: self.clock.nonce(), base: Some(base), slot, size, ..old.clone() }
        };
        let mut places: Vec<Place> = Vec::new();
        let mut waiting: Vec<Name> = clones.iter().map(|c| c.name.clone()).collect();
        while !waiting.is_empty() {
            let claimed = async {
                let (base, _) = self.base_with_room(&datastore, &order).await?;
                let claimed = datastore.table.claim(base, waiting.clone(), &make).await?;
                Ok::<_, Error>((base, claimed))
            };
            match claimed.await {
                Ok((base, (records, unplaced))) => {
                    places.extend(records.into_iter().map(|record| Place { base, record }));
                    waiting = unplaced;
                }
                Err(error) => {
                    give_back(&datastore, &places).await;
                    return Err(error);
                }
            }
        }
        let mut ordered = Vec::with_capacity(places.len());
        for clone in clones {
            let at = places.iter().position(|p| p.record.id == clone.state.record.id);
            ordered.extend(at.map(|at| places.swap_remove(at)));
        }
        Ok(ordered)
    }

    /// Replaces the bytes of a quiet clone by what is on `base`; when that is another one than now, with a slot there.
    pub(super) async fn change_over(
        self: &Arc<Self>,
        clone: &Named<CloneEntry>,
        barred: Barred,
        volume: Arc<Volume>,
        base: Option<BaseId>,
        change: Change,
        why: &Why,
    ) -> std::result::Result<(), Stuck> {
        let now = volume.status().base;
        let base = match base {
            Some(base) if Some(base) != now => base,
            _ => {
                let same = base.or(now).unwrap_or_else(|| BaseId::from_bytes([0; 16]));
                let changed = self.for_room(&clone.state.datastore, &volume, change.apply(&volume, same)).await;
                changed.map_err(Stuck::Midway)?;
                return self.note_reset(clone).await.map_err(Stuck::Midway);
            }
        };
        let datastore = self.datastores.get(&clone.state.datastore)?;
        let gone = |what: &str| {
            Error::conflict("base-gone", format!("the base that it was on {what}")).on(clone.name.as_str())
        };
        let of = match datastore.table.record(base).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(gone("is deleted").into()),
            of => of?,
        };
        datastore.table.refresh().await?;
        let old = clone.state.record.clone();
        let make = |name: &Name, base: BaseId, slot: u32| CloneRecord {
            name: name.clone(),
            nonce: self.clock.nonce(),
            base: Some(base),
            slot,
            ..old.clone()
        };
        let (mut records, _) = datastore.table.claim(base, vec![clone.name.clone()], &make).await?;
        let record = records.pop().ok_or_else(|| gone("takes no more clones"))?;
        let place = Place { base, record };
        self.carry(clone, (barred, volume), place, (&of.template, of.version), change, why).await
    }

    /// Carries a quiet clone to its new slot.
    async fn carry(
        self: &Arc<Self>,
        clone: &Named<CloneEntry>,
        (barred, volume): (Barred, Arc<Volume>),
        place: Place,
        to: (&Name, u32),
        change: Change,
        why: &Why,
    ) -> std::result::Result<(), Stuck> {
        let id = clone.state.record.id;
        let changed = self.for_room(&clone.state.datastore, &volume, change.apply(&volume, place.base)).await;
        drop(volume);
        if let Err(error) = changed {
            drop(barred);
            self.open.close_of(Of::Clone(id), &self.clock).await;
            // Whether the commit is in the log is not known; opening the clone anew finds out, and adopts the slot if so.
            if let Ok((_open, volume)) = self.volume(clone).await
                && volume.status().base != Some(place.base)
                && let Ok(datastore) = self.datastores.get(&clone.state.datastore)
            {
                datastore.table.give_back(std::slice::from_ref(&place.record), place.base).await;
            }
            return Err(Stuck::Midway(error));
        }
        if let Err(error) = self.adopt(clone, to, &place.record).await {
            // Its log says where it is, and its record does not yet: opening it anew puts that right.
            self.open.close_of(Of::Clone(id), &self.clock).await;
            drop(barred);
            return Err(Stuck::Midway(error));
        }
        let reason = format!("to version {} of {}: {}", to.1, to.0, why.reason);
        let act = Act { action: "clone update", object: clone.name.as_str(), reason: &reason, policy: &why.policy };
        self.note(act, &Ok(())).await;
        // It is opened anew with its new record; until then nobody attaches.
        self.open.close_of(Of::Clone(id), &self.clock).await;
        drop(barred);
        Ok(())
    }

    /// Writes down where a clone is after its log has moved, and gives its old slot back.
    pub(super) async fn adopt(&self, clone: &Named<CloneEntry>, to: (&Name, u32), record: &CloneRecord) -> Result<()> {
        let now = self.clock.now_ms();
        let write = |entry: &mut CloneEntry| {
            if entry.record.id != record.id {
                return Err(crate::catalog::unknown::<CloneEntry>(clone.name.as_str()));
            }
            let old = entry.record.clone();
            if (&entry.template, entry.version) != to {
                let from = (entry.template.clone(), entry.version);
                entry.moved_from = Some(MovedFrom { template: from.0, version: from.1, at_ms: now });
            }
            entry.record = record.clone();
            entry.template = to.0.clone();
            entry.version = to.1;
            entry.pending_version = None;
            entry.left_running = false;
            entry.last_reset_ms = Some(now);
            Ok(old)
        };
        let (_, old) = self.catalog.change(&clone.name, write).await?;
        let datastore = self.datastores.get(&clone.state.datastore)?;
        match old.base {
            Some(base) if (old.base, old.slot) != (record.base, record.slot) => {
                datastore.table.give_back_if_ours(&old, base).await
            }
            _ => Ok(()),
        }
    }
}

async fn give_back(datastore: &Arc<Datastore>, places: &[Place]) {
    for place in places {
        datastore.table.give_back(std::slice::from_ref(&place.record), place.base).await;
    }
}

/// Refuses to move a clone that has snapshots.
pub(super) fn check_no_snapshots(clone: &Named<CloneEntry>, volume: &Volume) -> Result<()> {
    let names: Vec<String> = volume.status().snapshots.iter().map(|s| s.name.to_string()).collect();
    let Some(first) = names.first() else { return Ok(()) };
    Err(Error::conflict("has-snapshots", format!("its snapshots need its base: {}", names.join(", ")))
        .on(clone.name.as_str())
        .hint(format!("clonegate clone snapshot {} {first} --drop", clone.name)))
}

/// Whether an update has moved a clone, which has not moved since.
pub(super) fn may_be_moved_back(clone: &Named<CloneEntry>, rollout: &RolloutEntry) -> bool {
    let since = clone.state.moved_from.as_ref().is_some_and(|from| from.at_ms >= rollout.started_ms);
    clone.state.version == rollout.version && since
}

/// A clone may grow with its template and never shrinks: what lies behind the end would be lost.
pub(super) fn check_size(clone: &Named<CloneEntry>, version: &TemplateVersion) -> Result<()> {
    let size = clone.state.record.size;
    if version.size >= size {
        return Ok(());
    }
    Err(Error::conflict(
        "image-smaller",
        format!("it has {} and version {} only {}", bytes(size), version.number, bytes(version.size)),
    )
    .on(clone.name.as_str())
    .hint("a disk cannot shrink under its machine: make a new clone"))
}
