//! The committed components load, say what they are, and the default one decides as the built-in rule.
//!
//! With `CLONEGATE_COMPONENTS=DIR`, as `plugins/build.sh --check` sets it when its compiler is another than the one that made the
//! committed components, those of DIR must do the same.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clonegate_core::advice::{
    Base, BaseState, Context, Datastore, Exit, Health, Inventory, Label, Lifetime, PlacementRequest, Question,
    Rejection, Release, ResetEvent, ResetRequest, RolloverRequest, RolloverTrigger, Slot, Target, Volume,
};
use clonegate_policy_host::{
    Binding, CallLimits, Chains, Compiler, Embedded, Engine, HostSettings, Limits, Moment, Outcome, Plugin, PolicyHost,
    Record, read_records,
};

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

/// The policy in C, made with another generator of bindings and another compiler, is the one in Rust.
#[test]
fn a_policy_in_another_language_decides_as_the_same_in_rust() {
    let plugins = components(&committed());
    let (rust, c) = (&plugins["base-affinity"], &plugins["base-affinity-c"]);
    assert_eq!(rust.info().slots, c.info().slots);
    let keys = |p: &Plugin| -> Vec<String> {
        let schema = p.info().settings_schema.as_ref().expect("a schema");
        schema["properties"].as_object().unwrap().keys().cloned().collect()
    };
    assert_eq!(keys(rust), keys(c));
    let mut words = std::collections::BTreeSet::new();
    for settings in ["", "null", " { } ", r#"{"full_percent":1}"#, r#"{"new_base_from": 2, "full_percent": 40}"#] {
        for (n, question) in corpus().iter().enumerate().filter(|(_, q)| q.slot() == Slot::Placement) {
            let mut question = question.clone();
            if let Question::Placement { request, inventory } = &mut question {
                let rejected = inventory.bases.iter().take(n % 3).map(|b| Target::Base(b.id.clone()));
                let stores = inventory.datastores.iter().take(n % 2).map(|d| Target::NewBaseOn(d.id.clone()));
                let why = |target| Rejection { target, why: "gone".into() };
                request.rejected = rejected.chain(stores).map(why).collect();
            }
            let (a, b) = (rust.ask(settings, &context(n), &question), c.ask(settings, &context(n), &question));
            assert_eq!((&a.outcome, &a.logs), (&b.outcome, &b.logs), "{settings:?}, question {n}");
            assert!(
                b.fuel < a.fuel_limit / 4 && b.memory <= 4 << 20,
                "question {n}: {} fuel, {} bytes",
                b.fuel,
                b.memory
            );
            words.insert(format!("{:?}", a.outcome).split(['"', ';']).next().unwrap().to_owned());
        }
    }
    assert!(words.len() >= 2, "{words:?}");
    for settings in [
        r#"{"full_percent": 0}"#,
        r#"{"new_base_from": 10001, "colour": "red"}"#,
        r#"{"full_percent": "40", "new_base_from": [1, {"a": "]"}]}"#,
        r#"{"full_percent": 4.5}"#,
        "[]",
        "{",
        "{\"full_percent\": 1} x",
    ] {
        let paths = |p: &Plugin| -> Vec<String> {
            let mut all: Vec<_> =
                p.check_settings(&CallLimits::default(), settings).unwrap().into_iter().map(|p| p.path).collect();
            all.sort();
            all
        };
        assert!(!paths(rust).is_empty(), "{settings}");
        assert_eq!(paths(c), paths(rust), "{settings}");
    }
}

/// Plugin directory, its name in chains, and settings other than the defaults.
const PLUGINS: [(&str, &str, &str); 7] = [
    ("base-affinity", "base-affinity", r#"{"new_base_from": 4, "full_percent": 50}"#),
    ("defaults", "default", r#"{"prepare_percent": 40, "headroom_percent": 60}"#),
    ("exam-room", "exam-room", r#"{"label": "wave", "hold_hours": 0, "forced_is_crash": false}"#),
    (
        "patch-waves",
        "patch-waves",
        r#"{"waves": [{"label": "canary", "after_hours": 0}, {"after_hours": 2}], "from_hour": 0, "to_hour": 0}"#,
    ),
    (
        "reset-schedule",
        "reset-schedule",
        r#"{"every_hours": 24, "over_mib": 3, "from_hour": 0, "to_hour": 0, "persistent": true, "newest": true}"#,
    ),
    ("spread", "spread", r#"{"domain": "tier", "share_percent": 70, "enforce_from": 0}"#),
    ("tenant-tier", "tenant-tier", r#"{"keep_percent": 30, "tier": "rack"}"#),
];

fn recorded(directory: &str) -> [(PathBuf, bool); 2] {
    let at = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins").join(directory).join("tests/recorded");
    [(at.join("defaults.jsonl"), false), (at.join("tuned.jsonl"), true)]
}

/// Lets a host decide with one plugin, and writes down what it records. What the host itself changed in an answer is left away:
/// the file is about the plugin.
fn record(directory: &str, name: &'static str, settings: &str, file: &Path) {
    let component = fs::read(committed().join(format!("{directory}.wasm"))).unwrap();
    let chain = vec![Binding { settings: serde_json::from_str(settings).unwrap(), ..Binding::of(name) }];
    let host = PolicyHost::start(HostSettings {
        chains: Chains { placement: chain.clone(), rollover: chain.clone(), reset: chain },
        limits: Limits { wall: std::time::Duration::from_secs(10), ..Limits::default() },
        allow_persistent_reset: true,
        embedded: vec![Embedded { name, component: Box::leak(component.into_boxed_slice()) }],
        ..HostSettings::default()
    })
    .unwrap();
    let slots = host.plugin(name).unwrap().info().slots.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut lines = String::new();
    for (n, question) in corpus().into_iter().enumerate().take(66).filter(|(_, q)| slots.contains(&q.slot())) {
        let Context { decision, now_ms, seed, .. } = context(n);
        let made = runtime.block_on(host.decide(Moment { decision, now_ms, seed }, question));
        let mut made = Record::clone(&made);
        let own = made.chain.first().map(|attempt| attempt.call.outcome.clone());
        let said = Outcome::Answer(made.answer.clone());
        if own != Some(said) && !matches!(own, Some(Outcome::Answer(answer)) if answer.is_no_opinion()) {
            continue;
        }
        // Times are of the machine that recorded.
        made.us = 0;
        made.chain.iter_mut().for_each(|attempt| attempt.call.us = 0);
        lines += &(serde_json::to_string(&made).unwrap() + "\n");
    }
    fs::write(file, lines).unwrap();
}

/// `CLONEGATE_UPDATE_GOLDEN=1` records anew; that is right only when a plugin is meant to decide otherwise than before.
#[test]
fn recorded_decisions_of_every_plugin_come_out_the_same_in_its_component() {
    let plugins = components(&committed());
    for (directory, name, tuned) in PLUGINS {
        let plugin = &plugins[directory];
        for (file, is_tuned) in recorded(directory) {
            if std::env::var_os("CLONEGATE_UPDATE_GOLDEN").is_some() {
                record(directory, name, if is_tuned { tuned } else { "{}" }, &file);
            }
            let (mut asked, mut words) = (0, std::collections::BTreeSet::new());
            read_records(&file, |record| {
                let attempt = record.chain.iter().find(|a| a.plugin == name).expect("the plugin was asked");
                let call = plugin.ask(&attempt.settings.to_string(), &record.context, &record.question);
                assert_eq!(call.outcome, attempt.call.outcome, "{}: {}", file.display(), record.decision);
                asked += 1;
                words.insert(call.outcome.summary());
                true
            })
            .unwrap();
            assert!(asked >= 10 && words.len() >= 2, "{}: {asked} decisions, {words:?}", file.display());
        }
    }
}

/// What the page of the plugins says of their settings is what the plugins say themselves.
#[test]
fn every_setting_of_every_plugin_is_on_their_page_with_its_default() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/README.md")).unwrap();
    let plugins = components(&committed());
    for (directory, name, _) in PLUGINS {
        let section =
            page.split("\n## ").find(|s| s.starts_with(&format!("{name}\n"))).unwrap_or_else(|| panic!("{name}"));
        let info = plugins[directory].info();
        assert!(section.contains(&info.description), "{name}: its description is its first line");
        let schema = info.settings_schema.as_ref().unwrap();
        let properties = schema["properties"].as_object().unwrap();
        for (setting, about) in properties {
            let row = section.lines().find(|l| l.starts_with(&format!("| `{setting}` |")));
            let row = row.unwrap_or_else(|| panic!("{name}: {setting} is not in its table"));
            let default = &about["default"];
            let cell = if default.is_array() { "see below".to_owned() } else { format!("`{default}`") };
            assert_eq!(row.split(" | ").nth(1), Some(cell.as_str()), "{name}: {row}");
        }
        let rows = section.lines().filter(|l| l.starts_with("| `") && !l.contains("[].")).count();
        assert_eq!(rows, properties.len(), "{name}: a setting that is no more");
    }
}
