//! The kinds of jobs that there are, and who does their work. The words are stored: one that is in use is never given another meaning.

use super::Work;
use crate::lifecycle::rollouts;

/// Every kind.
pub(super) fn all() -> Vec<(&'static str, Work)> {
    vec![(rollouts::KIND, rollouts::work)]
}
