//! Fetches under way: one for each missing line, however many wait for it.
//!
//! Whoever asks first for a missing line gets a [`Claim`] and hands it to a task that nobody can cancel. Everybody, the first one
//! included, waits with a [`Pending`]. The claim ends in one of two ways: it is fulfilled, or it is dropped (its task panicked or
//! the runtime went down), and then those who wait get an error instead of waiting forever.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use clonegate_core::Result;
use futures::FutureExt;
use futures::future::Shared;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{Asker, KeyHash, LineKey, Lines, Lookup, fetch_died};

const SHARDS: usize = 16;

type Waiters = HashMap<LineKey, Shared<oneshot::Receiver<Result<Bytes>>>, KeyHash>;
type Shard = Arc<Mutex<Waiters>>;

#[derive(Default)]
pub(super) struct Flights {
    shards: [Shard; SHARDS],
}

impl Flights {
    pub(super) fn join_or_lead(&self, key: LineKey, lines: &Arc<Lines>, asker: Asker) -> Lookup {
        let shard = &self.shards[usize::from(key.0[31]) % SHARDS];
        let mut waiters = shard.lock();
        if let Some(receiver) = waiters.get(&key) {
            let joined = (asker == Asker::Machine).then(|| Arc::clone(lines));
            return Lookup::Join(Pending { receiver: receiver.clone(), joined });
        }
        // A flight puts its line into the cache before it leaves this table, so whoever finds neither may lead.
        if let Some(line) = lines.find(&key, asker) {
            return Lookup::Hit(line);
        }
        let (sender, receiver) = oneshot::channel();
        let receiver = receiver.shared();
        waiters.insert(key, receiver.clone());
        drop(waiters);
        let claim = Claim { key, shard: Arc::clone(shard), lines: Arc::clone(lines), sender: Some(sender) };
        Lookup::Lead(claim, Pending { receiver, joined: None })
    }

    pub(super) fn contains(&self, key: &LineKey) -> bool {
        self.shards[usize::from(key.0[31]) % SHARDS].lock().contains_key(key)
    }

    pub(super) fn count(&self) -> u64 {
        self.shards.iter().map(|shard| shard.lock().len() as u64).sum()
    }
}

/// The right and the duty to fetch one line.
#[must_use = "those who wait for this line wait until the claim is fulfilled or dropped"]
pub struct Claim {
    key: LineKey,
    shard: Shard,
    lines: Arc<Lines>,
    sender: Option<oneshot::Sender<Result<Bytes>>>,
}

impl Claim {
    /// The line to fetch.
    pub fn key(&self) -> LineKey {
        self.key
    }

    /// Ends the fetch: a line goes into the cache, and everybody who waits gets the result. `fetched` must own its memory alone:
    /// a slice of a larger buffer would keep more bytes than are accounted.
    pub fn fulfil(mut self, fetched: Result<Bytes>) {
        match &fetched {
            Ok(line) => self.lines.cache.insert(self.key, line.clone()),
            Err(_) => self.lines.counters.failure(),
        }
        self.end(fetched);
    }

    fn end(&mut self, result: Result<Bytes>) {
        if let Some(sender) = self.sender.take() {
            self.shard.lock().remove(&self.key);
            // Nobody may be waiting any more: then the line is in the cache all the same.
            let _ = sender.send(result);
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.sender.is_some() {
            self.lines.counters.failure();
            self.end(Err(fetch_died()));
        }
    }
}

impl std::fmt::Debug for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Claim").field(&self.key).finish()
    }
}

/// Waits for a line that is being fetched. May be dropped at any time.
pub struct Pending {
    receiver: Shared<oneshot::Receiver<Result<Bytes>>>,
    /// Where it is counted that a machine did not need a fetch of its own.
    joined: Option<Arc<Lines>>,
}

impl Future for Pending {
    type Output = Result<Bytes>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let result = match self.receiver.poll_unpin(context) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(received) => received.unwrap_or_else(|_| Err(fetch_died())),
        };
        if let (Ok(line), Some(lines)) = (&result, self.joined.take()) {
            lines.counters.joined(line.len() as u64);
        }
        Poll::Ready(result)
    }
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pending")
    }
}
