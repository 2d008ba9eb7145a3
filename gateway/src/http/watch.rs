//! Deadlines of connections. One sweep per worker looks at all of its connections a few times a second; a request sets no
//! timer, it only notes what it waits for.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use clonegate_core::limits::HTTP_PUT_WINDOW_BYTES;
use futures::task::AtomicWaker;
use parking_lot::Mutex;

use super::room::Room;
use super::settings::HttpSettings;
use crate::metrics::HttpCounters;

/// Bytes that a slow reader must take within the stall time-out, else it is cut off.
const STALL_PROGRESS_BYTES: u64 = 64 * 1024;
/// Bytes a second that a request body must bring on average, besides the body time-out.
const BODY_BYTES_PER_SECOND: u64 = 64 * 1024;

/// What a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    /// The next request.
    Idle,
    /// The rest of a request's header.
    Header,
    /// Us: the answer is being made or sent.
    Serving,
    /// The rest of a request's body.
    Body,
}

const PHASES: [Phase; 4] = [Phase::Idle, Phase::Header, Phase::Serving, Phase::Body];

/// What the sweep has decided about a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Go on.
    Run,
    /// Finish the answer that is under way, then close.
    Drain,
    /// Close now.
    Close,
}

/// The worker's side: its connections, its time, and its counters.
#[derive(Debug)]
pub(super) struct Ward {
    /// Sweeps so far; starts at 1, so that 0 means never.
    tick: AtomicU32,
    limits: Limits,
    next: AtomicU64,
    connections: Mutex<HashMap<u64, Arc<Watch>>>,
    /// What bodies of PUTs wait for.
    room: Arc<Room>,
    /// Connections that this worker has or is about to get.
    pub(super) load: AtomicUsize,
    draining: AtomicBool,
    /// What this worker has counted.
    pub(super) counters: Arc<HttpCounters>,
}

/// Time-outs in sweeps.
#[derive(Debug)]
struct Limits {
    period: Duration,
    idle: u32,
    header: u32,
    body: u32,
    stall: u32,
    crowded: u32,
    hurry: u32,
}

impl Limits {
    fn of(settings: &HttpSettings) -> Self {
        let shortest = [settings.idle_timeout, settings.header_timeout, settings.body_timeout, settings.stall_timeout];
        let shortest = shortest.into_iter().min().unwrap_or_default();
        let period = (shortest / 4).clamp(Duration::from_millis(5), Duration::from_secs(1));
        // One more: the moment noted is up to a period old.
        let ticks = |timeout: Duration| {
            u32::try_from(timeout.as_nanos().div_ceil(period.as_nanos())).unwrap_or(u32::MAX - 1) + 1
        };
        Self {
            period,
            idle: ticks(settings.idle_timeout),
            header: ticks(settings.header_timeout),
            body: ticks(settings.body_timeout),
            stall: ticks(settings.stall_timeout),
            crowded: ticks(settings.crowded_timeout),
            hurry: ticks(settings.write_hurry),
        }
    }
}

impl Ward {
    pub(super) fn new(settings: &HttpSettings, room: Arc<Room>, counters: Arc<HttpCounters>) -> Arc<Self> {
        Arc::new(Self {
            tick: AtomicU32::new(1),
            limits: Limits::of(settings),
            next: AtomicU64::new(0),
            connections: Mutex::default(),
            room,
            load: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
            counters,
        })
    }

    /// Time between two sweeps.
    pub(super) fn period(&self) -> Duration {
        self.limits.period
    }

    fn now(&self) -> u32 {
        self.tick.load(Relaxed)
    }

    /// Looks at every connection once.
    pub(super) fn sweep(&self) {
        let now = self.tick.fetch_add(1, Relaxed).wrapping_add(1);
        let others_wait = self.room.anybody_waits();
        for watch in self.connections.lock().values() {
            if watch.overdue(now, &self.limits) || (others_wait && watch.dawdles(now, &self.limits)) {
                self.counters.timed_out();
                watch.close();
            }
        }
    }

    /// Asks every connection to end after the answer that is under way.
    pub(super) fn drain(&self) {
        self.draining.store(true, Relaxed);
        for watch in self.connections.lock().values() {
            watch.waker.wake();
        }
    }

    /// Ends every connection.
    pub(super) fn close_all(&self) {
        for watch in self.connections.lock().values() {
            watch.close();
        }
    }

    /// Connections open now.
    pub(super) fn open(&self) -> usize {
        self.connections.lock().len()
    }

    /// Whether there is room for one more connection besides those that end now. When there are `most`, the one that has waited longest for
    /// its client makes room: one that is owed nothing, or that has stood still for a while.
    pub(super) fn make_room(&self, most: usize) -> bool {
        let connections = self.connections.lock();
        if connections.len() < most {
            return true;
        }
        let staying: Vec<_> = connections.iter().filter(|(_, watch)| !watch.closing.load(Relaxed)).collect();
        if staying.len() < most {
            return true;
        }
        let now = self.now();
        let waited = |(id, watch): (&u64, &Arc<Watch>)| Some((watch.waited(now, &self.limits)?, Reverse(*id)));
        // Ticks are coarse: among equals the one that came first goes, so that a new one gets to say what it wants.
        let Some((_, Reverse(id))) = staying.into_iter().filter_map(waited).max() else { return false };
        if let Some(watch) = connections.get(&id) {
            if !watch.is_owed_nothing() {
                self.counters.timed_out();
            }
            watch.close();
        }
        true
    }

    /// Notes that a connection on its way here was turned away.
    pub(super) fn turned_away(&self) {
        self.load.fetch_sub(1, Relaxed);
        self.counters.refused();
    }

    /// Begins to watch a connection.
    pub(super) fn admit(self: &Arc<Self>) -> Admitted {
        let id = self.next.fetch_add(1, Relaxed);
        let watch = Arc::new(Watch {
            ward: Arc::clone(self),
            phase: AtomicU8::new(Phase::Idle as u8),
            since: AtomicU32::new(self.now()),
            body_end: AtomicU32::new(0),
            stalled: AtomicU32::new(0),
            moved: AtomicU64::new(0),
            slow: AtomicU32::new(0),
            brought: AtomicU64::new(0),
            holds_room: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        });
        self.connections.lock().insert(id, Arc::clone(&watch));
        self.counters.opened();
        Admitted { id, watch }
    }
}

/// A connection on the list of its worker; dropping it takes it off.
#[derive(Debug)]
pub(super) struct Admitted {
    id: u64,
    pub(super) watch: Arc<Watch>,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let ward = &self.watch.ward;
        ward.connections.lock().remove(&self.id);
        ward.load.fetch_sub(1, Relaxed);
        ward.counters.closed();
    }
}

/// What one connection waits for, and since when.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) ward: Arc<Ward>,
    phase: AtomicU8,
    /// Tick at which the phase began, or brought its last bytes.
    since: AtomicU32,
    /// Tick at which the body must be complete.
    body_end: AtomicU32,
    /// Tick at which a write first had to wait; 0 when none waits.
    stalled: AtomicU32,
    /// Bytes written since then.
    moved: AtomicU64,
    /// Tick at which the body began, or had brought another 256 KiB; times at which it was our turn are left out.
    slow: AtomicU32,
    /// Bytes of the body that came since then.
    brought: AtomicU64,
    /// Whether the body holds room that others may wait for.
    holds_room: AtomicBool,
    closing: AtomicBool,
    waker: AtomicWaker,
}

impl Watch {
    fn phase(&self) -> Phase {
        PHASES[usize::from(self.phase.load(Relaxed)) % PHASES.len()]
    }

    fn enter(&self, phase: Phase) {
        self.since.store(self.ward.now(), Relaxed);
        self.phase.store(phase as u8, Relaxed);
    }

    /// The answer is complete; the next request may come.
    pub(super) fn idle(&self) {
        self.enter(Phase::Idle);
    }

    /// A request is here; what comes next is our turn.
    pub(super) fn serving(&self) {
        if self.phase() != Phase::Serving {
            self.enter(Phase::Serving);
        }
    }

    /// A new request is here: nothing is known of its body yet.
    pub(super) fn begin(&self) {
        self.body_end.store(0, Relaxed);
        self.holds_room.store(false, Relaxed);
        self.enter(Phase::Serving);
    }

    /// The body of the request is being read: `bytes` of it.
    pub(super) fn reading_body(&self, bytes: u64) {
        let period_ms = self.ward.limits.period.as_millis().max(1);
        let grace = u128::from(bytes) * 1000 / u128::from(BODY_BYTES_PER_SECOND) / period_ms;
        let grace = u32::try_from(grace).unwrap_or(u32::MAX / 2).saturating_add(self.ward.limits.body);
        self.body_end.store(self.ward.now().saturating_add(grace), Relaxed);
        self.measure_anew();
        self.enter(Phase::Body);
    }

    /// The body holds room from now on.
    pub(super) fn holds_room(&self) {
        if !self.holds_room.swap(true, Relaxed) {
            self.measure_anew();
        }
    }

    fn measure_anew(&self) {
        self.slow.store(self.ward.now(), Relaxed);
        self.brought.store(0, Relaxed);
    }

    /// The handler of a request waits for the rest of its body, of at most `bytes`; `None` for an upload of any length.
    pub(super) fn awaiting_body(&self, bytes: Option<u64>) {
        if self.phase() != Phase::Body {
            if self.body_end.load(Relaxed) == 0 {
                self.reading_body(bytes.unwrap_or(0));
                if bytes.is_none() {
                    self.body_end.store(u32::MAX, Relaxed);
                }
            } else {
                let now = self.ward.now();
                let ours = now.wrapping_sub(self.since.load(Relaxed));
                self.slow.store(self.slow.load(Relaxed).saturating_add(ours).min(now), Relaxed);
                self.enter(Phase::Body);
            }
        }
    }

    /// Bytes came in.
    pub(super) fn received(&self, bytes: usize) {
        match self.phase() {
            Phase::Idle => self.enter(Phase::Header),
            Phase::Body => {
                self.since.store(self.ward.now(), Relaxed);
                self.note_brought(bytes as u64);
            }
            Phase::Serving => self.note_brought(bytes as u64),
            Phase::Header => {}
        }
    }

    fn note_brought(&self, bytes: u64) {
        if self.brought.fetch_add(bytes, Relaxed).saturating_add(bytes) >= HTTP_PUT_WINDOW_BYTES {
            self.measure_anew();
        }
    }

    /// A write has to wait for the reader.
    pub(super) fn blocked(&self) {
        if self.stalled.load(Relaxed) == 0 {
            self.moved.store(0, Relaxed);
            self.stalled.store(self.ward.now(), Relaxed);
        }
    }

    /// A write went through.
    pub(super) fn wrote(&self, bytes: usize) {
        if self.stalled.load(Relaxed) != 0 && self.moved.fetch_add(bytes as u64, Relaxed) >= STALL_PROGRESS_BYTES {
            self.stalled.store(0, Relaxed);
        }
    }

    /// Everything written has gone out.
    pub(super) fn flushed(&self) {
        self.stalled.store(0, Relaxed);
    }

    fn overdue(&self, now: u32, limits: &Limits) -> bool {
        let waited = now.wrapping_sub(self.since.load(Relaxed));
        let late = match self.phase() {
            Phase::Idle => waited > limits.idle,
            Phase::Header => waited > limits.header,
            Phase::Body => waited > limits.body || now > self.body_end.load(Relaxed),
            Phase::Serving => false,
        };
        let stalled = self.stalled.load(Relaxed);
        late || (stalled != 0 && now.wrapping_sub(stalled) > limits.stall)
    }

    /// Whether it keeps others waiting for the room that its body holds.
    fn dawdles(&self, now: u32, limits: &Limits) -> bool {
        self.phase() == Phase::Body
            && self.holds_room.load(Relaxed)
            && now.wrapping_sub(self.slow.load(Relaxed)) > limits.hurry
    }

    fn is_owed_nothing(&self) -> bool {
        matches!(self.phase(), Phase::Idle | Phase::Header)
    }

    /// For how many ticks it has waited for its client, when that is enough to end it for a new connection.
    fn waited(&self, now: u32, limits: &Limits) -> Option<u32> {
        let since = match self.phase() {
            Phase::Idle | Phase::Header => return Some(now.wrapping_sub(self.since.load(Relaxed))),
            Phase::Body => self.slow.load(Relaxed),
            Phase::Serving => self.stalled.load(Relaxed),
        };
        Some(now.wrapping_sub(since)).filter(|waited| since != 0 && *waited > limits.crowded)
    }

    fn close(&self) {
        self.closing.store(true, Relaxed);
        self.waker.wake();
    }

    /// What the connection is to do now.
    pub(super) fn verdict(&self) -> Verdict {
        if self.closing.load(Relaxed) {
            Verdict::Close
        } else if self.ward.draining.load(Relaxed) {
            Verdict::Drain
        } else {
            Verdict::Run
        }
    }

    /// Whom to wake when the verdict changes.
    pub(super) fn register(&self, waker: &std::task::Waker) {
        self.waker.register(waker);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ward() -> Arc<Ward> {
        let second = Duration::from_secs(1);
        let settings = HttpSettings {
            idle_timeout: 8 * second,
            header_timeout: 2 * second,
            body_timeout: 4 * second,
            stall_timeout: 4 * second,
            crowded_timeout: 2 * second,
            write_hurry: second,
            ..HttpSettings::default()
        };
        let room = Room::new(settings.write_buffers_bytes.into(), settings.write_patience);
        Ward::new(&settings, Arc::new(room), Arc::default())
    }

    /// Sweeps until the connection is to be closed, and says how many half seconds (the period here) that took.
    fn sweeps_until_closed(ward: &Ward, watch: &Watch, each: impl Fn()) -> Option<u32> {
        (1..200).find(|_| {
            each();
            ward.sweep();
            watch.verdict() == Verdict::Close
        })
    }

    #[test]
    fn each_phase_has_its_own_patience() {
        let ward = ward();
        assert_eq!(ward.period(), Duration::from_millis(500));
        let idle = ward.admit();
        assert_eq!(sweeps_until_closed(&ward, &idle.watch, || {}), Some(18));
        let slow_header = ward.admit();
        assert_eq!(sweeps_until_closed(&ward, &slow_header.watch, || slow_header.watch.received(1)), Some(6));
        let serving = ward.admit();
        serving.watch.serving();
        assert_eq!(sweeps_until_closed(&ward, &serving.watch, || {}), None);
    }

    #[test]
    fn a_body_must_keep_coming_and_end_in_time() {
        let ward = ward();
        let silent = ward.admit();
        silent.watch.reading_body(1 << 20);
        assert_eq!(sweeps_until_closed(&ward, &silent.watch, || {}), Some(10));
        let dripping = ward.admit();
        dripping.watch.reading_body(1 << 20);
        // 16 seconds for a mebibyte, and the time-out.
        assert_eq!(sweeps_until_closed(&ward, &dripping.watch, || dripping.watch.received(1)), Some(42));
    }

    #[test]
    fn a_reader_must_take_a_minimum() {
        let ward = ward();
        let (dripping, slow) = (ward.admit(), ward.admit());
        dripping.watch.serving();
        slow.watch.serving();
        let each = || {
            dripping.watch.blocked();
            dripping.watch.wrote(1);
            slow.watch.blocked();
            slow.watch.wrote(16 * 1024);
        };
        assert_eq!(sweeps_until_closed(&ward, &dripping.watch, each), Some(10));
        assert_eq!(slow.watch.verdict(), Verdict::Run);
    }

    #[test]
    fn room_is_made_by_the_one_that_has_waited_longest() {
        let ward = ward();
        let (busy, old) = (ward.admit(), ward.admit());
        busy.watch.serving();
        ward.sweep();
        let young = ward.admit();
        assert!(ward.make_room(4) && old.watch.verdict() == Verdict::Run, "there is room");
        assert!(ward.make_room(3));
        assert_eq!(old.watch.verdict(), Verdict::Close);
        assert_eq!((busy.watch.verdict(), young.watch.verdict()), (Verdict::Run, Verdict::Run));
        assert!(ward.make_room(3) && young.watch.verdict() == Verdict::Run, "one ends already");
        drop(old);
        assert_eq!(ward.open(), 2);
    }

    #[test]
    fn who_is_served_makes_room_only_after_standing_still_for_a_while() {
        let ward = ward();
        let (busy, reader, sender) = (ward.admit(), ward.admit(), ward.admit());
        busy.watch.serving();
        reader.watch.serving();
        reader.watch.blocked();
        sender.watch.reading_body(1 << 20);
        let sweeps = |count: u32| (0..count).for_each(|_| ward.sweep());
        sweeps(5);
        assert!(!ward.make_room(3), "two seconds, and one half as moments are coarse");
        // Dripping is as good as standing still; so is a reader's taking little.
        sender.watch.received(1000);
        reader.watch.wrote(1000);
        sweeps(1);
        assert!(ward.make_room(3));
        assert_eq!((reader.watch.verdict(), sender.watch.verdict()), (Verdict::Close, Verdict::Run));
        assert!(ward.make_room(2));
        assert_eq!((sender.watch.verdict(), busy.watch.verdict()), (Verdict::Close, Verdict::Run));
        assert!(!ward.make_room(1));
        // One that has just come is not in the way of the next as long as an older one is.
        drop((reader, sender));
        let (idle, reader) = (ward.admit(), ward.admit());
        reader.watch.serving();
        reader.watch.blocked();
        sweeps(6);
        idle.watch.idle();
        assert!(ward.make_room(3) && reader.watch.verdict() == Verdict::Close && idle.watch.verdict() == Verdict::Run);
    }

    #[test]
    fn an_upload_is_not_blamed_for_the_time_that_its_handler_takes() {
        let ward = ward();
        let upload = ward.admit();
        upload.watch.begin();
        for _ in 0..5 {
            upload.watch.awaiting_body(None);
            ward.sweep();
            upload.watch.received(1000);
            upload.watch.serving();
            (0..20).for_each(|_| ward.sweep());
            upload.watch.received(512 << 10);
        }
        upload.watch.awaiting_body(None);
        assert!(!ward.make_room(1));
        (0..6).for_each(|_| ward.sweep());
        assert!(ward.make_room(1) && upload.watch.verdict() == Verdict::Close);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_holds_room_must_hurry_while_others_wait() {
        let ward = ward();
        let (dripping, fast, small) = (ward.admit(), ward.admit(), ward.admit());
        for one in [&dripping, &fast, &small] {
            one.watch.reading_body(64 << 20);
        }
        dripping.watch.holds_room();
        fast.watch.holds_room();
        let each = || {
            dripping.watch.received(1000);
            fast.watch.received(128 << 10);
            small.watch.received(1000);
        };
        for _ in 0..20 {
            each();
            ward.sweep();
        }
        assert_eq!(dripping.watch.verdict(), Verdict::Run, "nobody waits");
        let mut held: Vec<_> = (0..4).map(|_| ward.room.enter()).collect();
        for one in &mut held {
            one.try_cover(64 << 20);
        }
        let (clock, mut last) = (crate::clock::Clock::system(), ward.room.enter());
        let mut waits = std::pin::pin!(last.cover(64 << 20, &clock));
        assert!(futures::poll!(&mut waits).is_pending());
        assert_eq!(sweeps_until_closed(&ward, &dripping.watch, each), Some(1));
        for _ in 0..20 {
            each();
            ward.sweep();
        }
        assert_eq!((fast.watch.verdict(), small.watch.verdict()), (Verdict::Run, Verdict::Run));
    }
}
