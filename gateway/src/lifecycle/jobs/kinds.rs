//! The kinds of jobs that there are, and who does their work. The words are stored: one that is in use is never given another meaning.

use super::Work;
use crate::lifecycle::{full, moving, promote, rebalance, rollouts};

/// Every kind.
pub(super) fn all() -> Vec<(&'static str, Work)> {
    vec![
        ("full-clone", full::work),
        ("promote", promote::work),
        ("move", moving::work),
        ("rebalance", rebalance::work),
        (rollouts::KIND, rollouts::work),
    ]
}
