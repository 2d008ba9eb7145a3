//! Names: numbered whole-state records in the home, and what this gateway remembers of them.
//!
//! A state is never overwritten: a change is a put-if-absent of the next number, so of two gateways that change one thing at
//! once, one wins and the other reads again. Numbers are given without a gap and never twice; the newest is found by asking for the next.
//! What was superseded long ago is taken away, so whoever did not list lately lists before asking.

mod listing;
mod numbers;
mod prune;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use clonegate_core::format::catalog::{CatalogRecord, Entry, Noun};
use clonegate_core::format::envelope;
use clonegate_core::ids::Name;
use clonegate_core::{Error, ErrorKind, Result};
use futures::{StreamExt, TryStreamExt};
use parking_lot::RwLock;

use self::listing::{Listing, Listings, Moment};
use crate::clock::Clock;
use crate::store::{Listed, PutNew, Store, keys};

/// Records fetched at once for a list.
const FETCHES_AT_ONCE: usize = 64;
/// How often a change that others overtake is tried.
const ATTEMPTS: u32 = 32;
/// How often the newest state of a name is looked for from a new listing, when numbers went away under the look before.
const LOOKS: u32 = 4;

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

/// The newest state of a name, and the listing from which it was found.
#[derive(Debug)]
struct Newest {
    known: Known,
    listing: Arc<Listing>,
}

/// The catalog of one home.
#[derive(Debug)]
pub struct Catalog {
    home: Store,
    clock: Clock,
    known: RwLock<HashMap<&'static str, HashMap<Name, Known>>>,
    listings: Listings,
    pruned: AtomicU64,
}

impl Catalog {
    /// The catalog in this home.
    pub fn new(home: Store, clock: Clock) -> Self {
        Self { home, clock, known: RwLock::default(), listings: Listings::default(), pruned: AtomicU64::new(0) }
    }

    /// What this name is now; `None` when there is no such thing. One request when nothing changed since last time, and when there never
    /// was such a name; one LIST before it when the noun was not listed lately.
    ///
    /// # Errors
    /// Those of the store; `Corrupt` when a record is.
    pub async fn find<T: Noun>(&self, name: &Name) -> Result<Option<Named<T>>> {
        let newest = self.newest(T::NOUN, name).await?;
        Ok(newest.and_then(|newest| named(name, &newest.known)))
    }

    /// As [`Catalog::find`], and an error when there is none.
    ///
    /// # Errors
    /// `NotFound` with the code `unknown-<noun>`.
    pub async fn get<T: Noun>(&self, name: &Name) -> Result<Named<T>> {
        self.find(name).await?.ok_or_else(|| unknown::<T>(name.as_str()))
    }

    /// As [`Catalog::get`], with the listing that a change of it stands on.
    async fn get_to_change<T: Noun>(&self, name: &Name) -> Result<(Named<T>, Arc<Listing>)> {
        let newest = self.newest(T::NOUN, name).await?;
        let found = newest.and_then(|newest| Some((named(name, &newest.known)?, newest.listing)));
        found.ok_or_else(|| unknown::<T>(name.as_str()))
    }

    /// What this gateway remembers of the name, without asking; may be out of date.
    pub fn remembered<T: Noun>(&self, name: &Name) -> Option<Named<T>> {
        named(name, &self.known(T::NOUN, name)?)
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
        let listing = self.look(T::NOUN).await?;
        let changed: Vec<(Name, u64)> = listing.all_above().map(|(name, number)| (name.clone(), number)).collect();
        let fetched: Vec<(Name, Known)> = futures::stream::iter(changed)
            .map(|(name, number)| async move {
                if let Some(known) = self.fetch(T::NOUN, &name, number).await? {
                    return Ok::<_, Error>(Some((name, known)));
                }
                // It was superseded and taken away since: what superseded it is found and remembered.
                self.newest(T::NOUN, &name).await.map(|_| None)
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
        let listing = self.listings.fresh(T::NOUN, &self.clock, None);
        for (at, (name, state)) in things.into_iter().enumerate() {
            answers.push(None);
            let above = listing.as_ref().map_or(0, |listing| listing.above(&name));
            let number = match self.known(T::NOUN, &name) {
                None if above == 0 => 1,
                Some(k) if *k.entry == Entry::Deleted && listing.is_some() && above <= k.number => k.number + 1,
                // It may have been deleted elsewhere since.
                _ => {
                    waiting.push((at, name, state));
                    continue;
                }
            };
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
                    let created = self.confirm(T::NOUN, &name, known, listing.as_deref()).await;
                    answers[at] = created.map(|known| named(&name, &known)).transpose();
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
            if newest.as_ref().is_some_and(|newest| *newest.known.entry != Entry::Deleted) {
                return Err(taken::<T>(name));
            }
            let (number, listing) = newest.map_or((1, None), |n| (n.known.number + 1, Some(n.listing)));
            let entry = state.clone().into_entry();
            if let Some(created) = self.put(T::NOUN, name, number, entry, listing.as_deref()).await? {
                return named(name, &created).ok_or_else(|| unknown::<T>(name.as_str()));
            }
        }
        Err(busy::<T>(name))
    }

    /// Changes a thing: `change` gets its newest state, maybe several times when others change it too. When it leaves the
    /// state as it was, nothing is written.
    ///
    /// # Errors
    /// `NotFound` when there is none; whatever `change` answers; `Unavailable` with code `catalog-stalled` when this gateway was stopped so
    /// long in the middle of it that nobody knows whether the change counts.
    pub async fn change<T: Noun, R>(
        &self,
        name: &Name,
        mut change: impl FnMut(&mut T) -> Result<R> + Send,
    ) -> Result<(Named<T>, R)>
    where
        R: Send,
    {
        for attempt in 0..ATTEMPTS {
            let (before, listing) = self.get_to_change::<T>(name).await?;
            let mut state = before.state.clone();
            let result = change(&mut state)?;
            if state == before.state {
                return Ok((before, result));
            }
            let number = before.number + 1;
            if let Some(known) = self.put(T::NOUN, name, number, state.into_entry(), Some(&listing)).await? {
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
    /// `NotFound` when there is none; whatever `check` answers; `catalog-stalled` as [`Catalog::change`].
    pub async fn delete<T: Noun>(&self, name: &Name, check: impl Fn(&T) -> Result<()> + Send) -> Result<Named<T>> {
        for _ in 0..ATTEMPTS {
            let (before, listing) = self.get_to_change::<T>(name).await?;
            check(&before.state)?;
            if self.put(T::NOUN, name, before.number + 1, Entry::Deleted, Some(&listing)).await?.is_some() {
                return Ok(before);
            }
        }
        Err(busy::<T>(name))
    }

    /// The newest state of a name, tombstones included: gallops from the last one remembered or listed, then halves.
    async fn newest(&self, noun: &'static str, name: &Name) -> Result<Option<Newest>> {
        let mut since = None;
        for _ in 0..LOOKS {
            let fresh = self.listings.fresh(noun, &self.clock, since);
            let mut first = None;
            if self.known(noun, name).is_none() && fresh.as_ref().is_none_or(|listing| listing.above(name) == 0) {
                first = self.fetch(noun, name, 1).await?;
                if first.is_none() {
                    // Number 1 is never taken away.
                    return Ok(None);
                }
            }
            let listing = match fresh {
                Some(listing) => listing,
                None => self.list_in_turn(noun, since).await?,
            };
            // After the listing, which does not tell of what was remembered.
            let known = self.known(noun, name).or(first);
            let number = known.as_ref().map_or(0, |known| known.number);
            let start = listing.above(name).max(number);
            let newest = match numbers::newest(start, |number| self.fetch(noun, name, number)).await? {
                Some(found) => Some(found),
                None if start == number => known,
                None => self.fetch(noun, name, start).await?,
            };
            if let Some(known) = newest
                && !listing.is_stale(&self.clock)
            {
                self.remember(noun, name, known.clone());
                return Ok(Some(Newest { known, listing }));
            }
            // The look took so long that numbers went away under it.
            since = Some(Moment::now(&self.clock));
        }
        Err(Error::unavailable("catalog-unsteady", "its states go away while they are looked for")
            .on(keys::catalog_prefix(noun).as_str())
            .hint("check the clocks of the gateways' hosts and of the home's store, and try again"))
    }

    /// A listing that began after `since` and from which names may be looked for; of those who miss one at the same time, one lists.
    async fn list_in_turn(&self, noun: &'static str, since: Option<Moment>) -> Result<Arc<Listing>> {
        let turn = self.listings.turn(noun);
        let _turn = turn.lock().await;
        match self.listings.fresh(noun, &self.clock, since) {
            Some(listing) => Ok(listing),
            None => self.look(noun).await,
        }
    }

    /// Lists the numbers of a noun.
    async fn look(&self, noun: &'static str) -> Result<Arc<Listing>> {
        let begun = Moment::now(&self.clock);
        let listed = self.home.list(&keys::catalog_prefix(noun)).await.map_err(|error| match error.code() {
            "list-too-long" => error.hint(
                "states that were superseded days ago are taken away a few minutes after the start of a gateway, and by \
                 `clonegate fsck --repair`: let one run; if it stays, there are too many names",
            ),
            _ => error,
        })?;
        Ok(self.digest(noun, begun, &listed))
    }

    /// Remembers a listing.
    fn digest(&self, noun: &'static str, begun: Moment, listed: &[Listed]) -> Arc<Listing> {
        let mut above: HashMap<Name, u64> = HashMap::new();
        for listed in listed {
            let Some((name, number)) = numbers::parse(&listed.key) else {
                tracing::warn!(key = %listed.key, noun, "not a catalog key: passed over");
                continue;
            };
            let highest = above.entry(name).or_default();
            *highest = number.max(*highest);
        }
        {
            let known = self.known.read();
            let known = known.get(noun);
            let remembered = |name: &Name| known.and_then(|k| k.get(name)).map_or(0, |k| k.number);
            above.retain(|name, number| *number > remembered(name));
        }
        let listing = Arc::new(Listing::new(begun, above));
        self.listings.keep(noun, &listing);
        listing
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

    /// Writes this number; `None` when somebody else has it, or when it has to be decided anew. Number 1 stands on no listing.
    async fn put(
        &self,
        noun: &'static str,
        name: &Name,
        number: u64,
        entry: Entry,
        listing: Option<&Listing>,
    ) -> Result<Option<Known>> {
        if listing.is_some_and(|listing| listing.is_stale(&self.clock)) {
            return Ok(None);
        }
        let (key, body, known) = self.record(noun, name, number, entry)?;
        match self.home.put_new(&key, body).await? {
            PutNew::Created => self.confirm(noun, name, known, listing).await.map(Some),
            PutNew::Exists(_) => Ok(None),
        }
    }

    /// Whether a number that was absent when it was put was the next one. Others' states of this number are taken away only long after the
    /// listing; so it was, unless this gateway stood still meanwhile. Then another listing tells: ours is the highest, or others went on, and nobody
    /// knows whether from ours or from one that is gone. Ours stays in any case: somebody may have seen it, and below the highest it means nothing.
    async fn confirm(&self, noun: &'static str, name: &Name, known: Known, listing: Option<&Listing>) -> Result<Known> {
        if listing.is_some_and(|listing| listing.is_stale(&self.clock)) {
            let again = self.list_in_turn(noun, Some(Moment::now(&self.clock))).await?;
            let remembered = self.known(noun, name).map_or(0, |known| known.number);
            if again.above(name).max(remembered) != known.number {
                return Err(stalled(noun, name));
            }
        }
        self.remember(noun, name, known.clone());
        Ok(known)
    }

    fn known(&self, noun: &'static str, name: &Name) -> Option<Known> {
        self.known.read().get(noun)?.get(name).cloned()
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

fn stalled(noun: &str, name: &Name) -> Error {
    let message =
        format!("this gateway stood still for a day while it changed this {noun}, which others changed meanwhile");
    Error::unavailable("catalog-stalled", message)
        .on(name.as_str())
        .hint("look at it, and do it again if it was not done")
}
