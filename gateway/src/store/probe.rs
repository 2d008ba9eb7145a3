//! Proves at start that a store does what everything stands on: one winner among racing creates, and reads, lists and
//! deletes that see what was written.
//!
//! A sequential trial is no proof: there are services that answer "created" to everyone and keep the last, and others
//! that check first and write later, so that several racers win.

use std::time::Duration;

use bytes::Bytes;
use clonegate_core::ids::{GatewayId, Nonce};
use clonegate_core::units::ByteRange;
use clonegate_core::{Error, ErrorKind, Result};
use futures::future::join_all;

use super::keys::{self, Key};
use super::{Store, create, exclusive, making_room};

/// Creates that race for one object.
const RACERS: usize = 16;
/// Races, each for another object, on a service.
const ROUNDS: usize = 6;
/// Races in a directory or in memory, where one is decided by one system call or under one lock.
const ROUNDS_LOCAL: usize = 2;
/// Every other race is one of larger bodies, which stay longer between a service's check and its write.
const LARGE_BYTES: usize = 32 * 1024;
const SMALL_BYTES: usize = 64;
/// A clock that is further off than this makes signed requests fail soon.
const SKEW_MOST_MS: u64 = 60_000;

/// What the probe found; the store is good to use.
#[derive(Debug, Clone)]
pub struct Admission {
    /// Whether put-if-absent holds between gateways; otherwise the store is exclusive.
    pub put_if_absent: bool,
    /// Whether the store compares ETags, which raw bases by reference need.
    pub etags: bool,
    /// How long the fastest create took.
    pub create: Duration,
    /// How long the fastest read of a small object took.
    pub read: Duration,
    /// How far the store's clock is ahead of ours, seconds; known only roughly.
    pub clock_ahead_s: i64,
}

impl Store {
    /// Proves that the store may be used by `gateway`, a gateway's lasting identity (`host` is for messages), and that it
    /// works. Nothing may be written before.
    ///
    /// Costs about 150 small requests, 50 on a directory. On a directory it also removes, in the background, what a crash left staged.
    ///
    /// # Errors
    /// `Unsupported` with the codes `store-overwrites`, `store-several-winners`, `store-reads-stale`, `store-lists-stale`,
    /// `store-ignores-range`, `store-deletes-not`; `Denied` with `exclusive-elsewhere` or `exclusive-not-marked`; what
    /// the requests give.
    pub async fn admit(&self, gateway: GatewayId, host: &str) -> Result<Admission> {
        exclusive::settle(self, gateway, host).await?;
        let local = self.directory().is_some() || self.label().starts_with("memory:");
        let rounds = if local { ROUNDS_LOCAL } else { ROUNDS };
        let probe = Probe { store: self, run: self.clock().id(), rounds };
        // What it puts it takes away again, so a full directory can be opened and emptied.
        let admission = making_room(probe.run()).await;
        probe.clean_up().await;
        self.keep_ballast().await;
        if let Some(root) = self.directory() {
            let (root, clock) = (root.to_owned(), self.clock().clone());
            tokio::task::spawn_blocking(move || super::directory::sweep(&root, &clock));
        }
        admission
    }
}

struct Probe<'a> {
    store: &'a Store,
    /// Another at each probe, so that what a crashed probe left is in nobody's way.
    run: GatewayId,
    rounds: usize,
}

impl Probe<'_> {
    fn key(&self, round: usize) -> Key {
        keys::probe(self.run, &format!("create/{round}"))
    }

    async fn run(&self) -> Result<Admission> {
        let clock = self.store.clock();
        let mut bodies = Vec::new();
        let mut create = Duration::MAX;
        for round in 0..self.rounds {
            let begun = clock.instant();
            bodies.push(self.race(round).await?);
            create = create.min(begun.elapsed());
        }
        let begun = clock.instant();
        self.reads(&bodies).await?;
        let read = begun.elapsed() / u32::try_from(self.rounds).unwrap_or(1);
        self.ranges(&bodies).await?;
        self.lists(&bodies).await?;
        let etags = self.etags(&bodies[0]).await?;
        let clock_ahead_s = self.clock_ahead().await?;
        self.deletes().await?;
        let put_if_absent = !self.store.0.exclusive.as_ref().is_some_and(exclusive::Exclusive::emulates);
        Ok(Admission { put_if_absent, etags, create, read, clock_ahead_s })
    }

    /// Lets many create one object at once; gives the body that won.
    async fn race(&self, round: usize) -> Result<Bytes> {
        let key = self.key(round);
        let size = if round.is_multiple_of(2) { SMALL_BYTES } else { LARGE_BYTES };
        let bodies: Vec<Bytes> = (0..RACERS).map(|racer| body(self.store.clock().nonce(), racer, size)).collect();
        let tries = join_all(bodies.iter().map(|body| self.store.create_once(&key, body.clone()))).await;
        let mut winners = Vec::new();
        for (body, tried) in bodies.iter().zip(tries) {
            match tried {
                Ok(create::Once::Created) => winners.push(body),
                Ok(create::Once::Taken | create::Once::Unknown) => {}
                Err(error) => return Err(error),
            }
        }
        let there = self.store.find(&key).await?;
        let Some(there) = there else {
            return Err(match winners.len() {
                0 => Error::unavailable("store-failed", format!("none of {RACERS} creates succeeded")),
                _ => refuse("store-reads-stale", "an object that was just written is not found"),
            }
            .on(self.store.label()));
        };
        match winners.as_slice() {
            // The winner is one of those whose answer was lost.
            [] if bodies.contains(&there) => {}
            [winner] if **winner == there => {}
            [_] | [] => {
                return Err(refuse("store-reads-stale", "the object does not hold what its creator wrote")
                    .on(self.store.label()));
            }
            several => return Err(several_winners(several.len()).on(self.store.label())),
        }
        self.late_comer(&key, &there, size).await?;
        Ok(there)
    }

    /// One who comes long after must be refused, and must change nothing.
    async fn late_comer(&self, key: &Key, winner: &Bytes, size: usize) -> Result<()> {
        let late = body(self.store.clock().nonce(), RACERS, size);
        let tried = self.store.create_once(key, late).await?;
        if matches!(tried, create::Once::Created) || self.store.get(key).await? != *winner {
            let message = "it takes a second create of one object for good, and overwrites the first";
            return Err(refuse("store-overwrites", message).on(self.store.label()));
        }
        Ok(())
    }

    async fn reads(&self, bodies: &[Bytes]) -> Result<()> {
        for (round, body) in bodies.iter().enumerate() {
            if self.store.get(&self.key(round)).await? != *body {
                let message = "an object that was just written reads as something else";
                return Err(refuse("store-reads-stale", message).on(self.store.label()));
            }
        }
        Ok(())
    }

    async fn ranges(&self, bodies: &[Bytes]) -> Result<()> {
        for (round, body) in bodies.iter().enumerate() {
            let (start, end) = (body.len() / 3, body.len() - 1);
            let part = self.store.get_range(&self.key(round), ByteRange::new(start as u64, end as u64), None).await?;
            if part != body[start..end] {
                let message = "a ranged read gives other bytes than the object has there";
                return Err(refuse("store-ignores-range", message).on(self.store.label()));
            }
        }
        Ok(())
    }

    async fn lists(&self, bodies: &[Bytes]) -> Result<()> {
        let mut listed = self.store.list(&keys::probe_prefix(self.run, "create")).await?;
        listed.sort_by(|one, other| one.key.cmp(&other.key));
        let right = listed.len() == bodies.len()
            && listed
                .iter()
                .zip(bodies)
                .enumerate()
                .all(|(round, (listed, body))| listed.key == round.to_string() && listed.size == body.len() as u64);
        if right {
            return Ok(());
        }
        let message = format!("a list shows {} of {} objects that were just written", listed.len(), bodies.len());
        Err(refuse("store-lists-stale", message).on(self.store.label()))
    }

    async fn etags(&self, body: &Bytes) -> Result<bool> {
        let key = self.key(0);
        let range = ByteRange::new(0, body.len() as u64);
        let Some(etag) = self.store.head(&key).await?.etag else { return Ok(false) };
        let right = match self.store.get_range(&key, range, Some(&etag)).await {
            Ok(read) => read == *body,
            Err(error) if error.kind() == ErrorKind::Conflict => false,
            Err(error) => return Err(error),
        };
        let wrong = self.store.get_range(&key, range, Some("\"clonegate-no-such-etag\"")).await;
        Ok(right && wrong.is_err_and(|error| error.code() == "source-changed"))
    }

    async fn clock_ahead(&self) -> Result<i64> {
        let theirs = self.store.head(&self.key(self.rounds - 1)).await?.modified_ms;
        let ours = self.store.clock().now_ms();
        if theirs.abs_diff(ours) > SKEW_MOST_MS {
            tracing::warn!(
                store = self.store.label(),
                seconds = theirs.abs_diff(ours) / 1000,
                "the clocks of this host and of the store differ: set them by NTP"
            );
        }
        let seconds = |ms: u64| i64::try_from(ms / 1000).unwrap_or(i64::MAX);
        Ok(seconds(theirs) - seconds(ours))
    }

    async fn deletes(&self) -> Result<()> {
        self.clean_up().await;
        let left = self.store.list(&keys::probe_prefix(self.run, "create")).await?;
        let gone = self.store.find(&self.key(0)).await?.is_none();
        if left.is_empty() && gone {
            return Ok(());
        }
        Err(refuse("store-deletes-not", "an object that was deleted is still there")
            .on(self.store.label())
            .hint("switch off versioning, retention and object lock for the prefix, and allow s3:DeleteObject"))
    }

    async fn clean_up(&self) {
        let deletes = (0..self.rounds).map(|round| async move { self.store.delete(&self.key(round)).await });
        for error in join_all(deletes).await.into_iter().filter_map(Result::err) {
            tracing::warn!(%error, "an object of the probe stays behind");
        }
    }
}

fn body(nonce: Nonce, racer: usize, size: usize) -> Bytes {
    let mut body = Vec::with_capacity(size);
    body.extend_from_slice(&nonce.0);
    body.resize(size, u8::try_from(racer).unwrap_or(u8::MAX));
    body.into()
}

fn refuse(code: &'static str, message: impl Into<String>) -> Error {
    Error::unsupported(code, message).hint(NOT_SAFE)
}

fn several_winners(winners: usize) -> Error {
    refuse("store-several-winners", format!("{winners} of {RACERS} racing creates of one object succeeded"))
}

const NOT_SAFE: &str = "this store is not safe for several gateways. If one gateway alone will ever use it, set \
                        exclusive = true for it; otherwise use a store with an atomic put-if-absent (If-None-Match: *)";
