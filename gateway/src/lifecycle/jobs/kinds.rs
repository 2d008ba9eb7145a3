//! The kinds of jobs that there are, and who does their work. The words are stored: one that is in use is never given another meaning.

use super::Work;
use crate::lifecycle::{full, moving, orders, pool_jobs, promote, rebalance, rollouts, warm};

/// Those whose caller waits: they do not wait for their turn behind long ones.
pub(super) const SHORT: [&str; 2] = [orders::KIND, pool_jobs::KIND];

/// Every kind.
pub(super) fn all() -> Vec<(&'static str, Work)> {
    vec![
        ("full-clone", full::work),
        ("promote", promote::work),
        ("move", moving::work),
        ("rebalance", rebalance::work),
        (rollouts::KIND, rollouts::work),
        (orders::KIND, orders::work),
        (pool_jobs::KIND, pool_jobs::work),
        (warm::KIND, warm::work),
    ]
}
