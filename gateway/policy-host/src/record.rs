//! A decision as it is recorded: everything that went in, everything that came out.

use clonegate_core::advice::{Answer, Context, Question, Rejection};
use serde::{Deserialize, Serialize};

use crate::call::Call;

/// The version of the form of records.
pub const RECORD_VERSION: u32 = 1;
/// Who answers when no plugin does.
pub const BUILT_IN: &str = "built-in";

/// One plugin asked once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// The name that it is installed under.
    pub plugin: String,
    /// Its version.
    #[serde(default)]
    pub version: String,
    /// BLAKE3 of the component, hexadecimal; empty when it was not loaded.
    #[serde(default)]
    pub component: String,
    /// Its settings.
    #[serde(default)]
    pub settings: serde_json::Value,
    /// Filled when it was asked once more: its candidates that did not hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rejected: Vec<Rejection>,
    /// What came of it.
    #[serde(flatten)]
    pub call: Call,
    /// Shadow only: whether its answer differs from the one that counted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub differs: bool,
}

/// One decision; a line of JSON in the log of decisions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`RECORD_VERSION`].
    pub v: u32,
    /// Its id.
    pub decision: String,
    /// The package and version that plugins were spoken to in.
    pub wit: String,
    /// What stood in for clock and randomness.
    pub context: Context,
    /// What was asked.
    pub question: Question,
    /// Who was asked, in order.
    pub chain: Vec<Attempt>,
    /// The answer that counts.
    pub answer: Answer,
    /// Whose it is: the name of a plugin, or [`BUILT_IN`].
    pub by: String,
    /// Why the built-in rule answered in place of a plugin, or what the host changed in the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Plugins that were asked in shadow.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shadow: Vec<Attempt>,
    /// How long the decision took, microseconds, shadows left out.
    #[serde(default)]
    pub us: u64,
}
