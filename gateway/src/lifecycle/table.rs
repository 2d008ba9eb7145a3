//! What this gateway knows of the bases of one datastore and of their slots.
//!
//! The store is the truth: a slot belongs to whoever's put-if-absent made it. The table only says where it is worth trying.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use clonegate_core::format::base::{BaseData, BaseRecord, RetiredRecord};
use clonegate_core::format::clone::CloneRecord;
use clonegate_core::format::envelope;
use clonegate_core::ids::{BaseId, IndexId, Name};
use clonegate_core::{Error, Result};
use futures::{StreamExt, TryStreamExt};
use parking_lot::Mutex;

use super::placement::Maker;
use crate::store::{PutNew, Store, keys};

/// Base records fetched at once.
const FETCHES_AT_ONCE: usize = 32;

/// One base, as last seen.
#[derive(Debug, Clone)]
pub(super) struct KnownBase {
    pub(super) record: Arc<BaseRecord>,
    /// Takes no new clones.
    pub(super) retired: bool,
    /// Slots that are taken, or about to be by this gateway.
    taken: BTreeMap<u32, ()>,
    /// Where to look for a free slot first; moved after a collision with another gateway, so that the two part.
    first: u32,
}

impl KnownBase {
    fn new(record: BaseRecord) -> Self {
        Self { record: Arc::new(record), retired: false, taken: BTreeMap::new(), first: 0 }
    }

    /// Slots taken.
    pub(super) fn count(&self) -> u32 {
        u32::try_from(self.taken.len()).unwrap_or(u32::MAX)
    }

    /// Slots that are free.
    pub(super) fn room(&self) -> u32 {
        if self.retired { 0 } else { self.record.slots.saturating_sub(self.count()) }
    }

    fn reserve(&mut self, wanted: usize) -> Vec<u32> {
        let slots = self.record.slots;
        let order = (self.first..slots).chain(0..self.first.min(slots));
        let free: Vec<u32> = order.filter(|slot| !self.taken.contains_key(slot)).take(wanted).collect();
        self.taken.extend(free.iter().map(|slot| (*slot, ())));
        free
    }
}

/// The bases of one datastore.
#[derive(Debug)]
pub(super) struct Table {
    store: Store,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    loaded: bool,
    bases: HashMap<BaseId, KnownBase>,
}

impl Table {
    pub(super) fn new(store: Store) -> Self {
        Self { store, state: Mutex::default() }
    }

    /// Looks at the datastore, if this gateway never did.
    pub(super) async fn load(&self) -> Result<()> {
        if self.state.lock().loaded {
            return Ok(());
        }
        self.refresh().await
    }

    /// Looks at the datastore again: one LIST, and one GET for each base that was not known.
    pub(super) async fn refresh(&self) -> Result<()> {
        let mut seen: HashMap<BaseId, Seen> = HashMap::new();
        for listed in self.store.list(&keys::bases()).await? {
            let mut parts = listed.key.split('/');
            let Some(Ok(id)) = parts.next().map(str::parse::<BaseId>) else { continue };
            let base = seen.entry(id).or_default();
            match (parts.next(), parts.next()) {
                (Some("base"), None) => base.exists = true,
                (Some("retired"), None) => base.retired = true,
                (Some("slots"), Some(slot)) => base.taken.extend(slot.parse::<u32>().ok()),
                _ => {}
            }
        }
        seen.retain(|_, base| base.exists);
        let unknown: Vec<BaseId> = {
            let state = self.state.lock();
            seen.keys().filter(|id| !state.bases.contains_key(id)).copied().collect()
        };
        let records: Vec<BaseRecord> = futures::stream::iter(unknown)
            .map(|id| self.fetch(id))
            .buffer_unordered(FETCHES_AT_ONCE)
            .try_filter_map(|record| async move { Ok(record) })
            .try_collect()
            .await?;
        let mut state = self.state.lock();
        for record in records {
            state.bases.entry(record.id).or_insert_with(|| KnownBase::new(record));
        }
        state.bases.retain(|id, _| seen.contains_key(id));
        for (id, base) in seen {
            let Some(known) = state.bases.get_mut(&id) else { continue };
            known.retired |= base.retired;
            // A reservation of this moment may be missing from the list; it is retried as a collision, never doubled.
            known.taken = base.taken.into_iter().map(|slot| (slot, ())).collect();
        }
        state.loaded = true;
        Ok(())
    }

    /// Reads a base record; `None` when there is no such base.
    pub(super) async fn fetch(&self, id: BaseId) -> Result<Option<BaseRecord>> {
        let key = keys::base(id);
        let Some(body) = self.store.find(&key).await? else { return Ok(None) };
        let record: BaseRecord = envelope::decode(&body).map_err(|e| e.on(key.to_string()))?;
        if record.id != id {
            return Err(Error::corrupt("wrong-id", format!("the record is of {}", record.id)).on(key.to_string()));
        }
        Ok(Some(record))
    }

    /// The bases that this gateway knows of.
    pub(super) fn bases(&self) -> Vec<KnownBase> {
        self.state.lock().bases.values().cloned().collect()
    }

    /// One of them.
    pub(super) fn base(&self, id: BaseId) -> Option<KnownBase> {
        self.state.lock().bases.get(&id).cloned()
    }

    /// The record of a base, from memory or from the store.
    pub(super) async fn record(&self, id: BaseId) -> Result<Arc<BaseRecord>> {
        if let Some(known) = self.base(id) {
            return Ok(known.record);
        }
        let record = self.fetch(id).await?.ok_or_else(|| unknown_base(id))?;
        let mut state = self.state.lock();
        Ok(Arc::clone(&state.bases.entry(id).or_insert_with(|| KnownBase::new(record)).record))
    }

    /// Makes a base exist: one put.
    pub(super) async fn create(&self, record: BaseRecord) -> Result<()> {
        let key = keys::base(record.id);
        match self.store.put_new(&key, envelope::encode(&record)?).await? {
            PutNew::Created => {}
            PutNew::Exists(_) => {
                return Err(
                    Error::internal("id-taken", "a base with this random id is there already").on(key.to_string())
                );
            }
        }
        self.state.lock().bases.insert(record.id, KnownBase::new(record));
        Ok(())
    }

    /// Removes the record of a base that nothing is linked to; gives the index that it named.
    pub(super) async fn remove(&self, id: BaseId) -> Result<Option<IndexId>> {
        let record = self.fetch(id).await?;
        self.state.lock().bases.remove(&id);
        for listed in self.store.list(&keys::boot_sets(id)).await? {
            self.store.delete(&keys::boot_sets(id).key(&listed.key)?).await?;
        }
        self.store.delete(&keys::base(id)).await?;
        self.store.delete(&keys::retired(id)).await?;
        Ok(record.and_then(|record| match record.data {
            BaseData::Packed { index } => Some(index),
            BaseData::Raw { .. } => None,
        }))
    }

    /// Lets a base take no more clones.
    pub(super) async fn retire(&self, id: BaseId, reason: &str) -> Result<()> {
        let clock = self.store.clock();
        let record = RetiredRecord { id, retired_ms: clock.now_ms(), reason: reason.to_owned() };
        self.store.put_new(&keys::retired(id), envelope::encode(&record)?).await?;
        if let Some(known) = self.state.lock().bases.get_mut(&id) {
            known.retired = true;
        }
        Ok(())
    }

    /// The slots of a base that are taken now, as the store says, with the records of those who took them.
    pub(super) async fn slots(&self, id: BaseId) -> Result<Vec<CloneRecord>> {
        let listed = self.store.list(&keys::slots(id)).await?;
        let taken: Vec<u32> = listed.iter().filter_map(|slot| slot.key.parse().ok()).collect();
        let records = futures::stream::iter(taken)
            .map(|slot| async move {
                let key = keys::slot(id, slot);
                let Some(body) = self.store.find(&key).await? else { return Ok(None) };
                envelope::decode::<CloneRecord>(&body).map(Some).map_err(|e| e.on(key.to_string()))
            })
            .buffered(FETCHES_AT_ONCE)
            .try_filter_map(|record| async move { Ok(record) })
            .try_collect()
            .await?;
        Ok(records)
    }

    /// Claims a slot of a base for each name, by put-if-absent, so that a base never has more deltas than slots. Gives the names back for
    /// which there was no room: the base is full or retired.
    ///
    /// # Errors
    /// Those of the store; then nothing stays claimed, as far as the store can be reached.
    pub(super) async fn claim(
        &self,
        id: BaseId,
        mut names: Vec<Name>,
        make: Maker<'_>,
    ) -> Result<(Vec<CloneRecord>, Vec<Name>)> {
        let mut claimed: Vec<CloneRecord> = Vec::new();
        while !names.is_empty() {
            let reserved = match self.state.lock().bases.get_mut(&id) {
                Some(base) if !base.retired => base.reserve(names.len()),
                _ => Vec::new(),
            };
            if reserved.is_empty() {
                break;
            }
            let later = names.split_off(reserved.len());
            let records: Vec<CloneRecord> =
                names.iter().zip(&reserved).map(|(name, slot)| make(name, id, *slot)).collect();
            let bodies: Result<Vec<(keys::Key, Bytes)>> =
                records.iter().map(|r| Ok((keys::slot(id, r.slot), envelope::encode(r)?))).collect();
            let outcomes = self.store.put_new_batch(bodies?).await;
            let mut unplaced = Vec::new();
            let mut failed = None;
            for ((record, name), outcome) in records.into_iter().zip(names).zip(outcomes) {
                match outcome {
                    Ok(PutNew::Created) => claimed.push(record),
                    Ok(PutNew::Exists(_)) => {
                        // Another gateway's: it stays marked as taken, and from now on we look elsewhere first.
                        self.part_ways(id);
                        unplaced.push(name);
                    }
                    Err(error) => {
                        // It may have been put all the same.
                        if let Err(error) = self.give_back_if_ours(&record, id).await {
                            tracing::warn!(base = %id, slot = record.slot, %error, "a slot may stay taken");
                        }
                        failed = Some(error);
                    }
                }
            }
            if let Some(error) = failed {
                self.give_back(&claimed, id).await;
                return Err(error);
            }
            unplaced.extend(later);
            names = unplaced;
        }
        // Whoever retires a base puts `retired` and then looks for slots; we put slots and then look for `retired`. One sees the other.
        if !claimed.is_empty() && self.store.find(&keys::retired(id)).await?.is_some() {
            self.give_back(&claimed, id).await;
            if let Some(base) = self.state.lock().bases.get_mut(&id) {
                base.retired = true;
            }
            names.extend(claimed.drain(..).map(|record| record.name));
        }
        Ok((claimed, names))
    }

    fn part_ways(&self, id: BaseId) {
        let somewhere = self.store.clock().random_u64();
        if let Some(base) = self.state.lock().bases.get_mut(&id) {
            base.first = u32::try_from(somewhere % u64::from(base.record.slots.max(1))).unwrap_or(0);
        }
    }

    /// Frees slots. One that cannot be freed now is found by `fsck`, for its name does not point back.
    pub(super) async fn give_back(&self, records: &[CloneRecord], id: BaseId) {
        let slots: Vec<u32> = records.iter().map(|record| record.slot).collect();
        let freed: Vec<(u32, Result<()>)> = futures::stream::iter(slots)
            .map(|slot| async move { (slot, self.store.delete(&keys::slot(id, slot)).await) })
            .buffer_unordered(FETCHES_AT_ONCE)
            .collect()
            .await;
        for (slot, freed) in freed {
            match freed {
                Ok(()) => self.forget_slot(id, slot),
                Err(error) => tracing::warn!(base = %id, slot, %error, "a slot could not be given back"),
            }
        }
    }

    /// Frees a slot if it is this record's: it may never have been, or may be another's by now.
    pub(super) async fn give_back_if_ours(&self, record: &CloneRecord, id: BaseId) -> Result<()> {
        let key = keys::slot(id, record.slot);
        match self.store.find(&key).await? {
            Some(body) if envelope::decode::<CloneRecord>(&body).is_ok_and(|there| there.id == record.id) => {
                self.store.delete(&key).await?;
                self.forget_slot(id, record.slot);
            }
            Some(_) => {}
            None => self.forget_slot(id, record.slot),
        }
        Ok(())
    }

    fn forget_slot(&self, id: BaseId, slot: u32) {
        if let Some(base) = self.state.lock().bases.get_mut(&id) {
            base.taken.remove(&slot);
        }
    }
}

#[derive(Default)]
struct Seen {
    exists: bool,
    retired: bool,
    taken: Vec<u32>,
}

/// The error for a base that there is not.
pub(super) fn unknown_base(id: BaseId) -> Error {
    Error::not_found("unknown-base", "there is no such base")
        .on(id.to_string())
        .hint("`clonegate base list` shows those that there are")
}
