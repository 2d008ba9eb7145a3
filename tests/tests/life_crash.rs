//! The real program is killed in the middle of an update, again and again: nothing is half done.

use std::fs;
use std::thread;
use std::time::Duration;

use clonegate_tests::gateway::Gateway;

const CLONES: usize = 120;

fn json(gateway: &Gateway, arguments: &[&str]) -> serde_json::Value {
    let arguments: Vec<&str> = arguments.iter().copied().chain(["--output", "json"]).collect();
    serde_json::from_str(&gateway.cli_ok(&arguments)).unwrap()
}

/// Whether the newest update is to this version.
fn has_begun(gateway: &Gateway, target: u64) -> bool {
    let shown = gateway.cli(&["update", "show", "t", "--output", "json"]);
    serde_json::from_slice::<serde_json::Value>(&shown.stdout).is_ok_and(|view| view["version"] == target)
}

#[test]
fn an_update_that_is_killed_goes_on_after_the_start_and_leaves_nothing_behind() {
    let mut gateway = Gateway::up(&["--clones", "0"]);
    let image = gateway.dir().join("t.raw");
    let path = image.to_str().unwrap().to_owned();
    let mut bytes = vec![0; 1 << 20];
    for version in 1..=3_u8 {
        bytes[..512].fill(version);
        fs::write(&image, &bytes).unwrap();
        gateway.cli_ok(&["template", "import", "t", &path]);
    }
    gateway.cli_ok(&["clone", "create", "c", "--template", "t:1", "--count", &CLONES.to_string()]);
    let mut kills_that_met_it = 0;
    for (round, target) in (0..4).zip([2_u64, 3, 1, 2]) {
        let (server, to) = (gateway.url(""), format!("t:{target}"));
        let update = thread::spawn(move || {
            let arguments = ["clone", "update", "--template", &to, "--max-unavailable", "8", "--server", &server];
            clonegate_tests::gateway::command(arguments).output().unwrap()
        });
        // It is killed once it was begun, however slow the machine is; some way into it, if it takes that long.
        while !update.is_finished() && !has_begun(&gateway, target) {
            thread::sleep(Duration::from_millis(10));
        }
        thread::sleep(Duration::from_millis(60 * round));
        gateway.kill();
        update.join().unwrap();
        gateway.start();
        if !gateway.cli(&["update", "show", "t"]).status.success() {
            continue;
        }
        let mut view = json(&gateway, &["update", "show", "t"]);
        for _ in 0..2400 {
            if view["state"] != "running" {
                break;
            }
            thread::sleep(Duration::from_millis(50));
            view = json(&gateway, &["update", "show", "t"]);
        }
        if view["version"] != target {
            // It was killed before the update was written down: then nothing was begun.
            continue;
        }
        kills_that_met_it += 1;
        assert_eq!(view["state"], "done", "{view}");
        // Those that it had open when it was killed may have a machine, for all it knows: they move when that is said to be off.
        for clone in json(&gateway, &["clone", "list"]).as_array().unwrap() {
            if clone["version"] != target {
                assert_eq!(clone["pending_version"], target, "round {round}: {clone}");
                gateway.cli_ok(&["clone", "power", "off", clone["name"].as_str().unwrap()]);
            }
        }
        let clones = json(&gateway, &["clone", "list"]);
        let there = clones.as_array().unwrap().iter().filter(|c| c["version"] == target).count();
        assert_eq!(there, CLONES, "round {round}");
        let report = json(&gateway, &["fsck", "--grace", "0s"]);
        assert_eq!(report["findings"], serde_json::json!([]), "round {round}");
        let bases = json(&gateway, &["base", "list"]);
        let taken: u64 = bases.as_array().unwrap().iter().map(|b| b["taken"].as_u64().unwrap()).sum();
        assert_eq!(taken, CLONES as u64, "every clone has one slot");
    }
    assert!(kills_that_met_it > 0, "no kill met an update");
}
