//! What authors and operators do with a component on their own machine, with the limits of production: read inputs, measure.

use std::time::Instant;

use clonegate_core::advice::{
    Answer, Base, Context, Datastore, PlacementRequest, Question, ResetRequest, RolloverRequest,
};
use clonegate_core::{Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

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
    /// `bad-input` (invalid) with the line and column of what is no JSON, or the JSON path of what is no question.
    pub fn parse(text: &str) -> Result<Self> {
        let hint = "give a recorded decision, or an object with slot, request and inventory";
        let bad = |e: String| Error::invalid("bad-input", format!("the input is not understood: {e}")).hint(hint);
        if text.len() > INPUT_BYTES_MAX {
            return Err(Error::invalid("bad-input", format!("the input has more than {} MiB", INPUT_BYTES_MAX >> 20)));
        }
        let value: Value = serde_json::from_str(text.trim()).map_err(|e| bad(e.to_string()))?;
        let whole = |e: serde_json::Error| {
            let (question, path) = value.get("question").map_or((&value, "$"), |question| (question, "$.question"));
            bad(wrong_part(&value, question, path).unwrap_or_else(|| e.to_string()))
        };
        if value.get("question").is_some() {
            let recorded = Recorded::deserialize(&value).map_err(whole)?;
            return Ok(Self { context: recorded.context, question: recorded.question, recorded: recorded.answer });
        }
        let plain = Plain::deserialize(&value).map_err(whole)?;
        // A fixed moment, so that the same file gives the same answer on any day.
        let fixed = Context { decision: "d_input".into(), now_ms: FIXED_MS, seed: 0, sequence: 0 };
        Ok(Self { context: plain.context.unwrap_or(fixed), question: plain.question, recorded: None })
    }
}

impl Input {
    /// Whether a plugin can be asked this.
    ///
    /// # Errors
    /// `no-policy` (invalid) when it decides something else.
    pub fn fits(&self, plugin: &Plugin) -> Result<()> {
        let (slot, decides) = (self.question.slot(), &plugin.info().slots);
        if decides.contains(&slot) {
            return Ok(());
        }
        let decides: Vec<_> = decides.iter().map(|slot| slot.name()).collect();
        Err(Error::invalid(
            "no-policy",
            format!("the question is about {slot}, and the plugin decides {}", decides.join(", ")),
        ))
    }
}

/// The smallest part that is wrong, as its JSON path and what is wrong with it.
fn wrong_part(whole: &Value, question: &Value, path: &str) -> Option<String> {
    fn part<T: DeserializeOwned>(value: &Value, path: String) -> Option<String> {
        T::deserialize(value).err().map(|e| format!("{path}: {e}"))
    }
    fn parts<T: DeserializeOwned>(list: &Value, path: &str) -> Option<String> {
        let items = list.as_array().map_or(&[][..], Vec::as_slice);
        items.iter().enumerate().find_map(|(n, item)| part::<T>(item, format!("{path}[{n}]")))
    }
    let request = (&question["request"], format!("{path}.request"));
    let inventory = &question["inventory"];
    parts::<Datastore>(&inventory["datastores"], &format!("{path}.inventory.datastores"))
        .or_else(|| parts::<Base>(&inventory["bases"], &format!("{path}.inventory.bases")))
        .or_else(|| match question["slot"].as_str() {
            Some("placement") => part::<PlacementRequest>(request.0, request.1),
            Some("rollover") => part::<RolloverRequest>(request.0, request.1),
            Some("reset") => part::<ResetRequest>(request.0, request.1),
            _ => Some(format!("{path}.slot: it is placement, rollover or reset")),
        })
        .or_else(|| part::<Option<Context>>(&whole["context"], "$.context".into()))
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
/// `no-policy` (invalid) when it decides something else; `does-not-answer` (invalid) when the first call fails: there is nothing to measure then.
pub fn measure(plugin: &Plugin, settings: &str, input: &Input, runs: usize) -> Result<Measured> {
    input.fits(plugin)?;
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

    #[test]
    fn what_is_wrong_in_an_input_is_named_by_its_json_path() {
        let right: Value = serde_json::from_str(include_str!("scaffold/question.json")).unwrap();
        let says = |pointer: &str, wrong: Value| {
            let mut input = right.clone();
            *input.pointer_mut(pointer).unwrap() = wrong;
            Input::parse(&input.to_string()).unwrap_err().message().to_owned()
        };
        for (pointer, wrong, path) in [
            ("/inventory/bases/1/deltas", Value::from("three"), "$.inventory.bases[1]: invalid type: string"),
            (
                "/inventory/datastores/0/health",
                Value::from("well"),
                "$.inventory.datastores[0]: unknown variant `well`",
            ),
            ("/request/count", Value::from(-1), "$.request: invalid value: integer `-1`"),
            ("/slot", Value::from("colour"), "$.slot: it is placement, rollover or reset"),
            ("/inventory", Value::from(7), "invalid type: integer `7`"),
        ] {
            let said = says(pointer, wrong);
            assert!(said.contains(path), "{pointer}: {said}");
        }
        let recorded = serde_json::json!({ "context": { "decision": 1 }, "question": right }).to_string();
        let said = Input::parse(&recorded).unwrap_err().message().to_owned();
        assert!(said.contains("$.context: "), "{said}");
    }
}
