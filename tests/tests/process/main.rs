//! The real program under load: killed at random moments, and asked by both protocols at once.
//!
//! `CLONEGATE_LONG=N` makes N times as many kills and requests.

mod kill;
mod linear;
mod order;

/// How many times more than usual is asked for.
fn long() -> u64 {
    std::env::var("CLONEGATE_LONG").ok().and_then(|n| n.parse().ok()).unwrap_or(1).max(1)
}
