//! Deadlines of connections. One sweep per worker looks at all of its connections a few times a second; a request sets no
//! timer, it only notes what it waits for.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use futures::task::AtomicWaker;
use parking_lot::Mutex;

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
        }
    }
}

impl Ward {
    pub(super) fn new(settings: &HttpSettings, counters: Arc<HttpCounters>) -> Arc<Self> {
        Arc::new(Self {
            tick: AtomicU32::new(1),
            limits: Limits::of(settings),
            next: AtomicU64::new(0),
            connections: Mutex::default(),
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
        for watch in self.connections.lock().values() {
            if watch.overdue(now, &self.limits) {
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

    /// Ends the connection that has waited longest for its client and is owed nothing.
    pub(super) fn evict_one(&self) {
        let now = self.now();
        let connections = self.connections.lock();
        let idle = connections
            .iter()
            .filter(|(_, watch)| matches!(watch.phase(), Phase::Idle | Phase::Header) && !watch.closing.load(Relaxed));
        // Ticks are coarse: among equals the one that came first goes, so that a new one gets to say what it wants.
        let longest = idle.max_by_key(|(id, watch)| (now.wrapping_sub(watch.since.load(Relaxed)), Reverse(**id)));
        if let Some((_, watch)) = longest {
            watch.close();
        }
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
        self.enter(Phase::Serving);
    }

    /// A new request is here: nothing is known of its body yet.
    pub(super) fn begin(&self) {
        self.body_end.store(0, Relaxed);
        self.enter(Phase::Serving);
    }

    /// The body of the request is being read: `bytes` of it.
    pub(super) fn reading_body(&self, bytes: u64) {
        let period_ms = self.ward.limits.period.as_millis().max(1);
        let grace = u128::from(bytes) * 1000 / u128::from(BODY_BYTES_PER_SECOND) / period_ms;
        let grace = u32::try_from(grace).unwrap_or(u32::MAX / 2).saturating_add(self.ward.limits.body);
        self.body_end.store(self.ward.now().saturating_add(grace), Relaxed);
        self.enter(Phase::Body);
    }

    /// The handler of a request waits for the rest of its body, of at most `bytes`; `None` for an upload of any length.
    pub(super) fn awaiting_body(&self, bytes: Option<u64>) {
        if self.phase() != Phase::Body {
            match bytes {
                Some(bytes) if self.body_end.load(Relaxed) == 0 => self.reading_body(bytes),
                Some(_) => self.enter(Phase::Body),
                None => {
                    self.body_end.store(u32::MAX, Relaxed);
                    self.enter(Phase::Body);
                }
            }
        }
    }

    /// Bytes came in.
    pub(super) fn received(&self) {
        match self.phase() {
            Phase::Idle => self.enter(Phase::Header),
            Phase::Body => self.since.store(self.ward.now(), Relaxed),
            Phase::Header | Phase::Serving => {}
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
            ..HttpSettings::default()
        };
        Ward::new(&settings, Arc::default())
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
        assert_eq!(sweeps_until_closed(&ward, &slow_header.watch, || slow_header.watch.received()), Some(6));
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
        assert_eq!(sweeps_until_closed(&ward, &dripping.watch, || dripping.watch.received()), Some(42));
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
        ward.evict_one();
        assert_eq!(old.watch.verdict(), Verdict::Close);
        assert_eq!((busy.watch.verdict(), young.watch.verdict()), (Verdict::Run, Verdict::Run));
        drop(old);
        assert_eq!(ward.open(), 2);
    }
}
