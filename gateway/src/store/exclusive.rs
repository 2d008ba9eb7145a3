//! One gateway, ever: the owner record of a datastore that is marked `exclusive = true`.
//!
//! It is for stores without a put-if-absent that holds between clients. Then nothing in the store itself can keep a second
//! gateway out, so this does what can be done: the owner record is written only where none is, read back after a while,
//! and read again from time to time; a gateway that finds another's name in it stops writing. Two gateways that take a
//! fresh datastore in the same moment, one of which stalls for longer than [`SETTLE`] between its look and its write, would
//! both believe for up to [`LOOK_AGAIN`] that it is theirs. Within the owner, put-if-absent is exact.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use clonegate_core::format::envelope;
use clonegate_core::format::exclusive::ExclusiveOwner;
use clonegate_core::ids::GatewayId;
use clonegate_core::{Error, ErrorKind, Result};
use object_store::{ObjectStore, PutMode, PutOptions, PutPayload};
use parking_lot::Mutex;

use super::keys::{self, Key};
use super::{Inner, Store, errors};

/// How long a fresh claim waits before it is read back.
const SETTLE: Duration = Duration::from_secs(2);
/// How often the owner record is read again.
const LOOK_AGAIN: Duration = Duration::from_secs(15);
const STRIPES: usize = 256;

/// What a store that is marked exclusive knows about its owner.
pub(super) struct Exclusive {
    state: Mutex<State>,
    /// One creator of a key at a time, where the store itself decides nothing.
    turns: Option<Turns>,
}

enum State {
    Unclaimed,
    Held,
    Lost(Error),
}

struct Turns {
    hasher: RandomState,
    stripes: Box<[tokio::sync::Mutex<()>]>,
}

impl Exclusive {
    /// `emulate`: put-if-absent is done by us, under a lock and with a look beforehand.
    pub(super) fn new(emulate: bool) -> Self {
        let stripes = || (0..STRIPES).map(|_| tokio::sync::Mutex::new(())).collect();
        let turns = emulate.then(|| Turns { hasher: RandomState::new(), stripes: stripes() });
        Self { state: Mutex::new(State::Unclaimed), turns }
    }

    /// Whether put-if-absent is done by us.
    pub(super) const fn emulates(&self) -> bool {
        self.turns.is_some()
    }

    /// Fails unless this gateway holds the store.
    pub(super) fn check(&self, label: &str) -> Result<()> {
        match &*self.state.lock() {
            State::Held => Ok(()),
            State::Lost(error) => Err(error.clone()),
            State::Unclaimed => {
                let message = "an exclusive store is written only after it was admitted";
                Err(Error::conflict("exclusive-unclaimed", message).on(label))
            }
        }
    }

    /// The turn to create `key`, when the store does not decide that itself.
    pub(super) async fn turn(&self, key: &Key) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        let turns = self.turns.as_ref()?;
        let stripe = usize::try_from(turns.hasher.hash_one(key) % STRIPES as u64).unwrap_or(0);
        Some(turns.stripes[stripe].lock().await)
    }
}

/// Makes sure that the owner record of `store`, if there is to be one, names `gateway`.
///
/// # Errors
/// `Denied` with code `exclusive-elsewhere` when another gateway owns it, or `exclusive-not-marked` when the datastore has
/// an owner and is not marked exclusive here; what reading and writing give.
pub(super) async fn settle(store: &Store, gateway: GatewayId, host: &str) -> Result<()> {
    let found = owner(store).await?;
    let Some(exclusive) = &store.0.exclusive else {
        return match found {
            None => Ok(()),
            Some(owner) => Err(not_marked(store, &owner)),
        };
    };
    if let Some(owner) = found {
        if owner.gateway != gateway {
            return Err(elsewhere(store, &owner));
        }
    } else {
        claim(store, gateway, host).await?;
    }
    let before = std::mem::replace(&mut *exclusive.state.lock(), State::Held);
    if !matches!(before, State::Held) {
        tokio::spawn(watch(Arc::downgrade(&store.0), gateway));
    }
    Ok(())
}

/// Who owns the store exclusively, as its owner record says.
///
/// # Errors
/// `Corrupt` when the record does not decode; what reading gives.
pub async fn owner(store: &Store) -> Result<Option<ExclusiveOwner>> {
    let key = keys::exclusive();
    let Some(body) = store.find(&key).await? else { return Ok(None) };
    envelope::decode(&body).map(Some).map_err(|e| e.on(store.name(key.as_str())))
}

/// Gives the store up, so that another gateway can take it: removes the owner record if it names `gateway`. The caller has
/// stopped writing before.
///
/// # Errors
/// `Denied` with code `exclusive-elsewhere`; what reading and deleting give.
pub async fn release(store: &Store, gateway: GatewayId) -> Result<()> {
    match owner(store).await? {
        None => Ok(()),
        Some(owner) if owner.gateway == gateway => {
            store.remove(&keys::exclusive()).await?;
            if let Some(exclusive) = &store.0.exclusive {
                *exclusive.state.lock() = State::Unclaimed;
            }
            Ok(())
        }
        Some(owner) => Err(elsewhere(store, &owner)),
    }
}

async fn claim(store: &Store, gateway: GatewayId, host: &str) -> Result<()> {
    let clock = store.clock();
    let record = ExclusiveOwner {
        gateway,
        nonce: clock.nonce(),
        host: host.chars().take(255).collect(),
        claimed_ms: clock.now_ms(),
    };
    let body = envelope::encode(&record)?;
    put(store, body).await?;
    if store.0.exclusive.as_ref().is_some_and(Exclusive::emulates) {
        clock.sleep(SETTLE).await;
    }
    match owner(store).await? {
        Some(owner) if owner == record => Ok(()),
        Some(owner) => Err(elsewhere(store, &owner)),
        None => Err(Error::unavailable("exclusive-undecided", "the owner record vanished after it was written")
            .on(store.name(keys::exclusive().as_str()))),
    }
}

/// If-absent where the store can; the read that follows tells who it was anyway.
async fn put(store: &Store, body: Bytes) -> Result<()> {
    let key = keys::exclusive();
    let name = store.name(key.as_str());
    let inner = &store.0;
    let mode = Mutex::new(PutMode::Create);
    inner
        .patience
        .persist(&inner.clock, &name, || async {
            let options = PutOptions { mode: mode.lock().clone(), ..PutOptions::default() };
            let put = inner.objects.put_opts(key.path(), PutPayload::from_bytes(body.clone()), options);
            match inner.patience.within(&name, 0, put).await?.map_err(|e| errors::map(e, &name)) {
                Ok(_) => Ok(()),
                Err(failure) if failure.error.kind() == ErrorKind::Exists => Ok(()),
                Err(failure) => {
                    let refuses_condition = failure.error.kind() == ErrorKind::Unsupported;
                    if refuses_condition {
                        *mode.lock() = PutMode::Overwrite;
                    }
                    Err(errors::Failure { transient: failure.transient || refuses_condition, ..failure })
                }
            }
        })
        .await
}

/// Looks at the owner record from time to time, for as long as the store is open.
async fn watch(inner: Weak<Inner>, gateway: GatewayId) {
    loop {
        let Some(clock) = inner.upgrade().map(|inner| inner.clock.clone()) else { return };
        clock.sleep(clock.jitter(LOOK_AGAIN)).await;
        let Some(store) = inner.upgrade().map(Store) else { return };
        let Ok(found) = owner(&store).await else { continue };
        if store.0.exclusive.as_ref().is_none_or(|exclusive| !matches!(*exclusive.state.lock(), State::Held)) {
            return;
        }
        let lost = match found {
            Some(owner) if owner.gateway == gateway => continue,
            Some(owner) => elsewhere(&store, &owner),
            None => Error::fenced("exclusive-lost", "the owner record of this exclusive store was removed")
                .on(store.label())
                .hint(
                    "if that was meant, stop this gateway before another takes the store; restart it to take it again",
                ),
        };
        tracing::error!(store = store.label(), error = %lost, "this gateway writes no more to the store");
        if let Some(exclusive) = &store.0.exclusive {
            *exclusive.state.lock() = State::Lost(lost);
        }
        return;
    }
}

fn elsewhere(store: &Store, owner: &ExclusiveOwner) -> Error {
    let message = format!("the datastore is exclusive to gateway {} on host {}", owner.gateway, owner.host);
    Error::denied("exclusive-elsewhere", message).on(store.label()).hint(format!(
        "use it through that gateway. To hand it over: stop that gateway for good, then delete the object {}",
        store.name(keys::exclusive().as_str())
    ))
}

fn not_marked(store: &Store, owner: &ExclusiveOwner) -> Error {
    let message = format!(
        "the datastore is exclusive to gateway {} on host {}, and is not marked exclusive here",
        owner.gateway, owner.host
    );
    Error::denied("exclusive-not-marked", message).on(store.label()).hint(format!(
        "set exclusive = true on that gateway and use it there alone; if the store is safe for several gateways now, \
         delete the object {}",
        store.name(keys::exclusive().as_str())
    ))
}
