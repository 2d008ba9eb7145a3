//! The audit log and the events: who did what, what came of it, and why policy decided.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use clonegate::exports::Detach;
use clonegate::lifecycle::views::{CreateClones, LifetimeView, ListAudit, ListQuery, RolloutAction, UpdateClones};
use clonegate_tests::gateway::Gateway;
use clonegate_tests::lab::{self, Lab};
use clonegate_tests::raw_http::RawHttp;
use serde_json::Value;

fn run(gateway: &Gateway, arguments: &[&str]) -> Value {
    let arguments: Vec<&str> = arguments.iter().copied().chain(["--output", "json"]).collect();
    serde_json::from_str(&gateway.cli_ok(&arguments)).unwrap()
}

fn get(gateway: &Gateway, path: &str) -> Value {
    let reply = RawHttp::connect(gateway.http()).request("GET", path, &[]);
    assert_eq!(reply.status, 200, "{path}: {}", String::from_utf8_lossy(&reply.body));
    serde_json::from_slice(&reply.body).unwrap()
}

#[test]
fn every_change_is_in_the_audit_log_with_who_what_and_why() {
    let mut gateway = Gateway::up(&["--clones", "1", "--template", "demo"]);
    gateway.cli_ok(&["clone", "create", "a", "--template", "demo", "--lifetime", "ephemeral"]);
    gateway.cli_ok(&["clone", "create", "b", "--template", "demo"]);
    gateway.cli_ok(&["clone", "reset", "b"]);
    gateway.cli_ok(&["clone", "reset", "b", "--dry-run"]);
    gateway.cli_ok(&["clone", "power", "off", "a"]);
    assert_eq!(gateway.cli(&["template", "delete", "demo"]).status.code(), Some(4));
    assert_eq!(gateway.cli(&["clone", "reset", "nobody"]).status.code(), Some(3));
    gateway.kill();
    gateway.start();
    let all = run(&gateway, &["audit", "list"]);
    let all = all.as_array().unwrap();
    let find = |action: &str, object: &str| {
        let found: Vec<&Value> =
            all.iter().filter(|entry| entry["action"] == action && entry["object"] == object).collect();
        assert_eq!(found.len(), 1, "{action} {object}: {all:#?}");
        found[0]
    };
    let reset = find("clone reset", "b");
    assert_eq!((reset["by"].as_str(), reset["outcome"].as_str()), (Some("127.0.0.1"), Some("ok")));
    let reset = find("clone reset", "a");
    assert!(!reset["reason"].as_str().unwrap().is_empty() && !reset["policy"].as_str().unwrap().is_empty(), "{reset}");
    let create = find("clone create", "b");
    assert_eq!((create["by"].as_str(), create["policy"].as_str()), (Some("127.0.0.1"), Some("default")), "{create}");
    assert!(create["reason"].as_str().unwrap().contains("1 on "), "why it is where it is: {create}");
    assert_eq!(find("clone reset", "nobody")["outcome"], "unknown-clone");
    assert_eq!(find("template delete", "demo")["outcome"], "referenced");
    assert!(find("clone power", "a")["reason"].as_str().unwrap().contains("reset"));
    let times: Vec<u64> = all.iter().map(|entry| entry["at_ms"].as_u64().unwrap()).collect();
    assert!(times.is_sorted_by(|a, b| a >= b), "the newest first: {times:?}");
    let of_b = run(&gateway, &["audit", "list", "--object", "b"]);
    assert!(of_b.as_array().unwrap().iter().all(|entry| entry["object"] == "b"));
    // Page by page it is the same list.
    let mut paged = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = get(&gateway, &format!("/v1/audit?limit=2{cursor}"));
        paged.extend(page["items"].as_array().unwrap().clone());
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(&paged, all);
    let refused = RawHttp::connect(gateway.http()).request("GET", "/v1/audit?cursor=nonsense", &[]);
    assert_eq!((refused.status, refused.code().as_str()), (400, "bad-cursor"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_after_the_last_good_bye_of_a_machine_is_in_the_log_with_the_reason_of_the_policy() {
    let lab = Lab::new(&["local"]);
    let gateway = lab.gateway(1).await;
    lab::version(&gateway, "t", 1).await;
    let ephemeral = CreateClones { lifetime: Some(LifetimeView::Ephemeral), ..lab::order("a", "t", None) };
    gateway.create_clones(ephemeral, false).await.unwrap();
    let machine = lab::machine(&gateway, "a", "10.0.0.1").await;
    lab::machine_writes(&*machine, 0, b"gone").await;
    machine.detach(Detach::Clean);
    let resets =
        || ListAudit { action: Some("clone reset".to_owned()), object: Some("a".to_owned()), ..ListAudit::default() };
    for _ in 0..600 {
        if let Some(reset) = gateway.list_audit(resets()).await.unwrap().items.first() {
            assert_eq!((reset.by.as_str(), reset.outcome.as_str()), ("nbd", "ok"), "{reset:?}");
            assert!(reset.policy.is_some() && reset.reason.is_some(), "{reset:?}");
            assert_eq!(lab::read(&gateway, "a", 0).await, [1; 4]);
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("no reset was noted: {:?}", gateway.list_audit(ListAudit::default()).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_clone_of_an_update_is_in_the_log_with_why_it_moved() {
    let lab = Lab::new(&["local"]);
    let gateway = lab.gateway(1).await;
    lab::version(&gateway, "t", 1).await;
    gateway.create_clones(lab::order("c", "t", None), false).await.unwrap();
    lab::version(&gateway, "t", 2).await;
    let update = UpdateClones { template: "t".to_owned(), ..UpdateClones::default() };
    gateway.update_clones(update.clone(), false).await.unwrap();
    gateway.steer_update("t", RolloutAction::Rollback).await.unwrap();
    gateway.update_clones(update, false).await.unwrap();
    gateway.undo_clone("c", false).await.unwrap();
    let moves = ListAudit { action: Some("clone update".to_owned()), ..ListAudit::default() };
    let moves = gateway.list_audit(moves).await.unwrap().items;
    let why: Vec<&str> = moves.iter().rev().filter_map(|entry| entry.reason.as_deref()).collect();
    assert_eq!(
        why,
        [
            "to version 2 of t: update",
            "to version 1 of t: the update was rolled back, with what it held",
            "to version 2 of t: update",
            "to version 1 of t: taken back, with what it held",
        ]
    );
    let steered =
        ListAudit { object: Some("t".to_owned()), action: Some("update rollback".to_owned()), ..ListAudit::default() };
    assert_eq!(gateway.list_audit(steered).await.unwrap().items.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_many_do_at_once_is_noted_completely_and_in_few_objects() {
    let lab = Lab::new(&["local"]);
    let gateway = lab.gateway(1).await;
    lab::version(&gateway, "t", 1).await;
    gateway.create_clones(lab::order("c", "t", Some(64)), false).await.unwrap();
    let resets = (1..=64).map(|n| {
        let gateway = std::sync::Arc::clone(&gateway);
        tokio::spawn(async move { gateway.reset_clone(format!("c-{n:03}"), false).await })
    });
    for reset in futures::future::join_all(resets).await {
        reset.unwrap().unwrap();
    }
    let list = ListQuery { limit: Some(1000), cursor: None };
    let list = ListAudit { list, action: Some("clone reset".to_owned()), ..ListAudit::default() };
    let all = gateway.list_audit(list).await.unwrap().items;
    let mut objects: Vec<&str> = all.iter().map(|entry| entry.object.as_str()).collect();
    objects.sort_unstable();
    objects.dedup();
    assert_eq!((all.len(), objects.len()), (64, 64));
    let mut ids: Vec<&str> = all.iter().map(|entry| entry.id.as_str()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 64, "each has a place of its own");
}

/// One event of the stream: its id, its kind, its data.
type Heard = (String, String, Value);

/// The stream, and what came of it and was not looked at yet.
struct Listener(BufReader<TcpStream>, String);

impl Listener {
    fn connect(gateway: &Gateway, last: Option<&str>) -> Self {
        let mut stream = TcpStream::connect(gateway.http()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let last = last.map(|id| format!("Last-Event-ID: {id}\r\n")).unwrap_or_default();
        write!(stream, "GET /v1/events HTTP/1.1\r\nHost: a\r\n{last}\r\n").unwrap();
        let mut listener = Self(BufReader::new(stream), String::new());
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(listener.0.read_line(&mut head).unwrap() > 0, "{head}");
        }
        assert!(head.starts_with("HTTP/1.1 200") && head.contains("text/event-stream"), "{head}");
        listener
    }

    /// The bytes of the next chunk of the answer.
    fn chunk(&mut self) -> String {
        let mut length = String::new();
        self.0.read_line(&mut length).unwrap();
        let length = usize::from_str_radix(length.trim(), 16).unwrap();
        let mut bytes = vec![0; length + 2];
        self.0.read_exact(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }

    /// The next event of this kind.
    fn next(&mut self, kind: &str) -> Heard {
        loop {
            while let Some((event, rest)) = self.1.split_once("\n\n") {
                let field =
                    |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().to_owned();
                let heard = (field("id: "), field("event: "), field("data: "));
                self.1 = rest.to_owned();
                if heard.1 == kind {
                    return (heard.0, heard.1, serde_json::from_str(&heard.2).unwrap());
                }
            }
            let more = self.chunk();
            self.1.push_str(&more);
        }
    }
}

#[test]
fn what_happens_is_told_to_those_who_listen_and_a_listener_that_comes_back_misses_nothing() {
    let mut gateway = Gateway::up(&["--clones", "0", "--template", "demo"]);
    let mut listener = Listener::connect(&gateway, None);
    gateway.cli_ok(&["clone", "create", "a", "--template", "demo"]);
    let (id, _, created) = listener.next("clone-created");
    assert_eq!(created["object"], "a");
    drop(listener);
    gateway.cli_ok(&["clone", "reset", "a"]);
    gateway.cli_ok(&["clone", "promote", "a"]);
    gateway.cli_ok(&["clone", "delete", "a"]);
    let mut listener = Listener::connect(&gateway, Some(&id));
    assert_eq!(listener.next("clone-reset").2["object"], "a");
    let (_, _, job) = listener.next("job");
    assert_eq!((job["object"].as_str(), job["what"]["kind"].as_str()), (Some("a"), Some("promote")));
    assert_eq!(listener.next("clone-promoted").2["object"], "a");
    assert_eq!(listener.next("clone-deleted").2["object"], "a");
    // A stop does not wait for those who listen, and numbers begin anew afterwards: that is told.
    assert!(gateway.interrupt().success());
    gateway.start();
    let mut listener = Listener::connect(&gateway, Some(&id));
    listener.next("missed");
}
