//! Hostile calls leave no memory behind: one test alone in its process, so that nobody else's memory is counted.

mod common;

use clonegate_policy_host::Outcome;
use common::{Guest, context, guest, question, words};

/// Resident bytes of this process.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn hostile_calls_leave_the_memory_where_it_was() {
    let touched = "(loop $l (br_if $l (i32.ne (memory.grow (i32.const 16)) (i32.const -1))))
        (memory.fill (i32.const 65536) (i32.const 255) (i32.sub (i32.mul (memory.size) (i32.const 65536)) (i32.const 65536)))";
    let answer = |result: &str| {
        Guest::place(&format!("{touched} (i32.const 2048)")).extra(&format!(r#"(data (i32.const 2048) "{result}")"#))
    };
    let hostile = [
        ("memory filled to the limit", Guest::place(&format!("{touched} unreachable")), "out-of-memory"),
        (
            "a table to the limit",
            Guest::place("(drop (table.grow (ref.null func) (i32.const 19000))) unreachable")
                .extra("(table 1 funcref)"),
            "crashed",
        ),
        ("a text of megabytes", answer(&words(&[0, 2, 65536, 8 << 20])), "out-of-memory"),
        ("a list of megabytes", answer(&words(&[0, 1, 65536, 100_000])), "out-of-memory"),
        (
            "deep recursion",
            Guest::place("(call $f)").extra("(func $f (result i32) (i32.add (call $f) (i32.const 1)))"),
            "stack-overflow",
        ),
    ];
    let plugins: Vec<_> = hostile.iter().map(|(what, guest, code)| (what, guest.load().unwrap(), code)).collect();
    let good = guest().load().unwrap();
    let round = || {
        for (what, plugin, code) in &plugins {
            let call = plugin.ask("{}", &context(), &question(4, 10));
            assert_eq!(call.outcome.summary(), **code, "{what}: {:?}", call.outcome);
            assert!(call.memory <= 16 << 20, "{what}: {} bytes", call.memory);
        }
        let call = good.ask("{}", &context(), &question(4, 10));
        assert!(matches!(call.outcome, Outcome::Answer(_)));
    };
    // The first rounds fill the pool and what allocators keep.
    (0..4).for_each(|_| round());
    let before = resident();
    (0..16).for_each(|_| round());
    let after = resident();
    // One call that stayed would be 16 MiB, all of them gigabytes.
    assert!(after < before + (12 << 20), "{} MiB before, {} MiB after", before >> 20, after >> 20);
}
