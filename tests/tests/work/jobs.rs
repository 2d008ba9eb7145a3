//! Jobs over the command line and REST: followed, found again, cancelled, and gone on with after `kill -9`.

use std::fs;
use std::time::Duration;

use clonegate_tests::gateway::Gateway;
use clonegate_tests::raw_http::RawHttp;
use serde_json::{Value, json};

const MIB: usize = 1 << 20;

fn image(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at / 4096 * 13 + at % 239) as u8).collect()
}

fn gateway_with(image: &[u8]) -> Gateway {
    let gateway = Gateway::up(&["--clones", "0"]);
    let file = gateway.dir().join("t.raw");
    fs::write(&file, image).unwrap();
    gateway.cli_ok(&["template", "import", "t", file.to_str().unwrap()]);
    gateway
}

fn run(gateway: &Gateway, arguments: &[&str]) -> Value {
    let arguments: Vec<&str> = arguments.iter().copied().chain(["--output", "json"]).collect();
    serde_json::from_str(&gateway.cli_ok(&arguments)).unwrap()
}

fn post(gateway: &Gateway, path: &str, key: &str, body: &Value) -> (u16, Option<String>, Value) {
    let fields = [("Content-Type", "application/json"), ("Idempotency-Key", key)];
    let reply = RawHttp::connect(gateway.http()).request_with("POST", path, &fields, body.to_string().as_bytes());
    let location = reply.field("location").map(str::to_owned);
    (reply.status, location, serde_json::from_slice(&reply.body).unwrap_or_default())
}

#[test]
fn a_copy_that_is_killed_again_and_again_goes_on_where_it_was() {
    let bytes = image(96 * MIB);
    let mut gateway = gateway_with(&bytes);
    let job = run(&gateway, &["full-clone", "create", "f", "--template", "t", "--durability", "object", "--detach"]);
    let id = job["id"].as_str().unwrap().to_owned();
    let (mut killed, mut before) = (0, 0);
    while killed < 3 {
        let job = run(&gateway, &["jobs", "show", &id]);
        if job["state"] == "done" {
            break;
        }
        // Each time when it has come a little further.
        let done = job["done"].as_u64().unwrap();
        if done > before {
            (killed, before) = (killed + 1, done);
            gateway.kill();
            gateway.start();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    gateway.cli_ok(&["jobs", "watch", &id]);
    let ended = run(&gateway, &["jobs", "show", &id]);
    assert_eq!((ended["state"].as_str(), ended["kind"].as_str()), (Some("done"), Some("full-clone")));
    assert!(killed > 0 && ended["attempts"].as_u64().unwrap() >= 1, "{ended}");
    let reply = RawHttp::connect(gateway.http()).request("GET", "/v1/clones/f/disk", &[]);
    assert!(reply.body == bytes, "the copy differs");
    // What was on its way to the store when the gateway was killed may lie there, and belongs to nobody.
    gateway.cli_ok(&["fsck", "--grace", "0s", "--repair"]);
    gateway.cli_ok(&["fsck", "--grace", "0s"]);
}

#[test]
fn long_work_is_answered_with_a_job_that_the_same_key_finds_again_after_a_restart() {
    let mut gateway = gateway_with(&image(2 * MIB));
    let request = json!({ "name": "f", "template": "t" });
    let (status, location, job) = post(&gateway, "/v1/full-clones", "key-1", &request);
    assert_eq!(status, 202, "{job}");
    assert_eq!(location, Some(format!("/v1/jobs/{}", job["id"].as_str().unwrap())));
    gateway.cli_ok(&["jobs", "watch", job["id"].as_str().unwrap()]);
    gateway.kill();
    gateway.start();
    // The name is taken by now: only the job tells that it was this request that took it.
    let (status, _, again) = post(&gateway, "/v1/full-clones", "key-1", &request);
    assert_eq!((status, &again["id"]), (202, &job["id"]), "{again}");
    assert_eq!(post(&gateway, "/v1/full-clones", "key-2", &request).2["code"], "name-taken");
    assert_eq!(run(&gateway, &["jobs", "list"]).as_array().unwrap().len(), 1);
    assert_eq!(run(&gateway, &["jobs", "list", "--subject", "other"]), json!([]));
}

#[test]
fn a_command_fails_as_its_job_does_and_a_cancelled_one_leaves_nothing() {
    let gateway = gateway_with(&image(64 * MIB));
    let mut cancelled = false;
    // On a machine that is slow to start commands a copy may be done before it is cancelled.
    for name in ["f", "g", "h", "i"] {
        let job = run(&gateway, &["full-clone", "create", name, "--template", "t", "--detach"]);
        let id = job["id"].as_str().unwrap();
        gateway.cli_ok(&["jobs", "cancel", id]);
        let watched = gateway.cli(&["jobs", "watch", id]);
        let state = run(&gateway, &["jobs", "show", id])["state"].as_str().unwrap().to_owned();
        let dry = run(&gateway, &["jobs", "cancel", id, "--dry-run"]);
        assert_eq!((&dry["dry_run"], dry["names"].as_array().unwrap().len()), (&json!(true), 0), "it is over");
        if state == "cancelled" {
            assert_eq!(watched.status.code(), Some(4), "{}", String::from_utf8_lossy(&watched.stderr));
            assert_eq!(gateway.cli(&["clone", "show", name]).status.code(), Some(3));
            cancelled = true;
            break;
        }
        assert_eq!((state.as_str(), watched.status.code()), ("done", Some(0)));
    }
    assert!(cancelled, "no copy was slow enough to be cancelled");
    gateway.cli_ok(&["fsck", "--grace", "0s"]);
    assert_eq!(gateway.cli(&["jobs", "show", "j_00000000000000000000000000"]).status.code(), Some(3));
    assert_eq!(gateway.cli(&["jobs", "show", "nonsense"]).status.code(), Some(2));
}
