//! Orders of several clones: all of them or none, also when the gateway dies in the middle.
//!
//! The order is a job. This life of the process does it in memory, where the identities that come with it stay; whoever finds the job
//! after a crash knows the names and ids, keeps them when all are there, and takes back those that are when not.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use clonegate_core::format::catalog::CloneEntry;
use clonegate_core::format::job::JobUnit;
use clonegate_core::ids::{CloneId, Name, Nonce};
use clonegate_core::{Error, ErrorKind, Result};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::gateway::Gateway;
use super::jobs::{JobOrder, JobRun};
use super::names;
use super::views::CreatedClones;

/// The kind of its jobs.
pub(super) const KIND: &str = "clone-create";

/// Does an order in this life of the process.
type Deed = Box<dyn FnOnce(Arc<Gateway>) -> BoxFuture<'static, Result<CreatedClones>> + Send>;

/// One order under way, and what came of it.
struct Pending {
    deed: Option<Deed>,
    outcome: Option<Result<CreatedClones>>,
}

/// The orders under way, by their seeds.
#[derive(Default)]
pub(super) struct Orders(Mutex<HashMap<[u8; 16], Pending>>);

impl fmt::Debug for Orders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Orders").field(&self.0.lock().len()).finish()
    }
}

/// What whoever finds the job has to know: which clones it makes. Nothing secret.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Spec {
    template: Name,
    name: String,
    count: Option<u32>,
    first: Option<u32>,
    seed: Nonce,
}

/// Which clones an order makes: their ids follow from its seed and their names.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ids(pub(super) Nonce);

impl Ids {
    /// The id of the clone of this name.
    pub(super) fn of(self, name: &Name) -> CloneId {
        let mut hash = blake3::Hasher::new_keyed(blake3::hash(b"clonegate order").as_bytes());
        hash.update(&self.0.0).update(name.as_str().as_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash.finalize().as_bytes()[..16]);
        CloneId::from_bytes(bytes)
    }
}

impl Gateway {
    /// Does an order of several clones as a job, and waits for it.
    pub(super) async fn do_order(
        self: &Arc<Self>,
        template: &Name,
        names: (String, Option<u32>, Option<u32>),
        seed: Nonce,
        deed: Deed,
    ) -> Result<CreatedClones> {
        let (name, count, first) = names;
        let total = count.map(u64::from);
        self.orders.0.lock().insert(seed.0, Pending { deed: Some(deed), outcome: None });
        let order = JobOrder {
            kind: KIND,
            // Each is one of its own: who else wants these names finds them taken.
            subject: format!("clones/{name}/{:02x}{:02x}{:02x}{:02x}", seed.0[0], seed.0[1], seed.0[2], seed.0[3]),
            spec: Spec { template: template.clone(), name, count, first, seed },
            unit: JobUnit::Clones,
            total,
        };
        let done = async {
            let job = self.start_job(order).await?;
            self.see_through(&job).await
        }
        .await;
        let pending = self.orders.0.lock().remove(&seed.0);
        match pending.and_then(|pending| pending.outcome) {
            Some(outcome) => outcome,
            None => Err(done.err().unwrap_or_else(cut_short)),
        }
    }

    /// After a crash: all of them stay when all are there; otherwise those that are go.
    async fn settle_order(self: &Arc<Self>, spec: &Spec) -> Result<()> {
        let ids = Ids(spec.seed);
        let names = names::expand(&spec.name, spec.count, spec.first)?;
        let mut there: Vec<Name> = Vec::new();
        for clone in self.catalog.list::<CloneEntry>().await? {
            if clone.state.record.id == ids.of(&clone.name) {
                there.push(clone.name);
            }
        }
        if there.len() == names.len() {
            return Ok(());
        }
        for name in there {
            Arc::clone(self).do_delete_clone(name.to_string(), false).await?;
        }
        let wanted: HashSet<CloneId> = names.iter().map(|name| ids.of(name)).collect();
        for datastore in self.datastores.all().into_iter().filter(|d| d.check_online().is_ok()) {
            datastore.table.refresh().await?;
            for base in datastore.table.bases().iter().filter(|base| base.record.template == spec.template) {
                for slot in datastore.table.slots(base.record.id).await? {
                    if wanted.contains(&slot.id) {
                        datastore.table.give_back_if_ours(&slot, base.record.id).await?;
                    }
                }
            }
        }
        Err(cut_short())
    }
}

fn cut_short() -> Error {
    Error::conflict("order-cut-short", "the gateway ended in the middle of it; none of the clones was made")
        .hint("order them again")
}

/// The work of the job.
pub(super) fn work(gateway: Arc<Gateway>, run: Arc<JobRun>) -> BoxFuture<'static, Result<serde_json::Value>> {
    Box::pin(async move {
        let spec: Spec = run.spec()?;
        let deed = gateway.orders.0.lock().get_mut(&spec.seed.0).and_then(|pending| pending.deed.take());
        let Some(deed) = deed else {
            gateway.settle_order(&spec).await?;
            return Ok(serde_json::json!({ "names": names::expand(&spec.name, spec.count, spec.first)?.len() }));
        };
        let outcome = deed(Arc::clone(&gateway)).await;
        let said = match &outcome {
            Ok(created) => Ok(serde_json::json!({ "names": created.names.len() })),
            // The caller hears of it now; it is not tried again behind his back.
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                Err(Error::conflict("order-failed", error.to_string()))
            }
            Err(error) => Err(error.clone()),
        };
        if let Some(pending) = gateway.orders.0.lock().get_mut(&spec.seed.0) {
            pending.outcome = Some(outcome);
        }
        said
    })
}
