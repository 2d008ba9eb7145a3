//! Hostile plugins: each gets no more than its limits, harms no other call, and leaves a reason that an operator can read.

mod common;

use clonegate_core::advice::{Answer, PlacementVerdict, check};
use clonegate_policy_host::{Compiler, Engine, Limits, Outcome, Plugin};
use common::{Guest, bytes, child, context, embed, engine, guest, load, question, words};

/// The code of the fault that a call of a guest ends with; a well-behaved guest answers afterwards as if nothing were.
fn fault(guest: &Guest) -> String {
    let plugin = guest.load().unwrap_or_else(|e| panic!("it should load: {e}"));
    let (context, question) = (context(), question(4, 10));
    let call = plugin.ask("{}", &context, &question);
    assert!(call.fuel <= call.fuel_limit);
    assert!(call.memory <= 16 << 20, "{} bytes", call.memory);
    let (code, message) = match call.outcome {
        Outcome::Trap(fault) | Outcome::Failure(fault) => (fault.code, fault.message),
        Outcome::Answer(answer) => {
            let wrong = check::validate(&question, &answer).expect_err("the answer should be refused");
            (wrong.code().to_owned(), wrong.message().to_owned())
        }
        Outcome::Skipped(why) => panic!("{why}"),
    };
    assert!(!message.is_empty() && message.len() < 600, "{message}");
    let good = load(&common::guest().component()).unwrap().ask("{}", &context, &question);
    assert_eq!(good.outcome, Outcome::Answer(Answer::Placement(PlacementVerdict::NoOpinion)));
    code
}

/// The code of the error that loading ends with.
fn refused(component: &[u8]) -> &'static str {
    let error = load(component).map(|p| format!("{:?}", p.info())).expect_err("it should be refused");
    assert!(!error.message().is_empty());
    error.code()
}

/// A guest that answers with these bytes at 2048, and has others at 4096.
fn answers(result: &str, more: &str) -> Guest {
    Guest::place("(i32.const 2048)")
        .extra(&format!(r#"(data (i32.const 2048) "{result}") (data (i32.const 4096) "{more}")"#))
}

fn configures(body: &str) -> Guest {
    Guest { configure: body.into(), ..guest() }
}

fn describes(body: &str) -> Guest {
    Guest { describe: body.into(), ..guest() }
}

fn allocates(body: &str) -> Guest {
    Guest { realloc: Some(body.into()), ..guest() }
}

macro_rules! calls {
    ($($name:ident: $guest:expr => $code:literal;)*) => {$(
        #[test]
        fn $name() {
            assert_eq!(fault(&$guest), $code);
        }
    )*};
}

macro_rules! loads {
    ($($name:ident: $component:expr => $code:literal;)*) => {$(
        #[test]
        fn $name() {
            assert_eq!(refused(&$component), $code);
        }
    )*};
}

const LOOP: &str = "(loop $l (br $l)) (i32.const 0)";

calls! {
    endless_loop: Guest::place(LOOP) => "out-of-fuel";
    endless_loop_of_calls: Guest::place("(loop $l (call $f) (br $l)) (i32.const 0)").extra("(func $f)") => "out-of-fuel";
    endless_tail_calls: Guest::place("(call $f)").extra("(func $f (result i32) (return_call $f))") => "out-of-fuel";
    endless_recursion: Guest::place("(call $f (i32.const 0))")
        .extra("(func $f (param i32) (result i32) (call $f (i32.add (call $f (local.get 0)) (i32.const 1))))")
        => "stack-overflow";
    mutual_recursion: Guest::place("(call $a (i32.const 1))")
        .extra("(func $a (param i32) (result i32) (i32.add (call $b (local.get 0)) (i32.const 1)))
                (func $b (param i32) (result i32) (i32.add (call $a (local.get 0)) (i32.const 1)))")
        => "stack-overflow";
    bulk_fill_for_ever: Guest::place(
        "(loop $l (memory.fill (i32.const 65536) (i32.const 1) (i32.const 65536)) (br $l)) (i32.const 0)")
        => "out-of-fuel";
    log_flood_for_ever: Guest::place(
        "(loop $l (call $log (i32.const 4) (i32.const 1152) (i32.const 12)) (br $l)) (i32.const 0)") => "out-of-fuel";
    log_of_a_text_that_is_not_utf8: Guest::place(
        "(i32.store8 (i32.const 4096) (i32.const 255)) (call $log (i32.const 2) (i32.const 4096) (i32.const 1)) (i32.const 0)")
        => "bad-abi";
    log_of_an_unknown_level: Guest::place("(call $log (i32.const 9) (i32.const 1152) (i32.const 1)) (i32.const 0)")
        => "bad-abi";
    log_of_memory_that_is_not_there: Guest::place(
        "(call $log (i32.const 2) (i32.const 0) (i32.const 0x7fffffff)) (i32.const 0)") => "bad-abi";
    unreachable: Guest::place("unreachable") => "crashed";
    division_by_zero: Guest::place("(i32.div_u (i32.const 1) (i32.const 0))") => "crashed";
    read_outside_memory: Guest::place("(i32.load (i32.const -4))") => "crashed";
    write_outside_memory: Guest::place("(i32.store (i32.const 0x7fffffff) (i32.const 1)) (i32.const 0)") => "crashed";
    indirect_call_of_nothing: Guest::place("(call_indirect (result i32) (i32.const 99))").extra("(table 1 funcref)")
        => "crashed";
    indirect_call_of_a_wrong_type: Guest::place("(call_indirect (result i32) (i32.const 0))")
        .extra("(table 1 funcref) (func $f) (elem (i32.const 0) $f)") => "crashed";
    memory_bomb: Guest::place("(loop $l (br_if $l (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) unreachable")
        => "out-of-memory";
    memory_bomb_at_once: Guest::place("(drop (memory.grow (i32.const 65000))) unreachable") => "out-of-memory";
    table_bomb: Guest::place("(drop (table.grow (ref.null func) (i32.const 1000000))) unreachable")
        .extra("(table 1 funcref)") => "out-of-memory";
    answer_over_the_end_of_memory: Guest::place("(i32.const 131064)") => "bad-abi";
    answer_outside_memory: Guest::place("(i32.const -8)") => "bad-abi";
    answer_not_aligned: Guest::place("(i32.const 2049)") => "bad-abi";
    answer_of_an_unknown_kind: answers("\\07", "") => "bad-abi";
    verdict_of_an_unknown_kind: answers(&words(&[0, 9, 0, 0]), "") => "bad-abi";
    text_that_is_not_utf8: answers(&words(&[0, 2, 4096, 4]), &bytes(&[0xff, 0xfe, 0xc3, 0x28])) => "bad-abi";
    text_outside_memory: answers(&words(&[0, 2, 4096, 0x7fff_ffff]), "") => "bad-abi";
    list_outside_memory: answers(&words(&[0, 1, 4096, 0x0fff_ffff]), "") => "bad-abi";
    huge_text: answers(&words(&[0, 2, 90000, 40000]), "") => "bad-answer";
    text_with_a_nul: answers(&words(&[0, 2, 4096, 4]), "") => "bad-answer";
    many_candidates: answers(&words(&[0, 1, 90000, 1000]), "") => "bad-answer";
    no_candidates: answers(&words(&[0, 1, 65536, 0]), "") => "bad-answer";
    unknown_base: answers(&words(&[0, 1, 4096, 1]), &words(&[0, 1152, 5, 0, 0])) => "bad-answer";
    wait_of_a_century: answers(&words(&[0, 3, 0xffff_ffff, 0, 0]), "") => "bad-answer";
    aliased_strings: answers(&words(&[0, 1, 4096, 600]), &words(&[0, 65536, 60000, 65536, 60000]).repeat(600)) => "bad-abi";
    failure_with_a_huge_text: answers(&words(&[1, 2, 90000, 40000]), "") => "internal";
    settings_that_never_end: configures(LOOP) => "out-of-fuel";
    settings_that_crash: configures("unreachable") => "crashed";
    settings_with_a_flood_of_problems: configures("(i32.const 2048)")
        .extra(&format!(r#"(data (i32.const 2048) "{}")"#, words(&[1, 65536, 4000]))) => "settings";
    allocator_that_gives_memory_that_is_not_there: allocates("(i32.const 0x7ffffff8)") => "bad-abi";
    allocator_that_gives_what_is_not_aligned: allocates("(i32.const 2049)") => "bad-abi";
    allocator_that_never_ends: allocates(LOOP) => "out-of-fuel";
}

fn with_world(text: &str, world: &str) -> Vec<u8> {
    let mut core = wat::parse_str(text).unwrap();
    embed(&mut core, world);
    clonegate_policy_host::pack(&core).unwrap()
}

fn component(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap()
}

loads! {
    nothing: [] => "not-wasm";
    text: *b"(component)" => "not-wasm";
    machine_code: *b"\x7fELF\x02\x01\x01\0" => "not-wasm";
    precompiled_by_this_very_engine: precompiled() => "not-wasm";
    an_unknown_version_of_wasm: *b"\0asm\x0e\0\x01\0" => "not-wasm";
    a_core_module: guest().core() => "core-module";
    a_hundred_megabytes: vec![0_u8; 100 << 20] => "component-too-large";
    a_component_cut_short: guest().component()[..700] => "bad-component";
    a_component_with_a_flipped_section: {
        let mut bytes = guest().component();
        bytes[9] ^= 0x55;
        bytes
    } => "bad-component";
    an_empty_component: component("(component)") => "no-policy";
    no_part_exported: with_world(
        r#"(module (memory (export "memory") 1)
            (func (export "clonegate:policy/plugin@0.1.0#describe") (result i32) unreachable)
            (func (export "clonegate:policy/plugin@0.1.0#configure") (param i32 i32) (result i32) unreachable)
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) unreachable))"#, "common") => "no-policy";
    an_import_of_files: component(r#"(component (import "wasi:filesystem/preopens@0.2.0" (instance)))"#)
        => "forbidden-import";
    an_import_of_a_clock: component(
        r#"(component (import "wasi:clocks/wall-clock@0.2.0" (instance)) (import "wasi:random/random@0.2.0" (instance)))"#)
        => "forbidden-import";
    an_import_of_a_bare_function: component(r#"(component (import "system" (func (param "command" string))))"#)
        => "forbidden-import";
    a_newer_contract: component(r#"(component (import "clonegate:policy/log@0.2.0" (instance)))"#) => "newer-wit";
    an_older_contract: component(r#"(component (import "clonegate:policy/log@0.0.9" (instance)))"#) => "wrong-types";
    exports_that_are_empty: component(
        r#"(component (instance $i) (export "clonegate:policy/plugin@0.1.0" (instance $i))
                      (export "clonegate:policy/placement@0.1.0" (instance $i)))"#) => "wrong-types";
    an_import_of_a_wrong_type: component(
        r#"(component (import "clonegate:policy/log@0.1.0" (instance (export "write" (func (param "x" u32)))))
                      (instance $i) (export "clonegate:policy/plugin@0.1.0" (instance $i))
                      (export "clonegate:policy/placement@0.1.0" (instance $i)))"#) => "wrong-types";
    a_memory_that_starts_too_large: Guest { memory: r#"(memory (export "memory") 8192)"#.into(), ..guest() }.component()
        => "bad-component";
    too_many_memories: Guest { extra: "(memory 1) (memory 1) (memory 1)".into(), ..guest() }.component()
        => "bad-component";
    a_start_function_that_traps: guest().extra("(func $s unreachable) (start $s)").component() => "bad-description";
    a_start_function_that_never_ends: guest().extra("(func $s (loop $l (br $l))) (start $s)").component()
        => "bad-description";
    a_description_that_never_ends: describes(LOOP).component() => "bad-description";
    a_description_that_crashes: describes("unreachable").component() => "bad-description";
    a_name_that_is_a_path: describes("(i32.const 2048)")
        .extra(&format!(r#"(data (i32.const 2048) "{}") (data (i32.const 4096) "../../etc")"#, words(&[4096, 9, 0, 0, 0, 0, 0])))
        .component() => "bad-description";
    a_schema_that_is_not_json: describes("(i32.const 2048)")
        .extra(&format!(r#"(data (i32.const 2048) "{}")"#, words(&[1152, 5, 0, 0, 0, 0, 1, 1152, 5]))).component()
        => "bad-description";
}

/// What wasmtime itself would load by its `unsafe` call.
fn precompiled() -> Vec<u8> {
    let mut config = wasmtime::Config::new();
    config.consume_fuel(true).epoch_interruption(true);
    wasmtime::Engine::new(&config).unwrap().precompile_component(&guest().component()).unwrap()
}

#[test]
fn a_log_flood_is_cut_and_marked() {
    let plugin = Guest::place(
        "(local $n i32)
         (loop $l (call $log (i32.const 2) (i32.const 90000) (i32.const 5000))
           (br_if $l (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 1000))))
         (i32.const 0)",
    );
    let call = plugin.load().unwrap().ask("{}", &context(), &question(1, 1));
    assert_eq!(call.outcome, Outcome::Answer(Answer::Placement(PlacementVerdict::NoOpinion)));
    let bytes: usize = call.logs.iter().map(|(_, line)| line.len()).sum();
    assert!(call.logs.len() <= 33 && bytes < 9000, "{} lines, {bytes} bytes", call.logs.len());
    assert!(call.logs.last().unwrap().1.contains("left away"));
}

#[test]
fn a_spinning_guest_is_ended_by_the_clock_when_fuel_does_not() {
    let limits = Limits { wall: std::time::Duration::from_millis(50), fuel_base: u64::MAX / 2, ..Limits::default() };
    let engine = Engine::new(limits).unwrap();
    let plugin = Plugin::load(&engine, &Guest::place(LOOP).component(), &Compiler::Here).unwrap();
    let Outcome::Trap(fault) = plugin.ask("{}", &context(), &question(1, 1)).outcome else { panic!("it should trap") };
    assert_eq!(fault.code, "time-out");
}

#[test]
fn memory_is_given_back_after_hostile_calls() {
    let rss = || {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    };
    let bomb = Guest::place(
        "(loop $l (br_if $l (i32.ne (memory.grow (i32.const 16)) (i32.const -1))))
         (memory.fill (i32.const 65536) (i32.const 1) (i32.const 16000000)) unreachable",
    );
    let plugin = bomb.load().unwrap();
    let question = question(1, 1);
    for _ in 0..20 {
        plugin.ask("{}", &context(), &question);
    }
    let before = rss();
    for _ in 0..200 {
        plugin.ask("{}", &context(), &question);
    }
    let grown = rss().saturating_sub(before);
    // Other tests of this process run beside it; two hundred leaks would be more than three gigabytes.
    assert!(grown < 256 << 20, "{grown} bytes more");
}

/// A component whose compilation takes long: many functions of many instructions.
fn compile_bomb(functions: usize, instructions: usize) -> Vec<u8> {
    let step = "(local.set 0 (i64.add (i64.mul (local.get 0) (local.get 1)) (i64.rotl (local.get 1) (local.get 0))))";
    let body = step.repeat(instructions);
    let text: String =
        (0..functions).map(|_| format!("(func (param i64 i64) (result i64) {body} (local.get 0))")).collect();
    guest().extra(&text).component()
}

#[test]
fn a_compile_bomb_is_stopped_in_the_child() {
    let limits =
        Limits { compile_cpu: std::time::Duration::from_secs(1), component_bytes: 32 << 20, ..common::limits() };
    let engine = Engine::new(limits).unwrap();
    let error = Plugin::load(&engine, &compile_bomb(600, 800), &child()).unwrap_err();
    assert_eq!(error.code(), "compile-too-slow", "{error}");
}

#[test]
fn a_compilation_that_takes_too_much_memory_is_stopped_in_the_child() {
    let limits = Limits { compile_memory_bytes: 96 << 20, component_bytes: 32 << 20, ..common::limits() };
    let engine = Engine::new(limits).unwrap();
    let error = Plugin::load(&engine, &compile_bomb(1, 60_000), &child()).unwrap_err();
    assert_eq!(error.code(), "compile-too-large", "{error}");
}

#[test]
fn the_child_lets_good_components_pass_and_names_what_is_wrong_with_others() {
    Plugin::load(&engine(), &guest().component(), &child()).unwrap();
    let mut bytes = guest().component();
    bytes.truncate(700);
    let error = Plugin::load(&engine(), &bytes, &child()).unwrap_err();
    assert_eq!(error.code(), "bad-component", "{error}");
    assert!(error.message().contains("not valid"), "{error}");
    let nobody = Compiler::Child { program: "/nonexistent/compiler".into(), args: Vec::new() };
    assert_eq!(Plugin::load(&engine(), &guest().component(), &nobody).unwrap_err().code(), "no-compiler");
}

#[test]
fn fuel_grows_with_the_question_and_is_the_same_each_time() {
    let plugin = guest().load().unwrap();
    let small = plugin.ask("{}", &context(), &question(1, 1));
    let large = plugin.ask("{}", &context(), &question(20, 100));
    assert!(large.fuel_limit > small.fuel_limit + 1_000_000);
    assert_eq!(large.fuel, plugin.ask("{}", &context(), &question(20, 100)).fuel);
}

/// The looping plugin that the end-to-end tests and `tests/bench` install; `CLONEGATE_UPDATE_GOLDEN=1` writes it anew.
#[test]
fn the_looping_component_of_the_end_to_end_tests_is_this_one() {
    let component = Guest::place(LOOP).component();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/looping.wasm");
    if std::env::var_os("CLONEGATE_UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &component).unwrap();
    }
    assert_eq!(std::fs::read(path).unwrap(), component);
}
