//! Decisions that a gateway recorded (`clonegate plugin decisions`, one JSON object a line), asked again natively.

use std::fmt::Debug;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::decide::{Decision, Placement, Reset, Rollover};
use crate::types::{
    Context, Inventory, PlacementRequest, PlacementVerdict, ResetRequest, ResetVerdict, RolloverRequest,
    RolloverVerdict,
};

/// One decision that came out otherwise than recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The recorded decision.
    pub decision: String,
    /// What was recorded.
    pub recorded: String,
    /// What the policy says.
    pub now: String,
}

/// What came of asking recorded questions again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replay {
    /// Decisions of this kind in the file.
    pub decisions: usize,
    /// Those that came out otherwise.
    pub differences: Vec<Difference>,
}

impl Replay {
    /// Fails the test when any decision came out otherwise, or when there was none.
    ///
    /// # Panics
    /// Then.
    pub fn assert_same(&self) {
        assert!(self.decisions > 0, "the file has no decision of this kind");
        assert!(
            self.differences.is_empty(),
            "{} of {} differ: {:#?}",
            self.differences.len(),
            self.decisions,
            self.differences
        );
    }
}

#[derive(Deserialize)]
struct Record {
    decision: String,
    context: Context,
    question: Value,
    answer: Value,
}

/// Asks a placement policy every recorded placement question of a file.
///
/// # Panics
/// When the file cannot be read.
pub fn replay_placement<T: Placement>(policy: &T, file: impl AsRef<Path>) -> Replay {
    replay(
        file.as_ref(),
        "placement",
        |c, q: Q<PlacementRequest>, inv| policy.place(c, &q.0, &inv),
        &PlacementVerdict::NoOpinion,
    )
}

/// Asks a rollover policy every recorded rollover question of a file.
///
/// # Panics
/// When the file cannot be read.
pub fn replay_rollover<T: Rollover>(policy: &T, file: impl AsRef<Path>) -> Replay {
    replay(
        file.as_ref(),
        "rollover",
        |c, q: Q<RolloverRequest>, inv| policy.roll_over(c, &q.0, &inv),
        &RolloverVerdict::NoOpinion,
    )
}

/// Asks a reset policy every recorded reset question of a file.
///
/// # Panics
/// When the file cannot be read.
pub fn replay_reset<T: Reset>(policy: &T, file: impl AsRef<Path>) -> Replay {
    replay(file.as_ref(), "reset", |c, q: Q<ResetRequest>, _| policy.reset(c, &q.0), &ResetVerdict::NoOpinion)
}

/// The settings that a plugin had when the first decision of a file was made, as JSON text: a policy of them is what to replay with.
///
/// # Panics
/// When the file cannot be read, or no decision of it asked the plugin.
pub fn recorded_settings(file: impl AsRef<Path>, plugin: &str) -> String {
    let file = file.as_ref();
    let text = std::fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let asked = text.lines().find_map(|line| {
        let record: Value = serde_json::from_str(line).ok()?;
        let attempt = record["chain"].as_array()?.iter().find(|attempt| attempt["plugin"] == plugin)?;
        Some(attempt["settings"].to_string())
    });
    asked.unwrap_or_else(|| panic!("{}: no decision asked {plugin}", file.display()))
}

struct Q<T>(T);

fn replay<R: DeserializeOwned, V: DeserializeOwned + PartialEq + Debug>(
    file: &Path,
    slot: &str,
    decide: impl Fn(&Context, Q<R>, Inventory) -> Decision<V>,
    no_opinion: &V,
) -> Replay {
    let text = std::fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let mut replay = Replay::default();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = |e: serde_json::Error| -> ! { panic!("{}:{}: {e}", file.display(), number + 1) };
        let mut record: Record = serde_json::from_str(line).unwrap_or_else(|e| wrong(e));
        if record.question["slot"] != slot {
            continue;
        }
        replay.decisions += 1;
        let request = serde_json::from_value(record.question["request"].take()).unwrap_or_else(|e| wrong(e));
        let inventory = match record.question["inventory"].take() {
            Value::Null => Inventory::default(),
            inventory => serde_json::from_value(inventory).unwrap_or_else(|e| wrong(e)),
        };
        let recorded: V = serde_json::from_value(record.answer[slot].take()).unwrap_or_else(|e| wrong(e));
        let now = decide(&record.context, Q(request), inventory);
        // No opinion leaves the decision to whoever made the recorded one.
        if now.as_ref() != Ok(&recorded) && now.as_ref() != Ok(no_opinion) {
            replay.differences.push(Difference {
                decision: record.decision,
                recorded: format!("{recorded:?}"),
                now: format!("{now:?}"),
            });
        }
    }
    replay
}
