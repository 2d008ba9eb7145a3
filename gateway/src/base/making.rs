//! Says that an image is being made, so that nobody takes its packs, which no index names yet, for leftovers, however long it takes.
//!
//! Whoever makes an image keeps an object `making/<id>/<n>`, and puts the next number every few minutes. Whoever removes packs that no index
//! names takes away such objects as are old, looks whether any is left, and only then lists the indexes. The maker looks at its object after
//! it has put its index: is it there, then the list comes after the index; is it gone, then the image is given up. So no clock decides
//! anything but who has to begin again.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clonegate_core::ids::IndexId;
use clonegate_core::{Error, ErrorKind, Result};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use crate::clock::Clock;
use crate::store::{Store, keys};

/// How often it is said again: a few times within the hour after which `fsck` takes something for left over.
const AGAIN: Duration = Duration::from_secs(10 * 60);

#[derive(Debug)]
struct State {
    /// The newest number that was put.
    n: u64,
    /// Somebody took the object away.
    lost: bool,
}

#[derive(Debug)]
struct Shared {
    store: Store,
    id: IndexId,
    state: Mutex<State>,
}

/// See the module. When it is dropped without [`Making::end`], the object stays until it is old.
#[derive(Debug)]
pub(crate) struct Making {
    shared: Arc<Shared>,
    renewing: JoinHandle<()>,
}

impl Making {
    /// Says so from now on.
    ///
    /// # Errors
    /// What the store gives.
    pub(crate) async fn begin(store: &Store, clock: &Clock) -> Result<Self> {
        let shared =
            Arc::new(Shared { store: store.clone(), id: clock.id(), state: Mutex::new(State { n: 0, lost: false }) });
        shared.put(0, clock).await?;
        let (renewed, clock) = (Arc::clone(&shared), clock.clone());
        let renewing = tokio::spawn(async move {
            loop {
                clock.sleep(AGAIN).await;
                if let Err(error) = renewed.renew(&clock).await {
                    tracing::warn!(%error, "that an image is being made could not be said again");
                }
            }
        });
        Ok(Self { shared, renewing })
    }

    /// After the index was put: whether all that it names was safe until then.
    ///
    /// # Errors
    /// `Conflict` with code `image-swept`; what the store gives.
    pub(crate) async fn check(&self) -> Result<()> {
        let state = self.shared.state.lock().await;
        match state.lost || !self.shared.has(state.n).await? {
            true => Err(Error::conflict("image-swept", "what it had stored was taken for left over and removed")
                .hint("it stood still for very long, or `fsck --repair` was told to wait for nothing: begin again")),
            false => Ok(()),
        }
    }

    /// Takes the object away: the image is there, or was given up.
    pub(crate) async fn end(self) {
        self.renewing.abort();
        let own = keys::making_dir(self.shared.id);
        let removed = async {
            for listed in self.shared.store.list(&own).await? {
                self.shared.store.delete(&own.key(&listed.key)?).await?;
            }
            Ok::<(), Error>(())
        };
        if let Err(error) = removed.await {
            tracing::warn!(%own, %error, "left over from an image that was made; fsck --repair removes it");
        }
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}

impl Shared {
    async fn put(&self, n: u64, clock: &Clock) -> Result<()> {
        // Nobody else puts below this id.
        let body = Bytes::copy_from_slice(&clock.nonce().0);
        self.store.put_new(&keys::making(self.id, n), body).await.map(drop)
    }

    async fn has(&self, n: u64) -> Result<bool> {
        match self.store.head(&keys::making(self.id, n)).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn renew(&self, clock: &Clock) -> Result<()> {
        let mut state = self.state.lock().await;
        self.put(state.n + 1, clock).await?;
        // The next first: whoever took this one away has either seen the next, or we see that this one is gone.
        if !self.has(state.n).await? {
            state.lost = true;
        }
        let before = state.n;
        state.n += 1;
        self.store.delete(&keys::making(self.id, before)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreConfig;

    fn world() -> (Store, Clock) {
        let clock = Clock::simulated(1);
        (Store::open(&StoreConfig::new("memory://"), &clock).unwrap(), clock)
    }

    async fn said(store: &Store) -> Vec<String> {
        store.list(&keys::makings()).await.unwrap().into_iter().map(|listed| listed.key).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_said_again_and_again_in_one_object_and_no_more_at_the_end() {
        let (store, clock) = world();
        let making = Making::begin(&store, &clock).await.unwrap();
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
            let making = Making::begin(&store, &clock).await.unwrap();
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
}
