//! Resets clones on a schedule, or when their delta has grown. Only what is shut: an open clone is asked about again later.
//! What it says of persistent clones counts only if the gateway's configuration allows that policies reset them.

use clonegate_policy::prelude::*;

settings! {
    /// When clones are reset.
    pub struct ResetSchedule {
        /// Hours since the last reset (or creation) after which a clone is reset; 0: never by age.
        every_hours: u32 = 168 => 0..=8760,
        /// Size of the delta from which a clone is reset, MiB; 0: never by size.
        over_mib: u64 = 0 => 0..=67_108_864,
        /// First hour of the day (UTC) at which it may happen.
        from_hour: u8 = 20 => 0..=23,
        /// First hour at which it may happen no more; the same as `from_hour`: at any time.
        to_hour: u8 = 5 => 0..=23,
        /// Persistent clones too, if the gateway allows it.
        persistent: bool = false,
        /// Onto the newest version of the template, where it is on the datastore.
        newest: bool = false,
    }
}

const HOUR_MS: u64 = 3_600_000;

impl ResetSchedule {
    /// Hours until the window opens; 0: it is open.
    fn hours_to_window(&self, now_ms: u64) -> u64 {
        let (from, to, hour) = (u64::from(self.from_hour), u64::from(self.to_hour), now_ms / HOUR_MS % 24);
        let open = from == to || if from < to { (from..to).contains(&hour) } else { hour >= from || hour < to };
        if open { 0 } else { (from + 24 - hour) % 24 }
    }

    fn due(&self, context: &Context, clone: &Volume) -> Option<String> {
        let age_hours = context.now_ms.saturating_sub(clone.last_reset_ms.unwrap_or(clone.created_ms)) / HOUR_MS;
        if self.over_mib > 0 && clone.delta >> 20 >= self.over_mib {
            return Some(format!("its delta has {} MiB", clone.delta >> 20));
        }
        (self.every_hours > 0 && age_hours >= u64::from(self.every_hours))
            .then(|| format!("{age_hours} hours since its last reset"))
    }
}

impl Reset for ResetSchedule {
    fn reset(&self, context: &Context, ask: &ResetRequest) -> Decision<ResetVerdict> {
        let clone = &ask.subject;
        if clone.held || (clone.lifetime == Lifetime::Persistent && !self.persistent) {
            return Ok(ResetVerdict::NoOpinion);
        }
        let Some(reason) = self.due(context, clone) else { return Ok(ResetVerdict::NoOpinion) };
        let wait_hours = self.hours_to_window(context.now_ms);
        if wait_hours > 0 {
            // At the first minute of the window, not at the same minute of its first hour.
            let into_hour = context.now_ms % HOUR_MS / 1000;
            let seconds = (wait_hours * 3600).saturating_sub(into_hour).max(1);
            return Ok(ResetVerdict::AskAgain(u32::try_from(seconds).unwrap_or(3600)));
        }
        let onto = if self.newest { ResetOnto::NewestBase } else { ResetOnto::SameBase };
        Ok(ResetVerdict::Discard(ResetPlan { timing: ResetTiming::WhenDetached, onto, reason }))
    }
}

export!(ResetSchedule: reset);

#[cfg(test)]
mod tests {
    use super::*;
    use clonegate_policy::testing::{NOON_MS, context, reset_request, volume};

    fn at(hour: u64, days: u64, change: impl FnOnce(&mut Volume), policy: &ResetSchedule) -> ResetVerdict {
        let mut clone = volume(Lifetime::Ephemeral);
        clone.created_ms = NOON_MS - days * 24 * HOUR_MS;
        change(&mut clone);
        let context = Context { now_ms: NOON_MS + hour * HOUR_MS - 12 * HOUR_MS, ..context() };
        policy.reset(&context, &reset_request(ResetEvent::Interval(0), clone)).unwrap()
    }

    fn discards(verdict: &ResetVerdict, why: &str) -> bool {
        matches!(verdict, ResetVerdict::Discard(plan) if plan.reason.contains(why))
    }

    #[test]
    fn a_clone_is_reset_when_its_time_has_come_and_the_window_is_open() {
        let policy = ResetSchedule::default();
        assert_eq!(at(22, 6, |_| {}, &policy), ResetVerdict::NoOpinion);
        assert!(discards(&at(22, 7, |_| {}, &policy), "hours since"));
        assert!(discards(&at(4, 9, |_| {}, &policy), "hours since"));
        assert_eq!(at(14, 9, |_| {}, &policy), ResetVerdict::AskAgain(6 * 3600));
        assert_eq!(at(22, 9, |c| c.last_reset_ms = Some(NOON_MS), &policy), ResetVerdict::NoOpinion);
    }

    #[test]
    fn a_large_delta_is_due_whatever_its_age() {
        let policy = ResetSchedule { over_mib: 512, from_hour: 0, to_hour: 0, ..ResetSchedule::default() };
        assert!(discards(&at(14, 0, |_| {}, &policy), "1024 MiB"));
    }

    #[test]
    fn persistent_and_held_clones_are_left_alone_unless_told_otherwise() {
        let policy = ResetSchedule::default();
        assert_eq!(at(22, 9, |c| c.lifetime = Lifetime::Persistent, &policy), ResetVerdict::NoOpinion);
        assert_eq!(at(22, 9, |c| c.held = true, &policy), ResetVerdict::NoOpinion);
        let policy = ResetSchedule { persistent: true, ..policy };
        assert!(discards(&at(22, 9, |c| c.lifetime = Lifetime::Persistent, &policy), "hours"));
    }
}
