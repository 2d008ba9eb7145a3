//! What happens to templates, bases and clones: the order of store operations that makes each verb crash-safe.

pub mod advisor;
mod capacity;
mod clones;
pub mod context;
mod copying;
mod datastores;
mod disks;
mod edges;
mod fsck;
mod fsck_home;
mod gateway;
mod identity;
mod jobs;
mod labels;
mod machines;
mod names;
mod open;
mod placement;
mod pools;
mod power;
mod removal;
mod reset;
mod retention;
mod rollouts;
mod seal;
mod settle;
mod stores;
mod table;
mod templates;
mod update;
mod verbs;
pub mod views;
mod volumes;

pub use datastores::DatastoreSettings;
pub use gateway::{Gateway, GatewaySettings};
