//! The delta engine under faults: what was acknowledged is there, what is read is right, nothing is left behind.
//!
//! `CLONEGATE_LONG=N` multiplies seeds and schedules by N, scripts and damage cases by a fifth of it. `tests/rig/long.sh` runs all of it.

mod crash_points;
mod damage;
mod fence;
mod script;
mod simulation;
mod state_machine;

/// How many times more than usual is asked for.
fn long() -> u64 {
    std::env::var("CLONEGATE_LONG").ok().and_then(|n| n.parse().ok()).unwrap_or(1).max(1)
}
