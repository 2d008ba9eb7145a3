//! What happens to templates, bases and clones: the order of store operations that makes each verb crash-safe.

pub mod advisor;
mod clones;
mod copying;
mod datastores;
mod edges;
mod gateway;
mod names;
mod open;
mod placement;
mod removal;
mod reset;
mod stores;
mod table;
mod templates;
mod verbs;
pub mod views;
mod volumes;

pub use datastores::DatastoreSettings;
pub use gateway::{Gateway, GatewaySettings};
