//! A pool made smaller, or deleted, as a job: a crash in the middle does not leave half of it.

use std::sync::Arc;

use clonegate_core::format::catalog::{CloneEntry, PoolEntry};
use clonegate_core::format::job::JobUnit;
use clonegate_core::ids::Name;
use clonegate_core::{ErrorKind, Result};
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::gateway::Gateway;
use super::jobs::{JobOrder, JobRun};

/// The kind of its jobs.
pub(super) const KIND: &str = "pool-shrink";

/// What goes.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Spec {
    pool: Name,
    /// The clones that go, and how many stay; absent: all of it goes.
    less: Option<(Vec<Name>, u32)>,
}

impl Gateway {
    /// Deletes these clones of a pool, or the whole pool, and waits for it.
    pub(super) async fn shrink_as_job(self: &Arc<Self>, pool: &Name, less: Option<(Vec<Name>, u32)>) -> Result<()> {
        let total = less.as_ref().map(|(names, _)| names.len() as u64);
        let order = JobOrder {
            kind: KIND,
            subject: format!("pool/{pool}"),
            spec: Spec { pool: pool.clone(), less },
            unit: JobUnit::Clones,
            total,
        };
        let job = self.start_job(order).await?;
        self.see_through(&job).await
    }

    async fn shrink_pool(self: &Arc<Self>, run: &JobRun, spec: &Spec) -> Result<()> {
        let close = |entry: &mut PoolEntry| {
            match &spec.less {
                // Not to be filled up again meanwhile.
                Some((_, size)) => entry.size = entry.size.min(*size),
                None => entry.maintenance = true,
            }
            Ok(())
        };
        match self.catalog.change(&spec.pool, close).await {
            // It went in an earlier try.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            closed => closed.map(drop)?,
        }
        let going: Vec<Name> = match &spec.less {
            Some((names, _)) => names.clone(),
            None => {
                let mut all = self.catalog.list::<CloneEntry>().await?;
                all.retain(|clone| clone.state.pool.as_ref() == Some(&spec.pool));
                all.into_iter().map(|clone| clone.name).collect()
            }
        };
        for (done, name) in going.iter().enumerate() {
            run.check()?;
            run.progress(done as u64, Some(going.len() as u64));
            let Some(clone) = self.catalog.find::<CloneEntry>(name).await? else { continue };
            // It was given to somebody meanwhile: then it stays, and the next look at the pool says so.
            let taken = spec.less.is_some() && clone.state.assigned.is_some();
            if clone.state.pool.as_ref() == Some(&spec.pool) && !taken {
                Arc::clone(self).do_delete_clone(name.to_string(), false).await?;
            }
        }
        if spec.less.is_none() {
            match self.catalog.delete(&spec.pool, |_: &PoolEntry| Ok(())).await {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                gone => gone.map(drop)?,
            }
        }
        Ok(())
    }
}

/// The work of the job.
pub(super) fn work(gateway: Arc<Gateway>, run: Arc<JobRun>) -> BoxFuture<'static, Result<serde_json::Value>> {
    Box::pin(async move {
        let spec: Spec = run.spec()?;
        gateway.shrink_pool(&run, &spec).await?;
        Ok(serde_json::json!({ "pool": spec.pool }))
    })
}
