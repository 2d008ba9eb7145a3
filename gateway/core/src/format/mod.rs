//! Stored records: the bytes of every object, in one place each.
//!
//! Every record is bincode in one [`envelope`]; large arrays are plain little-endian sections behind it.
//! `docs/format.md` tells the bytes; golden files hold both true.

pub mod audit;
pub mod base;
pub mod bootset;
pub mod catalog;
pub mod checkpoint;
pub mod clone;
pub mod envelope;
pub mod exclusive;
pub mod frame;
pub mod identity;
pub mod index;
pub mod job;
pub mod journal;
pub mod log;
pub mod making;
pub mod segment;
pub mod sparse;
