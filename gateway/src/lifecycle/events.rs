//! What happens on this gateway, for those who listen: a bounded ring that each reads at its own pace.
//!
//! A reader that is slower than the ring is told that it missed something and goes on with the oldest that is left; it holds nobody up and
//! nothing in memory.

use std::collections::VecDeque;
use std::sync::Arc;

use clonegate_core::limits::EVENTS_KEPT_MAX;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::gateway::Gateway;
use crate::clock::Clock;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is what its word says")]
pub enum EventKind {
    CloneCreated,
    CloneDeleted,
    CloneReset,
    CloneUpdated,
    ClonePromoted,
    CloneMoved,
    Power,
    Capacity,
    Job,
}

impl EventKind {
    /// The word for it, as in `event:` of the stream.
    pub const fn word(self) -> &'static str {
        match self {
            Self::CloneCreated => "clone-created",
            Self::CloneDeleted => "clone-deleted",
            Self::CloneReset => "clone-reset",
            Self::CloneUpdated => "clone-updated",
            Self::ClonePromoted => "clone-promoted",
            Self::CloneMoved => "clone-moved",
            Self::Power => "power",
            Self::Capacity => "capacity",
            Self::Job => "job",
        }
    }

    /// The event that an action of the audit log is, if it is one.
    pub(super) fn of_action(action: &str) -> Option<Self> {
        Some(match action {
            "clone create" | "full-clone create" => Self::CloneCreated,
            "clone delete" => Self::CloneDeleted,
            "clone reset" => Self::CloneReset,
            "clone update" => Self::CloneUpdated,
            "clone promote" => Self::ClonePromoted,
            "clone move" => Self::CloneMoved,
            "clone power" => Self::Power,
            _ => return None,
        })
    }
}

/// One event.
#[derive(Debug)]
pub struct Event {
    /// Its number on this gateway, from 1.
    pub number: u64,
    /// When, milliseconds since 1970 UTC.
    pub at_ms: u64,
    /// What happened.
    pub kind: EventKind,
    /// To what.
    pub object: String,
    /// What else is known.
    pub data: serde_json::Value,
}

/// What a reader gets.
#[derive(Debug)]
pub struct Heard {
    /// In their order.
    pub events: Vec<Arc<Event>>,
    /// Some before them are gone.
    pub missed: bool,
}

/// The ring of one gateway.
#[derive(Debug)]
pub struct Events {
    /// Tells this life of the process from others: numbers begin anew.
    life: String,
    clock: Clock,
    ring: Mutex<Ring>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Ring {
    last: u64,
    kept: VecDeque<Arc<Event>>,
    closed: bool,
}

impl Events {
    pub(super) fn new(clock: &Clock) -> Self {
        let life = format!("{:016x}", clock.random_u64());
        Self { life, clock: clock.clone(), ring: Mutex::default(), news: Notify::new() }
    }

    /// Tells everybody. Never waits.
    pub(super) fn tell(&self, kind: EventKind, object: &str, data: serde_json::Value) {
        let at_ms = self.clock.now_ms();
        let mut ring = self.ring.lock();
        ring.last += 1;
        let event = Event { number: ring.last, at_ms, kind, object: object.to_owned(), data };
        if ring.kept.len() >= EVENTS_KEPT_MAX {
            ring.kept.pop_front();
        }
        ring.kept.push_back(Arc::new(event));
        drop(ring);
        self.news.notify_waiters();
    }

    /// The id of an event, for `Last-Event-ID`.
    pub fn id(&self, number: u64) -> String {
        format!("{}-{number}", self.life)
    }

    /// Where a reader begins: behind the event of this id, or now. The id of another life of the process says that something was missed,
    /// which is told by a number that the ring does not reach back to.
    pub fn begin(&self, last_id: Option<&str>) -> Position {
        let ring = self.ring.lock();
        let Some(id) = last_id else { return Position { after: ring.last, missed: false } };
        match id.split_once('-') {
            Some((life, number)) if life == self.life => match number.parse() {
                Ok(number) if number <= ring.last => Position { after: number, missed: false },
                _ => Position { after: 0, missed: true },
            },
            _ => Position { after: 0, missed: true },
        }
    }

    /// The next events behind a position, at most `most`; waits until there are some. `None` when the gateway stops.
    ///
    /// # Cancel safety
    /// When dropped, nothing is lost: the position moves only when it returns.
    pub async fn next(&self, at: &mut Position, most: usize) -> Option<Heard> {
        loop {
            let news = self.news.notified();
            tokio::pin!(news);
            news.as_mut().enable();
            {
                let ring = self.ring.lock();
                if ring.closed {
                    return None;
                }
                let first = ring.kept.front().map_or(ring.last + 1, |event| event.number);
                let missed = at.missed || at.after + 1 < first;
                let skip = usize::try_from((at.after + 1).saturating_sub(first)).unwrap_or(usize::MAX);
                let events: Vec<Arc<Event>> = ring.kept.iter().skip(skip).take(most).cloned().collect();
                if missed || !events.is_empty() {
                    at.after = events.last().map_or(ring.last, |event| event.number);
                    at.missed = false;
                    return Some(Heard { events, missed });
                }
            }
            news.await;
        }
    }

    /// Ends all readers.
    pub fn close(&self) {
        self.ring.lock().closed = true;
        self.news.notify_waiters();
    }
}

/// How far a reader is.
#[derive(Debug, Clone, Copy)]
pub struct Position {
    after: u64,
    missed: bool,
}

impl Gateway {
    /// What happens here.
    pub fn events(&self) -> &Events {
        &self.events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tell(events: &Events, count: usize) {
        for n in 0..count {
            events.tell(EventKind::CloneReset, &n.to_string(), serde_json::Value::Null);
        }
    }

    #[tokio::test]
    async fn a_reader_resumes_behind_the_last_event_that_it_saw() {
        let events = Events::new(&Clock::simulated(1));
        tell(&events, 5);
        let mut at = events.begin(Some(&events.id(3)));
        let heard = events.next(&mut at, 100).await.unwrap();
        assert_eq!((heard.missed, heard.events.iter().map(|e| e.number).collect::<Vec<_>>()), (false, vec![4, 5]));
        let mut now = events.begin(None);
        let waits = tokio::time::timeout(std::time::Duration::from_millis(20), events.next(&mut now, 100)).await;
        assert!(waits.is_err(), "nothing happened since");
    }

    #[tokio::test]
    async fn a_reader_that_is_slower_than_the_ring_is_told_and_goes_on() {
        let events = Events::new(&Clock::simulated(1));
        let mut at = events.begin(None);
        tell(&events, EVENTS_KEPT_MAX + 10);
        let heard = events.next(&mut at, 4).await.unwrap();
        assert_eq!((heard.missed, heard.events[0].number, heard.events.len()), (true, 11, 4));
        let heard = events.next(&mut at, 1).await.unwrap();
        assert_eq!((heard.missed, heard.events[0].number), (false, 15));
    }

    #[tokio::test]
    async fn an_id_of_another_life_says_that_something_was_missed() {
        let before = Events::new(&Clock::simulated(1));
        let now = Events::new(&Clock::simulated(2));
        tell(&now, 2);
        for id in [before.id(1), now.id(99), "nonsense".to_owned()] {
            let heard = now.next(&mut now.begin(Some(&id)), 10).await.unwrap();
            assert_eq!((heard.missed, heard.events.len()), (true, 2), "{id}");
        }
        now.close();
        assert!(now.next(&mut now.begin(None), 10).await.is_none());
    }
}
