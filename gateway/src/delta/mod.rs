//! The log of one clone: what it wrote, where it lies, who owns it.
//!
//! A clone's changes are numbered commit records, each made by put-if-absent, in the epoch of the gateway that owns it.
//! [`load`] reads them back, [`claim`] makes this gateway the owner, [`state`] is what they add up to. `crate::volume`
//! puts a delta over a base and makes a device of it.

pub mod cache;
pub mod check;
pub mod claim;
pub mod collect;
pub mod dirty;
mod engine;
pub mod fence;
pub mod fold;
pub(crate) mod journal;
pub mod load;
pub mod map;
pub mod object;
pub mod state;
pub(crate) mod unsettled;

pub(crate) use engine::{BUDGET_UNIT, Now, Registration};
pub use engine::{DeltaSettings, Engine};
