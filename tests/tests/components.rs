//! The committed components load, say what they are, and the default one decides as the built-in rule.
//!
//! With `CLONEGATE_COMPONENTS=DIR`, as `plugins/build.sh --check` sets it when its compiler is another than the one that made the
//! committed components, those of DIR must do the same.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clonegate_core::advice::{
    Base, BaseState, Context, Datastore, Exit, Health, Inventory, Label, Lifetime, PlacementRequest, Question, Release,
    ResetEvent, ResetRequest, RolloverRequest, RolloverTrigger, Slot, Volume,
};
use clonegate_policy_host::{Compiler, Engine, Limits, Outcome, Plugin};

fn components(directory: &Path) -> BTreeMap<String, Arc<Plugin>> {
    let limits = Limits { wall: std::time::Duration::from_secs(10), ..Limits::default() };
    let engine = Engine::new(limits).unwrap();
    let files = fs::read_dir(directory).unwrap().map(|e| e.unwrap().path());
    files
        .filter(|path| path.extension().is_some_and(|e| e == "wasm"))
        .map(|path| {
            let plugin = Plugin::load(&engine, &fs::read(&path).unwrap(), &Compiler::Here);
            let plugin = plugin.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            (path.file_stem().unwrap().to_string_lossy().into_owned(), plugin)
        })
        .collect()
}

fn committed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/components")
}

/// Questions of all kinds, some hundred.
fn corpus() -> Vec<Question> {
    let label = |key: &str, value: String| Label { key: key.into(), value };
    let datastore = |n: u64| Datastore {
        id: format!("d{n}"),
        health: if n % 5 == 4 { Health::Degraded } else { Health::Online },
        capacity: 1 << 40,
        free: (1 << 39) + (((n * 7919) % 97) << 30),
        reserved: n << 30,
        bases: 2,
        clones: 9,
        pool_clones: u32::try_from(n * 31 % 17).unwrap(),
        latency_us: None,
        labels: vec![
            label("rack", format!("r{}", n % 3)),
            label("tier", ["nvme", "sas"][usize::from(n.is_multiple_of(2))].into()),
        ],
    };
    let base = |n: u64| Base {
        id: format!("b{n}"),
        image: format!("w11:{}", n % 2),
        datastore: format!("d{}", n % 6),
        state: if n % 7 == 6 { BaseState::Sealed } else { BaseState::Ready },
        deltas: u32::try_from(n * 53 % 129).unwrap(),
        delta_limit: 128,
        size: 40 << 30,
        delta_bytes: n,
        created_ms: n,
        labels: Vec::new(),
    };
    let mut questions = Vec::new();
    for n in 0..40_u64 {
        let inventory = Inventory {
            revision: n,
            datastores: (0..n % 7).map(datastore).collect(),
            bases: (0..n).map(base).collect(),
        };
        let request = PlacementRequest {
            clone: format!("c{n}"),
            pool: if n % 3 == 0 { String::new() } else { "pool".into() },
            image: "w11:1".into(),
            size: 40 << 30,
            lifetime: Lifetime::Ephemeral,
            expected_delta: n << 30,
            count: u32::try_from(n % 20 + 1).unwrap(),
            labels: vec![label("tier", "nvme".into())],
            rejected: Vec::new(),
        };
        questions.push(Question::Placement { request, inventory: inventory.clone() });
        let subject = Base { deltas: u32::try_from(n * 4).unwrap().min(128), ..base(n) };
        let trigger = RolloverTrigger::DeltaAdded;
        questions.push(Question::Rollover {
            request: RolloverRequest { trigger, subject, pending: 0, superseded: n % 2 == 0 },
            inventory,
        });
        for event in [ResetEvent::PowerOff, ResetEvent::LogOff, ResetEvent::Interval(n), ResetEvent::SizeThreshold(n)] {
            let subject = Volume {
                id: format!("c{n}"),
                pool: String::new(),
                lifetime: if n % 4 == 0 { Lifetime::Persistent } else { Lifetime::Ephemeral },
                created_ms: 0,
                last_reset_ms: (n % 2 == 0).then_some(n),
                last_exit: [Exit::Unknown, Exit::Clean, Exit::Crashed, Exit::Forced][usize::try_from(n % 4).unwrap()],
                attached: n % 5 == 0,
                held: n % 11 == 10,
                delta: n << 20,
                size: 40 << 30,
                newer: (n % 3 == 0).then(|| Release { image: "w11:2".into(), published_ms: n }),
                labels: vec![label("wave", "canary".into())],
            };
            questions.push(Question::Reset { request: ResetRequest { event, subject, base: base(n) } });
        }
    }
    questions
}

fn context(n: usize) -> Context {
    let n = u64::try_from(n).unwrap();
    Context { decision: format!("d_{n}"), now_ms: 1_735_732_800_000 + n * 3_600_000, seed: n, sequence: n }
}

#[test]
fn committed_components_answer_every_question_of_their_slots() {
    let plugins = components(&committed());
    assert!(plugins.len() >= 7, "{:?}", plugins.keys());
    for (name, plugin) in &plugins {
        for (n, question) in corpus().iter().enumerate().filter(|(_, q)| plugin.info().slots.contains(&q.slot())) {
            let call = plugin.ask("{}", &context(n), question);
            let Outcome::Answer(answer) = &call.outcome else { panic!("{name}, question {n}: {:?}", call.outcome) };
            clonegate_core::advice::check::validate(question, answer)
                .unwrap_or_else(|e| panic!("{name}, question {n}: {e}"));
        }
    }
    assert_eq!(plugins["defaults"].info().slots, Slot::ALL);
}

#[test]
fn the_default_component_is_the_built_in_rule() {
    let plugin = &components(&committed())["defaults"];
    for (n, question) in corpus().iter().enumerate() {
        assert_eq!(plugin.ask("", &context(n), question).outcome, Outcome::Answer(question.builtin()), "question {n}");
    }
}

#[test]
fn components_of_another_compiler_do_the_same() {
    let Some(directory) = std::env::var_os("CLONEGATE_COMPONENTS") else { return };
    let (ours, theirs) = (components(&committed()), components(Path::new(&directory)));
    assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
    for (name, plugin) in &ours {
        let other = &theirs[name];
        let (mut a, mut b) = (plugin.info().clone(), other.info().clone());
        for info in [&mut a, &mut b] {
            info.digest.clear();
            info.bytes = 0;
        }
        assert_eq!(a, b);
        for (n, question) in corpus().iter().enumerate() {
            let context = context(n);
            let (a, b) = (plugin.ask("", &context, question), other.ask("", &context, question));
            assert_eq!((a.outcome, a.logs), (b.outcome, b.logs), "{name}, question {n}");
        }
    }
}
