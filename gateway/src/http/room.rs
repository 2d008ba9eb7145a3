//! Memory for the bodies of PUTs, over all connections. It is taken as bytes come: what a client only announces costs the others nothing.
//!
//! A body takes room for a window at a time, in the order of asking. Many that each hold a part could so wait for each other for ever;
//! therefore room for one of the largest size is set apart, the *turn*: who waits gets either a window or the turn, and with the turn
//! comes to its end without more. That a client with room dawdles meanwhile is seen to by the sweep (see `watch`), which asks whether
//! [anybody waits](Room::anybody_waits).

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use clonegate_core::limits::{HTTP_PUT_UNCOUNTED_BYTES, HTTP_WRITE_BYTES_MAX};
use clonegate_core::{Error, Result};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::clock::Clock;

/// The room.
#[derive(Debug)]
pub(crate) struct Room {
    /// Bytes that windows may take.
    windows: Semaphore,
    turn: Semaphore,
    waiting: AtomicUsize,
    patience: Duration,
}

impl Room {
    /// Room of `bytes`, for which a body waits as long as `patience`.
    pub(super) fn new(bytes: u64, patience: Duration) -> Self {
        let windows = usize::try_from(bytes.saturating_sub(HTTP_WRITE_BYTES_MAX)).unwrap_or(usize::MAX);
        Self {
            windows: Semaphore::new(windows.min(Semaphore::MAX_PERMITS)),
            turn: Semaphore::new(1),
            waiting: AtomicUsize::new(0),
            patience,
        }
    }

    /// What a new body holds: nothing, and its first bytes need none.
    pub(crate) fn enter(&self) -> Held<'_> {
        Held { room: self, windows: None, turn: None, bytes: HTTP_PUT_UNCOUNTED_BYTES }
    }

    /// Whether a body waits for room.
    pub(super) fn anybody_waits(&self) -> bool {
        self.waiting.load(Relaxed) > 0
    }
}

/// What one body holds; dropping it gives all of it back.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    room: &'a Room,
    windows: Option<SemaphorePermit<'a>>,
    turn: Option<SemaphorePermit<'a>>,
    /// How many bytes of the body there is room for.
    bytes: u64,
}

impl<'a> Held<'a> {
    /// Takes room for the first `bytes` of the body, if there is some now.
    pub(crate) fn try_cover(&mut self, bytes: u64) -> bool {
        let Some(more) = self.missing(bytes) else { return true };
        if let Ok(window) = self.room.windows.try_acquire_many(more) {
            self.add(window, bytes);
            return true;
        }
        self.turn = self.room.turn.try_acquire().ok();
        self.turn.is_some()
    }

    /// The same, when there is some.
    ///
    /// # Errors
    /// `Unavailable` with code `put-buffers-full` when that takes too long.
    pub(crate) async fn cover(&mut self, bytes: u64, clock: &Clock) -> Result<()> {
        let Some(more) = self.missing(bytes) else { return Ok(()) };
        let room = self.room;
        let _waits = Waits::of(room);
        tokio::select! {
            biased;
            Ok(window) = room.windows.acquire_many(more) => self.add(window, bytes),
            Ok(turn) = room.turn.acquire() => self.turn = Some(turn),
            () = clock.sleep(room.patience) => {
                let text = "all the memory for the bodies of PUTs is taken by others";
                return Err(Error::unavailable("put-buffers-full", text)
                    .hint("nothing was written: send it again, or let the operator raise limits.http_put_buffers"));
            }
        }
        Ok(())
    }

    /// How much there is no room for yet.
    fn missing(&self, bytes: u64) -> Option<u32> {
        let more = bytes.checked_sub(self.bytes).filter(|more| *more > 0 && self.turn.is_none())?;
        Some(u32::try_from(more).unwrap_or(u32::MAX))
    }

    fn add(&mut self, window: SemaphorePermit<'a>, bytes: u64) {
        self.bytes = bytes;
        match &mut self.windows {
            Some(windows) => windows.merge(window),
            None => self.windows = Some(window),
        }
    }
}

/// One that waits, for as long as it is not dropped.
struct Waits<'a>(&'a Room);

impl<'a> Waits<'a> {
    fn of(room: &'a Room) -> Self {
        room.waiting.fetch_add(1, Relaxed);
        Self(room)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use clonegate_core::limits::HTTP_PUT_WINDOW_BYTES;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);
    const MIB: u64 = 1 << 20;

    #[tokio::test(start_paused = true)]
    async fn many_large_bodies_at_once_all_come_to_their_end_within_the_room() {
        let room = Arc::new(Room::new(HTTP_WRITE_BYTES_MAX + 4 * MIB, PATIENCE));
        let here = Arc::new(AtomicUsize::new(0));
        let bodies = (0..50).map(|_| {
            let (room, here) = (Arc::clone(&room), Arc::clone(&here));
            tokio::spawn(async move {
                let (mut held, mut at) = (room.enter(), 0);
                while at < HTTP_WRITE_BYTES_MAX {
                    let upto = (at + HTTP_PUT_WINDOW_BYTES).min(HTTP_WRITE_BYTES_MAX);
                    if !held.try_cover(upto) {
                        held.cover(upto, &Clock::system()).await?;
                    }
                    let window = usize::try_from(upto - at).unwrap();
                    let now = here.fetch_add(window, Relaxed) + window;
                    let uncounted = 50 * HTTP_PUT_UNCOUNTED_BYTES;
                    assert!(now as u64 <= HTTP_WRITE_BYTES_MAX + 4 * MIB + uncounted, "{now} bytes are held");
                    at = upto;
                    tokio::task::yield_now().await;
                }
                here.fetch_sub(usize::try_from(at).unwrap(), Relaxed);
                Ok::<(), Error>(())
            })
        });
        for body in futures::future::join_all(bodies).await {
            body.unwrap().unwrap();
        }
        assert!(!room.anybody_waits() && room.turn.available_permits() == 1);
        assert_eq!(room.windows.available_permits() as u64, 4 * MIB);
    }

    #[tokio::test(start_paused = true)]
    async fn small_bodies_need_no_room_and_who_waits_too_long_is_told() {
        let room = Room::new(HTTP_WRITE_BYTES_MAX + MIB, PATIENCE);
        let (mut first, mut second, mut third) = (room.enter(), room.enter(), room.enter());
        assert!(first.try_cover(MIB + HTTP_PUT_UNCOUNTED_BYTES) && second.try_cover(2 * MIB));
        assert!(second.try_cover(HTTP_WRITE_BYTES_MAX), "it has the turn");
        assert!(third.try_cover(HTTP_PUT_UNCOUNTED_BYTES) && !third.try_cover(HTTP_PUT_UNCOUNTED_BYTES + 1));
        assert!(!room.anybody_waits());
        {
            let clock = Clock::system();
            let mut waits = std::pin::pin!(third.cover(MIB, &clock));
            assert!(futures::poll!(&mut waits).is_pending() && room.anybody_waits());
            let error = waits.await.unwrap_err();
            assert_eq!(error.code(), "put-buffers-full");
        }
        assert!(!room.anybody_waits());
        drop(first);
        assert!(third.try_cover(MIB));
    }
}
