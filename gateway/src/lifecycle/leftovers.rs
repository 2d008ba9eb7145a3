//! Removes what is left of images that this gateway was making when it ended, or that came to nothing: packs that no index names, an index that
//! nothing names, and the notes that they were being made.
//!
//! A note says which life of which gateway makes the image; of its own earlier lives a gateway knows that they are over. What
//! a gateway left that never comes back is removed by `fsck --repair`, when it is old.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use clonegate_core::format::base::BaseData;
use clonegate_core::format::catalog::TemplateEntry;
use clonegate_core::format::making::MakingRecord;
use clonegate_core::ids::{IndexId, Name};
use clonegate_core::{ErrorKind, Result};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::datastores::Datastore;
use super::gateway::Gateway;
use crate::base::leftover::{self, Cleared, Noted};
use crate::base::making::Making;
use crate::clock::Clock;
use crate::store::{keys, making_room};

/// How often it is looked whether anything is left; and how often after so many looks that did not end it.
const LOOK: Duration = Duration::from_secs(2);
const LOOKS: u32 = 60;
const LOOK_SELDOM: Duration = Duration::from_secs(600);
/// A request of whoever made an image may be carried out for so long after its end: more than any one may take.
const LATE: Duration = Duration::from_secs(30);

/// What this gateway knows of images that came to nothing.
#[derive(Debug)]
pub(super) struct Leftovers {
    /// When this life began.
    begun: Instant,
    /// Datastores where nothing of earlier lives is left.
    clean: Mutex<HashSet<Name>>,
    /// Notes of images that nobody makes any more, and since when.
    given_up: Mutex<HashMap<(Name, IndexId), Instant>>,
}

impl Leftovers {
    pub(super) fn new(clock: &Clock) -> Self {
        Self { begun: clock.instant(), clean: Mutex::default(), given_up: Mutex::default() }
    }

    fn is_clean(&self, datastore: &Name) -> bool {
        self.clean.lock().contains(datastore) && !self.given_up.lock().keys().any(|(name, _)| name == datastore)
    }

    /// Since when nobody makes the image of a note.
    fn given_up(&self, datastore: &Name, id: IndexId) -> Option<Instant> {
        self.given_up.lock().get(&(datastore.clone(), id)).copied()
    }

    /// Nobody goes on with the image of a note.
    pub(super) fn give_up(&self, datastore: &Name, id: IndexId, since: Instant) {
        self.given_up.lock().entry((datastore.clone(), id)).or_insert(since);
    }

    fn done(&self, datastore: &Name, id: IndexId) {
        self.given_up.lock().remove(&(datastore.clone(), id));
    }
}

impl Gateway {
    /// Ends the making of an image: it has its name now, or what was put is removed in a while.
    pub(super) async fn settle_image<T>(&self, datastore: &Datastore, making: Making, named: Result<T>) -> Result<T> {
        if named.is_ok() {
            making.end().await;
        } else {
            let id = making.give_up().await;
            self.leftovers.give_up(&datastore.name, id, self.clock.instant());
        }
        named
    }

    /// Looks from now on, in the background, whether anything is left. Where nothing is, the store is not asked again.
    pub(super) fn tend_leftovers(&self) {
        let (me, clock) = (Weak::clone(&self.me), self.clock.clone());
        self.handle.spawn(making_room(async move {
            let mut looks = 0_u32;
            loop {
                let Some(gateway) = me.upgrade() else { return };
                let left = gateway.remove_leftovers().await;
                drop(gateway);
                looks = if left { looks.saturating_add(1) } else { 0 };
                clock.sleep(if looks < LOOKS { LOOK } else { LOOK_SELDOM }).await;
            }
        }));
    }

    /// Tells whether anything is left in a datastore that answers.
    async fn remove_leftovers(&self) -> bool {
        let mut left = false;
        for datastore in self.datastores.all() {
            if self.leftovers.is_clean(&datastore.name) || datastore.check_online().is_err() {
                continue;
            }
            match self.remove_leftovers_in(&datastore).await {
                Ok(true) => drop(self.leftovers.clean.lock().insert(datastore.name.clone())),
                Ok(false) => left = true,
                Err(error) => {
                    tracing::debug!(datastore = %datastore.name, %error, "what images left cannot be removed now");
                    left = true;
                }
            }
        }
        left
    }

    /// Tells whether nothing is left.
    async fn remove_leftovers_in(&self, datastore: &Arc<Datastore>) -> Result<bool> {
        let (maker, name) = (self.maker(), &datastore.name);
        let known: Vec<IndexId> = {
            let given_up = self.leftovers.given_up.lock();
            given_up.keys().filter(|(of, _)| of == name).map(|(_, id)| *id).collect()
        };
        let notes = leftover::notes(&datastore.store).await?;
        // Somebody else took those away.
        for id in known.into_iter().filter(|id| notes.iter().all(|noted| noted.id != *id)) {
            self.leftovers.done(name, id);
        }
        let mut all = true;
        for noted in &notes {
            let Some(note) = &noted.note else { continue };
            let Some(by) = note.maker.filter(|by| by.gateway == maker.gateway) else { continue };
            if by.run != maker.run {
                self.leftovers.give_up(name, noted.id, self.leftovers.begun);
            }
            let Some(since) = self.leftovers.given_up(name, noted.id) else { continue };
            match self.remove_leftover(datastore, noted, note, since).await {
                Ok(true) => self.leftovers.done(name, noted.id),
                Ok(false) => all = false,
                Err(error) => {
                    tracing::debug!(datastore = %name, note = %noted.id, %error, "what an image left cannot be removed now");
                    all = false;
                }
            }
        }
        Ok(all)
    }

    /// Removes what one image has left, whose maker is gone. Tells whether that is done.
    async fn remove_leftover(
        &self,
        datastore: &Arc<Datastore>,
        noted: &Noted,
        note: &MakingRecord,
        since: Instant,
    ) -> Result<bool> {
        let store = &datastore.store;
        let there = match store.head(&keys::index(note.index)).await {
            Ok(_) => true,
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        let named = self.is_named(datastore, note.index).await?;
        if there && named {
            // It was done but for this.
            leftover::take_away(store, noted.id).await?;
            return Ok(true);
        }
        if self.clock.instant().duration_since(since) < LATE {
            return Ok(false);
        }
        let of = (noted.id, noted.n);
        // What was being removed may have been anybody's.
        let copied = named || note.removing;
        let cleared = leftover::clear(store, &self.clock, self.maker(), of, note, (there, copied)).await?;
        if let Cleared::Done { packs } = cleared {
            let (datastore, index) = (&datastore.name, note.index);
            tracing::info!(%datastore, %index, packs, "removed what an image had left that was cut short");
        }
        Ok(cleared != Cleared::NotNow)
    }

    /// Whether a template version or a base of the datastore has this index.
    async fn is_named(&self, datastore: &Arc<Datastore>, index: IndexId) -> Result<bool> {
        let is_it = |data: &BaseData| matches!(data, BaseData::Packed { index: its } if *its == index);
        let templates = self.catalog.list::<TemplateEntry>().await?;
        if templates.iter().flat_map(|template| &template.state.versions).any(|version| is_it(&version.data)) {
            return Ok(true);
        }
        datastore.table.refresh().await?;
        Ok(datastore.table.bases().iter().any(|base| is_it(&base.record.data)))
    }
}
