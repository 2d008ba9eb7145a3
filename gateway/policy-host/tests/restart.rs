//! What a start finds: versions to roll back to, settings that are wrong, plugins that are missing; and what each place in a
//! chain may take.

mod common;

use std::path::Path;
use std::sync::Arc;

use clonegate_core::advice::{PlacementVerdict, Question};
use clonegate_policy_host::{
    BUILT_IN, Binding, CallLimits, Chains, Compiler, Embedded, HostSettings, InstallOptions, Moment, Outcome,
    PluginStatus, PolicyHost, Record, Replay,
};
use common::{Guest, guest, limits, question, words};

const DEFAULTS: &[u8] = include_bytes!("../../../plugins/components/defaults.wasm");
const SPREAD: &[u8] = include_bytes!("../../../plugins/components/spread.wasm");

fn start(placement: Vec<Binding>, plugins: Option<&Path>) -> Arc<PolicyHost> {
    PolicyHost::start(settings(placement, plugins)).unwrap()
}

fn settings(placement: Vec<Binding>, plugins: Option<&Path>) -> HostSettings {
    HostSettings {
        chains: Chains { placement, rollover: Vec::new(), reset: Vec::new() },
        limits: limits(),
        plugins: plugins.map(Path::to_owned),
        embedded: vec![
            Embedded { name: "default", component: DEFAULTS },
            Embedded { name: "spread", component: SPREAD },
        ],
        ..HostSettings::default()
    }
}

fn ask(host: &Arc<PolicyHost>, question: Question) -> Arc<Record> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(host.decide(Moment { decision: "d_1".into(), now_ms: 1000, seed: 1 }, question))
}

/// Refuses with this text.
fn refuses(text: &str) -> Vec<u8> {
    let length = u32::try_from(text.len()).unwrap();
    let data =
        format!(r#"(data (i32.const 2048) "{}") (data (i32.const 4096) "{text}")"#, words(&[0, 2, 4096, length]));
    Guest::place("(i32.const 2048)").extra(&data).component()
}

fn says(host: &Arc<PolicyHost>) -> String {
    match &ask(host, question(1, 1)).answer {
        clonegate_core::advice::Answer::Placement(PlacementVerdict::Refuse(why)) => why.clone(),
        other => format!("{other:?}"),
    }
}

fn status(host: &PolicyHost, name: &str) -> PluginStatus {
    host.list().into_iter().find(|p| p.name == name).unwrap()
}

const ANY: InstallOptions = InstallOptions { accept_differences: true, dry_run: false };

#[test]
fn the_version_before_can_be_brought_back_after_a_restart() {
    let home = tempfile::tempdir().unwrap();
    let chain = || vec![Binding::of("closed")];
    let host = start(chain(), Some(home.path()));
    host.install(Some("closed"), &refuses("first"), ANY).unwrap();
    assert_eq!(host.rollback("closed", false).unwrap_err().code(), "nothing-to-roll-back");
    host.install(Some("closed"), &refuses("second"), ANY).unwrap();
    drop(host);

    let host = start(chain(), Some(home.path()));
    assert_eq!((says(&host).as_str(), status(&host, "closed").previous.as_deref()), ("second", Some("1.0")));
    host.scan();
    assert_eq!(says(&host), "second", "the watched directory takes the version before for no plugin");
    host.rollback("closed", true).unwrap();
    assert_eq!(says(&host), "second", "a dry run changes nothing");
    host.rollback("closed", false).unwrap();
    assert_eq!(says(&host), "first");
    drop(host);

    let host = start(chain(), Some(home.path()));
    assert_eq!(says(&host), "first", "what was brought back stays");
    host.rollback("closed", false).unwrap();
    assert_eq!(says(&host), "second", "and forward again");
    host.remove("closed", true).unwrap();
    assert_eq!(says(&host), "second", "a dry run removes nothing");
    host.remove("closed", false).unwrap();
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0, "nothing stays behind");
}

#[test]
fn a_list_waits_for_nobody_who_brings_a_version_back() {
    let (home, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let chain = || vec![Binding::of("closed")];
    let host = start(chain(), Some(home.path()));
    host.install(Some("closed"), &refuses("first"), ANY).unwrap();
    host.install(Some("closed"), &refuses("second"), ANY).unwrap();
    drop(host);
    // A compiler that says when it begins, and waits for leave.
    let (begun, leave) = (outside.path().join("begun"), outside.path().join("leave"));
    let script = format!(
        r#": > {}; until [ -e {} ]; do /bin/sleep 0.01; done; exec {} __compile-component "$@""#,
        begun.display(),
        leave.display(),
        env!("CARGO_BIN_EXE_clonegate-policy")
    );
    let compiler = Compiler::Child { program: "/bin/sh".into(), args: vec!["-c".into(), script.into(), "sh".into()] };
    std::fs::write(&leave, "").unwrap();
    let mut limits = limits();
    limits.compile_cpu = std::time::Duration::from_secs(60);
    let host = PolicyHost::start(HostSettings { compiler, limits, ..settings(chain(), Some(home.path())) }).unwrap();
    std::fs::remove_file(&leave).unwrap();
    std::fs::remove_file(&begun).unwrap();
    std::thread::scope(|scope| {
        let (ended, end) = std::sync::mpsc::channel();
        let host = &host;
        scope.spawn(move || ended.send(host.rollback("closed", false)).unwrap());
        while !begun.exists() {
            std::thread::yield_now();
        }
        assert_eq!((status(host, "closed").state, says(host).as_str()), ("active", "second"));
        assert!(end.try_recv().is_err(), "the list came before the end of what was begun before it");
        std::fs::write(&leave, "").unwrap();
        end.recv().unwrap().unwrap();
        assert_eq!(says(host), "first");
    });
}

#[test]
fn a_version_before_that_is_damaged_is_none_and_harms_nobody() {
    let home = tempfile::tempdir().unwrap();
    let host = start(vec![Binding::of("closed")], Some(home.path()));
    host.install(Some("closed"), &refuses("first"), ANY).unwrap();
    host.install(Some("closed"), &refuses("second"), ANY).unwrap();
    drop(host);
    let file = home.path().join(".closed.previous");
    let mut bytes = std::fs::read(&file).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let host = start(vec![Binding::of("closed")], Some(home.path()));
    assert_eq!(says(&host), "second");
    assert_eq!(host.rollback("closed", false).unwrap_err().code(), "nothing-to-roll-back");
}

#[test]
fn a_refused_file_in_the_watched_directory_leaves_the_one_before_at_work_after_a_restart_too() {
    let home = tempfile::tempdir().unwrap();
    let (file, kept) = (home.path().join("closed.wasm"), home.path().join(".closed.kept"));
    let chain = || vec![Binding::of("closed")];
    let host = start(chain(), Some(home.path()));
    std::fs::write(&file, refuses("first")).unwrap();
    host.scan();
    assert_eq!(says(&host), "first");
    for (refused, code) in [(b"no plugin".to_vec(), "not-wasm"), (refuses("other")[..900].to_vec(), "bad-component")] {
        std::fs::write(&file, &refused).unwrap();
        host.scan();
        assert_eq!(says(&host), "first");
        let again = start(chain(), Some(home.path()));
        assert_eq!(says(&again), "first", "{code}");
        again.scan();
        assert_eq!(says(&again), "first", "{code}");
        let problem = status(&again, "closed").problem.unwrap();
        assert!(problem.contains(code), "the start says it again: {problem}");
        assert_eq!(std::fs::read(&file).unwrap(), refused, "the file of the operator is left alone");
    }
    // What is mended is installed, with the version that was at work all the while as the one before.
    let host = start(chain(), Some(home.path()));
    host.install(Some("closed"), &refuses("second"), ANY).unwrap();
    assert!(!kept.exists());
    host.rollback("closed", false).unwrap();
    assert_eq!(says(&host), "first");
    std::fs::write(&file, b"again no plugin").unwrap();
    host.scan();
    assert!(kept.exists());
    host.remove("closed", false).unwrap();
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0, "nothing stays behind");
}

#[test]
fn a_refused_file_under_the_name_of_an_embedded_plugin_leaves_that_one_and_its_removal_clears_the_problem() {
    let home = tempfile::tempdir().unwrap();
    let host = start(vec![Binding::of("default")], Some(home.path()));
    let file = home.path().join("default.wasm");
    std::fs::write(&file, b"no plugin").unwrap();
    host.scan();
    let default = status(&host, "default");
    assert_eq!((default.state, default.embedded, default.problem.is_some()), ("active", true, true));
    std::fs::remove_file(&file).unwrap();
    host.scan();
    let default = status(&host, "default");
    assert_eq!((default.state, default.embedded, default.problem), ("active", true, None));
    assert_eq!(ask(&host, question(4, 10)).by, "default");
}

#[test]
fn a_plugin_of_the_program_says_what_it_is_before_any_chain_names_it() {
    let host = start(vec![Binding::of("default")], None);
    assert_eq!(status(&host, "spread").info, None, "a list loads nothing");
    let spread = host.show("spread").unwrap();
    assert_eq!((spread.state, spread.embedded), ("available", true));
    assert!(spread.info.unwrap().settings_schema.unwrap()["properties"]["share_percent"].is_object());
    assert!(host.show("nobody").is_none());
    let place = host.show("default").unwrap().links[0].limits;
    assert_eq!((place.fuel, place.memory_bytes), (20_000_000, 16 << 20));
}

#[test]
fn wrong_settings_at_start_leave_the_slot_to_the_built_in_rule_and_say_where() {
    let wrong = Binding {
        settings: serde_json::json!({ "share_percent": 400, "colour": "red" }),
        pools: vec!["win11-*".into()],
        ..Binding::of("spread")
    };
    let right = Binding { settings: serde_json::json!({ "share_percent": 60 }), ..Binding::of("spread") };
    let host = start(vec![wrong], None);
    let asked = question(4, 10);
    let record = ask(&host, asked.clone());
    assert_eq!((record.by.as_str(), &record.answer), (BUILT_IN, &asked.builtin()));
    let spread = status(&host, "spread");
    let problem = spread.links[0].problem.clone().unwrap();
    assert!(problem.contains("$.share_percent") && problem.contains("$.colour"), "{problem}");
    assert_eq!((spread.state, spread.links[0].skipped, host.stats().empty_places), ("refused", 1, 1));
    let empty = host.empty_places();
    assert_eq!((empty.len(), empty[0].1.as_str()), (1, "spread"));

    let mut chains = host.chains();
    chains.placement = vec![right];
    host.bind(chains);
    assert_eq!((ask(&host, asked).by.as_str(), host.stats().empty_places), ("spread", 0));
    assert_eq!(status(&host, "spread").state, "active");
}

#[test]
fn a_plugin_that_does_not_decide_what_its_chain_asks_is_named() {
    let mut settings = HostSettings {
        chains: Chains { placement: Vec::new(), rollover: Vec::new(), reset: vec![Binding::of("spread")] },
        limits: limits(),
        embedded: vec![Embedded { name: "spread", component: SPREAD }],
        ..HostSettings::default()
    };
    settings.chains.rollover = vec![Binding::of("absent")];
    let host = PolicyHost::start(settings).unwrap();
    let why: Vec<_> =
        host.empty_places().into_iter().map(|(slot, name, why)| format!("{slot} {name}: {why}")).collect();
    assert_eq!(
        why,
        ["rollover absent: it is not installed, or cannot be loaded", "reset spread: it does not decide reset"]
    );
}

#[test]
fn each_place_in_a_chain_has_its_own_fuel_memory_and_time() {
    // Needs 24 MiB, then has no opinion.
    let large =
        Guest::place("(if (i32.eq (memory.grow (i32.const 384)) (i32.const -1)) (then unreachable)) (i32.const 0)");
    let looping = Guest::place("(loop $l (br $l)) (i32.const 0)");
    let outcome = |guest: &Guest, limits: CallLimits| {
        let host = start(vec![Binding { limits, ..Binding::of("own") }], None);
        host.install(Some("own"), &guest.component(), ANY).unwrap();
        let record = ask(&host, question(4, 10));
        let call = record.chain[0].call.clone();
        let mut replay = Replay::default();
        replay.verify(&host.plugin("own").unwrap(), &record);
        assert_eq!((replay.asked, replay.different), (1, 0), "a recorded call is asked again within what it was given");
        (call.outcome.summary(), call.fuel_limit, call.memory_limit)
    };
    let records = 50_000 * u64::try_from(question(4, 10).records()).unwrap();
    let usual = CallLimits::default();
    assert_eq!(outcome(&large, usual), ("out-of-memory".into(), 20_000_000 + records, 16 << 20));
    let roomy = CallLimits { memory_bytes: Some(32 << 20), ..usual };
    assert_eq!(outcome(&large, roomy), ("no-opinion".into(), 20_000_000 + records, 32 << 20));
    let short = CallLimits { fuel: Some(300_000), ..usual };
    assert_eq!(outcome(&looping, short), ("out-of-fuel".into(), 300_000 + records, 16 << 20));
    let hasty = CallLimits { fuel: Some(2_000_000_000), wall: Some(std::time::Duration::from_millis(20)), ..usual };
    let host = start(vec![Binding { limits: hasty, ..Binding::of("own") }], None);
    host.install(Some("own"), &looping.component(), ANY).unwrap();
    let Outcome::Trap(fault) = ask(&host, question(1, 1)).chain[0].call.outcome.clone() else { panic!() };
    assert_eq!((fault.code.as_str(), fault.message.as_str()), ("time-out", "it ran longer than 20 ms"));
}

#[test]
fn each_slot_and_each_pool_has_its_own_chain() {
    let for_pool = |name: &str, pool: &str| Binding { pools: vec![pool.into()], ..Binding::of(name) };
    let host = start(vec![for_pool("a", "win11-*"), for_pool("b", "linux"), Binding::of("rest")], None);
    for name in ["a", "b", "rest"] {
        host.install(Some(name), &refuses(name), ANY).unwrap();
    }
    let by = |pool: &str| {
        let mut asked = question(1, 1);
        if let Question::Placement { request, .. } = &mut asked {
            request.pool = pool.into();
        }
        ask(&host, asked).by.clone()
    };
    assert_eq!(["win11-a", "linux", "linux-2", ""].map(by), ["a", "b", "rest", "rest"]);
    // A plugin that has no opinion leaves its pool to the chain's rest.
    host.install(Some("a"), &guest().component(), ANY).unwrap();
    assert_eq!(ask(&host, question(1, 1)).by, "rest");
}

#[test]
fn a_component_under_many_names_is_compiled_once() {
    let host = start(vec![Binding::of("a"), Binding::of("b")], None);
    for name in ["a", "b"] {
        host.install(Some(name), &refuses("twice"), ANY).unwrap();
    }
    assert!(Arc::ptr_eq(&host.plugin("a").unwrap(), &host.plugin("b").unwrap()));
    host.install(Some("b"), &refuses("other"), ANY).unwrap();
    assert!(!Arc::ptr_eq(&host.plugin("a").unwrap(), &host.plugin("b").unwrap()));
    assert_eq!(says(&host), "twice", "each name keeps its own");
}
