//! What a plugin may take: every bound of the sandbox, with its unit and what happens when it is reached.

use std::time::Duration;

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

impl Limits {
    /// The fuel of a call over so many records.
    pub fn fuel(&self, records: usize) -> u64 {
        let records = u64::try_from(records).unwrap_or(u64::MAX);
        self.fuel_base.saturating_add(self.fuel_per_record.saturating_mul(records))
    }

    /// The deadline of a call, in ticks of [`TICK`].
    pub(crate) fn ticks(&self) -> u64 {
        u64::try_from(self.wall.as_millis().div_ceil(TICK.as_millis())).unwrap_or(u64::MAX).max(2)
    }
}

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
