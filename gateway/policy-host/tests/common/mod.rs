//! Guests made of WebAssembly text, for tests: well-behaved by default, with any part exchanged for a hostile one.

#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    missing_debug_implementations,
    reason = "each test file takes what it needs"
)]

use std::path::PathBuf;

use clonegate_core::advice::{
    Base, BaseState, Context, Datastore, Health, Inventory, Label, Lifetime, PlacementRequest, Question,
};
use clonegate_policy_host::{Compiler, Engine, Limits, Plugin, pack};

/// A core module of the placement world, before it is packed.
pub struct Guest {
    /// Behind the imports: further memories, tables, globals, functions, data.
    pub extra: String,
    /// The memory.
    pub memory: String,
    /// Body of `describe`; leaves the address of the result.
    pub describe: String,
    /// Body of `configure` (locals 0, 1: the settings).
    pub configure: String,
    /// Body of `place` (local 0: the arguments in memory).
    pub place: String,
    /// Name of the exported part.
    pub part: String,
    /// Body of `cabi_realloc` (local 3: the size); none: gives out what memory there is and grows it.
    pub realloc: Option<String>,
}

/// Says its name, takes any settings, and has no opinion.
pub fn guest() -> Guest {
    Guest {
        extra: String::new(),
        memory: r#"(memory (export "memory") 2)"#.into(),
        describe: "(i32.const 1024)".into(),
        configure: "(i32.const 0)".into(),
        place: "(i32.const 0)".into(),
        part: "clonegate:policy/placement@0.1.0".into(),
        realloc: None,
    }
}

impl Guest {
    pub fn place(body: &str) -> Self {
        Self { place: body.into(), ..guest() }
    }

    pub fn extra(mut self, extra: &str) -> Self {
        self.extra.push_str(extra);
        self
    }

    /// The text: addresses 0..1024 are zero (a result "no opinion", an `ok`), 1024 a description, 2048 on is free, 65536 on is
    /// given out by `cabi_realloc`.
    pub fn text(&self) -> String {
        let Self { extra, memory, describe, configure, place, part, realloc } = self;
        let realloc = realloc.as_deref().unwrap_or(
            "(local $at i32)
    (local.set $at (i32.and (i32.add (global.get $top) (i32.const 7)) (i32.const -8)))
    (global.set $top (i32.add (local.get $at) (local.get 3)))
    (block $fits
      (br_if $fits (i32.le_u (global.get $top) (i32.mul (memory.size) (i32.const 65536))))
      (br_if $fits (i32.ne (memory.grow (i32.add (i32.shr_u (local.get 3) (i32.const 16)) (i32.const 1))) (i32.const -1)))
      unreachable)
    (local.get $at)",
        );
        format!(
            r#"(module
  (import "clonegate:policy/log@0.1.0" "write" (func $log (param i32 i32 i32)))
  {memory}
  (global $top (mut i32) (i32.const 65536))
  (data (i32.const 1024) "\80\04\00\00\05\00\00\00\85\04\00\00\03\00\00\00\88\04\00\00\04\00\00\00\00\00\00\00")
  (data (i32.const 1152) "guest1.0text")
  {extra}
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
    {realloc})
  (func (export "clonegate:policy/plugin@0.1.0#describe") (result i32) {describe})
  (func (export "clonegate:policy/plugin@0.1.0#configure") (param i32 i32) (result i32) {configure})
  (func (export "{part}#place") (param i32) (result i32) {place})
)"#
        )
    }

    pub fn core(&self) -> Vec<u8> {
        let mut core = wat::parse_str(self.text()).unwrap_or_else(|e| panic!("{e}"));
        embed(&mut core, "placement-policy");
        core
    }

    pub fn component(&self) -> Vec<u8> {
        pack(&self.core()).unwrap()
    }

    pub fn load(&self) -> clonegate_core::Result<std::sync::Arc<Plugin>> {
        load(&self.component())
    }
}

/// Says in a core module which world it is made for.
pub fn embed(core: &mut Vec<u8>, world: &str) {
    let wit = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../wit");
    let mut resolve = wit_parser::Resolve::default();
    let (package, _) = resolve.push_path(wit).unwrap();
    let world = resolve.select_world(&[package], Some(world)).unwrap();
    wit_component::embed_component_metadata(core, &resolve, world, wit_component::StringEncoding::UTF8).unwrap();
}

/// One engine for all tests of a file, with a deadline that a busy machine does not reach before the fuel.
pub fn engine() -> Engine {
    static ENGINE: std::sync::OnceLock<Engine> = std::sync::OnceLock::new();
    ENGINE.get_or_init(|| Engine::new(limits()).unwrap()).clone()
}

pub fn limits() -> Limits {
    Limits { wall: std::time::Duration::from_secs(5), ..Limits::default() }
}

pub fn load(component: &[u8]) -> clonegate_core::Result<std::sync::Arc<Plugin>> {
    Plugin::load(&engine(), component, &Compiler::Here)
}

pub fn child() -> Compiler {
    Compiler::Child { program: env!("CARGO_BIN_EXE_clonegate-policy").into(), args: vec!["__compile-component".into()] }
}

pub fn context() -> Context {
    Context { decision: "d_test".into(), now_ms: 1_735_732_800_000, seed: 7, sequence: 0 }
}

/// A placement question over so many datastores and bases, two labels each.
pub fn question(datastores: u32, bases: u32) -> Question {
    let labels = |n: u32| {
        vec![
            Label { key: "rack".into(), value: format!("r{}", n % 4) },
            Label { key: "tier".into(), value: if n.is_multiple_of(2) { "nvme" } else { "sas" }.into() },
        ]
    };
    let datastore = |n: u32| Datastore {
        id: format!("datastore-{n:03}"),
        health: if n % 7 == 6 { Health::Degraded } else { Health::Online },
        capacity: 1 << 42,
        free: (1 << 41) - u64::from(n) * (1 << 30),
        reserved: 1 << 35,
        bases: bases / datastores.max(1),
        clones: 100,
        pool_clones: n,
        latency_us: Some(400 + n),
        labels: labels(n),
    };
    let base = |n: u32| Base {
        id: format!("b_{n:026}"),
        image: if n % 5 == 4 { "w10:7" } else { "w11:3" }.into(),
        datastore: format!("datastore-{:03}", n % datastores.max(1)),
        state: if n % 9 == 8 { BaseState::Sealed } else { BaseState::Ready },
        deltas: (n * 37) % 129,
        delta_limit: 128,
        size: 40 << 30,
        delta_bytes: u64::from(n) << 30,
        created_ms: 1_735_000_000_000 + u64::from(n),
        labels: labels(n),
    };
    Question::Placement {
        request: PlacementRequest {
            clone: "desk-0001".into(),
            pool: "win11-a".into(),
            image: "w11:3".into(),
            size: 40 << 30,
            lifetime: Lifetime::Ephemeral,
            expected_delta: 2 << 30,
            count: 1,
            labels: labels(0),
            rejected: Vec::new(),
        },
        inventory: Inventory {
            revision: 42,
            datastores: (0..datastores).map(datastore).collect(),
            bases: (0..bases).map(base).collect(),
        },
    }
}

/// Bytes as a WebAssembly text string.
pub fn bytes(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("\\{b:02x}")).collect()
}

/// Little-endian words as a WebAssembly text string.
pub fn words(words: &[u32]) -> String {
    bytes(&words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>())
}
