//! SDK for clonegate policy plugins.
//!
//! A plugin decides where clones go, when a base gets a successor, or when a clone is reset. It is a WebAssembly component
//! without clock, files, network or memory between calls: an answer is a function of what it is asked and of its settings, so
//! every decision of a gateway is a test case, and a new version can be tried on last month's decisions before it is installed.
//!
//! A whole plugin:
//!
//! ```
//! use clonegate_policy::prelude::*;
//!
//! settings! { struct LeastFull {} }
//!
//! impl Placement for LeastFull {
//!     fn place(&self, _: &Context, ask: &PlacementRequest, inventory: &Inventory) -> Decision<PlacementVerdict> {
//!         let best = inventory.ready_bases(ask).min_by_key(|base| base.deltas);
//!         Ok(best.map_or(PlacementVerdict::NoOpinion, |base| choose([base.because("fewest clones")])))
//!     }
//! }
//!
//! export!(LeastFull: placement);
//! # fn main() {}
//! ```
//!
//! `clonegate plugin new NAME` writes such a crate; [`testing`] tests it natively, with made-up and with recorded questions;
//! `cargo build --release --target wasm32-unknown-unknown` and `clonegate plugin pack` make the component.

#[cfg(all(target_arch = "wasm32", feature = "allocator"))]
mod allocator;
#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
#[allow(missing_docs, unreachable_pub, missing_debug_implementations, reason = "generated from wit/")]
pub mod bindings;
mod decide;
mod export;
pub mod log;
mod settings;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;
pub mod types;
#[doc(hidden)]
pub mod wire;

pub use decide::{Decision, Placement, Reset, Rollover, cannot_decide, choose, refuse};
#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
pub use export::__leave;
#[doc(hidden)]
pub use settings::{__bounds, __from_json, __in_range, __object, __object_schema, __own_range, __text};
pub use settings::{Problem, Setting, Settings};

/// What a plugin imports: `use clonegate_policy::prelude::*;`.
pub mod prelude {
    pub use crate::decide::{Decision, Placement, Reset, Rollover, cannot_decide, choose, refuse};
    pub use crate::settings::{Problem, Setting, Settings};
    pub use crate::types::*;
    pub use crate::{debug, error, export, info, settings, trace, warn};
}

#[doc(hidden)]
pub mod __private {
    pub use serde_json;
}
