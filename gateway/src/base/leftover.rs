//! Removes what is left of images whose makers are gone.
//!
//! The note of such an image names its packs. Whoever removes them puts the next number of that note, which says so, and only then looks for
//! other makers that may count on them; those put their notes and then look for removers, so one sees the other. Only then are the
//! indexes listed, and the packs go that none of them names. The note goes last: who is cut in between leaves it to go on from.

use std::collections::{BTreeMap, HashSet};

use clonegate_core::Result;
use clonegate_core::format::envelope;
use clonegate_core::format::making::{Maker, MakingRecord};
use clonegate_core::ids::{IndexId, PackId};
use clonegate_core::limits::MAKINGS_READ_MAX;
use futures::{StreamExt, TryStreamExt};

use super::forget::{is_named, used_packs};
use crate::clock::Clock;
use crate::store::{Key, PutNew, Store, keys};

/// Deletions at a time.
const AT_ONCE: usize = 8;
/// How often a note is looked for whose maker puts the next number meanwhile.
const LOOKS: usize = 8;

/// The newest note of one image that is being made.
#[derive(Debug, Clone)]
pub(crate) struct Noted {
    /// Whose numbers they are.
    pub(crate) id: IndexId,
    /// The highest.
    pub(crate) n: u64,
    /// `None`: it cannot be known whose it is.
    pub(crate) note: Option<MakingRecord>,
}

/// What became of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cleared {
    /// Nothing is left.
    Done {
        /// Packs that no index names, whether they were there or not.
        packs: u64,
    },
    /// Somebody makes the same image, whose note names the same packs, or has made a base of it: it is theirs.
    Anothers,
    /// Somebody is there of whom nobody knows what is theirs, or the note was changed meanwhile.
    NotNow,
}

impl Noted {
    /// Whether it says that packs of this index, or some of these, are being removed.
    pub(crate) fn removes(&self, index: IndexId, packs: &[PackId]) -> bool {
        self.note.as_ref().is_some_and(|note| note.removing && overlaps(note, index, packs))
    }

    /// What its maker says, when it is one.
    fn made(&self) -> Option<&MakingRecord> {
        self.note.as_ref().filter(|note| !note.removing)
    }
}

fn overlaps(note: &MakingRecord, index: IndexId, packs: &[PackId]) -> bool {
    let its: HashSet<&PackId> = note.packs.iter().collect();
    note.index == index || packs.iter().any(|pack| its.contains(pack))
}

/// The numbers of a note, ascending.
pub(crate) async fn numbers(store: &Store, id: IndexId) -> Result<Vec<u64>> {
    let listed = store.list(&keys::making_dir(id)).await?;
    let mut numbers: Vec<u64> = listed.iter().filter_map(|one| one.key.parse().ok()).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// Takes a note away, its newest number last.
pub(crate) async fn take_away(store: &Store, id: IndexId) -> Result<()> {
    for n in numbers(store, id).await? {
        store.delete(&keys::making(id, n)).await?;
    }
    Ok(())
}

/// All notes of a datastore.
pub(crate) async fn notes(store: &Store) -> Result<Vec<Noted>> {
    let mut newest: BTreeMap<IndexId, u64> = BTreeMap::new();
    // A directory that is read while a number takes the place of another may show neither: the second time the later one is there.
    let times = if store.directory().is_some() { 2 } else { 1 };
    for _ in 0..times {
        for listed in store.list(&keys::makings()).await? {
            let Some((id, n)) = listed.key.split_once('/') else { continue };
            let (Ok(id), Ok(n)) = (id.parse(), n.parse()) else { continue };
            let known = newest.entry(id).or_insert(n);
            *known = n.max(*known);
        }
    }
    let mut notes = Vec::new();
    for (id, n) in newest {
        if notes.len() < MAKINGS_READ_MAX {
            notes.extend(read(store, id, n).await?);
        } else {
            notes.push(Noted { id, n, note: None });
        }
    }
    Ok(notes)
}

/// The newest note of this id, of which number `n` was listed; `None` when it is gone.
async fn read(store: &Store, id: IndexId, mut n: u64) -> Result<Option<Noted>> {
    for _ in 0..LOOKS {
        if let Some(body) = store.find(&keys::making(id, n)).await? {
            return Ok(Some(Noted { id, n, note: MakingRecord::decode(&body).ok().flatten() }));
        }
        let Some(newest) = numbers(store, id).await?.pop() else { return Ok(None) };
        n = newest;
    }
    Ok(Some(Noted { id, n, note: None }))
}

/// Removes the packs that a note of a maker who is gone names, but for those that an index names, and then the note; `with_index` the index of the
/// image too, which nobody may name. When the image may be `copied` by others, a note that cannot be read stands in the way.
///
/// Can be cut and done again at any point.
///
/// # Errors
/// Those of the store; `Corrupt` when an index cannot be read, for then nobody knows.
pub(crate) async fn clear(
    store: &Store,
    clock: &Clock,
    by: Maker,
    of: (IndexId, u64),
    note: &MakingRecord,
    (with_index, copied): (bool, bool),
) -> Result<Cleared> {
    let (id, n) = (of.0, of.1 + 1);
    let mark = MakingRecord { nonce: clock.nonce(), maker: Some(by), removing: true, ..note.clone() };
    let mark_key = keys::making(id, n);
    match store.put_new(&mark_key, envelope::encode(&mark)?).await? {
        PutNew::Created => {}
        PutNew::Exists(_) => return Ok(Cleared::NotNow),
    }
    let others: Result<Vec<Noted>> = notes(store).await.map(|all| all.into_iter().filter(|one| one.id != id).collect());
    let makes = |others: &[Noted]| others.iter().filter_map(Noted::made).any(|other| other.index == note.index);
    let unclear = |others: &[Noted]| copied && others.iter().any(|other| other.note.is_none());
    let others = match others {
        // Should that one be cut too, its own note names the same.
        Ok(others) if makes(&others) => {
            take_away(store, id).await?;
            return Ok(Cleared::Anothers);
        }
        Ok(others) if !unclear(&others) => others,
        // Nothing was removed, so who copies the image need not wait.
        others => {
            store.delete(&mark_key).await?;
            return others.map(|_| Cleared::NotNow);
        }
    };
    if with_index {
        // Whoever makes a base puts its record and then looks for the mark; and nothing is begun that could not be brought to its end.
        let named = match used_packs(store, Some(note.index)).await {
            Ok(_) => is_named(store, note.index).await,
            Err(error) => Err(error),
        };
        match named {
            Ok(false) => store.delete(&keys::index(note.index)).await?,
            Ok(true) => {
                take_away(store, id).await?;
                return Ok(Cleared::Anothers);
            }
            Err(error) => {
                store.delete(&mark_key).await?;
                return Err(error);
            }
        }
    }
    // From here on the mark stays after an error: nobody knows what is still to be carried out.
    let mut used = used_packs(store, None).await?;
    // What images that are being made count on, whether they share an index with this one or not.
    used.extend(others.iter().filter_map(Noted::made).flat_map(|other| other.packs.iter().copied()));
    let going: Vec<Key> = note.packs.iter().filter(|pack| !used.contains(pack)).map(|pack| keys::pack(*pack)).collect();
    let packs = going.len() as u64;
    futures::stream::iter(going)
        .map(|key| async move { store.delete(&key).await })
        .buffer_unordered(AT_ONCE)
        .try_collect::<Vec<()>>()
        .await?;
    take_away(store, id).await?;
    Ok(Cleared::Done { packs })
}
