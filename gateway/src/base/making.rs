//! Says that an image is being made, so that nobody takes its packs, which no index names yet, for leftovers, however long it takes, and that
//! whoever comes after its maker knows what to remove.
//!
//! Whoever makes an image keeps a note `making/<id>/<n>`, and puts the next number every few minutes, and before it puts a pack that the note does
//! not name. Whoever removes packs that no index names takes away such notes as are old, looks whether any is left, and only then
//! lists the indexes. The maker looks at its note after it has put its index: is it there, then the list comes after the index; is it gone,
//! then the image is given up. So no clock decides anything but who has to begin again. What is left of a maker that is known to be
//! gone is removed by [`super::leftover`].

use std::sync::Arc;
use std::time::Duration;

use clonegate_core::format::envelope;
use clonegate_core::format::making::{Maker, MakingRecord};
use clonegate_core::ids::{IndexId, PackId};
use clonegate_core::limits::MAKING_PACKS_MAX;
use clonegate_core::{Error, Result};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use super::leftover;
use crate::clock::Clock;
use crate::store::{PutNew, Store, keys};

/// How often it is said again: a few times within the hour after which `fsck` takes something for left over.
const AGAIN: Duration = Duration::from_secs(10 * 60);
/// Packs that a note names beforehand at least, and at most: so few notes are put however large the image.
const PACKS_FIRST: usize = 16;
const PACKS_MORE_MAX: usize = 4096;
/// How long a copy waits until what is left of an earlier one is removed (longer than a gateway that starts does before it begins to), and
/// between its looks.
const REMOVAL_WAIT: Duration = Duration::from_secs(45);
const REMOVAL_LOOK: Duration = Duration::from_millis(200);

#[derive(Debug)]
struct State {
    /// The newest number that was put.
    n: u64,
    /// The oldest that may be there.
    oldest: u64,
    /// Somebody took the note away.
    lost: bool,
    /// Packs that the newest note names, and how many of them are in use.
    packs: Vec<PackId>,
    used: usize,
}

#[derive(Debug)]
struct Shared {
    store: Store,
    id: IndexId,
    index: IndexId,
    maker: Option<Maker>,
    state: Mutex<State>,
}

/// See the module. When it is dropped without [`Making::end`], the note stays until it is old, or until its gateway starts again.
#[derive(Debug)]
pub(crate) struct Making {
    shared: Arc<Shared>,
    renewing: JoinHandle<()>,
}

/// Gives the packs of a new image their ids, which the note names first.
#[derive(Debug)]
pub(crate) struct PackIds(Arc<Shared>);

impl PackIds {
    /// The id of the next pack.
    ///
    /// # Errors
    /// `Conflict` with code `image-swept`; what the store gives.
    pub(crate) async fn next(&self, clock: &Clock) -> Result<PackId> {
        let mut state = self.0.state.lock().await;
        if state.used == state.packs.len() {
            if state.packs.len() >= MAKING_PACKS_MAX {
                return Ok(clock.id());
            }
            let more = state.packs.len().clamp(PACKS_FIRST, PACKS_MORE_MAX);
            let packs = state.packs.iter().copied().chain((0..more).map(|_| clock.id())).collect();
            self.0.renew(&mut state, packs, clock).await?;
        }
        state.used += 1;
        Ok(state.packs[state.used - 1])
    }
}

impl Making {
    /// Says from now on that a new image is made, whose packs nobody else can know.
    ///
    /// # Errors
    /// What the store gives.
    pub(crate) async fn of_new(store: &Store, clock: &Clock, maker: Option<Maker>, index: IndexId) -> Result<Self> {
        Self::begin(store, clock, maker, index, (0..PACKS_FIRST).map(|_| clock.id()).collect()).await
    }

    /// Says from now on that an image is copied, which has these packs. What an earlier copy has left may be counted on once this returns:
    /// whoever removes it puts a note of that and then looks for makers; we put ours and then look for removers.
    ///
    /// # Errors
    /// `Unavailable` with code `image-being-removed`; what the store gives.
    pub(crate) async fn of_copy(
        store: &Store,
        clock: &Clock,
        maker: Option<Maker>,
        index: IndexId,
        mut packs: Vec<PackId>,
    ) -> Result<Self> {
        packs.truncate(MAKING_PACKS_MAX);
        let making = Self::begin(store, clock, maker, index, packs).await?;
        let begun = clock.instant();
        loop {
            let looked = making.is_being_removed().await;
            if matches!(looked, Ok(false)) {
                return Ok(making);
            }
            if looked.is_err() || begun.elapsed() >= REMOVAL_WAIT {
                making.end().await;
                looked?;
                let message = "what is left of an earlier copy of the image is being removed";
                return Err(Error::unavailable("image-being-removed", message)
                    .on(keys::index(index).to_string())
                    .hint(
                        "try again; if the gateway that began to is gone for good, clonegate fsck --repair in an hour",
                    ));
            }
            clock.sleep(REMOVAL_LOOK).await;
        }
    }

    async fn begin(
        store: &Store,
        clock: &Clock,
        maker: Option<Maker>,
        index: IndexId,
        packs: Vec<PackId>,
    ) -> Result<Self> {
        let state = Mutex::new(State { n: 0, oldest: 0, lost: false, packs: packs.clone(), used: 0 });
        let shared = Arc::new(Shared { store: store.clone(), id: clock.id(), index, maker, state });
        if let PutNew::Exists(_) = shared.put(0, packs, clock).await? {
            return Err(Error::internal("id-taken", "a fresh note is there already"));
        }
        let (renewed, clock) = (Arc::clone(&shared), clock.clone());
        let renewing = tokio::spawn(async move {
            loop {
                clock.sleep(AGAIN).await;
                let mut state = renewed.state.lock().await;
                let packs = state.packs.clone();
                if let Err(error) = renewed.renew(&mut state, packs, &clock).await {
                    tracing::warn!(%error, "that an image is being made could not be said again");
                }
            }
        });
        Ok(Self { shared, renewing })
    }

    /// Where a new image gets the ids of its packs.
    pub(crate) fn pack_ids(&self) -> PackIds {
        PackIds(Arc::clone(&self.shared))
    }

    async fn is_being_removed(&self) -> Result<bool> {
        let packs = self.shared.state.lock().await.packs.clone();
        let others = leftover::notes(&self.shared.store).await?;
        let own = self.shared.id;
        Ok(others.iter().any(|other| other.id != own && other.removes(self.shared.index, &packs)))
    }

    /// After the index was put: whether all that it names was safe until then.
    ///
    /// # Errors
    /// `Conflict` with code `image-swept`; what the store gives.
    pub(crate) async fn check(&self) -> Result<()> {
        let state = self.shared.state.lock().await;
        let there = leftover::numbers(&self.shared.store, self.shared.id).await?;
        let mut safe = !state.lost && there.contains(&state.n);
        // A later one is of our own put whose answer was lost, or of somebody who removes.
        for n in there.into_iter().filter(|n| *n > state.n) {
            let later = self.shared.store.find(&keys::making(self.shared.id, n)).await?;
            safe &= later.is_some_and(|body| self.shared.is_ours(&body));
        }
        if safe { Ok(()) } else { Err(swept()) }
    }

    /// Takes the note away: the image is there, or nothing of it.
    pub(crate) async fn end(self) {
        // A number that is being put is waited for.
        let _state = self.shared.state.lock().await;
        self.renewing.abort();
        if let Err(error) = leftover::take_away(&self.shared.store, self.shared.id).await {
            let own = keys::making_dir(self.shared.id);
            tracing::warn!(%own, %error, "left over from an image that was made; the next start of the gateway removes it");
        }
    }

    /// Says it no more, and leaves the note to whoever removes what was put. Gives its id.
    pub(crate) async fn give_up(self) -> IndexId {
        let _state = self.shared.state.lock().await;
        self.renewing.abort();
        self.shared.id
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}

fn swept() -> Error {
    Error::conflict("image-swept", "what it had stored was taken for left over and removed")
        .hint("it stood still for very long, or `fsck --repair` was told to wait for nothing: begin again")
}

impl Shared {
    async fn put(&self, n: u64, packs: Vec<PackId>, clock: &Clock) -> Result<PutNew> {
        let note = MakingRecord { index: self.index, nonce: clock.nonce(), maker: self.maker, removing: false, packs };
        self.store.put_new(&keys::making(self.id, n), envelope::encode(&note)?).await
    }

    /// Whether a note of this series is of its maker.
    fn is_ours(&self, body: &[u8]) -> bool {
        matches!(MakingRecord::decode(body), Ok(Some(note)) if note.maker == self.maker && !note.removing)
    }

    /// Puts the next number, with these packs, and takes those before it away.
    async fn renew(&self, state: &mut State, packs: Vec<PackId>, clock: &Clock) -> Result<()> {
        let before = state.n;
        loop {
            match self.put(state.n + 1, packs.clone(), clock).await? {
                PutNew::Created => break,
                // An earlier put of ours whose answer was lost.
                PutNew::Exists(body) if self.is_ours(&body) => state.n += 1,
                PutNew::Exists(_) => {
                    state.lost = true;
                    return Err(swept());
                }
            }
        }
        // The next first: whoever took this one away has either seen the next, or we see that this one is gone.
        if !leftover::numbers(&self.store, self.id).await?.contains(&before) {
            state.lost = true;
        }
        state.n += 1;
        state.packs = packs;
        while state.oldest < state.n {
            // The newest counts; what stays of the older ones goes with it.
            if let Err(error) = self.store.delete(&keys::making(self.id, state.oldest)).await {
                tracing::warn!(id = %self.id, %error, "an older note of an image stays until the image is done");
                break;
            }
            state.oldest += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use clonegate_core::ids::{GatewayId, Nonce};

    use super::*;
    use crate::base::leftover::{Cleared, clear, notes};
    use crate::store::StoreConfig;

    fn world() -> (Store, Clock) {
        let clock = Clock::simulated(1);
        (Store::open(&StoreConfig::new("memory://"), &clock).unwrap(), clock)
    }

    async fn said(store: &Store) -> Vec<String> {
        store.list(&keys::makings()).await.unwrap().into_iter().map(|listed| listed.key).collect()
    }

    fn life(gateway: u8, run: u8) -> Maker {
        Maker { gateway: GatewayId::from_bytes([gateway; 16]), run: Nonce([run; 16]) }
    }

    async fn new(store: &Store, clock: &Clock, maker: Maker) -> Making {
        Making::of_new(store, clock, Some(maker), clock.id()).await.unwrap()
    }

    async fn put_pack(store: &Store, pack: PackId) {
        store.put_new(&keys::pack(pack), Bytes::from_static(b"frames")).await.unwrap();
    }

    async fn packs(store: &Store) -> usize {
        store.list(&keys::packs()).await.unwrap().len()
    }

    /// Removes what the gone life left, as another one does.
    async fn sweep(store: &Store, clock: &Clock, gone: Maker, copied: bool) -> Vec<Cleared> {
        let mut cleared = Vec::new();
        for noted in notes(store).await.unwrap() {
            if let Some(note) = noted.note.filter(|note| note.maker == Some(gone)) {
                let of = (noted.id, noted.n);
                cleared.push(clear(store, clock, life(1, 2), of, &note, (false, copied)).await.unwrap());
            }
        }
        cleared
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_said_again_and_again_in_one_object_and_no_more_at_the_end() {
        let (store, clock) = world();
        let making = new(&store, &clock, life(1, 1)).await;
        let first = said(&store).await;
        for hours in 1..4 {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            let now = said(&store).await;
            assert_eq!(now.len(), 1);
            assert!(now[0] > first[0], "after {hours} h it is the object of the beginning");
            making.check().await.unwrap();
        }
        making.end().await;
        assert!(said(&store).await.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_swept_is_told_also_when_it_was_said_again_since() {
        for pause in [0, 3600] {
            let (store, clock) = world();
            let making = new(&store, &clock, life(1, 1)).await;
            tokio::time::sleep(Duration::from_secs(3600)).await;
            for key in said(&store).await {
                store.delete(&keys::makings().key(&key).unwrap()).await.unwrap();
            }
            tokio::time::sleep(Duration::from_secs(pause)).await;
            assert_eq!(making.check().await.unwrap_err().code(), "image-swept", "{pause} s later");
            making.end().await;
            assert!(said(&store).await.is_empty());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn every_pack_is_named_before_it_is_put_and_few_notes_are() {
        let (store, clock) = world();
        let making = new(&store, &clock, life(1, 1)).await;
        let ids = making.pack_ids();
        let mut given = Vec::new();
        for _ in 0..1000 {
            given.push(ids.next(&clock).await.unwrap());
            let all = notes(&store).await.unwrap();
            assert!(all[0].note.as_ref().unwrap().packs.contains(given.last().unwrap()));
        }
        let all = notes(&store).await.unwrap();
        assert!(given.iter().all(|pack| all[0].note.as_ref().unwrap().packs.contains(pack)));
        assert!(said(&store).await.len() == 1 && all[0].n < 10, "{} notes", all[0].n);
        making.check().await.unwrap();
        making.end().await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_life_left_goes_and_another_maker_at_work_loses_nothing() {
        let (store, clock) = world();
        let (gone, here) = (new(&store, &clock, life(1, 1)).await, new(&store, &clock, life(2, 1)).await);
        let mut theirs = Vec::new();
        for _ in 0..20 {
            put_pack(&store, gone.pack_ids().next(&clock).await.unwrap()).await;
            theirs.push(here.pack_ids().next(&clock).await.unwrap());
            put_pack(&store, theirs[theirs.len() - 1]).await;
        }
        gone.give_up().await;
        assert_eq!(sweep(&store, &clock, life(1, 1), false).await, [Cleared::Done { packs: 32 }]);
        assert_eq!(packs(&store).await, theirs.len());
        for pack in theirs {
            store.head(&keys::pack(pack)).await.unwrap();
        }
        here.check().await.unwrap();
        here.end().await;
        assert!(said(&store).await.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn who_copies_the_same_image_keeps_what_is_there_or_waits_until_it_is_gone() {
        let (store, clock) = world();
        let (index, pack): (IndexId, PackId) = (clock.id(), clock.id());
        let copy = async |maker| Making::of_copy(&store, &clock, Some(maker), index, vec![pack]).await;
        copy(life(1, 1)).await.unwrap().give_up().await;
        put_pack(&store, pack).await;
        // One at work: the pack is its own now, though the other put it.
        let other = copy(life(2, 1)).await.unwrap();
        assert_eq!(sweep(&store, &clock, life(1, 1), true).await, [Cleared::Anothers]);
        assert_eq!(packs(&store).await, 1);
        other.check().await.unwrap();
        other.give_up().await;
        // Nobody at work: it is being removed when the next one comes.
        let noted = notes(&store).await.unwrap().pop().unwrap();
        let mark = MakingRecord { removing: true, nonce: clock.nonce(), ..noted.note.unwrap() };
        store.put_new(&keys::making(noted.id, noted.n + 1), envelope::encode(&mark).unwrap()).await.unwrap();
        assert_eq!(copy(life(3, 1)).await.unwrap_err().code(), "image-being-removed");
        assert_eq!(sweep(&store, &clock, life(2, 1), true).await, [Cleared::Done { packs: 1 }]);
        assert_eq!(packs(&store).await, 0);
        copy(life(3, 1)).await.unwrap().end().await;
        assert!(said(&store).await.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn who_copies_an_image_that_shares_a_pack_keeps_that_and_the_rest_goes() {
        let (store, clock) = world();
        let (shared, own): (PackId, PackId) = (clock.id(), clock.id());
        let copy = async |maker, packs| Making::of_copy(&store, &clock, Some(maker), clock.id(), packs).await.unwrap();
        copy(life(1, 1), vec![shared, own]).await.give_up().await;
        put_pack(&store, shared).await;
        put_pack(&store, own).await;
        let other = copy(life(2, 1), vec![shared]).await;
        assert_eq!(sweep(&store, &clock, life(1, 1), true).await, [Cleared::Done { packs: 1 }]);
        store.head(&keys::pack(shared)).await.unwrap();
        assert_eq!(packs(&store).await, 1);
        other.check().await.unwrap();
        other.end().await;
        assert!(said(&store).await.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_note_of_which_nobody_knows_whose_it_is_stands_in_the_way_of_copies_only() {
        let (store, clock) = world();
        let old = keys::making(clock.id(), 3);
        store.put_new(&old, Bytes::copy_from_slice(&clock.nonce().0)).await.unwrap();
        let gone = new(&store, &clock, life(1, 1)).await;
        put_pack(&store, gone.pack_ids().next(&clock).await.unwrap()).await;
        gone.give_up().await;
        assert_eq!(sweep(&store, &clock, life(1, 1), true).await, [Cleared::NotNow]);
        assert_eq!(packs(&store).await, 1);
        assert_eq!(sweep(&store, &clock, life(1, 1), false).await, [Cleared::Done { packs: 16 }]);
        assert_eq!((packs(&store).await, said(&store).await.len()), (0, 1));
        store.head(&old).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_maker_that_was_thought_to_be_gone_is_told() {
        let (store, clock) = world();
        let making = new(&store, &clock, life(1, 1)).await;
        let noted = notes(&store).await.unwrap().pop().unwrap();
        let mark = MakingRecord { removing: true, nonce: clock.nonce(), ..noted.note.unwrap() };
        store.put_new(&keys::making(noted.id, noted.n + 1), envelope::encode(&mark).unwrap()).await.unwrap();
        assert_eq!(making.check().await.unwrap_err().code(), "image-swept");
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(making.check().await.unwrap_err().code(), "image-swept");
        making.end().await;
    }

    #[tokio::test(start_paused = true)]
    async fn packs_that_an_index_names_stay_whoever_left_them() {
        let (store, clock) = world();
        let input = crate::import::Input::RawStream { reader: Box::new(&[7_u8; 4096][..]), size: Some(4096) };
        let options = crate::import::ImportOptions { maker: Some(life(1, 1)), ..Default::default() };
        let made = crate::import::make(&store, input, options, &crate::import::NoProgress, &clock).await;
        let (imported, making) = made.unwrap();
        making.give_up().await;
        assert_eq!(sweep(&store, &clock, life(1, 1), false).await, [Cleared::Done { packs: 15 }]);
        assert_eq!(packs(&store).await, 1);
        store.head(&keys::index(imported.index)).await.unwrap();
        assert!(said(&store).await.is_empty());
    }
}
