//! Policies as an operator meets them: a running gateway, plugins that come, go, loop and are missing, settings that are wrong,
//! and clones that are made and read all the while.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clonegate_tests::Gateway;
use clonegate_tests::curl::curl;
use clonegate_tests::gateway::command;
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn component(name: &str) -> String {
    root().join(format!("plugins/components/{name}.wasm")).display().to_string()
}

/// A plugin whose `place` never returns.
fn looping() -> String {
    root().join("gateway/policy-host/tests/golden/looping.wasm").display().to_string()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

fn plugin(gateway: &Gateway, name: &str) -> Value {
    let all = json(&gateway.cli_ok(&["plugin", "list", "--output", "json"]));
    all.as_array().unwrap().iter().find(|p| p["name"] == name).cloned().unwrap_or_default()
}

/// What each recorded placement was decided by, and what each plugin of its chain came to.
fn decisions(gateway: &Gateway) -> Vec<Value> {
    let lines = gateway.cli_ok(&["plugin", "decisions", "--slot", "placement", "--limit", "10000"]);
    lines.lines().filter(|line| !line.is_empty()).map(json).collect()
}

fn first_outcome(decision: &Value) -> String {
    let outcome = &decision["chain"][0]["outcome"];
    let (kind, what) = outcome.as_object().unwrap().iter().next().unwrap();
    if kind == "answer" { "answer".into() } else { what["code"].as_str().or(what.as_str()).unwrap_or(kind).into() }
}

#[test]
fn a_looping_plugin_harms_nobody_while_clones_are_made_and_read_and_plugins_exchanged() {
    let chain = r#"[{ plugin = "mine", fuel = 30000000, time = "2s" }, "default"]"#;
    let mut gateway = Gateway::up_with(&["--clones", "0"], &[("CLONEGATE_POLICY_PLACEMENT", chain)]);
    gateway.cli_ok(&["plugin", "install", &looping(), "--name", "mine"]);
    gateway.cli_ok(&["clone", "create", "first", "--template", "demo"]);
    let made = decisions(&gateway);
    // On a machine that is busy enough the time is up before the fuel.
    assert!(["out-of-fuel", "time-out"].contains(&first_outcome(&made[0]).as_str()), "{}", made[0]["chain"]);
    assert_eq!(made[0]["by"], "default");
    let fuel = made[0]["chain"][0]["fuel_limit"].as_u64().unwrap();
    assert!((30_000_000..31_000_000).contains(&fuel), "the fuel that its place in the chain says: {fuel}");

    let (reads, done) = (AtomicU32::new(0), AtomicBool::new(false));
    let disk = gateway.disk_url("first");
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let reply = curl(&["-r", "0-511", &disk]);
                assert_eq!(reply.status, 206, "{}", reply.text());
                reads.fetch_add(1, Ordering::Relaxed);
            }
        });
        let making = scope.spawn(|| {
            for n in 0..8 {
                gateway.cli_ok(&["clone", "create", &format!("c{n}"), "--template", "demo", "--count", "3"]);
            }
        });
        for name in ["base-affinity", "base-affinity-c", "spread"] {
            let file = component(name);
            gateway.cli_ok(&["plugin", "install", &file, "--name", "mine", "--accept-differences"]);
        }
        // The looping one fails what was recorded, and stays outside.
        let refused = gateway.cli(&["plugin", "install", &looping(), "--name", "mine", "--accept-differences"]);
        assert!(!refused.status.success());
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(told.contains("fails") && told.contains(&looping()), "{refused:?}");
        let made = making.join();
        done.store(true, Ordering::Relaxed);
        made.unwrap();
    });
    assert!(reads.load(Ordering::Relaxed) > 0);
    let clones = json(&gateway.cli_ok(&["clone", "list", "--output", "json"]));
    let count = clones.as_array().or(clones["items"].as_array()).unwrap().len();
    assert_eq!(count, 1 + 8 * 3, "every clone was made");
    let mine = plugin(&gateway, "mine");
    assert_eq!(
        (mine["info"]["name"].as_str(), mine["state"].as_str()),
        (Some("clonegate-plugin-spread"), Some("active"))
    );
    assert!(mine["problem"].as_str().unwrap().contains("fails-on-replay"), "{mine}");
    assert!(decisions(&gateway).len() >= 9, "every order is a decision, and recorded");

    gateway.kill();
    gateway.start();
    assert_eq!(
        plugin(&gateway, "mine")["info"]["name"],
        "clonegate-plugin-spread",
        "what was installed is there after a kill"
    );
    let would = gateway.cli_ok(&["plugin", "rollback", "mine", "--dry-run"]);
    assert!(would.contains("would be"), "{would}");
    gateway.cli_ok(&["plugin", "rollback", "mine"]);
    assert_eq!(plugin(&gateway, "mine")["info"]["name"], "base-affinity-c", "and so is the version before");
    gateway.cli_ok(&["clone", "create", "late", "--template", "demo"]);
    let last = decisions(&gateway).pop().unwrap();
    assert_eq!((first_outcome(&last).as_str(), last["by"].as_str()), ("answer", Some("mine")), "{last}");
    gateway.cli_ok(&["plugin", "remove", "mine"]);
    assert_eq!(plugin(&gateway, "mine")["state"], "missing");
    gateway.cli_ok(&["clone", "create", "later", "--template", "demo"]);
}

#[test]
fn wrong_settings_and_missing_plugins_at_start_are_an_alarm_and_no_outage() {
    let chain = r#"[{ plugin = "spread", settings = { share_percent = 400, colour = "red" } }, "absent"]"#;
    let gateway = Gateway::up_with(&["--clones", "2"], &[("CLONEGATE_POLICY_PLACEMENT", chain)]);
    assert_eq!(curl(&["-r", "0-511", &gateway.disk_url("demo-001")]).status, 206);
    let spread = plugin(&gateway, "spread");
    let problem = spread["links"][0]["problem"].as_str().unwrap();
    assert_eq!(spread["state"], "refused");
    assert!(problem.contains("$.share_percent") && problem.contains("$.colour"), "{problem}");
    assert_eq!(plugin(&gateway, "absent")["state"], "missing");
    let table = gateway.cli_ok(&["plugin", "list"]);
    assert!(table.contains("refused") && table.contains("$.share_percent"), "{table}");
    for decision in decisions(&gateway) {
        assert_eq!(decision["by"], "built-in", "{decision}");
    }
    let metrics = curl(&[&gateway.url("/metrics")]).text();
    let empty = metrics.lines().find(|l| l.starts_with("clonegate_policy_empty_places")).unwrap();
    assert!(empty.ends_with(" 2"), "{empty}");
    let shown = gateway.cli_ok(&["plugin", "show", "spread"]);
    assert!(shown.contains("20000000 + 50000 a record, 16.0 MiB, 250 ms") && shown.contains("1 to 100"), "{shown}");
    let said = gateway.output();
    assert!(said.contains("$.share_percent") && said.contains("absent"), "the alarm is in the log too:\n{said}");
}

#[test]
fn a_plugin_in_many_places_is_one_value_of_each_metric_and_one_in_none_shows_its_settings() {
    let chain = r#"[{ plugin = "spread", pools = ["a-*"] }, { plugin = "spread", pools = ["b-*"] }, "default"]"#;
    let gateway = Gateway::up_with(&["--clones", "0"], &[("CLONEGATE_POLICY_PLACEMENT", chain)]);
    let none = gateway.cli_ok(&["plugin", "decisions", "--slot", "placement"]);
    assert_eq!(none, "", "no decision is no line");
    gateway.cli_ok(&["clone", "create", "c", "--template", "demo"]);
    let metrics = curl(&[&gateway.url("/metrics")]).text();
    let mut series: Vec<&str> = metrics
        .lines()
        .filter(|line| line.starts_with("clonegate_policy_"))
        .filter_map(|line| line.rsplit_once(' '))
        .map(|(series, _)| series)
        .collect();
    assert!(series.contains(&r#"clonegate_policy_calls_total{plugin="spread",slot="placement"}"#), "{series:?}");
    let all = series.len();
    series.sort_unstable();
    series.dedup();
    assert_eq!(series.len(), all, "each series once:\n{metrics}");
    let idle = gateway.cli_ok(&["plugin", "show", "exam-room"]);
    assert!(idle.contains("hold_hours") && idle.contains("0 to 720") && idle.contains("available"), "{idle}");
    let nobody = gateway.cli(&["plugin", "show", "nobody"]);
    assert_eq!(nobody.status.code(), Some(3), "{nobody:?}");
}

#[test]
fn a_question_that_a_plugin_does_not_decide_is_refused_and_no_answer() {
    let home = tempfile::tempdir().unwrap();
    let question = root().join("gateway/policy-host/src/scaffold/question.json").display().to_string();
    for verb in ["run", "bench"] {
        let output = command(["plugin", verb, &component("exam-room"), "--input", &question])
            .current_dir(&home)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{verb}: {said}");
        assert!(said.contains("the question is about placement, and the plugin decides reset"), "{verb}: {said}");
    }
}

#[test]
fn the_configuration_check_names_wrong_settings_and_limits_of_plugins() {
    let home = tempfile::tempdir().unwrap();
    let check = |policy: &str| {
        let file = home.path().join("clonegate.toml");
        let journal = home.path().join("journal").display().to_string();
        let text = format!("home = 'file://{}'\n[journal]\npath = '{journal}'\n{policy}\n", home.path().display());
        fs::write(&file, text).unwrap();
        let output = command(["config", "check", "--config"]).arg(&file).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    };
    let (right, said) =
        check("[[policy.placement]]\nplugin = 'spread'\nsettings = { share_percent = 40 }\nmemory = '32MiB'");
    assert!(right && !said.contains("not asked"), "{said}");
    let (right, said) = check("[policy]\nplacement = ['not-yet-installed', 'default']");
    assert!(right && said.contains("not-yet-installed"), "{said}");
    for (policy, says) in [
        ("[[policy.placement]]\nplugin = 'spread'\nsettings = { share_percent = 400 }", "$.share_percent"),
        (
            "[[policy.reset]]\nplugin = 'patch-waves'\nsettings = { waves = [{ label = 'a', after_hours = -1 }] }",
            "$.waves[0].after_hours",
        ),
        ("[[policy.reset]]\nplugin = 'spread'", "does not decide reset"),
        ("[[policy.placement]]\nplugin = 'spread'\nmemory = '1GiB'", "from 1MiB to 64MiB"),
        ("[[policy.placement]]\nplugin = 'spread'\nfuel = 5", "from 100,000"),
        ("[[policy.placement]]\nplugin = 'spread'\ntime = '1h'", "from 20ms to 2s"),
    ] {
        let (right, said) = check(policy);
        assert!(!right && said.contains(says), "{policy}: {said}");
    }
}

/// Asks again until `holds`, as long as a loaded machine may take.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < Duration::from_secs(120), "{what} does not come");
        thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn a_file_in_the_watched_directory_is_installed_and_a_bad_one_is_named_and_left() {
    let chain = r#"[{ plugin = "mine", mode = "shadow" }, "default"]"#;
    let gateway = Gateway::up_with(&["--clones", "0"], &[("CLONEGATE_POLICY_PLACEMENT", chain)]);
    let directory = gateway.data().join("plugins");
    fs::create_dir_all(&directory).unwrap();
    let put = |from: &Path| {
        // As an operator should: written beside, then renamed, so that no half of it is ever seen.
        fs::copy(from, directory.join(".mine.tmp")).unwrap();
        fs::rename(directory.join(".mine.tmp"), directory.join("mine.wasm")).unwrap();
    };
    put(Path::new(&component("spread")));
    eventually("the plugin", || plugin(&gateway, "mine")["state"] == "active");
    gateway.cli_ok(&["clone", "create", "c", "--template", "demo", "--count", "3"]);
    for decision in decisions(&gateway) {
        assert_eq!(
            (decision["by"].as_str(), decision["shadow"][0]["plugin"].as_str()),
            (Some("default"), Some("mine"))
        );
    }
    let garbage = gateway.dir().join("garbage");
    fs::write(&garbage, b"no plugin at all").unwrap();
    put(&garbage);
    eventually("the refusal", || plugin(&gateway, "mine")["problem"].as_str().is_some_and(|p| p.contains("not-wasm")));
    let mine = plugin(&gateway, "mine");
    assert_eq!(
        (mine["state"].as_str(), mine["info"]["name"].as_str()),
        (Some("active"), Some("clonegate-plugin-spread"))
    );
    fs::remove_file(directory.join("mine.wasm")).unwrap();
    eventually("the removal", || plugin(&gateway, "mine")["state"] == "missing");
    gateway.cli_ok(&["clone", "create", "d", "--template", "demo"]);
}
