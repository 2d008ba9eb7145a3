//! What came of a call in words for people: with enough to see what two answers differ in.

use clonegate_core::advice::{
    Answer, Deferral, Hold, PlacementVerdict, ResetOnto, ResetPlan, ResetTiming, ResetVerdict, RolloverVerdict,
    Successor, Target,
};

use crate::call::Outcome;
use crate::replay::Difference;

impl Difference {
    /// What changed: `b1 -> b2`, from which candidate on the order is another, or the two answers.
    pub fn summary(&self) -> String {
        use PlacementVerdict::Choose;
        if let (Outcome::Answer(Answer::Placement(Choose(then))), Outcome::Answer(Answer::Placement(Choose(now)))) =
            (&self.recorded, &self.now)
        {
            let same = then.iter().zip(now).take_while(|(a, b)| a.target == b.target).count();
            let named = |of: Option<&clonegate_core::advice::Candidate>| of.map_or("none".into(), |c| place(&c.target));
            let (then, now) = (named(then.get(same)), named(now.get(same)));
            return match same {
                0 => format!("{then} -> {now}"),
                _ => format!("candidate {}: {then} -> {now}", same + 1),
            };
        }
        format!("{} -> {}", self.recorded.detail(), self.now.detail())
    }
}

impl Outcome {
    /// An answer with its places and times, a fault with its message.
    pub fn detail(&self) -> String {
        match self {
            Self::Answer(answer) => detail(answer),
            Self::Failure(fault) | Self::Trap(fault) => format!("{}: {}", fault.code, fault.message),
            Self::Skipped(_) => self.summary(),
        }
    }
}

fn detail(answer: &Answer) -> String {
    let word = answer.word();
    match answer {
        Answer::Placement(PlacementVerdict::Choose(candidates)) => {
            let places: Vec<_> = candidates.iter().map(|c| place(&c.target)).collect();
            format!("{word} {}", places.join(", "))
        }
        Answer::Placement(PlacementVerdict::Refuse(why))
        | Answer::Rollover(RolloverVerdict::Seal(why) | RolloverVerdict::Retire(why)) => format!("{word}: {why}"),
        Answer::Placement(PlacementVerdict::Defer(Deferral { seconds, reason })) => {
            format!("{word} for {seconds} s: {reason}")
        }
        Answer::Rollover(
            RolloverVerdict::Prepare(Successor { datastores, .. })
            | RolloverVerdict::RollOver(Successor { datastores, .. }),
        ) if !datastores.is_empty() => format!("{word} on {}", datastores.join(", ")),
        Answer::Reset(ResetVerdict::Discard(ResetPlan { timing, onto, .. })) => {
            let timing = match timing {
                ResetTiming::Now => "now",
                ResetTiming::WhenDetached => "when detached",
            };
            let onto = match onto {
                ResetOnto::SameBase => "onto the same base",
                ResetOnto::NewestBase => "onto the newest base",
            };
            format!("{word} {timing}, {onto}")
        }
        Answer::Reset(ResetVerdict::Hold(Hold { seconds: Some(seconds), .. })) => format!("{word} for {seconds} s"),
        Answer::Reset(ResetVerdict::AskAgain(seconds)) => format!("{word} after {seconds} s"),
        _ => word.to_owned(),
    }
}

/// A base by its id, a new base as `+DATASTORE`.
fn place(target: &Target) -> String {
    match target {
        Target::Base(id) => id.clone(),
        Target::NewBaseOn(datastore) => format!("+{datastore}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clonegate_core::advice::{Candidate, Slot};

    fn choose(places: &[&str]) -> Outcome {
        let candidate = |place: &&str| Candidate {
            target: match place.strip_prefix('+') {
                Some(datastore) => Target::NewBaseOn(datastore.into()),
                None => Target::Base((*place).into()),
            },
            reason: "because".into(),
        };
        Outcome::Answer(Answer::Placement(PlacementVerdict::Choose(places.iter().map(candidate).collect())))
    }

    fn changed(recorded: Outcome, now: Outcome) -> String {
        let (decision, subject) = ("d".to_owned(), "c".to_owned());
        Difference { decision, slot: Slot::Placement, subject, recorded, now }.summary()
    }

    #[test]
    fn a_difference_says_what_changed_and_not_only_that_both_chose() {
        assert_eq!(changed(choose(&["b1", "b2"]), choose(&["+d1"])), "b1 -> +d1");
        assert_eq!(changed(choose(&["b1", "b2"]), choose(&["b1", "b3"])), "candidate 2: b2 -> b3");
        assert_eq!(changed(choose(&["b1", "b2"]), choose(&["b1"])), "candidate 2: b2 -> none");
        let refuse = Outcome::Answer(Answer::Placement(PlacementVerdict::Refuse("full".into())));
        assert_eq!(changed(choose(&["b1", "+d2"]), refuse), "choose b1, +d2 -> refuse: full");
        let discard =
            |timing| ResetVerdict::Discard(ResetPlan { timing, onto: ResetOnto::SameBase, reason: "x".into() });
        let reset = |verdict| Outcome::Answer(Answer::Reset(verdict));
        assert_eq!(
            changed(reset(discard(ResetTiming::Now)), reset(ResetVerdict::AskAgain(60))),
            "discard now, onto the same base -> ask-again after 60 s"
        );
        let trap = Outcome::Trap(crate::call::Fault::new("out-of-fuel", "it used up its fuel"));
        assert_eq!(changed(choose(&["b1"]), trap), "choose b1 -> out-of-fuel: it used up its fuel");
    }
}
