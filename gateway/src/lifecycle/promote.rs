//! `clone promote`: a linked clone becomes a full one while it is in use.
//!
//! What the base still holds is copied into the delta, block by block, and never over a write that came meanwhile. Then one record of the
//! clone's log lets the base go, and only if the delta holds everything; that record decides. After it come the volume's own record, its name, and
//! the slot is given back; a crash in between is finished by the job, or by whoever opens the clone next.

use std::sync::Arc;

use clonegate_core::format::catalog::CloneEntry;
use clonegate_core::format::clone::{CloneRecord, Durability, VolumeKind};
use clonegate_core::format::envelope;
use clonegate_core::format::job::JobUnit;
use clonegate_core::ids::CloneId;
use clonegate_core::limits::READ_WINDOW_BYTES;
use clonegate_core::units::ByteRange;
use clonegate_core::{Error, Result};
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::audit::Act;
use super::full::{check_room, encoded};
use super::gateway::Gateway;
use super::jobs::{JobOrder, JobRun};
use super::replica::STEP_BYTES;
use super::views::{Started, Touched};
use super::waiting;
use super::would::size;
use crate::catalog::Named;
use crate::device::{Device, Source};
use crate::exports::CloneRef;
use crate::store::keys;
use crate::volume::Volume;

/// Times that the base is walked through before it is given up: something keeps resetting the clone.
const ROUNDS: u32 = 8;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Spec {
    clone: CloneId,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Cursor {
    filled: u64,
    /// What it was before its base was let go: its slot is to be given back.
    old: Option<CloneRecord>,
}

impl Gateway {
    pub(super) async fn do_promote_clone(self: Arc<Self>, clone: String, dry_run: bool) -> Result<Started> {
        let clone = self.find_clone(&clone.parse()?).await?;
        if let Some(job) = self.job_of_request("promote", clone.name.as_str()).await?.filter(|_| !dry_run) {
            return Ok(job);
        }
        let record = &clone.state.record;
        if record.base.is_none() {
            return Err(Error::conflict("full-clone", "it is a full clone already").on(clone.name.as_str()));
        }
        if record.durability == Durability::Ephemeral {
            return Err(Error::unsupported(
                "ephemeral",
                "an ephemeral volume forgets what it holds, and would have no base to go back to",
            )
            .on(clone.name.as_str())
            .hint("make a template of it, and a full clone of that"));
        }
        let (_open, volume) = self.volume(&clone).await?;
        check_snapshots(&clone, &volume)?;
        let bytes = bytes_of(&*volume, Source::Base).await?;
        let datastore = self.datastores.get(&clone.state.datastore)?;
        check_room(&datastore, bytes, clone.name.as_str())?;
        if dry_run {
            return Ok(Started::Would(Touched {
                dry_run,
                names: vec![clone.name.to_string()],
                sessions: u32::try_from(self.open.attached(record.id).len()).unwrap_or(u32::MAX),
                bytes,
                notes: vec![
                    format!("{} of its base are copied to datastore {} now", size(bytes), datastore.name),
                    "machines that have it open go on; the last reset can no longer be undone".to_owned(),
                ],
            }));
        }
        let order = JobOrder {
            kind: "promote",
            subject: clone.name.to_string(),
            spec: Spec { clone: record.id },
            unit: JobUnit::Bytes,
            total: Some(record.size),
        };
        self.start_job(order).await.map(|job| Started::Job(Box::new(job)))
    }

    async fn promote(self: &Arc<Self>, run: &JobRun, id: CloneId) -> Result<serde_json::Value> {
        let mut cursor: Cursor = run.cursor()?.unwrap_or_default();
        for _ in 0..ROUNDS {
            let clone = self.find_clone(&CloneRef::Id(id)).await?;
            if clone.state.record.base.is_none() {
                if let Some((old, base)) = cursor.old.as_ref().and_then(|old| Some((old, old.base?))) {
                    self.datastores.get(&clone.state.datastore)?.table.give_back_if_ours(old, base).await?;
                }
                return encoded(&self.clone_view(&clone));
            }
            run.note("copying what it has of its base");
            while cursor.filled < clone.state.record.size {
                self.fill_step(run, &clone, cursor.filled).await?;
                cursor.filled = (cursor.filled + STEP_BYTES).min(clone.state.record.size);
                run.save(&cursor).await?;
            }
            let (_open, volume) = self.volume(&clone).await?;
            check_snapshots(&clone, &volume)?;
            run.note("letting the base go");
            cursor.old = Some(clone.state.record.clone());
            run.save(&cursor).await?;
            match self.for_room_of(run, &clone.state.datastore, &volume, volume.promote()).await {
                Ok(()) => drop(self.finish_promotion(&clone, &volume).await?),
                // It was reset, or moved to another base, meanwhile.
                Err(error) if error.code() == "base-needed" => cursor.filled = 0,
                Err(error) => return Err(error),
            }
        }
        Err(Error::conflict("changed-meanwhile", "it was reset again and again while it was promoted")
            .on(id.to_string())
            .hint("hold it, and promote it again"))
    }

    /// Copies one step of the base. The volume may be closed under it because nobody else uses it; then it is opened again.
    async fn fill_step(self: &Arc<Self>, run: &JobRun, clone: &Named<CloneEntry>, from: u64) -> Result<()> {
        let end = clone.state.record.size.min(from + STEP_BYTES);
        let mut at = from;
        let mut again = 0;
        while at < end {
            run.check()?;
            let (_open, volume) = self.volume(clone).await?;
            let filled = async {
                while at < end {
                    run.check()?;
                    let window = ByteRange::new(at, end.min(at + READ_WINDOW_BYTES));
                    volume.fill(window).await?;
                    at = window.end();
                    run.progress(at, Some(clone.state.record.size));
                }
                waiting::flush(run, &volume).await
            };
            match self.for_room_of(run, &clone.state.datastore, &volume, filled).await {
                Err(error) if error.code() == "closed" && again < 16 => {
                    again += 1;
                    at = from;
                }
                filled => filled?,
            }
        }
        Ok(())
    }

    /// Writes down that a clone needs no base any more, after its log said so, and gives its slot back.
    pub(super) async fn finish_promotion(
        &self,
        clone: &Named<CloneEntry>,
        volume: &Volume,
    ) -> Result<Option<CloneRecord>> {
        let old = clone.state.record.clone();
        let Some(base) = old.base.filter(|_| volume.status().base.is_none()) else { return Ok(None) };
        let record =
            CloneRecord { nonce: self.clock.nonce(), kind: VolumeKind::FullClone, base: None, slot: 0, ..old.clone() };
        let datastore = self.datastores.get(&clone.state.datastore)?;
        datastore.store.put_new(&keys::clone(record.id), envelope::encode(&record)?).await?;
        let write = |entry: &mut CloneEntry| {
            if entry.record.id == record.id && entry.record.base == Some(base) {
                entry.record = record.clone();
                entry.pending_version = None;
                entry.moved_from = None;
            }
            Ok(())
        };
        self.catalog.change(&clone.name, write).await?;
        datastore.table.give_back_if_ours(&old, base).await?;
        let act = Act {
            action: "clone promote",
            object: clone.name.as_str(),
            reason: "it holds all of its base",
            policy: "",
        };
        self.note(act, &Ok(())).await;
        tracing::info!(clone = %clone.name, %base, "a linked clone is a full clone now");
        Ok(Some(record))
    }
}

/// The work of the job. What it copied stays when it fails: it is the clone's own bytes either way.
pub(super) fn work(gateway: Arc<Gateway>, run: Arc<JobRun>) -> BoxFuture<'static, Result<serde_json::Value>> {
    Box::pin(async move {
        let spec: Spec = run.spec()?;
        gateway.promote(&run, spec.clone).await
    })
}

/// A snapshot over a base would need it for ever.
fn check_snapshots(clone: &Named<CloneEntry>, volume: &Volume) -> Result<()> {
    let over: Vec<String> =
        volume.status().snapshots.iter().filter(|s| s.base.is_some()).map(|s| s.name.to_string()).collect();
    if over.is_empty() {
        return Ok(());
    }
    Err(Error::conflict("has-snapshots", format!("its snapshots need the base: {}", over.join(", ")))
        .on(clone.name.as_str())
        .hint(format!("clonegate clone snapshot {} {} --drop", clone.name, over[0])))
}

/// Bytes that a device has from there.
pub(super) async fn bytes_of(device: &dyn Device, source: Source) -> Result<u64> {
    let size = device.info().size;
    let (mut at, mut bytes) = (0, 0);
    while at < size {
        let step = ByteRange::new(at, size.min(at + (256 << 20)));
        let extents = device.extents(step).await?;
        bytes += extents.iter().filter(|e| e.source == source).map(|e| e.range.len()).sum::<u64>();
        at = step.end();
    }
    Ok(bytes)
}
