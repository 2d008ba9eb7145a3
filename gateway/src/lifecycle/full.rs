//! Full clones: volumes that need no base. Made of a template version by copying it, as a job.
//!
//! The volume's own record comes first and its name last, so nothing is to be seen of a copy that is not whole. While the job is under way
//! `fsck` knows by it whose the objects are; a job that fails removes them.

use std::sync::Arc;

use clonegate_core::advice::{Label, Lifetime};
use clonegate_core::format::catalog::{CloneEntry, ResetRules, TemplateVersion};
use clonegate_core::format::clone::{CloneRecord, Durability, VolumeKind};
use clonegate_core::format::envelope;
use clonegate_core::format::job::JobUnit;
use clonegate_core::ids::{BaseId, CloneId, Name};
use clonegate_core::{Error, ErrorKind, Result};
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::audit::Act;
use super::datastores::Datastore;
use super::gateway::Gateway;
use super::jobs::{JobOrder, JobRun};
use super::removal;
use super::replica::{AsyncSave, Copying, Under};
use super::views::{CloneView, CreateFullClone, DurabilityView, ListQuery, Page, Started, Touched, page, to_labels};
use super::would::size;
use crate::base::BaseDevice;
use crate::catalog::Named;
use crate::device::Device;
use crate::store::{PutNew, keys};

/// What the job is asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Spec {
    volume: CloneId,
    name: Name,
    template: Name,
    version: u32,
    datastore: Name,
    durability: Durability,
    labels: Vec<Label>,
}

/// How far the job is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Cursor {
    copied: u64,
}

struct Saver<'a>(&'a JobRun);

#[async_trait::async_trait]
impl AsyncSave for Saver<'_> {
    async fn save(&mut self, at: u64) -> Result<()> {
        self.0.save(&Cursor { copied: at }).await
    }
}

impl Gateway {
    pub(super) async fn do_create_full_clone(
        self: Arc<Self>,
        request: CreateFullClone,
        dry_run: bool,
    ) -> Result<Started> {
        let name = Name::new(request.name.as_str())?;
        if let Some(job) = self.job_of_request("full-clone", name.as_str()).await?.filter(|_| !dry_run) {
            return Ok(job);
        }
        let template = Name::new(request.template.as_str())?;
        let version = self.version_for_clones(&template, request.version).await?;
        if matches!(request.durability, Some(DurabilityView::Ephemeral)) {
            return Err(Error::unsupported(
                "ephemeral",
                "an ephemeral volume forgets what it holds, and has no base to go back to",
            )
            .on(name.as_str())
            .hint("use local or object"));
        }
        if self.catalog.find::<CloneEntry>(&name).await?.is_some() {
            return Err(Error::exists("name-taken", "a clone of this name is there already")
                .on(name.as_str())
                .hint("choose another name, or delete that one first"));
        }
        let datastore = match &request.datastore {
            Some(datastore) => self.datastore_for_import(Some(datastore))?,
            None => self
                .datastore_for_import(Some(version.datastore.as_str()))
                .or_else(|_| self.datastore_for_import(None))?,
        };
        check_room(&datastore, version.used_bytes, name.as_str())?;
        if dry_run {
            let free = datastore.free().map_or_else(|| "unknown".to_owned(), size);
            return Ok(Started::Would(Touched {
                dry_run,
                names: vec![name.to_string()],
                bytes: version.used_bytes,
                notes: vec![
                    format!("version {} of {template} is copied to datastore {}", version.number, datastore.name),
                    format!("it takes at most {} there now, of {free} free", size(version.used_bytes)),
                ],
                ..Touched::default()
            }));
        }
        let spec = Spec {
            volume: self.clock.id(),
            name: name.clone(),
            template,
            version: version.number,
            datastore: datastore.name.clone(),
            durability: request.durability.map(Into::into).unwrap_or_default(),
            labels: to_labels(&request.labels),
        };
        let order = JobOrder {
            kind: "full-clone",
            subject: name.to_string(),
            spec,
            unit: JobUnit::Bytes,
            total: Some(version.size * 2),
        };
        self.start_job(order).await.map(|job| Started::Job(Box::new(job)))
    }

    /// All full clones, by name.
    pub(super) async fn do_list_full_clones(self: Arc<Self>, query: ListQuery) -> Result<Page<CloneView>> {
        let mut all = self.catalog.list::<CloneEntry>().await?;
        all.retain(|clone| clone.state.record.base.is_none());
        Ok(page(all, &query, |clone| clone.name.as_str()).map(|clone| self.clone_view(&clone)))
    }

    /// A base of this version, wherever one is; one is made where the version is when there is none.
    pub(super) async fn any_base(
        &self,
        template: &Name,
        version: &TemplateVersion,
    ) -> Result<(Arc<Datastore>, BaseId)> {
        let find = || {
            self.datastores.all().into_iter().filter(|d| d.check_online().is_ok()).find_map(|datastore| {
                let base = datastore.table.bases().into_iter().find(|base| Self::holds(base, template, version))?;
                Some((datastore, base.record.id))
            })
        };
        if let Some(found) = find() {
            return Ok(found);
        }
        self.refresh_all().await?;
        if let Some(found) = find() {
            return Ok(found);
        }
        let datastore = self.datastores.get(&version.datastore)?;
        let _making = datastore.making.lock().await;
        let record = self.make_base(&datastore, template, version).await?;
        Ok((Arc::clone(&datastore), record.id))
    }

    async fn copy_template(self: &Arc<Self>, run: &JobRun, spec: &Spec) -> Result<serde_json::Value> {
        if let Some(made) = self.made(spec).await? {
            return Ok(made);
        }
        let datastore = self.datastores.get(&spec.datastore)?;
        datastore.check_online()?;
        let version = self.version_for_clones(&spec.template, Some(spec.version)).await?;
        let record = self.full_record(&datastore, spec, version.size).await?;
        let (home, base) = self.any_base(&spec.template, &version).await?;
        let base = self.bases_on(&home).open(base).await?;
        let from: Arc<dyn Device> = Arc::new(BaseDevice::new(base, format!("{}:{}", spec.template, spec.version)));
        let to = self.open_copy(&datastore, &record).await?;
        let place = &datastore.name;
        let (datastore, under) = (place, Under::Nothing);
        let copying = Copying { gateway: self, datastore, from, to, under, run, quiet: false, state: (0, 1) };
        let copied = async {
            run.note(format!("copying {}:{} to {place}", spec.template, spec.version));
            let cursor: Cursor = run.cursor()?.unwrap_or_default();
            copying.copy(cursor.copied, &mut Saver(run)).await?;
            copying.verify().await
        };
        copying.end(copied.await).await?;
        run.save(&Cursor { copied: version.size }).await?;
        let entry = CloneEntry {
            record,
            datastore: spec.datastore.clone(),
            template: spec.template.clone(),
            version: spec.version,
            lifetime: Lifetime::Persistent,
            pool: None,
            labels: spec.labels.clone(),
            hold: None,
            reset: ResetRules::default(),
            last_reset_ms: None,
            pending_version: None,
            assigned: None,
            identity: None,
            hold_until_ms: None,
            moved_from: None,
            left_running: false,
        };
        match self.catalog.create(&spec.name, entry).await {
            Ok(made) => {
                let reason = format!("a copy of {}:{}", spec.template, spec.version);
                let act = Act { action: "full-clone create", object: made.name.as_str(), reason: &reason, policy: "" };
                self.note(act, &Ok(())).await;
                encoded(&self.clone_view(&made))
            }
            // Put by whoever had the job before, or at the same time.
            Err(error) => self.made(spec).await?.ok_or(error),
        }
    }

    /// The clone, when it has its name already.
    async fn made(&self, spec: &Spec) -> Result<Option<serde_json::Value>> {
        let found: Option<Named<CloneEntry>> = self.catalog.find(&spec.name).await?;
        match found.filter(|found| found.state.record.id == spec.volume) {
            Some(made) => encoded(&self.clone_view(&made)).map(Some),
            None => Ok(None),
        }
    }

    /// Makes the volume's record, or finds it.
    async fn full_record(&self, datastore: &Datastore, spec: &Spec, size: u64) -> Result<CloneRecord> {
        let record = CloneRecord {
            id: spec.volume,
            nonce: self.clock.nonce(),
            name: spec.name.clone(),
            kind: VolumeKind::FullClone,
            size,
            base: None,
            slot: 0,
            durability: spec.durability,
            created_ms: self.clock.now_ms(),
        };
        let key = keys::clone(spec.volume);
        match datastore.store.put_new(&key, envelope::encode(&record)?).await? {
            PutNew::Created => Ok(record),
            PutNew::Exists(body) => envelope::decode(&body).map_err(|e| e.on(key.to_string())),
        }
    }
}

/// The work of the job.
pub(super) fn work(gateway: Arc<Gateway>, run: Arc<JobRun>) -> BoxFuture<'static, Result<serde_json::Value>> {
    Box::pin(async move {
        let spec: Spec = run.spec()?;
        let done = gateway.copy_template(&run, &spec).await;
        if let Err(error) = &done
            && run.is_last(error)
        {
            let datastore = gateway.datastores.get(&spec.datastore)?;
            let record = gateway.full_record(&datastore, &spec, 0).await?;
            removal::remove(&datastore, &record).await?;
        }
        done
    })
}

/// Refuses what does not fit.
pub(super) fn check_room(datastore: &Datastore, bytes: u64, what: &str) -> Result<()> {
    match datastore.free() {
        Some(free) if free < bytes.saturating_add(datastore.entry().reserve) => {
            let text = format!("datastore {} has {} free, and {} are needed", datastore.name, size(free), size(bytes));
            Err(Error::exhausted("no-place", text).on(what).hint("make room, or name another datastore"))
        }
        _ => Ok(()),
    }
}

/// A view as a job's result.
pub(super) fn encoded(view: &impl Serialize) -> Result<serde_json::Value> {
    serde_json::to_value(view).map_err(|e| Error::new(ErrorKind::Internal, "bad-view", e.to_string()))
}
