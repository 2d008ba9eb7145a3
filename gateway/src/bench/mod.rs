//! Load generators: they measure any server of the same kind, ours or another, by what a client sees.

mod histogram;
pub mod http;
pub mod storm;

pub use histogram::Histogram;
