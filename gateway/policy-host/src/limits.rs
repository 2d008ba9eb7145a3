//! What a plugin may take: every bound of the sandbox, with its unit and what happens when it is reached.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::call::Call;

/// Bounds of one call, of one component and of its compilation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Largest component file, bytes; a larger one is refused before it is parsed.
    pub component_bytes: usize,
    /// Linear memory of one call, bytes, over all memories; growth beyond it fails in the guest.
    pub memory_bytes: usize,
    /// Elements of one table; growth beyond it fails in the guest.
    pub table_elements: usize,
    /// Fuel of one call whatever it is asked (a unit is about one instruction); spent fuel ends the call.
    pub fuel_base: u64,
    /// Fuel for each record of the question on top of it.
    pub fuel_per_record: u64,
    /// Longest run of one call. About ten times what the fuel takes, so that fuel decides and outcomes can be replayed.
    pub wall: Duration,
    /// Bytes that the answer may make the host allocate; more ends the call.
    pub answer_bytes: usize,
    /// Log lines of one call; the rest is left away and marked.
    pub log_lines: usize,
    /// Bytes of one log line; the rest is cut.
    pub log_line_bytes: usize,
    /// Log bytes of one call; the rest is left away and marked.
    pub log_bytes: usize,
    /// CPU time of the compiling child process, whole seconds; more ends it.
    pub compile_cpu: Duration,
    /// Address space of the compiling child process, bytes; more ends it.
    pub compile_memory_bytes: u64,
    /// Longest wait of a question for a free thread; the built-in rule answers then.
    pub queue_wait: Duration,
    /// Questions that wait at most; the built-in rule answers further ones.
    pub queue: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            component_bytes: 4 << 20,
            memory_bytes: 16 << 20,
            table_elements: 20_000,
            fuel_base: 20_000_000,
            fuel_per_record: 50_000,
            wall: Duration::from_millis(250),
            answer_bytes: 1 << 20,
            log_lines: 32,
            log_line_bytes: 1024,
            log_bytes: 8 * 1024,
            compile_cpu: Duration::from_secs(60),
            compile_memory_bytes: 2 << 30,
            queue_wait: Duration::from_millis(500),
            queue: 1024,
        }
    }
}

/// What an operator lets one place in a chain take, where that differs from [`Limits`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CallLimits {
    /// In place of [`Limits::fuel_base`], within [`FUEL_RANGE`].
    pub fuel: Option<u64>,
    /// In place of [`Limits::memory_bytes`], within [`MEMORY_RANGE`].
    pub memory_bytes: Option<u64>,
    /// In place of [`Limits::wall`], within [`WALL_RANGE`].
    pub wall: Option<Duration>,
}

/// Fuel that an operator may give one call.
pub const FUEL_RANGE: RangeInclusive<u64> = 100_000..=2_000_000_000;
/// Bytes of linear memory that an operator may give one call.
pub const MEMORY_RANGE: RangeInclusive<u64> = 1 << 20..=64 << 20;
/// Time that an operator may give one call: others wait for the thread meanwhile.
pub const WALL_RANGE: RangeInclusive<Duration> = Duration::from_millis(20)..=Duration::from_secs(2);

impl CallLimits {
    /// The first value that is outside its range: its key, and what is permitted.
    pub fn wrong(&self) -> Option<(&'static str, &'static str)> {
        let outside = [
            (self.fuel.is_some_and(|f| !FUEL_RANGE.contains(&f)), "fuel", "from 100,000 to 2,000,000,000"),
            (self.memory_bytes.is_some_and(|m| !MEMORY_RANGE.contains(&m)), "memory", "from 1MiB to 64MiB"),
            (self.wall.is_some_and(|w| !WALL_RANGE.contains(&w)), "time", "from 20ms to 2s"),
        ];
        outside.into_iter().find(|(wrong, ..)| *wrong).map(|(_, key, range)| (key, range))
    }
}

/// What one call is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allowance {
    pub(crate) fuel: u64,
    pub(crate) memory_bytes: usize,
    pub(crate) wall: Duration,
}

impl Allowance {
    /// For a call over so many records.
    pub(crate) fn of(limits: &Limits, own: &CallLimits, records: usize) -> Self {
        let memory = own.memory_bytes.and_then(|bytes| usize::try_from(bytes).ok());
        let base = Limits { fuel_base: own.fuel.unwrap_or(limits.fuel_base), ..limits.clone() };
        Self {
            fuel: base.fuel(records),
            memory_bytes: memory.unwrap_or(limits.memory_bytes),
            wall: own.wall.unwrap_or(limits.wall),
        }
    }

    /// What a recorded call was given, so that it can be asked again alike; the time is not part of it.
    pub(crate) fn recorded(call: &Call, limits: &Limits, records: usize) -> Self {
        let usual = Self::of(limits, &CallLimits::default(), records);
        Self {
            fuel: if call.fuel_limit == 0 { usual.fuel } else { call.fuel_limit },
            memory_bytes: if call.memory_limit == 0 {
                usual.memory_bytes
            } else {
                call.memory_limit.min(POOLED_MEMORY_BYTES)
            },
            wall: usual.wall.max(*WALL_RANGE.end()),
        }
    }

    /// The deadline, in ticks of [`TICK`].
    pub(crate) fn ticks(&self) -> u64 {
        u64::try_from(self.wall.as_millis().div_ceil(TICK.as_millis())).unwrap_or(u64::MAX).max(2)
    }
}

impl Limits {
    /// The fuel of a call over so many records.
    pub fn fuel(&self, records: usize) -> u64 {
        let records = u64::try_from(records).unwrap_or(u64::MAX);
        self.fuel_base.saturating_add(self.fuel_per_record.saturating_mul(records))
    }
}

/// Largest memory of an instance in the pool, bytes; the end of [`MEMORY_RANGE`].
pub(crate) const POOLED_MEMORY_BYTES: usize = 64 << 20;
/// How often the epoch advances.
pub(crate) const TICK: Duration = Duration::from_millis(10);
/// Calls that may run at once.
pub(crate) const INSTANCES: u32 = 32;
/// Memories of one component.
pub(crate) const MEMORIES: usize = 2;
/// Tables of one component.
pub(crate) const TABLES: usize = 4;
/// Core instances of one component.
pub(crate) const CORE_INSTANCES: usize = 16;
/// Native stack of a guest, bytes; deeper recursion traps.
pub(crate) const STACK_BYTES: usize = 512 << 10;
