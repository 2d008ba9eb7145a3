//! What authors and operators do with a component on their own machine, with the limits of production: read inputs, measure.

use std::time::Instant;

use clonegate_core::advice::{Answer, Context, Question};
use clonegate_core::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::call::Outcome;
use crate::plugin::Plugin;

/// Largest input file, bytes.
pub const INPUT_BYTES_MAX: usize = 8 << 20;
/// Most runs of a measurement.
pub const RUNS_MAX: usize = 1_000_000;

/// The time of made-up questions: 2025-01-01 12:00 UTC.
pub(crate) const FIXED_MS: u64 = 1_735_732_800_000;

/// A question to try a plugin on, from a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Input {
    /// What stands in for clock and randomness.
    pub context: Context,
    /// What is asked.
    pub question: Question,
    /// The answer that counted, when the file is a recorded decision.
    pub recorded: Option<Answer>,
}

#[derive(Deserialize)]
struct Recorded {
    context: Context,
    question: Question,
    answer: Option<Answer>,
}

#[derive(Deserialize)]
struct Plain {
    context: Option<Context>,
    #[serde(flatten)]
    question: Question,
}

impl Input {
    /// Reads a recorded decision (a line of the log of decisions), or a question: an object with `slot`, `request`,
    /// `inventory`, and perhaps `context`.
    ///
    /// # Errors
    /// `bad-input` (invalid) with line and column.
    pub fn parse(text: &str) -> Result<Self> {
        let bad = |e: serde_json::Error| {
            Error::invalid("bad-input", format!("the input is not understood: {e}"))
                .hint("give a recorded decision, or an object with slot, request and inventory")
        };
        if text.len() > INPUT_BYTES_MAX {
            return Err(Error::invalid("bad-input", format!("the input has more than {} MiB", INPUT_BYTES_MAX >> 20)));
        }
        let text = text.trim();
        let value: serde_json::Value = serde_json::from_str(text).map_err(bad)?;
        if value.get("question").is_some() {
            let recorded: Recorded = serde_json::from_str(text).map_err(bad)?;
            return Ok(Self { context: recorded.context, question: recorded.question, recorded: recorded.answer });
        }
        let plain: Plain = serde_json::from_str(text).map_err(bad)?;
        // A fixed moment, so that the same file gives the same answer on any day.
        let fixed = Context { decision: "d_input".into(), now_ms: FIXED_MS, seed: 0, sequence: 0 };
        Ok(Self { context: plain.context.unwrap_or(fixed), question: plain.question, recorded: None })
    }
}

/// What a measurement found. Times are microseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    /// Calls that were timed.
    pub runs: usize,
    /// Half of the calls were faster.
    pub median_us: f64,
    /// All but a hundredth were faster.
    pub p99_us: f64,
    /// The built-in rule on the same question, natively: half of the calls were faster.
    pub native_median_us: f64,
    /// Fuel of one call; the same each time.
    pub fuel: u64,
    /// Fuel that a call is given for this question.
    pub fuel_limit: u64,
    /// Most linear memory of a call, bytes.
    pub memory: usize,
    /// What the calls came to, in a word.
    pub outcome: String,
}

/// Times calls of a plugin, each on a fresh instance as in production.
///
/// # Errors
/// `does-not-answer` (invalid) when the first call fails; there is nothing to measure then.
pub fn measure(plugin: &Plugin, settings: &str, input: &Input, runs: usize) -> Result<Measured> {
    let first = plugin.ask(settings, &input.context, &input.question);
    if let Outcome::Trap(fault) | Outcome::Failure(fault) = &first.outcome {
        return Err(Error::invalid("does-not-answer", format!("{} ({})", fault.message, fault.code)));
    }
    let runs = runs.clamp(1, RUNS_MAX);
    let calls = timed(runs, || {
        plugin.ask(settings, &input.context, &input.question);
    });
    let native = timed(runs, || {
        std::hint::black_box(std::hint::black_box(&input.question).builtin());
    });
    Ok(Measured {
        runs,
        median_us: at(&calls, 50),
        p99_us: at(&calls, 99),
        native_median_us: at(&native, 50),
        fuel: first.fuel,
        fuel_limit: first.fuel_limit,
        memory: first.memory,
        outcome: first.outcome.summary(),
    })
}

/// Sorted times of so many calls, microseconds, after a warm-up of a tenth of them.
fn timed(runs: usize, mut call: impl FnMut()) -> Vec<f64> {
    (0..runs / 10).for_each(|_| call());
    let mut times: Vec<f64> = (0..runs)
        .map(|_| {
            let start = Instant::now();
            call();
            start.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times
}

fn at(sorted: &[f64], percent: usize) -> f64 {
    let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(index).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_questions_or_recorded_decisions() {
        let question = r#"{"slot": "rollover", "request": {"trigger": "delta-added", "subject": {
            "id": "b1", "image": "w11:1", "datastore": "d1", "state": "ready", "deltas": 3, "delta_limit": 128,
            "size": 1, "delta_bytes": 0, "created_ms": 0, "labels": []}}, "inventory": {"revision": 1, "datastores": [], "bases": []}}"#;
        let input = Input::parse(question).unwrap();
        assert_eq!((input.question.subject(), input.context.seed), ("b1", 0));
        let context = r#"{"decision": "d", "now_ms": 1, "seed": 9, "sequence": 0}"#;
        let recorded =
            format!(r#"{{"context": {context}, "question": {question}, "answer": {{"rollover": "keep"}}, "more": 1}}"#);
        let input = Input::parse(&recorded).unwrap();
        assert_eq!(input.context.seed, 9);
        assert_eq!(input.recorded.unwrap().word(), "keep");
        for wrong in ["", "[]", "{", r#"{"slot": "colour"}"#, r#"{"question": 1}"#] {
            assert_eq!(Input::parse(wrong).unwrap_err().code(), "bad-input", "{wrong}");
        }
    }
}
