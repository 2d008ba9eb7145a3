//! Names: numbered whole-state records in the home, and what this gateway remembers of them.
//!
//! A state is never overwritten: a change is a put-if-absent of the next number, so of two gateways that change one thing at
//! once, one wins and the other reads again. Numbers have no gap and are never deleted; the newest is found by asking for the next.

mod numbers;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use clonegate_core::format::catalog::{CatalogRecord, Entry, Noun};
use clonegate_core::format::envelope;
use clonegate_core::ids::Name;
use clonegate_core::{Error, ErrorKind, Result};
use futures::{StreamExt, TryStreamExt};
use parking_lot::RwLock;

use crate::clock::Clock;
use crate::store::{PutNew, Store, keys};

/// Records fetched at once for a list.
const FETCHES_AT_ONCE: usize = 64;
/// How often a change that others overtake is tried.
const ATTEMPTS: u32 = 32;

/// One state of one named thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named<T> {
    /// Its name.
    pub name: Name,
    /// The number of this state.
    pub number: u64,
    /// When it was written, milliseconds since 1970 UTC.
    pub written_ms: u64,
    /// The state.
    pub state: T,
}

#[derive(Debug, Clone)]
struct Known {
    number: u64,
    written_ms: u64,
    entry: Arc<Entry>,
}

/// The catalog of one home.
#[derive(Debug)]
pub struct Catalog {
    home: Store,
    clock: Clock,
    known: RwLock<HashMap<&'static str, HashMap<Name, Known>>>,
}

impl Catalog {
    /// The catalog in this home.
    pub fn new(home: Store, clock: Clock) -> Self {
        Self { home, clock, known: RwLock::default() }
    }

    /// What this name is now; `None` when there is no such thing. One request when nothing changed since last time.
    ///
    /// # Errors
    /// Those of the store; `Corrupt` when a record is.
    pub async fn find<T: Noun>(&self, name: &Name) -> Result<Option<Named<T>>> {
        let newest = self.newest(T::NOUN, name).await?;
        Ok(newest.and_then(|known| named(name, &known)))
    }

    /// As [`Catalog::find`], and an error when there is none.
    ///
    /// # Errors
    /// `NotFound` with the code `unknown-<noun>`.
    pub async fn get<T: Noun>(&self, name: &Name) -> Result<Named<T>> {
        self.find(name).await?.ok_or_else(|| unknown::<T>(name.as_str()))
    }

    /// What this gateway remembers of the name, without asking; may be out of date.
    pub fn remembered<T: Noun>(&self, name: &Name) -> Option<Named<T>> {
        let known = self.known.read().get(T::NOUN)?.get(name)?.clone();
        named(name, &known)
    }

    /// The first thing that this gateway remembers and that `pick` takes.
    pub fn remembered_where<T: Noun>(&self, mut pick: impl FnMut(&Entry) -> bool) -> Option<Named<T>> {
        let known = self.known.read();
        let (name, found) = known.get(T::NOUN)?.iter().find(|(_, k)| pick(&k.entry))?;
        named(name, found)
    }

    /// All things of this noun that this gateway remembers, in no order.
    pub fn remembered_all<T: Noun>(&self) -> Vec<Named<T>> {
        let known = self.known.read();
        known.get(T::NOUN).into_iter().flatten().filter_map(|(name, k)| named(name, k)).collect()
    }

    /// All things of this noun, by name: one LIST, and one GET for each that changed since last time.
    ///
    /// # Errors
    /// Those of the store; `Corrupt` when a record is.
    pub async fn list<T: Noun>(&self) -> Result<Vec<Named<T>>> {
        let mut newest: HashMap<Name, u64> = HashMap::new();
        for listed in self.home.list(&keys::catalog_prefix(T::NOUN)).await? {
            let Some((name, number)) = numbers::parse(&listed.key) else {
                tracing::warn!(key = %listed.key, noun = T::NOUN, "not a catalog key: passed over");
                continue;
            };
            let highest = newest.entry(name).or_default();
            *highest = number.max(*highest);
        }
        let stale: Vec<(Name, u64)> = {
            let known = self.known.read();
            let known = known.get(T::NOUN);
            let fresh = |name: &Name, number: u64| known.and_then(|k| k.get(name)).is_some_and(|k| k.number >= number);
            newest.into_iter().filter(|(name, number)| !fresh(name, *number)).collect()
        };
        let fetched: Vec<(Name, Known)> = futures::stream::iter(stale)
            .map(|(name, number)| async move {
                let known = self.fetch(T::NOUN, &name, number).await?;
                Ok::<_, Error>(known.map(|known| (name, known)))
            })
            .buffer_unordered(FETCHES_AT_ONCE)
            .try_filter_map(|found| async move { Ok(found) })
            .try_collect()
            .await?;
        for (name, known) in fetched {
            self.remember(T::NOUN, &name, known);
        }
        let known = self.known.read();
        let mut all: Vec<Named<T>> =
            known.get(T::NOUN).into_iter().flatten().filter_map(|(name, k)| named(name, k)).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// Gives this name to a new thing. Durable when it returns.
    ///
    /// # Errors
    /// `Exists` with code `name-taken`.
    pub async fn create<T: Noun>(&self, name: &Name, state: T) -> Result<Named<T>> {
        let mut created = self.create_all(vec![(name.clone(), state)]).await;
        created.pop().unwrap_or_else(|| Err(Error::internal("lost-answer", "the batch gave no answer")))
    }

    /// Gives names to many new things at once; each succeeds or fails by itself, in the order asked.
    pub async fn create_all<T: Noun>(&self, things: Vec<(Name, T)>) -> Vec<Result<Named<T>>> {
        let mut answers: Vec<Option<Result<Named<T>>>> = Vec::new();
        let mut puts = Vec::new();
        let mut waiting = Vec::new();
        for (at, (name, state)) in things.into_iter().enumerate() {
            answers.push(None);
            let before = self.known.read().get(T::NOUN).and_then(|k| k.get(&name)).cloned();
            if before.as_ref().is_some_and(|k| *k.entry != Entry::Deleted) {
                // It may have been deleted elsewhere since.
                waiting.push((at, name, state));
                continue;
            }
            let number = before.map_or(1, |k| k.number + 1);
            match self.record(T::NOUN, &name, number, state.clone().into_entry()) {
                Ok((key, body, known)) => puts.push((at, name, state, known, key, body)),
                Err(error) => answers[at] = Some(Err(error)),
            }
        }
        let batch = puts.iter().map(|(.., key, body)| (key.clone(), body.clone())).collect();
        let outcomes = self.home.put_new_batch(batch).await;
        for ((at, name, state, known, ..), outcome) in puts.into_iter().zip(outcomes) {
            match outcome {
                Ok(PutNew::Created) => {
                    answers[at] = named(&name, &known).map(Ok);
                    self.remember(T::NOUN, &name, known);
                }
                Ok(PutNew::Exists(_)) => waiting.push((at, name, state)),
                Err(error) => answers[at] = Some(Err(error)),
            }
        }
        for (at, name, state) in waiting {
            answers[at] = Some(self.create_known(&name, state).await);
        }
        answers
            .into_iter()
            .map(|a| a.unwrap_or_else(|| Err(Error::internal("lost-answer", "the batch gave no answer"))))
            .collect()
    }

    /// Creates where earlier states of the name exist.
    async fn create_known<T: Noun>(&self, name: &Name, state: T) -> Result<Named<T>> {
        for _ in 0..ATTEMPTS {
            let newest = self.newest(T::NOUN, name).await?;
            if newest.as_ref().is_some_and(|k| *k.entry != Entry::Deleted) {
                return Err(taken::<T>(name));
            }
            let number = newest.map_or(1, |k| k.number + 1);
            if let Some(created) = self.put(T::NOUN, name, number, state.clone().into_entry()).await? {
                return named(name, &created).ok_or_else(|| unknown::<T>(name.as_str()));
            }
        }
        Err(busy::<T>(name))
    }

    /// Changes a thing: `change` gets its newest state, maybe several times when others change it too. When it leaves the
    /// state as it was, nothing is written.
    ///
    /// # Errors
    /// `NotFound` when there is none; whatever `change` answers.
    pub async fn change<T: Noun, R>(
        &self,
        name: &Name,
        mut change: impl FnMut(&mut T) -> Result<R> + Send,
    ) -> Result<(Named<T>, R)>
    where
        R: Send,
    {
        for attempt in 0..ATTEMPTS {
            let before: Named<T> = self.get(name).await?;
            let mut state = before.state.clone();
            let result = change(&mut state)?;
            if state == before.state {
                return Ok((before, result));
            }
            if let Some(known) = self.put(T::NOUN, name, before.number + 1, state.into_entry()).await? {
                let after = named(name, &known).ok_or_else(|| unknown::<T>(name.as_str()))?;
                return Ok((after, result));
            }
            self.clock.sleep(self.clock.jitter(std::time::Duration::from_millis(5 << attempt.min(6)))).await;
        }
        Err(busy::<T>(name))
    }

    /// Takes the name away. `check` gets the newest state and may refuse.
    ///
    /// # Errors
    /// `NotFound` when there is none; whatever `check` answers.
    pub async fn delete<T: Noun>(&self, name: &Name, check: impl Fn(&T) -> Result<()> + Send) -> Result<Named<T>> {
        for _ in 0..ATTEMPTS {
            let before: Named<T> = self.get(name).await?;
            check(&before.state)?;
            if self.put(T::NOUN, name, before.number + 1, Entry::Deleted).await?.is_some() {
                return Ok(before);
            }
        }
        Err(busy::<T>(name))
    }

    /// The newest state of a name, tombstones included: gallops from the last one known, then halves.
    async fn newest(&self, noun: &'static str, name: &Name) -> Result<Option<Known>> {
        let remembered = self.known.read().get(noun).and_then(|k| k.get(name)).cloned();
        let start = remembered.as_ref().map_or(0, |k| k.number);
        let found = numbers::newest(start, |number| self.fetch(noun, name, number)).await?;
        if let Some(known) = &found {
            self.remember(noun, name, known.clone());
        }
        Ok(found.or(remembered))
    }

    async fn fetch(&self, noun: &'static str, name: &Name, number: u64) -> Result<Option<Known>> {
        let key = keys::catalog(noun, name, number);
        match self.home.get(&key).await {
            Ok(body) => {
                let record: CatalogRecord = envelope::decode(&body).map_err(|e| e.on(key.as_str()))?;
                Ok(Some(Known { number, written_ms: record.written_ms, entry: Arc::new(record.entry) }))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn record(&self, noun: &'static str, name: &Name, number: u64, entry: Entry) -> Result<(keys::Key, Bytes, Known)> {
        let written_ms = self.clock.now_ms();
        let record = CatalogRecord { nonce: self.clock.nonce(), written_ms, entry };
        let body = envelope::encode(&record)?;
        Ok((keys::catalog(noun, name, number), body, Known { number, written_ms, entry: Arc::new(record.entry) }))
    }

    /// Writes this number; `None` when somebody else has it.
    async fn put(&self, noun: &'static str, name: &Name, number: u64, entry: Entry) -> Result<Option<Known>> {
        let (key, body, known) = self.record(noun, name, number, entry)?;
        match self.home.put_new(&key, body).await? {
            PutNew::Created => {
                self.remember(noun, name, known.clone());
                Ok(Some(known))
            }
            PutNew::Exists(_) => Ok(None),
        }
    }

    fn remember(&self, noun: &'static str, name: &Name, known: Known) {
        let mut all = self.known.write();
        let of_noun = all.entry(noun).or_default();
        // Two requests may come back in the other order: the higher number is the truth.
        if of_noun.get(name).is_none_or(|before| before.number < known.number) {
            of_noun.insert(name.clone(), known);
        }
    }
}

fn named<T: Noun>(name: &Name, known: &Known) -> Option<Named<T>> {
    let state = T::from_entry((*known.entry).clone())?;
    Some(Named { name: name.clone(), number: known.number, written_ms: known.written_ms, state })
}

/// The error for a name that there is not.
pub fn unknown<T: Noun>(name: &str) -> Error {
    Error::not_found(T::UNKNOWN, format!("there is no {} of this name", T::NOUN))
        .on(name)
        .hint(format!("`clonegate {} list` shows those that there are", T::NOUN))
}

fn taken<T: Noun>(name: &Name) -> Error {
    Error::exists("name-taken", format!("a {} of this name is there already", T::NOUN))
        .on(name.as_str())
        .hint("choose another name, or delete that one first")
}

fn busy<T: Noun>(name: &Name) -> Error {
    Error::conflict("busy", format!("others keep changing this {}", T::NOUN)).on(name.as_str()).hint("try again")
}
