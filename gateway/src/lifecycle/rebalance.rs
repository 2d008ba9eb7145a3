//! `datastore rebalance`: moves clones that nobody has open from one datastore to another, one after the other, as one job.

use std::sync::Arc;

use clonegate_core::format::catalog::CloneEntry;
use clonegate_core::format::job::JobUnit;
use clonegate_core::ids::{CloneId, Name};
use clonegate_core::{Error, ErrorKind, Result};
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::gateway::Gateway;
use super::jobs::{JobOrder, JobRun};
use super::moving::{self, Hand};
use super::views::{Rebalance, Started, Touched};
use crate::catalog::Named;
use crate::exports::CloneRef;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Spec {
    from: Name,
    to: Name,
    clones: Vec<CloneId>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Cursor {
    /// Clones that are done with.
    done: usize,
    moved: Vec<Name>,
    /// Why the others stayed.
    stayed: Vec<String>,
    /// The clone under way; `fsck` knows by this word whose the objects are.
    volume: Option<CloneId>,
    moving: Option<moving::Cursor>,
}

impl Gateway {
    pub(super) async fn do_rebalance(
        self: Arc<Self>,
        name: String,
        request: Rebalance,
        dry_run: bool,
    ) -> Result<Started> {
        let (from, to) = (Name::new(name)?, Name::new(request.to.as_str())?);
        self.datastores.get(&from)?.check_online()?;
        let target = self.datastores.get(&to)?;
        target.check_online()?;
        moving::check_takes_clones(&target)?;
        if from == to {
            return Err(Error::invalid("same-datastore", "a datastore cannot be emptied onto itself")
                .on(from.as_str())
                .hint("name another one with --to"));
        }
        let mut all = self.catalog.list::<CloneEntry>().await?;
        all.retain(|clone| clone.state.datastore == from);
        let (idle, busy): (Vec<_>, Vec<_>) = all.into_iter().partition(|clone| self.check_discard(clone).is_ok());
        let most = request.clones.map_or(usize::MAX, |most| usize::try_from(most).unwrap_or(usize::MAX));
        let chosen: Vec<Named<CloneEntry>> = idle.into_iter().take(most).collect();
        if dry_run {
            let known: u64 = chosen.iter().filter_map(|clone| self.open.delta_bytes(clone.state.record.id)).sum();
            let mut notes = vec![format!("they go to datastore {to}, with their bases where it has none of them yet")];
            if !busy.is_empty() {
                notes.push(format!("{} stay: machines have them open, or they are held", busy.len()));
            }
            return Ok(Started::Would(Touched {
                dry_run,
                names: chosen.iter().map(|clone| clone.name.to_string()).collect(),
                sessions: u32::try_from(busy.len()).unwrap_or(u32::MAX),
                bytes: known,
                notes,
            }));
        }
        let clones: Vec<CloneId> = chosen.iter().map(|clone| clone.state.record.id).collect();
        let order = JobOrder {
            kind: "rebalance",
            subject: format!("datastore {from}"),
            unit: JobUnit::Clones,
            total: Some(clones.len() as u64),
            spec: Spec { from, to, clones },
        };
        self.start_job(order).await.map(|job| Started::Job(Box::new(job)))
    }

    async fn rebalance(self: &Arc<Self>, run: &JobRun, spec: &Spec) -> Result<serde_json::Value> {
        let mut cursor: Cursor = run.cursor()?.unwrap_or_default();
        let total = Some(spec.clones.len() as u64);
        while let Some(id) = spec.clones.get(cursor.done) {
            run.progress(cursor.done as u64, total);
            let moving =
                if cursor.volume == Some(*id) { cursor.moving.take().unwrap_or_default() } else { Default::default() };
            cursor.volume = Some(*id);
            run.save(&cursor).await?;
            let outcome = self.rebalance_one(run, spec, &cursor, moving).await;
            match outcome {
                Ok(name) => cursor.moved.push(name),
                // One that cannot go stays, and says why; what concerns all of them ends the job.
                Err(error) if run.is_last(&error) && run.check().is_ok() && error.kind() != ErrorKind::Exhausted => {
                    let name = self.find_clone(&CloneRef::Id(*id)).await.map(|clone| clone.name.to_string());
                    let name = name.unwrap_or_else(|_| id.to_string());
                    let named = error.object() == Some(name.as_str());
                    cursor.stayed.push(if named { error.to_string() } else { format!("{name}: {error}") });
                }
                Err(error) => return Err(error),
            }
            cursor.done += 1;
            (cursor.volume, cursor.moving) = (None, None);
            run.save(&cursor).await?;
        }
        run.progress(cursor.done as u64, total);
        Ok(serde_json::json!({ "moved": cursor.moved, "stayed": cursor.stayed }))
    }

    async fn rebalance_one(
        self: &Arc<Self>,
        run: &JobRun,
        spec: &Spec,
        cursor: &Cursor,
        moving: moving::Cursor,
    ) -> Result<Name> {
        let id = cursor.volume.unwrap_or_else(|| CloneId::from_bytes([0; 16]));
        let clone = self.find_clone(&CloneRef::Id(id)).await?;
        let one = moving::Spec { volume: id, from: spec.from.clone(), to: spec.to.clone() };
        if clone.state.datastore == spec.from && !moving.is_fenced() {
            self.check_move(&clone, &spec.to).await?;
        }
        let wrap = |moving: &moving::Cursor| {
            let now = Cursor { moving: Some(moving.clone()), ..cursor.clone() };
            serde_json::to_value(now).unwrap_or_default()
        };
        let hand = Hand { run, wrap: &wrap, quiet: true };
        self.move_to(&hand, &one, moving).await?;
        Ok(clone.name)
    }
}

/// The work of the job.
pub(super) fn work(gateway: Arc<Gateway>, run: Arc<JobRun>) -> BoxFuture<'static, Result<serde_json::Value>> {
    Box::pin(async move {
        let spec: Spec = run.spec()?;
        gateway.rebalance(&run, &spec).await
    })
}
