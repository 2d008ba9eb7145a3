//! The records of jobs in the home: numbered states, put if absent, so that of two gateways that go on with one job one wins.

use std::collections::HashMap;

use clonegate_core::format::envelope;
use clonegate_core::format::job::JobRecord;
use clonegate_core::ids::JobId;
use clonegate_core::{ErrorKind, Result};
use futures::{StreamExt, TryStreamExt};
use parking_lot::Mutex;

use crate::store::{PutNew, Store, keys};

/// Records fetched at once.
const FETCHES_AT_ONCE: usize = 32;

/// A state and its number.
#[derive(Debug, Clone)]
pub(super) struct Numbered {
    pub(super) number: u64,
    pub(super) record: JobRecord,
}

/// How a put of the next state ended.
#[derive(Debug)]
pub(super) enum Put {
    /// It is the state now.
    Ours,
    /// Somebody else was first.
    Theirs(Box<JobRecord>),
}

/// What is stored of jobs, and what this gateway remembers of it.
#[derive(Debug)]
pub(super) struct Book {
    home: Store,
    known: Mutex<HashMap<JobId, Numbered>>,
}

impl Book {
    pub(super) fn new(home: Store) -> Self {
        Self { home, known: Mutex::default() }
    }

    /// Makes `record` the state of this number.
    pub(super) async fn put(&self, number: u64, record: &JobRecord) -> Result<Put> {
        match self.home.put_new(&keys::job(record.id, number), envelope::encode(record)?).await? {
            PutNew::Created => {
                self.remember(Numbered { number, record: record.clone() });
                Ok(Put::Ours)
            }
            PutNew::Exists(body) => {
                let theirs = envelope::decode(&body).map_err(|e| e.on(keys::job(record.id, number).to_string()))?;
                Ok(Put::Theirs(Box::new(theirs)))
            }
        }
    }

    /// The newest state of a job; `None` when there is no such job.
    pub(super) async fn newest(&self, id: JobId) -> Result<Option<Numbered>> {
        let listed = self.home.list(&keys::job_dir(id)).await?;
        let numbers: Vec<u64> = listed.iter().filter_map(|l| l.key.parse().ok()).collect();
        let Some(highest) = numbers.iter().max().copied().filter(|_| numbers.contains(&1)) else {
            self.known.lock().remove(&id);
            return Ok(None);
        };
        self.state(id, highest).await
    }

    /// The newest states of all jobs, oldest job first.
    pub(super) async fn list(&self) -> Result<Vec<Numbered>> {
        let mut highest: HashMap<JobId, (u64, bool)> = HashMap::new();
        for listed in self.home.list(&keys::jobs()).await? {
            let Some((id, number)) = listed.key.split_once('/') else { continue };
            let (Ok(id), Ok(number)) = (id.parse::<JobId>(), number.parse::<u64>()) else { continue };
            let entry = highest.entry(id).or_default();
            entry.0 = entry.0.max(number);
            entry.1 |= number == 1;
        }
        // Without its first state a job is on its way out.
        highest.retain(|_, (_, whole)| *whole);
        self.known.lock().retain(|id, _| highest.contains_key(id));
        let mut all: Vec<Numbered> = futures::stream::iter(highest)
            .map(|(id, (number, _))| self.state(id, number))
            .buffer_unordered(FETCHES_AT_ONCE)
            .try_filter_map(|found| async move { Ok(found) })
            .try_collect()
            .await?;
        all.sort_by_key(|job| (job.record.created_ms, job.record.id));
        Ok(all)
    }

    /// Ids of which something is stored and the first state is not: what a removal that was cut short has left.
    pub(super) async fn leftovers(&self) -> Result<Vec<JobId>> {
        let mut whole: HashMap<JobId, bool> = HashMap::new();
        for listed in self.home.list(&keys::jobs()).await? {
            let Some((id, number)) = listed.key.split_once('/') else { continue };
            let (Ok(id), Ok(number)) = (id.parse::<JobId>(), number.parse::<u64>()) else { continue };
            *whole.entry(id).or_default() |= number == 1;
        }
        Ok(whole.into_iter().filter(|(_, whole)| !whole).map(|(id, _)| id).collect())
    }

    /// Takes a job away: its first state first, which makes it be no more, so that a crash leaves no half of it to be seen.
    pub(super) async fn remove(&self, id: JobId) -> Result<()> {
        self.home.delete(&keys::job(id, 1)).await?;
        self.known.lock().remove(&id);
        for listed in self.home.list(&keys::job_dir(id)).await? {
            self.home.delete(&keys::job_dir(id).key(&listed.key)?).await?;
        }
        Ok(())
    }

    async fn state(&self, id: JobId, number: u64) -> Result<Option<Numbered>> {
        if let Some(known) = self.known.lock().get(&id).filter(|known| known.number == number) {
            return Ok(Some(known.clone()));
        }
        let key = keys::job(id, number);
        let body = match self.home.get(&key).await {
            Ok(body) => body,
            // It was taken away meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let record: JobRecord = envelope::decode(&body).map_err(|e| e.on(key.to_string()))?;
        let found = Numbered { number, record };
        self.remember(found.clone());
        Ok(Some(found))
    }

    fn remember(&self, state: Numbered) {
        let mut known = self.known.lock();
        if known.get(&state.record.id).is_none_or(|before| before.number < state.number) {
            known.insert(state.record.id, state);
        }
    }
}
