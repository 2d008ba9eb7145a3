//! What happens to templates, bases and clones: the order of store operations that makes each verb crash-safe.

pub mod advisor;
pub mod views;

mod gateway;

pub use gateway::Gateway;
