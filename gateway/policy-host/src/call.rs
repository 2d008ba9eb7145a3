//! One call of a plugin: a fresh instance with fuel, deadline, memory and log limits, thrown away afterwards.

use std::time::Instant;

use clonegate_core::advice::{Answer, Context, Question};
use serde::{Deserialize, Serialize};
use wasmtime::{ResourceLimiter, Store, Trap};

use crate::limits::{Allowance, CORE_INSTANCES, CallLimits, Limits, MEMORIES, TABLES};
use crate::plugin::Plugin;
use crate::wit::{self, wit as types};

/// What came of a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// An answer, which may be "no opinion".
    Answer(Answer),
    /// The plugin says that it could not decide, or its answer has a wrong form.
    Failure(Fault),
    /// The sandbox ended the call.
    Trap(Fault),
    /// It was not asked; the text says why.
    Skipped(String),
}

impl Outcome {
    /// In a few words, for tables.
    pub fn summary(&self) -> String {
        match self {
            Self::Answer(answer) => answer.word().to_owned(),
            Self::Failure(fault) | Self::Trap(fault) => fault.code.clone(),
            Self::Skipped(why) => format!("skipped: {why}"),
        }
    }

    /// True for a failure or a trap.
    pub fn is_fault(&self) -> bool {
        matches!(self, Self::Failure(_) | Self::Trap(_))
    }
}

/// Why a call gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Stable, for programs: `out-of-fuel`, `time-out`, `out-of-memory`, `stack-overflow`, `crashed`, `does-not-start`,
    /// `bad-abi`, `bad-answer`, `settings`, `input`, `internal`.
    pub code: String,
    /// For people.
    pub message: String,
}

impl Fault {
    pub(crate) fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: shortened(message.into()) }
    }
}

/// A problem with the settings, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingsProblem {
    /// A JSON path.
    pub path: String,
    /// For people.
    pub message: String,
}

/// A call: its outcome and what it took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// What came of it.
    pub outcome: Outcome,
    /// Fuel it used.
    #[serde(default)]
    pub fuel: u64,
    /// Fuel it was given.
    #[serde(default)]
    pub fuel_limit: u64,
    /// Most linear memory it had, bytes.
    #[serde(default)]
    pub memory: usize,
    /// Linear memory it might have had, bytes.
    #[serde(default)]
    pub memory_limit: usize,
    /// How long it took, microseconds.
    #[serde(default)]
    pub us: u64,
    /// What it logged, with levels.
    #[serde(default)]
    pub logs: Vec<(String, String)>,
}

/// What a plugin says of itself.
pub(crate) type Said = wit::plugin::Info;

pub(crate) struct State {
    meter: Meter,
    log: CallLog,
}

#[derive(Debug)]
struct Meter {
    memory_max: usize,
    table_max: usize,
    memory: usize,
    refused: bool,
}

impl ResourceLimiter for Meter {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let total = self.memory.saturating_add(desired.saturating_sub(current));
        let fits = total <= self.memory_max;
        if fits {
            self.memory = total;
        } else {
            self.refused = true;
        }
        Ok(fits)
    }

    fn table_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let fits = desired <= self.table_max;
        self.refused |= !fits;
        Ok(fits)
    }

    fn instances(&self) -> usize {
        CORE_INSTANCES
    }

    fn tables(&self) -> usize {
        TABLES
    }

    fn memories(&self) -> usize {
        MEMORIES
    }
}

#[derive(Debug, Default)]
struct CallLog {
    lines: Vec<(String, String)>,
    bytes: usize,
    truncated: bool,
    lines_max: usize,
    line_bytes_max: usize,
    bytes_max: usize,
}

impl wit::log::Host for State {
    fn write(&mut self, level: wit::log::Level, mut message: String) {
        let log = &mut self.log;
        if message.len() > log.line_bytes_max {
            message.truncate(message.floor_char_boundary(log.line_bytes_max));
            message.push('…');
        }
        if log.lines.len() >= log.lines_max || log.bytes + message.len() > log.bytes_max {
            log.truncated = true;
            return;
        }
        log.bytes += message.len();
        let level = match level {
            wit::log::Level::Trace => "trace",
            wit::log::Level::Debug => "debug",
            wit::log::Level::Info => "info",
            wit::log::Level::Warn => "warn",
            wit::log::Level::Error => "error",
        };
        log.lines.push((level.to_owned(), message));
    }
}

impl Plugin {
    /// Asks the plugin on a fresh instance. Blocks for at most the wall limit.
    pub fn ask(&self, settings: &str, context: &Context, question: &Question) -> Call {
        self.ask_within(&CallLimits::default(), settings, context, question)
    }

    /// The same, with limits of its own.
    pub fn ask_within(&self, own: &CallLimits, settings: &str, context: &Context, question: &Question) -> Call {
        self.ask_allowed(Allowance::of(self.engine.limits(), own, question.records()), settings, context, question)
    }

    pub(crate) fn ask_allowed(
        &self,
        allowance: Allowance,
        settings: &str,
        context: &Context,
        question: &Question,
    ) -> Call {
        self.call(allowance, |plugin, store, instance| {
            plugin.configure_in(store, instance, settings)?;
            plugin.ask_in(store, instance, context, question)
        })
    }

    /// Checks settings; empty when they are right.
    ///
    /// # Errors
    /// When the call itself fails.
    pub fn check_settings(&self, own: &CallLimits, settings: &str) -> std::result::Result<Vec<SettingsProblem>, Fault> {
        let mut problems = Vec::new();
        let allowance = Allowance::of(self.engine.limits(), own, 0);
        let call = self.call(allowance, |plugin, store, instance| {
            problems = plugin.configure_said(store, instance, settings)?;
            Ok(Outcome::Skipped(String::new()))
        });
        match call.outcome {
            Outcome::Trap(fault) | Outcome::Failure(fault) => Err(fault),
            _ => Ok(problems),
        }
    }

    pub(crate) fn call_describe(&self) -> std::result::Result<Said, String> {
        let mut said = None;
        let allowance = Allowance::of(self.engine.limits(), &CallLimits::default(), 0);
        let call = self.call(allowance, |plugin, store, instance| {
            let guest = plugin.exports.plugin.load(&mut *store, instance)?;
            said = Some(guest.call_describe(&mut *store)?);
            Ok(Outcome::Skipped(String::new()))
        });
        match (said, call.outcome) {
            (Some(said), _) => Ok(said),
            (None, Outcome::Trap(fault) | Outcome::Failure(fault)) => Err(fault.message),
            (None, _) => Err("it said nothing".into()),
        }
    }

    fn call(
        &self,
        allowance: Allowance,
        run: impl FnOnce(&Self, &mut Store<State>, &wasmtime::component::Instance) -> wasmtime::Result<Outcome>,
    ) -> Call {
        let start = Instant::now();
        let limits = self.engine.limits();
        let mut store = self.store(limits, &allowance);
        let ready = store.set_fuel(allowance.fuel);
        store.set_epoch_deadline(allowance.ticks());
        let mut started = false;
        let outcome = ready.and_then(|()| self.pre.instantiate(&mut store)).and_then(|instance| {
            started = true;
            run(self, &mut store, &instance)
        });
        let used = allowance.fuel.saturating_sub(store.get_fuel().unwrap_or(0));
        let State { meter, mut log } = store.into_data();
        if log.truncated {
            log.lines.push(("warn".into(), "further lines were left away: a call may log 32 lines and 8 KiB".into()));
        }
        let outcome = outcome.unwrap_or_else(|e| Outcome::Trap(fault(&e, started, &meter, &allowance)));
        Call {
            outcome,
            fuel: used,
            fuel_limit: allowance.fuel,
            memory: meter.memory,
            memory_limit: allowance.memory_bytes,
            us: u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX),
            logs: log.lines,
        }
    }

    fn store(&self, limits: &Limits, allowance: &Allowance) -> Store<State> {
        let meter =
            Meter { memory_max: allowance.memory_bytes, table_max: limits.table_elements, memory: 0, refused: false };
        let log = CallLog {
            lines_max: limits.log_lines,
            line_bytes_max: limits.log_line_bytes,
            bytes_max: limits.log_bytes,
            ..CallLog::default()
        };
        let mut store = Store::new(self.engine.wasm(), State { meter, log });
        store.limiter(|state| &mut state.meter);
        store.epoch_deadline_trap();
        store.set_hostcall_fuel(limits.answer_bytes);
        store
    }

    fn configure_said(
        &self,
        store: &mut Store<State>,
        instance: &wasmtime::component::Instance,
        settings: &str,
    ) -> wasmtime::Result<Vec<SettingsProblem>> {
        let guest = self.exports.plugin.load(&mut *store, instance)?;
        let problems = guest.call_configure(&mut *store, settings)?.err().unwrap_or_default();
        let problems = problems.into_iter().take(32);
        Ok(problems.map(|p| SettingsProblem { path: shortened(p.path), message: shortened(p.message) }).collect())
    }

    fn configure_in(
        &self,
        store: &mut Store<State>,
        instance: &wasmtime::component::Instance,
        settings: &str,
    ) -> wasmtime::Result<()> {
        match self.configure_said(store, instance, settings)?.first() {
            None => Ok(()),
            Some(p) => Err(wasmtime::Error::msg(Refused(format!("{}: {}", p.path, p.message)))),
        }
    }

    fn ask_in(
        &self,
        store: &mut Store<State>,
        instance: &wasmtime::component::Instance,
        context: &Context,
        question: &Question,
    ) -> wasmtime::Result<Outcome> {
        let context = wit::context(context);
        let missing = || Ok(Outcome::Skipped(format!("it does not decide {}", question.slot())));
        match question {
            Question::Placement { request, inventory } => {
                let Some(export) = &self.exports.placement else { return missing() };
                let (own, inventory) = (wit::Labels::of([&*request.labels].into_iter()), wit::Flat::of(inventory));
                let targets = wit::rejected_targets(request);
                let rejected = wit::rejections(request, &targets);
                let request = wit::placement_request(request, &own, &rejected);
                let guest = export.load(&mut *store, instance)?;
                let said = guest.call_place(&mut *store, context, request, inventory.seen())?;
                Ok(outcome(said, |v| Answer::Placement(wit::placement_verdict(v))))
            }
            Question::Rollover { request, inventory } => {
                let Some(export) = &self.exports.rollover else { return missing() };
                let own = wit::Labels::of([&*request.subject.labels].into_iter());
                let inventory = wit::Flat::of(inventory);
                let request = wit::rollover_request(request, &own);
                let guest = export.load(&mut *store, instance)?;
                let said = guest.call_roll_over(&mut *store, context, request, inventory.seen())?;
                Ok(outcome(said, |v| Answer::Rollover(wit::rollover_verdict(v))))
            }
            Question::Reset { request } => {
                let Some(export) = &self.exports.reset else { return missing() };
                let labels = wit::Labels::of([&*request.subject.labels, &*request.base.labels].into_iter());
                let request = wit::reset_request(request, &labels);
                let guest = export.load(&mut *store, instance)?;
                let said = guest.call_reset(&mut *store, context, request)?;
                Ok(outcome(said, |v| Answer::Reset(wit::reset_verdict(v))))
            }
        }
    }
}

/// The plugin refused its settings.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refused(String);

fn outcome<V>(said: std::result::Result<V, types::Failure>, answer: impl FnOnce(V) -> Answer) -> Outcome {
    match said {
        Ok(verdict) => Outcome::Answer(answer(verdict)),
        Err(failure) => {
            let code = match failure.kind {
                types::ErrorKind::Settings => "settings",
                types::ErrorKind::Input => "input",
                types::ErrorKind::Internal => "internal",
            };
            Outcome::Failure(Fault::new(code, failure.message))
        }
    }
}

fn fault(error: &wasmtime::Error, started: bool, meter: &Meter, allowance: &Allowance) -> Fault {
    if let Some(Refused(why)) = error.downcast_ref::<Refused>() {
        return Fault::new("settings", why.clone());
    }
    let memory =
        || Fault::new("out-of-memory", format!("it needs more than {} MiB of memory", allowance.memory_bytes >> 20));
    match error.downcast_ref::<Trap>() {
        Some(Trap::OutOfFuel) => Fault::new("out-of-fuel", "it used up its fuel: an endless loop, or too much work"),
        Some(Trap::Interrupt) => {
            Fault::new("time-out", format!("it ran longer than {} ms", allowance.wall.as_millis()))
        }
        Some(Trap::StackOverflow) => Fault::new("stack-overflow", "it recurses too deeply"),
        _ if meter.refused => memory(),
        Some(trap) => Fault::new("crashed", trap.to_string()),
        None if !started => Fault::new("does-not-start", format!("{error:#}")),
        None => Fault::new(
            "bad-abi",
            format!("what it took or gave breaks the canonical ABI, or its answer is too large: {error:#}"),
        ),
    }
}

/// What the guest writes is shown to people and recorded: bounded.
fn shortened(mut text: String) -> String {
    if text.len() > clonegate_core::advice::check::TEXT_BYTES_MAX {
        text.truncate(text.floor_char_boundary(clonegate_core::advice::check::TEXT_BYTES_MAX));
        text.push('…');
    }
    text
}
