//! Asks the plugins of a chain one after the other; at the end stands the built-in rule.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use clonegate_core::advice::{
    Answer, Context, Hold, PlacementVerdict, Question, Rejection, ResetVerdict, RolloverVerdict, Slot, check,
};
use parking_lot::Mutex;

use crate::binding::{Binding, Mode, OnFailure};
use crate::breaker::Breaker;
use crate::call::{Call, Fault, Outcome};
use crate::install::check_settings;
use crate::plugin::{Plugin, WIT};
use crate::record::{Attempt, BUILT_IN, RECORD_VERSION, Record};

/// A binding with its plugin.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) binding: Binding,
    /// None: not installed, or refused; the chain goes on.
    pub(crate) plugin: Option<Arc<Plugin>>,
    pub(crate) settings: String,
    /// Why the plugin, though it is there, cannot be asked here; the chain goes on.
    pub(crate) problem: Option<String>,
    pub(crate) breaker: Mutex<Breaker>,
    pub(crate) counts: Counts,
}

/// How often a link was asked, and what came of it.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) asked: AtomicU64,
    pub(crate) answered: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) skipped: AtomicU64,
    pub(crate) differed: AtomicU64,
    pub(crate) us: AtomicU64,
    pub(crate) fuel: AtomicU64,
}

impl Link {
    /// A place in the chain of a slot. What is wrong with the settings is found here, once, and not at every question.
    pub(crate) fn new(slot: Slot, binding: Binding, plugin: Option<Arc<Plugin>>) -> Self {
        let settings = binding.settings_text();
        let problem = plugin.as_ref().and_then(|plugin| {
            if !plugin.info().slots.contains(&slot) {
                return Some(format!("it does not decide {slot}"));
            }
            check_settings(plugin, &binding.limits, &settings).err().map(|e| format!("settings: {}", e.message()))
        });
        let name = &binding.plugin;
        match (&plugin, &problem) {
            (None, _) => {
                tracing::error!(plugin = name, %slot, "a plugin of a chain is not there; the chain goes on without it")
            }
            (_, Some(problem)) => {
                tracing::error!(plugin = name, %slot, problem, "a plugin cannot be asked; the chain goes on without it");
            }
            (Some(_), None) => {}
        }
        Self { binding, plugin, settings, problem, breaker: Mutex::default(), counts: Counts::default() }
    }

    /// Whether nobody is asked at this place.
    pub(crate) fn is_empty(&self) -> bool {
        self.plugin.is_none() || self.problem.is_some()
    }

    /// Asks the plugin, unless it is missing or its breaker is open; an answer of a wrong form is a failure.
    fn ask(&self, context: &Context, question: &Question) -> Attempt {
        let rejected = match question {
            Question::Placement { request, .. } => request.rejected.clone(),
            _ => Vec::new(),
        };
        let mut attempt = Attempt {
            plugin: self.binding.plugin.clone(),
            version: String::new(),
            component: String::new(),
            settings: self.binding.settings.clone(),
            rejected,
            call: skipped("it is not loaded"),
            differs: false,
        };
        let Some(plugin) = &self.plugin else {
            self.counts.skipped.fetch_add(1, Ordering::Relaxed);
            return attempt;
        };
        attempt.version.clone_from(&plugin.info().version);
        attempt.component.clone_from(&plugin.info().digest);
        if let Some(problem) = &self.problem {
            self.counts.skipped.fetch_add(1, Ordering::Relaxed);
            attempt.call = skipped(problem);
            return attempt;
        }
        if !self.breaker.lock().allows(context.now_ms) {
            self.counts.skipped.fetch_add(1, Ordering::Relaxed);
            attempt.call = skipped("its breaker is open");
            return attempt;
        }
        attempt.call = plugin.ask_within(&self.binding.limits, &self.settings, context, question);
        if let Outcome::Answer(answer) = &attempt.call.outcome
            && let Err(e) = check::validate(question, answer)
        {
            attempt.call.outcome = Outcome::Failure(Fault::new("bad-answer", e.message()));
        }
        self.note(&attempt.call, context.now_ms);
        attempt
    }

    fn note(&self, call: &Call, now_ms: u64) {
        let fault = call.outcome.is_fault();
        self.counts.asked.fetch_add(1, Ordering::Relaxed);
        self.counts.us.fetch_add(call.us, Ordering::Relaxed);
        self.counts.fuel.fetch_add(call.fuel, Ordering::Relaxed);
        let count = if fault { &self.counts.failed } else { &self.counts.answered };
        count.fetch_add(1, Ordering::Relaxed);
        let opened = self.breaker.lock().note(fault, now_ms);
        let plugin = &self.binding.plugin;
        if let Outcome::Failure(f) | Outcome::Trap(f) = &call.outcome {
            tracing::warn!(plugin, code = f.code, message = f.message, "a policy failed");
        }
        if opened {
            tracing::warn!(plugin, "a policy keeps failing and is not asked for a while");
        }
        for (level, line) in call.logs.iter().filter(|(level, _)| level == "warn" || level == "error") {
            tracing::warn!(plugin, level, "{line}");
        }
    }
}

fn skipped(why: &str) -> Call {
    Call {
        outcome: Outcome::Skipped(why.to_owned()),
        fuel: 0,
        fuel_limit: 0,
        memory: 0,
        memory_limit: 0,
        us: 0,
        logs: Vec::new(),
    }
}

/// Asks a chain. `allow_persistent_reset` is the operator's word on resets of persistent clones.
pub(crate) fn decide(
    links: &[Arc<Link>],
    context: Context,
    question: Question,
    allow_persistent_reset: bool,
) -> Record {
    let start = Instant::now();
    let asked = || links.iter().filter(|l| l.binding.covers(question.pool()));
    let mut chain = Vec::new();
    let mut found = None;
    for link in asked().filter(|l| l.binding.mode == Mode::Enforce) {
        found = ask_link(link, &context, &question, &mut chain);
        if found.is_some() {
            break;
        }
    }
    let fault = no_answer(&chain);
    let (answer, by, note) = match found {
        Some((answer, by)) => (answer, by, None),
        None => {
            let failed = |a: &Attempt| {
                let answered = matches!(a.call.outcome, Outcome::Answer(_));
                (!answered)
                    .then(|| asked().find(|l| l.binding.plugin == a.plugin).map(|l| l.binding.on_failure))
                    .flatten()
            };
            let instead = chain.iter().filter_map(failed).find(|on| *on != OnFailure::Builtin);
            let answer = match (&question, instead) {
                (Question::Reset { .. }, Some(OnFailure::Keep)) => Answer::Reset(ResetVerdict::Keep),
                (Question::Reset { .. }, Some(OnFailure::Hold)) => Answer::Reset(ResetVerdict::Hold(Hold {
                    seconds: None,
                    reason: fault.clone().unwrap_or_else(|| "its reset policy gave no answer".into()),
                })),
                _ => question.builtin(),
            };
            (answer, BUILT_IN.to_owned(), fault)
        }
    };
    let (answer, settled) = settle(&question, answer, allow_persistent_reset);
    let us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
    let mut shadow = Vec::new();
    for link in asked().filter(|l| l.binding.mode == Mode::Shadow) {
        let would = ask_link(link, &context, &question, &mut shadow);
        if let (Some((would, _)), Some(last)) = (would, shadow.last_mut())
            && !same(&would, &answer)
        {
            last.differs = true;
            link.counts.differed.fetch_add(1, Ordering::Relaxed);
        }
    }
    Record {
        v: RECORD_VERSION,
        decision: context.decision.clone(),
        wit: WIT.to_owned(),
        context,
        question,
        chain,
        answer,
        by,
        note: settled.map(str::to_owned).or(note),
        shadow,
        us,
    }
}

/// Why a chain came to nothing: the last plugin of it that failed, else the last that was not asked; none when all had no opinion.
fn no_answer(chain: &[Attempt]) -> Option<String> {
    let failed = chain.iter().rev().find(|a| a.call.outcome.is_fault());
    let failed = failed.map(|a| format!("{} failed ({})", a.plugin, a.call.outcome.summary()));
    failed.or_else(|| {
        chain.iter().rev().find_map(|a| match &a.call.outcome {
            Outcome::Skipped(why) => Some(format!("{} was not asked: {why}", a.plugin)),
            _ => None,
        })
    })
}

/// The answer of one link, if it has one that can be used. A placement of which nothing holds is asked for once more.
fn ask_link(
    link: &Link,
    context: &Context,
    question: &Question,
    attempts: &mut Vec<Attempt>,
) -> Option<(Answer, String)> {
    let attempt = link.ask(context, question);
    let outcome = attempt.call.outcome.clone();
    attempts.push(attempt);
    let Outcome::Answer(answer) = outcome else { return None };
    match usable(question, answer) {
        Ok(answer) => Some((answer, link.binding.plugin.clone())).filter(|(answer, _)| !answer.is_no_opinion()),
        Err(rejections) => {
            let mut again = question.clone();
            if let Question::Placement { request, .. } = &mut again {
                request.rejected.extend(rejections);
            }
            let attempt = link.ask(context, &again);
            let outcome = attempt.call.outcome.clone();
            attempts.push(attempt);
            let Outcome::Answer(answer) = outcome else { return None };
            match usable(question, answer) {
                Ok(answer) if !answer.is_no_opinion() => Some((answer, link.binding.plugin.clone())),
                Ok(_) => None,
                Err(_) => {
                    if let Some(last) = attempts.last_mut() {
                        let why = "it chose twice what does not hold";
                        last.call.outcome = Outcome::Failure(Fault::new("bad-answer", why));
                    }
                    None
                }
            }
        }
    }
}

/// Leaves away candidates that do not hold; when none is left, says why.
fn usable(question: &Question, answer: Answer) -> Result<Answer, Vec<Rejection>> {
    let (Question::Placement { request, inventory }, Answer::Placement(PlacementVerdict::Choose(candidates))) =
        (question, &answer)
    else {
        return Ok(answer);
    };
    let (mut holding, mut rejected) = (Vec::new(), Vec::new());
    for candidate in candidates {
        match check::usable(request, inventory, &candidate.target) {
            Ok(()) => holding.push(candidate.clone()),
            Err(why) => rejected.push(Rejection { target: candidate.target.clone(), why }),
        }
    }
    if holding.is_empty() { Err(rejected) } else { Ok(Answer::Placement(PlacementVerdict::Choose(holding))) }
}

/// Makes an answer safe; says what was changed.
fn settle(question: &Question, answer: Answer, allow_persistent_reset: bool) -> (Answer, Option<&'static str>) {
    match (question, answer) {
        (Question::Reset { request }, Answer::Reset(verdict)) => {
            let (verdict, note) = check::settle_reset(request, verdict, allow_persistent_reset);
            (Answer::Reset(verdict), note)
        }
        (Question::Rollover { request, .. }, Answer::Rollover(RolloverVerdict::Keep | RolloverVerdict::Prepare(_)))
            if request.subject.deltas >= request.subject.delta_limit =>
        {
            (question.builtin(), Some("all slots of the base are taken"))
        }
        (_, answer) => (answer, None),
    }
}

/// Whether two answers do the same; reasons are for people and may differ.
pub(crate) fn same(a: &Answer, b: &Answer) -> bool {
    match (a, b) {
        (Answer::Placement(PlacementVerdict::Choose(a)), Answer::Placement(PlacementVerdict::Choose(b))) => {
            a.iter().map(|c| &c.target).eq(b.iter().map(|c| &c.target))
        }
        (Answer::Placement(PlacementVerdict::Defer(a)), Answer::Placement(PlacementVerdict::Defer(b))) => {
            a.seconds == b.seconds
        }
        (Answer::Rollover(RolloverVerdict::Prepare(a)), Answer::Rollover(RolloverVerdict::Prepare(b)))
        | (Answer::Rollover(RolloverVerdict::RollOver(a)), Answer::Rollover(RolloverVerdict::RollOver(b))) => {
            a.datastores == b.datastores
        }
        (Answer::Reset(ResetVerdict::Discard(a)), Answer::Reset(ResetVerdict::Discard(b))) => {
            (a.timing, a.onto) == (b.timing, b.onto)
        }
        (Answer::Reset(ResetVerdict::Hold(a)), Answer::Reset(ResetVerdict::Hold(b))) => a.seconds == b.seconds,
        (Answer::Reset(ResetVerdict::AskAgain(a)), Answer::Reset(ResetVerdict::AskAgain(b))) => a == b,
        (a, b) => a.word() == b.word(),
    }
}
