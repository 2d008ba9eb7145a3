//! Asks recorded questions again: of the same component, to prove that answers are reproducible, or of another, to see what
//! it would have changed.

use clonegate_core::advice::{Answer, Question, Slot, check};
use serde::{Deserialize, Serialize};

use crate::call::{Call, Fault, Outcome};
use crate::chain::same;
use crate::limits::{Allowance, CallLimits};
use crate::plugin::Plugin;
use crate::record::{Attempt, Record};

/// Differences and faults that a report lists one by one; further ones are only counted.
const LISTED: usize = 100;

/// A decision that came out otherwise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// The decision.
    pub decision: String,
    /// Its kind.
    pub slot: Slot,
    /// What it was about.
    pub subject: String,
    /// What was recorded.
    pub recorded: Outcome,
    /// What the plugin says.
    pub now: Outcome,
}

/// What came of a replay.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Replay {
    /// Questions asked again.
    pub asked: usize,
    /// Those that came out otherwise; faults too, unless the recorded call failed in the same way.
    pub different: usize,
    /// Those that failed or trapped.
    pub faults: usize,
    /// Of these, those that the sandbox ended.
    pub traps: usize,
    /// Most fuel that a call took.
    pub fuel_max: u64,
    /// The first differences.
    pub differences: Vec<Difference>,
}

impl Replay {
    fn add(&mut self, record: &Record, recorded: &Outcome, call: Call, differs: bool) {
        self.asked += 1;
        self.fuel_max = self.fuel_max.max(call.fuel);
        self.faults += usize::from(call.outcome.is_fault());
        self.traps += usize::from(matches!(call.outcome, Outcome::Trap(_)));
        if differs {
            self.different += 1;
            if self.differences.len() < LISTED {
                self.differences.push(Difference {
                    decision: record.decision.clone(),
                    slot: record.question.slot(),
                    subject: record.question.subject().to_owned(),
                    recorded: recorded.clone(),
                    now: call.outcome,
                });
            }
        }
    }

    /// Asks `plugin` what a record asked, and compares with what the same-named plugin (`name`) answered then, or, if it was not
    /// asked, with the answer that counted. "No opinion" never differs from an answer of somebody else.
    pub fn compare(&mut self, plugin: &Plugin, name: &str, settings: &str, own: &CallLimits, record: &Record) {
        if !plugin.info().slots.contains(&record.question.slot()) {
            return;
        }
        let call = checked(plugin.ask_within(own, settings, &record.context, &record.question), &record.question);
        let then = record.chain.iter().chain(&record.shadow).find(|a| a.plugin == name && a.rejected.is_empty());
        match then.map(|a| &a.call.outcome).filter(|o| !matches!(o, Outcome::Skipped(_))) {
            Some(recorded) => {
                let differs = !same_outcome(recorded, &call.outcome);
                self.add(record, recorded, call, differs);
            }
            None => {
                let recorded = Outcome::Answer(record.answer.clone());
                let no_opinion = matches!(&call.outcome, Outcome::Answer(a) if a.is_no_opinion());
                let differs = !no_opinion && !same_effect(&recorded, &call.outcome, &record.question);
                self.add(record, &recorded, call, differs);
            }
        }
    }

    /// Asks the same component with the same settings and limits again; every attempt must come out exactly as recorded, reasons and all.
    pub fn verify(&mut self, plugin: &Plugin, record: &Record) {
        for attempt in record.chain.iter().chain(&record.shadow).filter(|a| a.component == plugin.info().digest) {
            if matches!(attempt.call.outcome, Outcome::Skipped(_)) {
                continue;
            }
            let question = question_of(record, attempt);
            let settings = if attempt.settings.is_null() { "{}".to_owned() } else { attempt.settings.to_string() };
            let allowance = Allowance::recorded(&attempt.call, plugin.engine.limits(), question.records());
            let call = checked(plugin.ask_allowed(allowance, &settings, &record.context, &question), &question);
            // Chosen twice in vain is noted by the host as a failure; a time-out is the machine's, not the plugin's.
            let excused = matches!(&attempt.call.outcome, Outcome::Failure(f) if f.code == "bad-answer" && !attempt.rejected.is_empty())
                || matches!(&attempt.call.outcome, Outcome::Trap(f) if f.code == "time-out");
            let differs = !excused && attempt.call.outcome != call.outcome;
            self.add(record, &attempt.call.outcome, call, differs);
        }
    }
}

fn question_of(record: &Record, attempt: &Attempt) -> Question {
    let mut question = record.question.clone();
    if let Question::Placement { request, .. } = &mut question {
        request.rejected.clone_from(&attempt.rejected);
    }
    question
}

/// As the host does after each call: an answer of a wrong form is a failure.
fn checked(mut call: Call, question: &Question) -> Call {
    if let Outcome::Answer(answer) = &call.outcome
        && let Err(e) = check::validate(question, answer)
    {
        call.outcome = Outcome::Failure(Fault::new("bad-answer", e.message()));
    }
    call
}

fn same_outcome(a: &Outcome, b: &Outcome) -> bool {
    match (a, b) {
        (Outcome::Answer(a), Outcome::Answer(b)) => same(a, b),
        (Outcome::Failure(a), Outcome::Failure(b)) | (Outcome::Trap(a), Outcome::Trap(b)) => a.code == b.code,
        _ => false,
    }
}

/// The recorded answer may have lost candidates that did not hold; the same is done to the new one.
fn same_effect(recorded: &Outcome, now: &Outcome, question: &Question) -> bool {
    let (Outcome::Answer(recorded), Outcome::Answer(now)) = (recorded, now) else { return false };
    use clonegate_core::advice::PlacementVerdict::Choose;
    if let (Question::Placement { request, inventory }, Answer::Placement(Choose(candidates))) = (question, now) {
        let holding = candidates.iter().filter(|c| check::usable(request, inventory, &c.target).is_ok()).cloned();
        return same(recorded, &Answer::Placement(Choose(holding.collect())));
    }
    same(recorded, now)
}
