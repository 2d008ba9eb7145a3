//! HTTP byte ranges and preconditions as pure code (RFC 9110 §13 and §14).
//!
//! The server hands in header values as bytes, the size of the volume and its validators, and gets back what to answer.

pub mod content_range;
pub mod precondition;
pub mod range;

pub use content_range::{ContentRange, write_content_range, write_decimal};
pub use precondition::{Conditions, Validators, Verdict};
pub use range::{RangeList, Refusal, Selection, select};
