//! A change of labels.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Labels;

/// Labels that a clone gets or loses; the others stay.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeLabels {
    /// Set, whether they are there or not.
    #[serde(default)]
    pub set: Labels,
    /// Keys of those that go.
    #[serde(default)]
    pub remove: Vec<String>,
}
