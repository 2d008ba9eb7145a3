//! Stops asking a plugin that keeps failing, and tries it again later, less and less often.

use std::collections::VecDeque;

const IN_A_ROW: u32 = 5;
const WINDOW: usize = 50;
const WINDOW_FAULTS_MAX: usize = WINDOW / 5;
const FIRST_PAUSE_MS: u64 = 30_000;
const LONGEST_PAUSE_MS: u64 = 600_000;

/// One per binding, component and settings; a new version starts with a new one.
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    recent: VecDeque<bool>,
    in_a_row: u32,
    open_until_ms: Option<u64>,
    pause_ms: u64,
}

impl Breaker {
    /// Whether the plugin may be asked now. After the pause one call is let through as a probe.
    pub(crate) fn allows(&mut self, now_ms: u64) -> bool {
        match self.open_until_ms {
            None => true,
            Some(until) if now_ms >= until => {
                // Others stay out while the probe runs.
                self.open_until_ms = Some(now_ms.saturating_add(FIRST_PAUSE_MS));
                true
            }
            Some(_) => false,
        }
    }

    /// Notes how a call ended; true when that opened the breaker.
    pub(crate) fn note(&mut self, fault: bool, now_ms: u64) -> bool {
        if !fault && self.open_until_ms.is_some() {
            *self = Self::default();
            return false;
        }
        self.in_a_row = if fault { self.in_a_row + 1 } else { 0 };
        self.recent.push_back(fault);
        if self.recent.len() > WINDOW {
            self.recent.pop_front();
        }
        let faults = self.recent.iter().filter(|&&fault| fault).count();
        if self.open_until_ms.is_none() && self.in_a_row < IN_A_ROW && faults <= WINDOW_FAULTS_MAX {
            return false;
        }
        self.pause_ms = (self.pause_ms * 2).clamp(FIRST_PAUSE_MS, LONGEST_PAUSE_MS);
        self.open_until_ms = Some(now_ms.saturating_add(self.pause_ms));
        true
    }

    /// Until when the plugin is not asked, milliseconds since 1970 UTC.
    pub(crate) fn open_until_ms(&self) -> Option<u64> {
        self.open_until_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_faults_in_a_row_open_it_and_one_good_probe_closes_it() {
        let mut breaker = Breaker::default();
        for now in 0..4 {
            assert!(breaker.allows(now) && !breaker.note(true, now));
        }
        assert!(breaker.allows(4) && breaker.note(true, 4));
        assert!(!breaker.allows(30_003));
        assert!(breaker.allows(30_004), "one probe");
        assert!(!breaker.allows(30_005), "only one");
        breaker.note(true, 30_006);
        assert_eq!(breaker.open_until_ms(), Some(90_006), "twice as long");
        assert!(breaker.allows(90_006));
        breaker.note(false, 90_007);
        assert!(breaker.allows(90_008) && breaker.open_until_ms().is_none());
    }

    #[test]
    fn more_than_a_fifth_of_faults_opens_it() {
        let mut breaker = Breaker::default();
        let opened = (0..200).find(|n| breaker.note(n % 4 == 0, 0));
        assert_eq!(opened, Some(40));
        let mut breaker = Breaker::default();
        assert!((0..200).all(|n| !breaker.note(n % 6 == 0, 0)));
    }

    #[test]
    fn pauses_end_at_ten_minutes() {
        let (mut breaker, mut now) = (Breaker::default(), 0);
        for _ in 0..30 {
            breaker.note(true, now);
            now = breaker.open_until_ms().unwrap_or(now);
            breaker.allows(now);
        }
        breaker.note(true, now);
        assert_eq!(breaker.open_until_ms(), Some(now + LONGEST_PAUSE_MS));
    }
}
