//! Chains, fallbacks, the breaker, shadows, records, and plugins exchanged while decisions are made.

mod common;

use std::path::Path;
use std::sync::Arc;

use clonegate_core::advice::{
    Answer, Base, BaseState, Exit, Lifetime, PlacementVerdict, Question, ResetEvent, ResetRequest, ResetVerdict, Slot,
    Target, Volume,
};
use clonegate_policy_host::{
    BUILT_IN, Binding, CallLimits, Chains, Embedded, HostSettings, InstallOptions, Mode, Moment, OnFailure, Outcome,
    PolicyHost, Record, Replay, read_records,
};
use common::{Guest, context, guest, limits, question, words};

const LOOP: &str = "(loop $l (br $l)) (i32.const 0)";
const DEFAULTS: &[u8] = include_bytes!("../../../plugins/components/defaults.wasm");

fn settings(placement: Vec<Binding>) -> HostSettings {
    HostSettings {
        chains: Chains { placement, rollover: Vec::new(), reset: Vec::new() },
        limits: limits(),
        embedded: vec![Embedded { name: "default", component: DEFAULTS }],
        ..HostSettings::default()
    }
}

fn host(names: &[&str]) -> Arc<PolicyHost> {
    PolicyHost::start(settings(names.iter().map(|name| Binding::of(name)).collect())).unwrap()
}

fn install(host: &PolicyHost, name: &str, guest: &Guest) {
    let options = InstallOptions { accept_differences: true, dry_run: false };
    host.install(Some(name), &guest.component(), options).unwrap();
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn ask_at(host: &Arc<PolicyHost>, now_ms: u64, question: Question) -> Arc<Record> {
    runtime().block_on(host.decide(Moment { decision: format!("d_{now_ms}"), now_ms, seed: 1 }, question))
}

fn ask(host: &Arc<PolicyHost>, question: Question) -> Arc<Record> {
    ask_at(host, 1000, question)
}

/// Chooses a base by the place of its id in the question's memory is too much for a text guest: it refuses with a text.
fn refuses() -> Guest {
    Guest::place("(i32.const 2048)").extra(&format!(
        r#"(data (i32.const 2048) "{}") (data (i32.const 4096) "closed today")"#,
        words(&[0, 2, 4096, 12])
    ))
}

/// Chooses the base with this id, with an empty reason.
fn chooses(id: &str) -> Guest {
    let length = u32::try_from(id.len()).unwrap();
    let data = format!(
        r#"(data (i32.const 2048) "{}") (data (i32.const 4096) "{}") (data (i32.const 8192) "{id}")"#,
        words(&[0, 1, 4096, 1]),
        words(&[0, 8192, length, 0, 0]),
    );
    Guest::place("(i32.const 2048)").extra(&data)
}

fn first_base(question: &Question) -> Base {
    let Question::Placement { inventory, .. } = question else { unreachable!() };
    inventory.bases[0].clone()
}

#[test]
fn the_first_plugin_with_an_opinion_decides() {
    let host = host(&["nobody-home", "silent", "closed", "default"]);
    install(&host, "silent", &guest());
    install(&host, "closed", &refuses());
    let record = ask(&host, question(4, 10));
    assert_eq!(record.answer, Answer::Placement(PlacementVerdict::Refuse("closed today".into())));
    assert_eq!(record.by, "closed");
    let outcomes: Vec<_> = record.chain.iter().map(|a| (a.plugin.as_str(), a.call.outcome.summary())).collect();
    let expect = [("nobody-home", "skipped: it is not loaded"), ("silent", "no-opinion"), ("closed", "refuse")];
    assert_eq!(outcomes, expect.map(|(a, b)| (a, b.to_owned())));
}

#[test]
fn the_default_plugin_answers_as_the_built_in_rule() {
    let host = host(&["default"]);
    for (datastores, bases) in [(0, 0), (1, 0), (4, 10), (20, 100)] {
        let question = question(datastores, bases);
        let record = ask(&host, question.clone());
        assert_eq!(record.by, "default", "{:?}", record.chain);
        assert_eq!(record.answer, question.builtin());
    }
}

#[test]
fn whatever_a_plugin_does_the_built_in_rule_stands_behind_it_and_says_so() {
    for (guest, code) in [
        (Guest::place(LOOP), "out-of-fuel"),
        (Guest::place("unreachable"), "crashed"),
        (chooses("no-such-base"), "bad-answer"),
    ] {
        let host = host(&["bad"]);
        install(&host, "bad", &guest);
        let question = question(4, 10);
        let record = ask(&host, question.clone());
        assert_eq!((record.by.as_str(), &record.answer), (BUILT_IN, &question.builtin()));
        assert!(record.note.as_deref().unwrap().contains(code), "{:?}", record.note);
        assert_eq!(host.stats().fallbacks, 1);
    }
}

#[test]
fn a_looping_plugin_keeps_nobody_else_of_the_runtime_waiting() {
    let host = host(&["bad"]);
    install(&host, "bad", &Guest::place(LOOP));
    runtime().block_on(async {
        let moment = Moment { decision: "d".into(), now_ms: 1, seed: 1 };
        let mut deciding = std::pin::pin!(host.decide(moment, question(20, 100)));
        let mut others = 0_u32;
        loop {
            tokio::select! {
                biased;
                record = &mut deciding => {
                    assert_eq!(record.by, BUILT_IN);
                    break;
                }
                () = tokio::task::yield_now() => others += 1,
            }
        }
        assert!(others > 10, "the one thread of the runtime ran {others} times meanwhile");
    });
}

#[test]
fn a_choice_that_does_not_hold_is_asked_about_once_more_with_the_reason() {
    let host = host(&["stubborn"]);
    let mut question = question(2, 2);
    let base = first_base(&question);
    if let Question::Placement { inventory, .. } = &mut question {
        inventory.bases[0].state = BaseState::Sealed;
    }
    install(&host, "stubborn", &chooses(&base.id));
    let record = ask(&host, question);
    assert_eq!(record.chain.len(), 2);
    assert_eq!(record.chain[1].rejected[0].target, Target::Base(base.id));
    assert_eq!(record.chain[1].rejected[0].why, "it is not ready");
    assert_eq!(record.by, BUILT_IN);
}

#[test]
fn the_breaker_spares_everybody_a_plugin_that_keeps_failing() {
    let host = host(&["bad"]);
    install(&host, "bad", &Guest::place("unreachable"));
    for now in 0..5 {
        assert_eq!(ask_at(&host, now, question(1, 1)).chain[0].call.outcome.summary(), "crashed");
    }
    assert_eq!(ask_at(&host, 6, question(1, 1)).chain[0].call.outcome.summary(), "skipped: its breaker is open");
    let spared = ask_at(&host, 7, question(1, 1));
    assert_eq!(spared.note.as_deref(), Some("bad was not asked: its breaker is open"));
    assert_eq!(host.stats().fallbacks, 7, "the built-in rule still stands in, and that is counted");
    let link = host.list().into_iter().find(|p| p.name == "bad").unwrap().links[0].clone();
    assert_eq!((link.breaker_open_until_ms, link.failed, link.skipped), (Some(30_004), 5, 2));
    install(&host, "bad", &guest());
    let again = ask_at(&host, 8, question(1, 1));
    assert_eq!(again.chain[0].call.outcome.summary(), "no-opinion", "a new version starts with a closed breaker");
}

#[test]
fn pools_are_bound_to_their_own_plugins() {
    let closed = Binding { pools: vec!["win11-*".into()], ..Binding::of("closed") };
    let other = Binding { pools: vec!["linux-*".into()], ..Binding::of("closed") };
    let one = PolicyHost::start(settings(vec![closed])).unwrap();
    install(&one, "closed", &refuses());
    assert_eq!(ask(&one, question(1, 1)).by, "closed");
    let two = PolicyHost::start(settings(vec![other])).unwrap();
    install(&two, "closed", &refuses());
    assert!(ask(&two, question(1, 1)).chain.is_empty());
}

#[test]
fn a_shadow_is_asked_and_recorded_and_decides_nothing() {
    let shadow = Binding { mode: Mode::Shadow, ..Binding::of("closed") };
    let host = PolicyHost::start(settings(vec![shadow, Binding::of("default")])).unwrap();
    install(&host, "closed", &refuses());
    let record = ask(&host, question(4, 10));
    assert_eq!(record.by, "default");
    assert!(record.shadow[0].differs);
    assert_eq!(host.list().into_iter().find(|p| p.name == "closed").unwrap().links[0].differed, 1);
}

fn reset_question(lifetime: Lifetime, attached: bool) -> Question {
    let base = first_base(&question(1, 1));
    let subject = Volume {
        id: "c1".into(),
        pool: String::new(),
        lifetime,
        created_ms: 0,
        last_reset_ms: None,
        last_exit: Exit::Clean,
        attached,
        held: false,
        delta: 1,
        size: 1 << 30,
        newer: None,
        labels: Vec::new(),
    };
    Question::Reset { request: ResetRequest { event: ResetEvent::PowerOff, subject, base } }
}

#[test]
fn a_failing_reset_policy_leaves_what_its_binding_says() {
    for (on_failure, word) in [(OnFailure::Builtin, "discard"), (OnFailure::Keep, "keep"), (OnFailure::Hold, "hold")] {
        let mut settings = settings(Vec::new());
        settings.chains.reset = vec![Binding { on_failure, ..Binding::of("missing") }];
        let host = PolicyHost::start(settings).unwrap();
        assert_eq!(ask(&host, reset_question(Lifetime::Ephemeral, false)).answer.word(), word);
    }
}

#[test]
fn persistent_clones_are_kept_by_the_built_in_rule_too() {
    let host = host(&[]);
    let record = ask(&host, reset_question(Lifetime::Persistent, false));
    assert_eq!(record.answer, Answer::Reset(ResetVerdict::Keep));
}

#[test]
fn a_version_that_cannot_be_loaded_changes_nothing_and_says_so() {
    let host = host(&["closed"]);
    install(&host, "closed", &refuses());
    for (bytes, code) in [
        (b"nonsense".to_vec(), "not-wasm"),
        (guest().core(), "core-module"),
        (Guest { describe: LOOP.into(), ..guest() }.component(), "bad-description"),
        (Guest { configure: "unreachable".into(), ..guest() }.component(), "bad-settings"),
    ] {
        let error = host.install(Some("closed"), &bytes, InstallOptions::default()).unwrap_err();
        assert_eq!(error.code(), code);
        let status = host.list().into_iter().find(|p| p.name == "closed").unwrap();
        assert!(status.problem.as_deref().unwrap().contains(code), "{:?}", status.problem);
        assert_eq!((ask(&host, question(1, 1)).by.as_str(), status.state), ("closed", "active"));
    }
}

#[test]
fn a_version_that_answers_otherwise_needs_a_word_and_can_be_rolled_back() {
    let host = host(&["closed"]);
    install(&host, "closed", &refuses());
    for _ in 0..10 {
        ask(&host, question(4, 10));
    }
    let other = chooses(&first_base(&question(4, 10)).id).component();
    let error = host.install(Some("closed"), &other, InstallOptions::default()).unwrap_err();
    assert_eq!(error.code(), "differs");
    assert_eq!(ask(&host, question(4, 10)).answer.word(), "refuse");
    let report =
        host.install(Some("closed"), &other, InstallOptions { accept_differences: true, dry_run: false }).unwrap();
    assert!(report.changed && report.replay.different >= 10, "{report:?}");
    assert_eq!(ask(&host, question(4, 10)).answer.word(), "choose");
    host.rollback("closed", false).unwrap();
    assert_eq!(ask(&host, question(4, 10)).answer.word(), "refuse");
    host.rollback("closed", false).unwrap();
    assert_eq!(ask(&host, question(4, 10)).answer.word(), "choose");
}

#[test]
fn a_version_that_loops_on_recorded_questions_is_refused() {
    let host = host(&["closed"]);
    install(&host, "closed", &refuses());
    for _ in 0..3 {
        ask(&host, question(4, 10));
    }
    let options = InstallOptions { accept_differences: true, dry_run: false };
    let error = host.install(Some("closed"), &Guest::place(LOOP).component(), options).unwrap_err();
    assert_eq!(error.code(), "fails-on-replay");
    assert_eq!(ask(&host, question(4, 10)).by, "closed");
}

#[test]
fn lists_come_while_a_slow_version_is_tried_out() {
    let mut settings = settings(vec![Binding::of("closed")]);
    // Only the clock ends what loops: each of the questions takes as long as a call may.
    settings.limits.fuel_base = u64::MAX / 2;
    settings.limits.wall = std::time::Duration::from_millis(100);
    let host = PolicyHost::start(settings).unwrap();
    install(&host, "closed", &refuses());
    for _ in 0..20 {
        ask(&host, question(4, 10));
    }
    // It is loaded already, so the install begins with trying it out.
    let slow = Guest::place(LOOP);
    install(&host, "slow", &slow);
    let component = slow.component();
    std::thread::scope(|scope| {
        let (say, said) = std::sync::mpsc::channel();
        let host = &host;
        scope.spawn(move || {
            say.send(None).unwrap();
            let options = InstallOptions { accept_differences: true, dry_run: false };
            say.send(Some(host.install(Some("closed"), &component, options).unwrap_err())).unwrap();
        });
        assert!(said.recv().unwrap().is_none());
        let mut lists = 0_u32;
        let error = loop {
            if let Ok(end) = said.try_recv() {
                break end.unwrap();
            }
            // Who asks without a pause would keep the installer from beginning.
            std::thread::sleep(std::time::Duration::from_millis(5));
            lists += u32::from(host.list().iter().any(|plugin| plugin.name == "closed"));
        };
        assert_eq!(error.code(), "fails-on-replay");
        assert!(lists > 10, "{lists} lists came before the end: they waited for it");
        assert!(host.list().iter().any(|p| p.problem.as_ref().is_some_and(|why| why.contains("fails-on-replay"))));
    });
}

#[test]
fn plugins_are_exchanged_while_decisions_are_made() {
    let host = host(&["closed"]);
    install(&host, "closed", &refuses());
    let (done, components) =
        (std::sync::atomic::AtomicBool::new(false), [refuses().component(), chooses("x").component()]);
    std::thread::scope(|scope| {
        let asking: Vec<_> = (0..3)
            .map(|_| {
                let (host, done) = (&host, &done);
                scope.spawn(move || {
                    let mut asked = 0_u32;
                    while !done.load(std::sync::atomic::Ordering::Relaxed) || asked == 0 {
                        // One of the two versions answered, and nothing was lost in between.
                        let record = ask(host, question(2, 4));
                        let outcome = &record.chain[0].call.outcome;
                        assert!(matches!(outcome, Outcome::Answer(_) | Outcome::Failure(_)), "{outcome:?}");
                        asked += 1;
                    }
                    asked
                })
            })
            .collect();
        for n in 0..20 {
            let options = InstallOptions { accept_differences: true, dry_run: false };
            let _ = host.install(Some("closed"), &components[n % 2], options);
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        for thread in asking {
            assert!(thread.join().unwrap() > 0);
        }
    });
}

#[test]
fn a_plugin_that_is_missing_or_broken_at_start_leaves_the_gateway_at_work() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("broken.wasm"), b"not a component").unwrap();
    let mut settings = settings(vec![Binding::of("broken"), Binding::of("absent")]);
    settings.plugins = Some(home.path().to_owned());
    let host = PolicyHost::start(settings).unwrap();
    let question = question(4, 10);
    assert_eq!(ask(&host, question.clone()).answer, question.builtin());
    let states: Vec<_> = host.list().into_iter().map(|p| (p.name, p.state, p.problem.is_some())).collect();
    assert!(states.contains(&("broken".into(), "missing", true)), "{states:?}");
    assert!(states.contains(&("absent".into(), "missing", false)), "{states:?}");
}

#[test]
fn the_watched_directory_installs_replaces_refuses_and_removes() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("closed.wasm");
    let mut settings = settings(vec![Binding::of("closed")]);
    settings.plugins = Some(home.path().to_owned());
    settings.compiler = common::child();
    let host = PolicyHost::start(settings.clone()).unwrap();
    let by = || ask(&host, question(1, 1)).by.clone();
    assert_eq!(by(), BUILT_IN);
    std::fs::write(&file, refuses().component()).unwrap();
    host.scan();
    assert_eq!(by(), "closed");
    std::fs::write(&file, b"something that is no plugin").unwrap();
    host.scan();
    assert_eq!(by(), "closed", "the one before stays");
    assert!(host.list().into_iter().any(|p| p.problem.is_some_and(|p| p.contains("not-wasm"))));
    std::fs::write(&file, refuses().component()).unwrap();
    let restarted = PolicyHost::start(settings).unwrap();
    assert_eq!(ask(&restarted, question(1, 1)).by, "closed", "installed plugins are there after a restart");
    std::fs::remove_file(&file).unwrap();
    host.scan();
    assert_eq!(by(), BUILT_IN);
}

fn recorded(directory: &Path) -> Vec<Record> {
    let mut records = Vec::new();
    read_records(directory, |record| {
        records.push(record);
        true
    })
    .unwrap();
    records
}

#[test]
fn decisions_are_recorded_read_back_and_proved_reproducible() {
    let home = tempfile::tempdir().unwrap();
    let mut settings = settings(vec![Binding::of("default")]);
    settings.records = Some((home.path().to_owned(), 64 << 20));
    let host = PolicyHost::start(settings.clone()).unwrap();
    let made: Vec<_> = (0..30).map(|n| ask_at(&host, n, question(4, 10 + u32::try_from(n).unwrap()))).collect();
    host.journal().flush();
    let read = recorded(home.path());
    assert_eq!(read, made.iter().map(|r| Record::clone(r)).collect::<Vec<_>>());

    let plugin = host.plugin("default").unwrap();
    let mut replay = Replay::default();
    read.iter().for_each(|record| replay.verify(&plugin, record));
    assert_eq!((replay.asked, replay.different), (30, 0), "{:?}", replay.differences);

    let other = refuses().load().unwrap();
    let mut replay = Replay::default();
    read.iter().for_each(|record| replay.compare(&other, "other", "{}", &CallLimits::default(), record));
    assert_eq!((replay.asked, replay.different), (30, 30));

    drop(host);
    let again = PolicyHost::start(settings).unwrap();
    assert_eq!(
        again.journal().recent(Slot::Placement).len(),
        30,
        "known after a restart, for the replay before an install"
    );
}

#[test]
fn the_log_of_decisions_is_bounded_and_survives_a_torn_line() {
    let home = tempfile::tempdir().unwrap();
    let mut settings = settings(vec![]);
    settings.records = Some((home.path().to_owned(), 256 << 10));
    let host = PolicyHost::start(settings).unwrap();
    for n in 0..400 {
        ask_at(&host, n, question(20, 100));
    }
    host.journal().flush();
    let on_disk: u64 = std::fs::read_dir(home.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
    assert!(on_disk < 5 << 20, "{on_disk} bytes: one open segment and what is kept compressed");
    let newest = std::fs::read_dir(home.path()).unwrap().map(|e| e.unwrap().path()).max().unwrap();
    let mut file = std::fs::OpenOptions::new().append(true).open(newest).unwrap();
    std::io::Write::write_all(&mut file, b"{\"v\":1,\"decision\":\"torn").unwrap();
    let read = recorded(home.path());
    assert_eq!(read.last().unwrap().context.now_ms, 399);
    assert_eq!(context().decision, "d_test");
}

#[test]
fn the_newest_decisions_are_given_by_number_time_and_bytes_and_none_is_no_error() {
    let home = tempfile::tempdir().unwrap();
    let mut settings = settings(vec![]);
    settings.records = Some((home.path().to_owned(), 64 << 20));
    // Three gateways one after the other: three segments.
    for start in 0..3 {
        let host = PolicyHost::start(settings.clone()).unwrap();
        for n in 0..10 {
            ask_at(&host, start * 10 + n, question(1, 1));
        }
        host.journal().flush();
    }
    for records in [settings.records.clone(), None] {
        let in_memory = records.is_none();
        let host = PolicyHost::start(HostSettings { records, ..settings.clone() }).unwrap();
        if in_memory {
            (0..30).for_each(|n| drop(ask_at(&host, n, question(1, 1))));
        }
        let asked = |slot, since, limit, bytes| -> Vec<u64> {
            let lines = host.decisions(slot, since, limit, bytes).unwrap();
            lines.iter().map(|line| serde_json::from_slice::<Record>(line).unwrap().context.now_ms).collect()
        };
        let any = usize::MAX;
        assert_eq!(asked(None, 0, any, any), (0..30).collect::<Vec<_>>());
        assert_eq!(asked(None, 0, 12, any), (18..30).collect::<Vec<_>>());
        assert_eq!(asked(Some(Slot::Placement), 25, any, any), (25..30).collect::<Vec<_>>());
        assert_eq!(asked(Some(Slot::Reset), 0, any, any), [0; 0]);
        assert_eq!(asked(None, 0, 0, any), [0; 0]);
        let five = host.decisions(None, 0, 5, any).unwrap().iter().map(Vec::len).sum();
        if !in_memory {
            assert_eq!(asked(None, 0, any, five), (25..30).collect::<Vec<_>>());
        }
    }
    // A file of records may have empty lines, and a damaged segment harms only itself.
    let first = std::fs::read_dir(home.path()).unwrap().map(|e| e.unwrap().path()).min().unwrap();
    std::fs::write(&first, "damaged").unwrap();
    let host = PolicyHost::start(settings).unwrap();
    assert_eq!(host.decisions(None, 0, 100, usize::MAX).unwrap().len(), 20);
    let file = home.path().join("records.txt");
    std::fs::write(&file, "\n").unwrap();
    assert!(recorded(&file).is_empty());
}

#[test]
fn decisions_of_many_short_lives_are_bounded_too() {
    let home = tempfile::tempdir().unwrap();
    let mut settings = settings(vec![]);
    settings.records = Some((home.path().to_owned(), 64 << 10));
    for n in 0..40 {
        let host = PolicyHost::start(settings.clone()).unwrap();
        ask_at(&host, n, question(20, 100));
        host.journal().flush();
    }
    std::fs::write(home.path().join("0000000007.zst.partial"), b"cut short").unwrap();
    PolicyHost::start(settings.clone()).unwrap().journal().flush();
    let files: Vec<_> = std::fs::read_dir(home.path()).unwrap().map(|e| e.unwrap().path()).collect();
    // Each counts for 4 KiB at least: sixteen of them, and those that the last starts opened.
    assert!(files.len() <= 18, "{} files", files.len());
    assert!(!files.iter().any(|f| f.extension().is_some_and(|e| e == "partial")));
    assert_eq!(recorded(home.path()).last().unwrap().context.now_ms, 39);
}
