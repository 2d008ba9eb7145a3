//! A gateway that serves linked-clone volumes out of object stores, by HTTP ranges and NBD.
//!
//! `ARCHITECTURE.md` at the root of the project is the map of these modules and says which may import which.

#![cfg_attr(test, allow(clippy::cast_possible_truncation, reason = "tests choose their numbers"))]

pub mod base;
pub mod bench;
pub mod catalog;
pub mod cli;
pub mod clock;
pub mod config;
pub mod delta;
pub mod demo;
pub mod device;
pub mod exports;
pub mod files;
pub mod http;
pub mod icache;
pub mod identity;
pub mod import;
pub mod lifecycle;
pub mod metrics;
pub mod nbd;
pub mod policy;
pub mod store;
pub mod tls;
pub mod volume;
