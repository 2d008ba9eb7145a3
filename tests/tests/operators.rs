//! What operators rely on: bases that are fetched before machines ask, boot storms, versions that are never said twice, names of datastores, the console.

use std::fs;

use clonegate_tests::gateway::Gateway;
use clonegate_tests::raw_http::{RawHttp, Reply};
use clonegate_tests::serve::Serve;
use serde_json::{Value, json};

fn ask(gateway: &Gateway, method: &str, path: &str, body: &Value) -> Reply {
    let body = if body.is_null() { Vec::new() } else { serde_json::to_vec(body).unwrap() };
    let fields: &[(&str, &str)] = if body.is_empty() { &[] } else { &[("Content-Type", "application/json")] };
    RawHttp::connect(gateway.http()).request_with(method, path, fields, &body)
}

fn json_of(reply: &Reply) -> Value {
    serde_json::from_slice(&reply.body).unwrap_or_default()
}

fn get(gateway: &Gateway, path: &str) -> Value {
    let reply = ask(gateway, "GET", path, &Value::Null);
    assert_eq!(reply.status, 200, "{path}: {}", String::from_utf8_lossy(&reply.body));
    json_of(&reply)
}

/// A change that succeeds.
fn change(gateway: &Gateway, method: &str, path: &str, body: &Value) {
    let reply = ask(gateway, method, path, body);
    let text = String::from_utf8_lossy(&reply.body).into_owned();
    assert!((200..300).contains(&reply.status), "{method} {path}: {} {text}", reply.status);
}

#[test]
fn bases_are_fetched_before_machines_ask() {
    let gateway = Gateway::up(&[]);
    let cache = || get(&gateway, "/v1/cache");
    let fetched = || cache()["store_bytes"].as_u64().unwrap();
    let read = |range: &str| {
        let reply = RawHttp::connect(gateway.http()).request("GET", "/v1/clones/demo-001/disk", &[("Range", range)]);
        assert_eq!(reply.status, 206);
    };
    gateway.cli_ok(&["cache", "drop"]);
    let base = get(&gateway, "/v1/bases")["items"][0]["id"].as_str().unwrap().to_owned();
    let refused = gateway.cli(&["base", "warm", &base, "--output", "json"]);
    assert_eq!(refused.status.code(), Some(4));
    let told: Value = serde_json::from_slice(&refused.stderr).expect("a failure is told as JSON");
    assert_eq!(told["code"], "no-boot-set", "{told}");

    // All of it: whatever a machine reads then, the store is not asked.
    let said = gateway.cli_ok(&["base", "warm", &base, "--whole"]);
    assert!(said.contains("320.0 KiB are in the iCache"), "{said}");
    let before = fetched();
    assert!(before > 0 && cache()["lines"].as_u64().unwrap() > 0);
    read("bytes=0-16777215");
    assert_eq!(fetched(), before, "a machine still waits for the store");

    // What one machine has read is what the next will: the boot set. Nobody takes its fetching for reads of machines.
    let demand = || ["hits", "misses", "joins"].map(|what| cache()[what].as_u64().unwrap());
    gateway.cli_ok(&["cache", "drop"]);
    let asked = demand();
    gateway.cli_ok(&["cache", "warm", "--template", "demo"]);
    assert_eq!(demand(), asked);
    let before = fetched();
    read("bytes=0-16777215");
    assert_eq!(fetched(), before, "the boot set was not fetched");
    assert_eq!(gateway.cli(&["cache", "warm", "--template", "none"]).status.code(), Some(3));
}

#[test]
fn a_storm_of_machines_reads_its_trace_and_says_when_the_last_was_through() {
    let gateway = Gateway::up(&["--clones", "3"]);
    gateway.cli_ok(&["cache", "drop"]);
    let disks = format!("http://{}/v1/clones/demo-{{nnn}}/disk", gateway.http());
    let said = gateway.cli_ok(&["bench", "storm", &disks, "--machines", "3", "--bytes", "2MiB", "--output", "json"]);
    let report: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&report["machines"], &report["finished"], &report["bytes"]), (&json!(3), &json!(3), &json!(2 << 20)));
    // Three machines, and of each chunk one fetch: no more than what is stored.
    let stored = get(&gateway, "/v1/templates/demo")["versions"][0]["stored_bytes"].as_u64().unwrap();
    let from_store = report["store_bytes"].as_u64().unwrap();
    assert!(from_store > 0 && from_store <= stored, "{from_store} of {stored}");

    let trace = gateway.dir().join("boot.trace");
    let run = |text: &str| {
        fs::write(&trace, text).unwrap();
        gateway.cli(&[
            "bench",
            "storm",
            &disks,
            "--machines",
            "2",
            "--trace",
            trace.to_str().unwrap(),
            "--output",
            "json",
        ])
    };
    let report: Value = serde_json::from_slice(&run("0 512\n1048576 4096 # and on\n").stdout).unwrap();
    assert_eq!((&report["reads"], &report["bytes"]), (&json!(2), &json!(4608)));
    for (text, code) in [("0 512 1\n", "bad-trace"), ("16777216 1\n", "beyond-end")] {
        let told: Value = serde_json::from_slice(&run(text).stderr).unwrap();
        assert_eq!(told["code"], code, "{told}");
    }
    let refused = gateway.cli(&["bench", "storm", "http://127.0.0.1:1/x"]);
    assert_eq!(refused.status.code(), Some(6));
}

#[test]
fn a_clone_made_again_under_its_name_never_says_the_etag_of_the_one_before() {
    let gateway = Gateway::up(&["--clones", "0"]);
    let disk = "/v1/clones/again/disk";
    let mut seen = Vec::new();
    for text in [b"first", b"other"] {
        change(&gateway, "POST", "/v1/clones", &json!({ "name": "again", "template": "demo" }));
        let put = RawHttp::connect(gateway.http()).request_with("PUT", disk, &[("Content-Range", "bytes 0-4/*")], text);
        assert_eq!(put.status, 204);
        let read = RawHttp::connect(gateway.http()).request("GET", disk, &[("Range", "bytes=0-4")]);
        assert_eq!(read.body, text);
        seen.push(read.field("etag").unwrap().to_owned());
        let old = [("Range", "bytes=0-4"), ("If-None-Match", seen[0].as_str())];
        let again = RawHttp::connect(gateway.http()).request("GET", disk, &old);
        assert_eq!(again.status, if seen.len() == 1 { 304 } else { 206 }, "{seen:?}");
        change(&gateway, "DELETE", "/v1/clones/again", &Value::Null);
    }
    assert_ne!(seen[0], seen[1]);
}

#[test]
fn a_datastore_that_never_answered_is_not_entered_and_its_name_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let config = |store: &str| {
        let home = dir.path().join("home").display().to_string();
        format!("home = \"file://{home}\"\n[[datastore]]\nname = \"fast\"\nretry_for = \"1s\"\n{store}")
    };
    let wrong = "url = \"s3://misspelt/x\"\nendpoint = \"http://127.0.0.1:1\"\naccess_key_id = \"k\"\nsecret_access_key = \"s\"\n";
    let list = |serve: &Serve| {
        let reply = RawHttp::connect(serve.http()).request("GET", "/v1/datastores", &[]);
        json_of(&reply)["items"].clone()
    };
    let mut serve = Serve::start(&dir.path().join("one"), &config(wrong), &[]);
    let listed = list(&serve);
    assert_eq!(
        (&listed[0]["name"], &listed[0]["health"]),
        (&json!("fast"), &json!("offline")),
        "it is shown: {listed}"
    );
    assert!(listed[0]["trouble"].as_str().unwrap().contains("no connection to the store"), "{listed}");
    assert!(!serve.output().contains('\u{1b}'), "no colours in a file: {}", serve.output());
    serve.kill();
    let right = format!("url = \"file://{}\"\n", dir.path().join("store").display());
    let mut serve = Serve::start(&dir.path().join("one"), &config(&right), &[]);
    assert_eq!(list(&serve)[0]["health"], "online", "the name took the right store");
    serve.kill();
    // Now the name means this store, to all gateways.
    let other = format!("url = \"file://{}\"\n", dir.path().join("other").display());
    let refused = std::panic::catch_unwind(|| Serve::start(&dir.path().join("one"), &config(&other), &[]));
    assert!(refused.is_err(), "another store under a name that is taken");
}

#[test]
fn the_console_asks_only_for_what_there_is() {
    let gateway = Gateway::up(&[]);
    let script = RawHttp::connect(gateway.http()).request("GET", "/console.js", &[]);
    let script = String::from_utf8(script.body).unwrap();
    let (mut lists, mut columns) = (0, 0);
    let mut items = Value::Null;
    for line in script.lines().skip_while(|line| !line.starts_with("const lists")).take_while(|line| *line != "];") {
        // A list begins with its title and its path; a column of one word shows the field of that name.
        if let Some(rest) = line.strip_prefix("  [\"") {
            let path = rest.split('"').nth(2).unwrap();
            let separator = if path.contains('?') { '&' } else { '?' };
            items = get(&gateway, &format!("/v1/{path}{separator}limit=100"))["items"].clone();
            assert!(items.is_array(), "/v1/{path} is no list");
            lists += 1;
        }
        for column in line.split("[\"").skip(1).filter_map(|rest| rest.split_once("\"]")).map(|(name, _)| name) {
            if let Some(item) = items.get(0).filter(|_| !column.contains('"')) {
                assert!(item.get(column).is_some(), "{column} is no field of {item}");
                columns += 1;
            }
        }
    }
    assert!(lists >= 8 && columns >= 12, "{lists} lists and {columns} columns were found");
    for path in ["cache", "alerts"] {
        get(&gateway, &format!("/v1/{path}"));
    }
}
