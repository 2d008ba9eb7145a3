//! The one wasmtime engine: its configuration, and the thread that advances its epoch.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use clonegate_core::{Error, Result};
use wasmtime::{Config, Enabled, InstanceAllocationStrategy, PoolingAllocationConfig};

use crate::limits::{CORE_INSTANCES, INSTANCES, Limits, MEMORIES, POOLED_MEMORY_BYTES, STACK_BYTES, TABLES, TICK};

/// How engines are configured, everywhere: in the gateway, in the command line and in the compiling child.
///
/// Fuel and epochs are both on: fuel is the limit that can be replayed, the epoch the backstop. Whatever makes results depend on
/// the machine is off. `pooled` keeps slots for instances ready; it needs much address space, which the child does not have.
fn config(limits: &Limits, pooled: bool) -> Config {
    let mut config = Config::new();
    config
        .consume_fuel(true)
        .epoch_interruption(true)
        .max_wasm_stack(STACK_BYTES)
        .wasm_component_model(true)
        .wasm_memory64(false)
        .wasm_tail_call(true)
        .relaxed_simd_deterministic(true)
        .cranelift_nan_canonicalization(true)
        .wasm_backtrace_max_frames(std::num::NonZeroUsize::new(16))
        .memory_reservation(RESERVATION_BYTES)
        .memory_guard_size(GUARD_BYTES);
    if pooled {
        let mut pool = PoolingAllocationConfig::new();
        pool.total_component_instances(INSTANCES)
            .total_core_instances(INSTANCES * 4)
            .total_memories(INSTANCES * 2)
            .total_tables(INSTANCES * 4)
            .max_core_instances_per_component(u32::try_from(CORE_INSTANCES).unwrap_or(16))
            .max_memories_per_component(u32::try_from(MEMORIES).unwrap_or(2))
            .max_tables_per_component(u32::try_from(TABLES).unwrap_or(4))
            .table_elements(limits.table_elements)
            .max_memory_size(limits.memory_bytes.max(POOLED_MEMORY_BYTES))
            .max_unused_warm_slots(8)
            .linear_memory_keep_resident(KEPT_RESIDENT_BYTES)
            // Cleans only the pages that a call has touched, where the kernel can say which (Linux 6.7).
            .pagemap_scan(Enabled::Auto)
            .table_keep_resident(16 << 10);
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    }
    config
}

/// Bytes of a used memory that are cleaned in place, so that the next call takes no page faults for them.
const KEPT_RESIDENT_BYTES: usize = 1 << 20;
/// Address space reserved for a memory; decides the code for bounds checks, so it is the same everywhere.
const RESERVATION_BYTES: u64 = 4 << 30;
/// Address space behind it that traps.
const GUARD_BYTES: u64 = 32 << 20;

/// The engine with its ticker.
#[derive(Clone)]
pub struct Engine {
    engine: wasmtime::Engine,
    limits: Arc<Limits>,
    ticks: Arc<AtomicU64>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Engine {
    /// An engine with pooled instances, and the OS thread that advances its epoch until the last clone is dropped.
    ///
    /// # Errors
    /// `policy-engine` (internal) when the machine does not permit it.
    pub fn new(limits: Limits) -> Result<Self> {
        let failed =
            |e: &dyn std::fmt::Display| Error::internal("policy-engine", format!("the sandbox does not start: {e}"));
        let engine = wasmtime::Engine::new(&config(&limits, true)).or_else(|pooled| {
            // Little address space (a container, an old kernel): slower, but the same limits.
            tracing::warn!(error = %pooled, "plugins run without pooled instances");
            wasmtime::Engine::new(&config(&limits, false))
        });
        let engine = engine.map_err(|e| failed(&e))?;
        let ticks = Arc::new(AtomicU64::new(0));
        let (weak, count) = (engine.weak(), Arc::clone(&ticks));
        std::thread::Builder::new()
            .name("policy-epoch".into())
            .spawn(move || {
                // An OS thread, not a timer of the runtime: a guest that spins must not be able to keep the clock from ticking.
                while let Some(engine) = weak.upgrade() {
                    engine.increment_epoch();
                    count.fetch_add(1, Ordering::Relaxed);
                    drop(engine);
                    std::thread::sleep(TICK);
                }
            })
            .map_err(|e| failed(&e))?;
        Ok(Self { engine, limits: Arc::new(limits), ticks })
    }

    /// An engine that only compiles, for the child process.
    pub(crate) fn compiler(limits: Limits) -> Result<wasmtime::Engine> {
        wasmtime::Engine::new(&config(&limits, false))
            .map_err(|e| Error::internal("policy-engine", format!("the compiler does not start: {e}")))
    }

    pub(crate) fn wasm(&self) -> &wasmtime::Engine {
        &self.engine
    }

    /// Its limits.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// How often the epoch has advanced: a heartbeat of the thread that ends loops.
    pub fn ticks(&self) -> u64 {
        self.ticks.load(Ordering::Relaxed)
    }
}
