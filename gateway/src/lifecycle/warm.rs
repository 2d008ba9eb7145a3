//! `cache warm`, `base warm`: fetches bases into this gateway's iCache before machines ask, as a job.

use std::sync::Arc;

use clonegate_core::format::catalog::TemplateEntry;
use clonegate_core::format::job::JobUnit;
use clonegate_core::ids::{BaseId, GatewayId, Name};
use clonegate_core::{Error, Result};
use futures::StreamExt;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::gateway::Gateway;
use super::jobs::{JobOrder, JobRun};
use super::views::{Started, Touched, WarmCache};
use crate::base::{Base, Piece};
use crate::catalog::Named;

/// The kind of its jobs.
pub(super) const KIND: &str = "warm";
/// Pieces fetched at once: machines that boot meanwhile are to find the store free.
const AT_ONCE: usize = 4;
/// Of the iCache so many percent are filled at most: what machines ask for besides needs room.
const FILL_PERCENT: u64 = 80;
/// Most bases of one request.
const BASES_MAX: usize = 256;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Spec {
    /// The gateway whose memory is meant.
    gateway: GatewayId,
    bases: Vec<BaseId>,
    whole: bool,
}

/// What is to be fetched of some bases, as much as fits.
#[derive(Default)]
struct Plan {
    pieces: Vec<(Arc<Base>, Piece)>,
    bytes: u64,
    /// Stored bytes for which there is no room.
    left_out: u64,
    /// Bases of which nothing is known that a boot touches.
    unknown: Vec<BaseId>,
}

impl Gateway {
    pub(super) async fn do_warm(self: Arc<Self>, request: WarmCache, dry_run: bool) -> Result<Started> {
        let bases = self.bases_to_warm(&request).await?;
        let plan = self.plan_warming(&bases, request.whole).await?;
        if plan.pieces.is_empty() && !plan.unknown.is_empty() {
            let all: Vec<String> = plan.unknown.iter().map(BaseId::to_string).collect();
            return Err(Error::conflict(
                "no-boot-set",
                "no machine has booted from it yet, so what a boot touches is not known",
            )
            .on(all.join(", "))
            .hint("boot one machine first, or fetch all of it: --whole"));
        }
        if dry_run {
            let names = bases.iter().map(BaseId::to_string).collect();
            return Ok(Started::Would(Touched {
                dry_run,
                names,
                bytes: plan.bytes,
                notes: plan.notes(),
                ..Touched::default()
            }));
        }
        let order = JobOrder {
            kind: KIND,
            subject: format!("icache/{}", self.settings.gateway),
            spec: Spec { gateway: self.settings.gateway, bases, whole: request.whole },
            unit: JobUnit::Bytes,
            total: Some(plan.bytes),
        };
        self.start_job(order).await.map(|job| Started::Job(Box::new(job)))
    }

    /// The bases that are meant; without a word, one of each published version.
    async fn bases_to_warm(&self, request: &WarmCache) -> Result<Vec<BaseId>> {
        let mut bases: Vec<BaseId> = Vec::new();
        for id in &request.bases {
            let id = id.parse()?;
            self.find_base(id).await?;
            bases.push(id);
        }
        let mut templates: Vec<Named<TemplateEntry>> = Vec::new();
        for name in &request.templates {
            templates.push(self.catalog.get(&Name::new(name.as_str())?).await?);
        }
        if bases.is_empty() && templates.is_empty() {
            templates = self.catalog.list().await?;
            templates.retain(|template| template.state.published.is_some());
        }
        self.refresh_all().await?;
        for template in &templates {
            let version = self.version_for_clones(&template.name, None).await?;
            // Copies of a version have the same chunks, and so the same lines.
            let all = self.datastores.all();
            let mut there = all.iter().filter(|d| d.check_online().is_ok()).flat_map(|d| d.table.bases());
            bases.extend(there.find(|base| Self::holds(base, &template.name, &version)).map(|base| base.record.id));
        }
        if bases.is_empty() {
            return Err(Error::not_found("no-base", "there is no base to fetch")
                .hint("import a template first: clonegate template import"));
        }
        if bases.len() > BASES_MAX {
            return Err(Error::invalid("bad-count", format!("{} bases", bases.len()))
                .hint(format!("at most {BASES_MAX} at a time: name some with --template or --base")));
        }
        Ok(bases)
    }

    async fn plan_warming(&self, bases: &[BaseId], whole: bool) -> Result<Plan> {
        let room = self.icache.stats().capacity_bytes / 100 * FILL_PERCENT;
        let mut plan = Plan::default();
        for id in bases {
            let (datastore, _) = self.find_base(*id).await?;
            let base = self.bases_on(&datastore).open(*id).await?;
            let pieces = if whole { base.all_pieces().await? } else { base.boot_pieces().await? };
            if pieces.is_empty() && !whole {
                plan.unknown.push(*id);
            }
            for piece in pieces {
                if plan.bytes + piece.stored > room {
                    plan.left_out += piece.stored;
                } else {
                    plan.bytes += piece.stored;
                    plan.pieces.push((Arc::clone(&base), piece));
                }
            }
        }
        Ok(plan)
    }

    async fn warm(&self, run: &JobRun, spec: &Spec) -> Result<serde_json::Value> {
        if spec.gateway != self.settings.gateway {
            return Err(Error::conflict("gateway-gone", "the gateway whose memory was to be warmed has stopped"));
        }
        let plan = self.plan_warming(&spec.bases, spec.whole).await?;
        let (notes, total) = (plan.notes(), plan.bytes);
        let mut done = 0;
        run.progress(done, Some(total));
        let fetches =
            plan.pieces.into_iter().map(async |(base, piece)| base.fetch_piece(piece).await.map(|()| piece.stored));
        let mut fetched = futures::stream::iter(fetches).buffer_unordered(AT_ONCE);
        while let Some(bytes) = fetched.next().await {
            done += bytes?;
            run.progress(done, Some(total));
            run.check()?;
        }
        Ok(serde_json::json!({ "bases": spec.bases.len(), "bytes": done, "notes": notes }))
    }
}

impl Plan {
    fn notes(&self) -> Vec<String> {
        let mut notes: Vec<String> = self
            .unknown
            .iter()
            .map(|id| format!("{id}: no machine has booted from it yet; --whole fetches all of it"))
            .collect();
        if self.left_out > 0 {
            notes.push(format!(
                "{} bytes more do not fit: {FILL_PERCENT} % of the iCache are filled at most, see icache.memory",
                self.left_out
            ));
        }
        notes
    }
}

/// The work of the job.
pub(super) fn work(gateway: Arc<Gateway>, run: Arc<JobRun>) -> BoxFuture<'static, Result<serde_json::Value>> {
    Box::pin(async move {
        let spec: Spec = run.spec()?;
        gateway.warm(&run, &spec).await
    })
}
