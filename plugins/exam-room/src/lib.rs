//! For rooms where nobody may find the work of the one before: resets at every log-off and power-off. A machine that crashed
//! during an exam is another matter: its delta is held, so that the work on it is not lost.

use clonegate_policy::prelude::*;

settings! {
    /// Which pools are exam rooms, and how long crashes are held.
    pub struct ExamRoom {
        /// The label of a clone, pool or template that makes it one; empty: all that this policy is bound to.
        label: String = String::new(),
        /// How long the delta of a crashed machine is held, hours; 0: until somebody releases it.
        hold_hours: u32 = 72 => 0..=720,
        /// A machine that was switched off by force counts as crashed.
        forced_is_crash: bool = true,
    }
}

impl Reset for ExamRoom {
    fn reset(&self, _: &Context, ask: &ResetRequest) -> Decision<ResetVerdict> {
        let clone = &ask.subject;
        if !self.label.is_empty() && clone.label(&self.label).is_none() {
            return Ok(ResetVerdict::NoOpinion);
        }
        if clone.held {
            return Ok(ResetVerdict::Keep);
        }
        let event = match ask.event {
            ResetEvent::PowerOff => "power-off",
            ResetEvent::LogOff => "log-off",
            ResetEvent::PowerOn => "power-on",
            _ => return Ok(ResetVerdict::NoOpinion),
        };
        let crashed = match clone.last_exit {
            Exit::Crashed => true,
            Exit::Forced => self.forced_is_crash,
            Exit::Unknown | Exit::Clean => false,
        };
        if crashed {
            warn!("{} crashed; its delta is held", clone.id);
            let seconds = (self.hold_hours > 0).then(|| self.hold_hours * 3600);
            return Ok(ResetVerdict::Hold(Hold { seconds, reason: format!("crashed before {event}") }));
        }
        Ok(ResetVerdict::Discard(ResetPlan {
            timing: ResetTiming::WhenDetached,
            onto: ResetOnto::NewestBase,
            reason: format!("exam room at {event}"),
        }))
    }
}

export!(ExamRoom: reset);

#[cfg(test)]
mod tests {
    use super::*;
    use clonegate_policy::testing::{context, label, reset_request, volume};

    fn at(event: ResetEvent, exit: Exit, policy: &ExamRoom) -> ResetVerdict {
        let clone = Volume { last_exit: exit, labels: vec![label("exam", "math")], ..volume(Lifetime::Ephemeral) };
        policy.reset(&context(), &reset_request(event, clone)).unwrap()
    }

    #[test]
    fn every_log_off_and_power_off_resets() {
        for event in [ResetEvent::LogOff, ResetEvent::PowerOff, ResetEvent::PowerOn] {
            assert!(matches!(at(event, Exit::Clean, &ExamRoom::default()), ResetVerdict::Discard(_)));
        }
        assert_eq!(at(ResetEvent::Interval(1), Exit::Clean, &ExamRoom::default()), ResetVerdict::NoOpinion);
    }

    #[test]
    fn a_crash_holds_the_delta_whatever_comes_next() {
        for exit in [Exit::Crashed, Exit::Forced] {
            let verdict = at(ResetEvent::PowerOn, exit, &ExamRoom::default());
            assert!(matches!(verdict, ResetVerdict::Hold(Hold { seconds: Some(259_200), .. })), "{verdict:?}");
        }
        let held = Volume { held: true, last_exit: Exit::Clean, ..volume(Lifetime::Ephemeral) };
        let ask = reset_request(ResetEvent::LogOff, held);
        assert_eq!(ExamRoom::default().reset(&context(), &ask).unwrap(), ResetVerdict::Keep);
    }

    #[test]
    fn rooms_without_the_label_are_left_to_others() {
        let policy = ExamRoom { label: "exam".into(), ..ExamRoom::default() };
        assert!(matches!(at(ResetEvent::LogOff, Exit::Clean, &policy), ResetVerdict::Discard(_)));
        let policy = ExamRoom { label: "other".into(), ..policy };
        assert_eq!(at(ResetEvent::LogOff, Exit::Clean, &policy), ResetVerdict::NoOpinion);
    }
}
