//! Runs clonegate policy components in a sandbox: limits, chains, decisions, replay, exchange while running.
//!
//! [`Plugin::load`] checks and links a component; [`Plugin::ask`] asks it on a fresh instance. [`PolicyHost`] holds the plugins of
//! a gateway and their chains, records every decision, and exchanges plugins. An answer is a function of component, settings,
//! context and question, so [`Replay`] can ask again what was recorded.

mod binding;
mod breaker;
mod call;
mod chain;
mod compile;
mod engine;
mod host;
mod install;
mod journal;
mod limits;
mod pack;
mod plugin;
mod previous;
mod record;
mod replay;
mod sample;
mod scaffold;
mod tools;
mod wit;
mod words;
mod workers;

pub use binding::{Binding, Chains, Mode, OnFailure};
pub use call::{Call, Fault, Outcome, SettingsProblem};
pub use compile::{CHILD_VERB, Compiler, compile_child_main};
pub use engine::Engine;
pub use host::{Embedded, HostSettings, HostStats, LinkLimits, LinkStatus, Moment, PluginStatus, PolicyHost};
pub use install::{InstallOptions, InstallReport, check_settings};
pub use journal::{Journal, KEPT, read as read_records};
pub use limits::{CallLimits, FUEL_RANGE, Limits, MEMORY_RANGE, WALL_RANGE};
pub use pack::{FileKind, kind, pack};
pub use plugin::{Plugin, PluginInfo, WIT};
pub use record::{Attempt, BUILT_IN, RECORD_VERSION, Record};
pub use replay::{Difference, Replay};
pub use sample::SAMPLE_RECORDS_MAX;
pub use scaffold::scaffold;
pub use tools::{INPUT_BYTES_MAX, Input, Measured, RUNS_MAX, measure};
