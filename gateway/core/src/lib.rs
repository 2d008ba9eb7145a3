//! Vocabulary, stored formats and wire protocols of clonegate.
//!
//! Pure code: no IO, no clock, no randomness, no panic on input. Layer 0 is the
//! vocabulary ([`error`], [`ids`], [`units`], [`limits`], [`advice`]); layer 1 turns it into
//! bytes and back ([`format`], [`http`], [`nbd`]). A fuzzer or a stand-alone verifier
//! needs this crate alone.

#![cfg_attr(test, allow(clippy::cast_possible_truncation, reason = "tests choose their numbers"))]

pub mod advice;
pub mod error;
pub mod format;
pub mod http;
pub mod ids;
pub mod limits;
pub mod nbd;
pub mod units;

pub use error::{Error, ErrorKind, Result};
