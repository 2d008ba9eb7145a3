//! The NBD server: handshake and transmission over sockets.
//!
//! [`serve`] listens, a handshake ([`handshake`]) ends in a session, and a session is one hand-written future
//! ([`transmission`]) that reads requests, asks the device, and sends replies, many a system call.
//! [`client`] is the other side, for tests and for [`bench`], the load generator.

pub mod bench;
pub mod client;
mod gate;
mod handshake;
mod outbox;
mod server;
mod settings;
mod socket;
mod stats;
mod status;
mod transmission;

pub use server::{NbdServer, serve};
pub use settings::NbdSettings;
pub use stats::NbdStats;
