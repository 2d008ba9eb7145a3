//! Moves clones to a newly published version of their template in waves: canaries at once, the next wave a day later, the rest
//! after three. Only at the hours that are given, and only while nobody has the clone open. A clone belongs to the first wave
//! whose label it has; the last wave is everybody else.

use clonegate_policy::prelude::*;

settings! {
    /// One wave.
    pub struct Wave {
        /// The value of the label `wave` of a clone, pool or template; empty: everybody else.
        label: String = String::new(),
        /// Hours after the version was published.
        after_hours: u32 = 0 => 0..=8760,
    }
}

settings! {
    /// The waves, and the hours.
    pub struct PatchWaves {
        /// In order; the last one is for everybody else.
        waves: Vec<Wave> = vec![
            Wave { label: "canary".to_owned(), after_hours: 0 },
            Wave { label: "early".to_owned(), after_hours: 24 },
            Wave { label: String::new(), after_hours: 72 },
        ],
        /// First hour of the day (UTC) at which clones move.
        from_hour: u8 = 22 => 0..=23,
        /// First hour at which they move no more; the same as `from_hour`: at any time.
        to_hour: u8 = 5 => 0..=23,
    }
    check problems
}

fn problems(settings: &PatchWaves) -> Vec<Problem> {
    let mut problems = Vec::new();
    if settings.waves.is_empty() || settings.waves.len() > 16 {
        problems.push(Problem::new("$.waves", "1 to 16 waves"));
    }
    for (n, pair) in settings.waves.windows(2).enumerate() {
        if pair[1].after_hours < pair[0].after_hours {
            problems.push(Problem::new(format!("$.waves[{}].after_hours", n + 1), "before the wave before it"));
        }
    }
    problems
}

const HOUR_MS: u64 = 3_600_000;

impl PatchWaves {
    fn wave(&self, clone: &Volume) -> Option<&Wave> {
        let label = clone.label("wave");
        self.waves.iter().find(|w| Some(w.label.as_str()) == label).or_else(|| self.waves.last())
    }

    fn seconds_to_window(&self, now_ms: u64) -> u64 {
        let (from, to, hour) = (u64::from(self.from_hour), u64::from(self.to_hour), now_ms / HOUR_MS % 24);
        let open = from == to || if from < to { (from..to).contains(&hour) } else { hour >= from || hour < to };
        if open { 0 } else { ((from + 24 - hour) % 24 * 3600).saturating_sub(now_ms % HOUR_MS / 1000).max(1) }
    }
}

impl Reset for PatchWaves {
    fn reset(&self, context: &Context, ask: &ResetRequest) -> Decision<ResetVerdict> {
        let clone = &ask.subject;
        let (Some(newer), false) = (&clone.newer, clone.held) else { return Ok(ResetVerdict::NoOpinion) };
        let Some(wave) = self.wave(clone) else { return Ok(ResetVerdict::NoOpinion) };
        let due_ms = newer.published_ms.saturating_add(u64::from(wave.after_hours) * HOUR_MS);
        let wait_s = due_ms.saturating_sub(context.now_ms).div_ceil(1000).max(self.seconds_to_window(context.now_ms));
        if wait_s > 0 || clone.attached {
            // At log-off and power-off other policies have their say; between them, this one comes back.
            let event = matches!(ask.event, ResetEvent::LogOff | ResetEvent::PowerOff | ResetEvent::PowerOn);
            let seconds = u32::try_from(wait_s.clamp(600, 7 * 24 * 3600)).unwrap_or(3600);
            return Ok(if event { ResetVerdict::NoOpinion } else { ResetVerdict::AskAgain(seconds) });
        }
        let name = if wave.label.is_empty() { "the last wave" } else { &wave.label };
        Ok(ResetVerdict::Discard(ResetPlan {
            timing: ResetTiming::WhenDetached,
            onto: ResetOnto::NewestBase,
            reason: format!("{name} moves to {}", newer.image),
        }))
    }
}

export!(PatchWaves: reset);

#[cfg(test)]
mod tests {
    use super::*;
    use clonegate_policy::testing::{NOON_MS, context, label, reset_request, volume};

    /// So many hours after noon, when the version was published.
    fn at(hours: u64, wave: &str, change: impl FnOnce(&mut Volume)) -> ResetVerdict {
        let mut clone = volume(Lifetime::Ephemeral);
        clone.newer = Some(Release { image: "w11:2".into(), published_ms: NOON_MS });
        clone.labels = vec![label("wave", wave)];
        change(&mut clone);
        let context = Context { now_ms: NOON_MS + hours * HOUR_MS, ..context() };
        PatchWaves::default().reset(&context, &reset_request(ResetEvent::Interval(1), clone)).unwrap()
    }

    fn moves(verdict: &ResetVerdict) -> bool {
        matches!(verdict, ResetVerdict::Discard(plan) if plan.onto == ResetOnto::NewestBase)
    }

    #[test]
    fn waves_move_one_after_the_other_at_night() {
        assert_eq!(at(0, "canary", |_| {}), ResetVerdict::AskAgain(10 * 3600));
        assert!(moves(&at(11, "canary", |_| {})));
        assert!(!moves(&at(11, "early", |_| {})) && moves(&at(11 + 24, "early", |_| {})));
        assert!(!moves(&at(11 + 48, "", |_| {})) && moves(&at(11 + 72, "unknown", |_| {})));
    }

    #[test]
    fn open_held_and_present_clones_stay() {
        assert!(matches!(at(11, "canary", |c| c.attached = true), ResetVerdict::AskAgain(_)));
        assert_eq!(at(11, "canary", |c| c.held = true), ResetVerdict::NoOpinion);
        assert_eq!(at(11, "canary", |c| c.newer = None), ResetVerdict::NoOpinion);
    }

    #[test]
    fn waves_out_of_order_are_a_problem_with_a_path() {
        let wrong = r#"{"waves": [{"label": "a", "after_hours": 10}, {"after_hours": 5}]}"#;
        assert_eq!(PatchWaves::from_json(wrong).unwrap_err()[0].path, "$.waves[1].after_hours");
    }
}
