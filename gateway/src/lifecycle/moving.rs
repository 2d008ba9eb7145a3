//! Moves a clone to another datastore, which has its base or gets it: `clone move`, `datastore rebalance`.
//!
//! The steps, each of which can be done again: a slot on a base of the same version there; a copy of what the clone wrote, compared, of each
//! snapshot first, oldest first, which is kept there under its name; the log here is closed and fenced by a tombstone and an epoch that nobody opens; the clone's name says the other datastore (this decides); what
//! is left here goes, the tombstone last. Before the name says so, a failure removes the copy and the tombstone; after it, the job only cleans up.

use std::sync::Arc;

use clonegate_core::format::catalog::CloneEntry;
use clonegate_core::format::clone::{CloneRecord, DeletedRecord};
use clonegate_core::format::envelope;
use clonegate_core::format::job::JobUnit;
use clonegate_core::format::log::EpochRecord;
use clonegate_core::ids::{BaseId, CloneId, Epoch, Name};
use clonegate_core::{Error, ErrorKind, Result};
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::audit::Act;
use super::datastores::Datastore;
use super::full::{check_room, encoded};
use super::gateway::Gateway;
use super::jobs::{JobOrder, JobRun};
use super::open::Of;
use super::placement::Order;
use super::promote::bytes_of;
use super::removal;
use super::replica::{AsyncSave, Copying, Under};
use super::views::{Started, Touched};
use super::would::refused;
use crate::catalog::Named;
use crate::delta::claim::fence;
use crate::delta::load::{End, load};
use crate::device::{Device, Source, Version};
use crate::exports::CloneRef;
use crate::store::{PutNew, keys};
use crate::volume::Volume;

/// What is moved where.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Spec {
    /// The clone; `fsck` knows by this word whose the objects are.
    pub(super) volume: CloneId,
    pub(super) from: Name,
    pub(super) to: Name,
}

/// How far a move is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Cursor {
    /// Its record there.
    record: Option<CloneRecord>,
    /// Its record here, whose slot is to be given back.
    old: Option<CloneRecord>,
    /// The version that was copied, and up to where.
    version: Option<(u64, u64)>,
    copied: u64,
    /// Its snapshots, oldest first, and when they were made.
    #[serde(default)]
    snapshots: Vec<(Name, u64)>,
    /// From here on it is fenced: the last epoch that had an owner.
    fenced: Option<u64>,
}

/// The hand of a move on its job: where it writes its cursor.
pub(super) struct Hand<'a> {
    pub(super) run: &'a JobRun,
    /// Makes the job's cursor of the move's.
    pub(super) wrap: &'a (dyn Fn(&Cursor) -> serde_json::Value + Send + Sync),
    /// The job counts something else than bytes.
    pub(super) quiet: bool,
}

impl Cursor {
    /// Whether the old place is, or is about to be, fenced.
    pub(super) fn is_fenced(&self) -> bool {
        self.fenced.is_some()
    }
}

impl Hand<'_> {
    async fn save(&self, cursor: &Cursor) -> Result<()> {
        self.run.save(&(self.wrap)(cursor)).await
    }
}

struct Saver<'a> {
    hand: &'a Hand<'a>,
    cursor: &'a mut Cursor,
}

#[async_trait::async_trait]
impl AsyncSave for Saver<'_> {
    async fn save(&mut self, at: u64) -> Result<()> {
        self.cursor.copied = at;
        self.hand.save(self.cursor).await
    }
}

impl Gateway {
    pub(super) async fn do_move_clone(self: Arc<Self>, clone: String, to: String, dry_run: bool) -> Result<Started> {
        let clone = self.find_clone(&clone.parse()?).await?;
        if let Some(job) = self.job_of_request("move", clone.name.as_str()).await?.filter(|_| !dry_run) {
            return Ok(job);
        }
        let to = Name::new(to)?;
        let bytes = self.check_move(&clone, &to).await?;
        if dry_run {
            let there = self.has_image(&clone, &to).await?;
            let base = match (clone.state.record.base, there) {
                (None, _) => "it is a full clone: all of it is copied".to_owned(),
                (_, true) => format!("datastore {to} has its base"),
                (_, false) => format!("datastore {to} gets its base: packs that are not there are copied once"),
            };
            let refusal = self.check_discard(&clone).err();
            let (_open, volume) = self.volume(&clone).await?;
            let snapshots = match volume.status().snapshots.len() {
                0 => None,
                1 => Some("its snapshot comes along".to_owned()),
                n => Some(format!("{n} snapshots come along; what they share is stored once")),
            };
            let undo = "the last reset can no longer be undone".to_owned();
            let notes = refusal.iter().map(refused).chain([base]).chain(snapshots).chain([undo]);
            return Ok(Started::Would(Touched {
                dry_run,
                names: vec![clone.name.to_string()],
                sessions: u32::try_from(self.open.attached(clone.state.record.id).len()).unwrap_or(u32::MAX),
                bytes,
                notes: notes.collect(),
            }));
        }
        self.check_discard(&clone)?;
        let spec = Spec { volume: clone.state.record.id, from: clone.state.datastore.clone(), to };
        let order = JobOrder {
            kind: "move",
            subject: clone.name.to_string(),
            spec,
            unit: JobUnit::Bytes,
            total: Some(clone.state.record.size * 2),
        };
        self.start_job(order).await.map(|job| Started::Job(Box::new(job)))
    }

    /// Refuses what cannot be moved; says how many bytes it takes there.
    pub(super) async fn check_move(self: &Arc<Self>, clone: &Named<CloneEntry>, to: &Name) -> Result<u64> {
        let datastore = self.datastores.get(to)?;
        datastore.check_online()?;
        if *to == clone.state.datastore {
            return Err(Error::conflict("there-already", format!("it is on datastore {to}")).on(clone.name.as_str()));
        }
        check_takes_clones(&datastore)?;
        if clone.state.record.base.is_some() && !datastore.entry().thin {
            return Err(Error::conflict(
                "not-thin",
                "unwritten bytes take space there, which linked clones cannot have",
            )
            .on(to.as_str()));
        }
        let (_open, volume) = self.volume(clone).await?;
        let (mut bytes, mut largest) = (volume.status().delta_bytes, volume.status().delta_bytes);
        for (snapshot, _) in snapshots_of(clone, &volume)? {
            let written = bytes_of(&*volume.open_snapshot(&snapshot).await?, Source::Delta).await?;
            (bytes, largest) = (bytes + written, largest.max(written));
        }
        // Most of it they share.
        check_room(&datastore, largest, clone.name.as_str())?;
        Ok(bytes)
    }

    async fn has_image(&self, clone: &Named<CloneEntry>, to: &Name) -> Result<bool> {
        let datastore = self.datastores.get(to)?;
        datastore.table.refresh().await?;
        let (template, number) = (&clone.state.template, clone.state.version);
        let version = self.version_for_clones(template, Some(number)).await?;
        Ok(datastore.table.bases().iter().any(|base| Self::holds(base, template, &version)))
    }

    /// Moves one clone; cleans up after itself when it cannot.
    pub(super) async fn move_to(self: &Arc<Self>, hand: &Hand<'_>, spec: &Spec, mut cursor: Cursor) -> Result<()> {
        let from = self.datastores.get(&spec.from)?;
        from.check_online()?;
        let clone = match self.find_clone(&CloneRef::Id(spec.volume)).await {
            // It was deleted meanwhile: what was copied goes too.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.undo_move(spec, &from, &cursor).await?;
                return Err(error);
            }
            found => found?,
        };
        if clone.state.datastore != spec.from {
            return self.clean_source(&from, spec.volume, &cursor, &clone).await;
        }
        let moved = self.copy_and_switch(hand, spec, &clone, &mut cursor).await;
        match moved {
            Ok(()) => {
                let clone = self.find_clone(&CloneRef::Id(spec.volume)).await?;
                self.clean_source(&from, spec.volume, &cursor, &clone).await
            }
            Err(error) if !hand.run.is_last(&error) => Err(error),
            Err(error) => {
                // The name may have been changed although the answer was lost.
                let now = self.find_clone(&CloneRef::Id(spec.volume)).await?;
                if now.state.datastore == spec.from {
                    self.undo_move(spec, &from, &cursor).await?;
                }
                Err(error)
            }
        }
    }

    async fn copy_and_switch(
        self: &Arc<Self>,
        hand: &Hand<'_>,
        spec: &Spec,
        clone: &Named<CloneEntry>,
        cursor: &mut Cursor,
    ) -> Result<()> {
        let run = hand.run;
        let (from, to) = (self.datastores.get(&spec.from)?, self.datastores.get(&spec.to)?);
        to.check_online()?;
        run.check()?;
        let record = match &cursor.record {
            Some(record) => record.clone(),
            None => {
                run.note(format!("making a place on datastore {}", to.name));
                let record = self.place_there(clone, &to).await?;
                cursor.record = Some(record.clone());
                cursor.old = Some(clone.state.record.clone());
                hand.save(cursor).await?;
                record
            }
        };
        if cursor.fenced.is_none() {
            self.check_discard(clone)?;
            let (open, volume) = self.volume(clone).await?;
            self.check_not_elsewhere(clone, &volume).await?;
            // Everything that any gateway was ever acknowledged is in what is read from here on, or this fails.
            volume.claim().await?;
            let snapshots = snapshots_of(clone, &volume)?;
            let version = volume.version().0;
            if cursor.version != Some((version.life, version.change)) || cursor.snapshots != snapshots {
                (cursor.version, cursor.copied) = (Some((version.life, version.change)), 0);
                cursor.snapshots = snapshots;
                self.empty(&to, &record).await?;
            }
            let epoch = volume.status().epoch.map_or(0, |epoch| epoch.0);
            self.begin_epochs(&to, &record, epoch).await?;
            run.note(format!("copying to datastore {}", to.name));
            let copy = self.open_copy(&to, &record).await?;
            let under = if record.base.is_some() { Under::SameBase } else { Under::Nothing };
            let (datastore, quiet, states) = (&to.name, hand.quiet, cursor.snapshots.len());
            let copying = |from: Arc<dyn Device>, number: usize| {
                let (to, state) = (Arc::clone(&copy), (number as u64, states as u64 + 1));
                Copying { gateway: self, datastore, from, to, under, run, quiet, state }
            };
            let copied = async {
                // Those that an earlier try has made are there.
                for number in copy.status().snapshots.len()..=states {
                    let kept = cursor.snapshots.get(number).cloned();
                    let from: Arc<dyn Device> = match &kept {
                        Some((name, _)) => volume.open_snapshot(name).await?,
                        None => Arc::<_>::clone(&open.device),
                    };
                    let copying = copying(from, number);
                    if number == 0 {
                        copying.copy(cursor.copied, &mut Saver { hand, cursor }).await?;
                    } else {
                        copying.change().await?;
                    }
                    copying.verify().await?;
                    if let Some((name, made_ms)) = kept {
                        self.for_room_of(run, datastore, &copy, copy.snapshot_as_of(name, made_ms)).await?;
                    }
                }
                Ok(())
            };
            let copied = copied.await;
            copying(Arc::<_>::clone(&open.device), states).end(copied).await?;
            drop(copy);
            self.check_discard(clone)?;
            // From here on no machine comes to the old place; whoever came before this is seen by what changed.
            let (barred, _volume) = self.quiet(clone).await?;
            let unchanged = |now: Version| now == version && volume.status().epoch.is_some_and(|e| e.0 == epoch);
            if !unchanged(volume.version().0) {
                return Err(changed(clone));
            }
            drop((open, volume, _volume));
            self.open.close_of(Of::Clone(spec.volume), &self.clock).await;
            drop(barred);
            check_closed(&from, clone, epoch, &cursor.snapshots).await?;
            cursor.fenced = Some(epoch);
            // From here on the job goes forward or takes everything back; it is not left in between.
            hand.save(cursor).await?;
        }
        run.note("letting the old place go");
        self.fence_source(&from, spec, clone, cursor.fenced.unwrap_or(0)).await?;
        let switch = |entry: &mut CloneEntry| {
            if entry.record.id != spec.volume || (entry.datastore != spec.from && entry.datastore != spec.to) {
                return Err(changed(clone));
            }
            entry.datastore = spec.to.clone();
            entry.record = record.clone();
            Ok(())
        };
        self.catalog.change(&clone.name, switch).await?;
        self.open.forget_snapshots(spec.volume);
        let reason = format!("from datastore {} to {}", spec.from, spec.to);
        let act = Act { action: "clone move", object: clone.name.as_str(), reason: &reason, policy: "" };
        self.note(act, &Ok(())).await;
        tracing::info!(clone = %clone.name, from = %spec.from, to = %spec.to, "moved");
        Ok(())
    }

    /// A slot there, or for a full clone its record. What an earlier try of this move has made is found again.
    async fn place_there(&self, clone: &Named<CloneEntry>, to: &Arc<Datastore>) -> Result<CloneRecord> {
        let old = &clone.state.record;
        if old.base.is_none() {
            let record = CloneRecord { nonce: self.clock.nonce(), ..old.clone() };
            return match to.store.put_new(&keys::clone(record.id), envelope::encode(&record)?).await? {
                PutNew::Created => Ok(record),
                PutNew::Exists(body) => envelope::decode(&body),
            };
        }
        let version = self.version_for_clones(&clone.state.template, Some(clone.state.version)).await?;
        to.table.refresh().await?;
        for base in to.table.bases().iter().filter(|base| Self::holds(base, &clone.state.template, &version)) {
            let slots = to.table.slots(base.record.id).await?;
            if let Some(record) = slots.into_iter().find(|record| record.id == old.id) {
                return Ok(record);
            }
        }
        let order = Order {
            template: clone.state.template.clone(),
            version,
            pool: clone.state.pool.clone(),
            lifetime: clone.state.lifetime,
            expected_delta: 0,
            labels: clone.state.labels.clone(),
        };
        let make = |name: &Name, base: BaseId, slot: u32| CloneRecord {
            name: name.clone(),
            nonce: self.clock.nonce(),
            base: Some(base),
            slot,
            ..old.clone()
        };
        loop {
            let (base, _) = self.base_with_room(to, &order).await?;
            let (mut claimed, _) = to.table.claim(base, vec![clone.name.clone()], &make).await?;
            if let Some(record) = claimed.pop() {
                return Ok(record);
            }
        }
    }

    /// Removes what an earlier copy left, but not the record.
    async fn empty(&self, to: &Datastore, record: &CloneRecord) -> Result<()> {
        let dir = keys::clone_dir(record.id);
        for object in to.store.list(&dir).await? {
            if object.key != "clone" {
                to.store.delete(&dir.key(&object.key)?).await?;
            }
        }
        Ok(())
    }

    /// Lets the epochs there begin behind those here, so that whoever wrote there in an earlier stay of the clone, and is late, writes nowhere.
    async fn begin_epochs(&self, to: &Datastore, record: &CloneRecord, last: u64) -> Result<()> {
        let epoch = Epoch(last.max(1));
        let claim = EpochRecord {
            clone: record.id,
            epoch,
            nonce: self.clock.nonce(),
            gateway: self.settings.gateway,
            journal: None,
            claimed_ms: self.clock.now_ms(),
        };
        to.store.put_new(&keys::epoch(record.id, epoch), envelope::encode(&claim)?).await.map(drop)
    }

    /// Nobody opens or writes the log here any more. Fails, with everything as it was, when somebody has since the copy.
    async fn fence_source(&self, from: &Datastore, spec: &Spec, clone: &Named<CloneEntry>, last: u64) -> Result<()> {
        let tombstone = DeletedRecord {
            id: spec.volume,
            nonce: self.clock.nonce(),
            deleted_ms: self.clock.now_ms(),
            moved_to: Some(spec.to.clone()),
        };
        from.store.put_new(&keys::deleted(spec.volume), envelope::encode(&tombstone)?).await?;
        if fence(&from.store, &clone.state.record, last, self.settings.gateway, &self.clock).await? {
            return Ok(());
        }
        Err(changed(clone))
    }

    /// Before the name says the other datastore: everything as it was.
    async fn undo_move(&self, spec: &Spec, from: &Datastore, cursor: &Cursor) -> Result<()> {
        from.store.delete(&keys::deleted(spec.volume)).await?;
        let Some(record) = &cursor.record else { return Ok(()) };
        let to = self.datastores.get(&spec.to)?;
        removal::remove(&to, record).await
    }

    /// After it: what is left here goes. The tombstone stays for a while, for readers on other gateways.
    async fn clean_source(
        &self,
        from: &Datastore,
        id: CloneId,
        cursor: &Cursor,
        clone: &Named<CloneEntry>,
    ) -> Result<()> {
        let dir = keys::clone_dir(id);
        let moved_on = cursor.record.as_ref().is_none_or(|record| record.id != clone.state.record.id);
        if moved_on {
            return Err(Error::internal("not-moved", "the clone is somewhere else").on(clone.name.as_str()));
        }
        for object in from.store.list(&dir).await? {
            if object.key != "deleted" {
                from.store.delete(&dir.key(&object.key)?).await?;
            }
        }
        if let Some((old, base)) = cursor.old.as_ref().and_then(|old| Some((old, old.base?))) {
            from.table.give_back_if_ours(old, base).await?;
        }
        self.forget_tombstone(from.name.clone(), id);
        Ok(())
    }

    /// Removes the tombstone when no gateway can have the old place open any more without having seen it.
    fn forget_tombstone(&self, from: Name, id: CloneId) {
        let (me, clock) = (std::sync::Weak::clone(&self.me), self.clock.clone());
        let patience = (self.settings.idle_close + self.engine.settings.staleness) * 2;
        self.handle.spawn(async move {
            clock.sleep(patience).await;
            let Some(gateway) = me.upgrade() else { return };
            let forgotten = async {
                let there = gateway.find_clone(&CloneRef::Id(id)).await.ok().map(|clone| clone.state.datastore);
                if there.as_ref() == Some(&from) || gateway.job_volumes().await?.contains(&id) {
                    return Ok(());
                }
                gateway.datastores.get(&from)?.store.delete(&keys::deleted(id)).await
            };
            if let Err(error) = forgotten.await {
                tracing::debug!(%id, %error, "the tombstone of a moved clone stays; fsck --repair removes it");
            }
        });
    }
}

/// Refuses a datastore in maintenance.
pub(super) fn check_takes_clones(datastore: &Datastore) -> Result<()> {
    if !datastore.entry().maintenance {
        return Ok(());
    }
    let name = datastore.name.as_str();
    Err(Error::conflict("maintenance", "the datastore takes no clones now")
        .on(name)
        .hint(format!("clonegate datastore maintenance {name} off")))
}

/// The last owner has put everything into the log and said so, and the snapshots are those that were copied.
async fn check_closed(
    from: &Datastore,
    clone: &Named<CloneEntry>,
    epoch: u64,
    snapshots: &[(Name, u64)],
) -> Result<()> {
    let loaded = load(&from.store, &clone.state.record).await?;
    let kept = loaded.state.kept.iter().filter_map(|kept| Some((kept.kept.name.clone()?, kept.kept.time_ms)));
    match loaded.end {
        Some((at, End::Closed)) if at.epoch.0 == epoch && kept.eq(snapshots.iter().cloned()) => Ok(()),
        _ => Err(changed(clone)),
    }
}

/// The snapshots of a clone, oldest first, and when they were made. Refuses when some are over another base: there is none of it where it goes.
fn snapshots_of(clone: &Named<CloneEntry>, volume: &Volume) -> Result<Vec<(Name, u64)>> {
    let status = volume.status();
    let others = status.snapshots.iter().filter(|snapshot| snapshot.base != status.base);
    let others: Vec<&str> = others.map(|snapshot| snapshot.name.as_str()).collect();
    if let Some(first) = others.first() {
        let what = format!("it is over another base by now than its snapshots {}", others.join(", "));
        return Err(Error::conflict("has-snapshots", what)
            .on(clone.name.as_str())
            .hint(format!("those cannot come along: clonegate clone snapshot {} {first} --drop", clone.name)));
    }
    Ok(status.snapshots.into_iter().map(|snapshot| (snapshot.name, snapshot.time_ms)).collect())
}

fn changed(clone: &Named<CloneEntry>) -> Error {
    Error::conflict("changed-meanwhile", "somebody wrote to it, or took it over, while it was moved")
        .on(clone.name.as_str())
        .hint("nothing was changed; switch the machine off and move it again")
}

/// The work of the job.
pub(super) fn work(gateway: Arc<Gateway>, run: Arc<JobRun>) -> BoxFuture<'static, Result<serde_json::Value>> {
    Box::pin(async move {
        let spec: Spec = run.spec()?;
        let cursor: Cursor = run.cursor()?.unwrap_or_default();
        let wrap = |cursor: &Cursor| serde_json::to_value(cursor).unwrap_or_default();
        let hand = Hand { run: &run, wrap: &wrap, quiet: false };
        gateway.move_to(&hand, &spec, cursor).await?;
        let clone = gateway.find_clone(&CloneRef::Id(spec.volume)).await.map_err(gone)?;
        encoded(&gateway.clone_view(&clone))
    })
}

fn gone(error: Error) -> Error {
    if error.kind() == ErrorKind::NotFound { error.hint("it was deleted after it was moved") } else { error }
}
