//! `dry_run`: what a change would touch, refused as the change would be, and nothing done.

use clonegate::lifecycle::Gateway;
use clonegate::lifecycle::views::{
    AddDatastore, ChangePool, CreateDisk, CreatePool, ImportTemplate, LifetimeView, ListQuery, PowerEvent,
    ReferenceTemplate, ResetRulesView, RolloutAction, ToTemplate, Touched, UpdateClones, Would,
};
use clonegate_tests::gateway::Gateway as Program;
use clonegate_tests::lab::{Lab, check_clean, image, import, order, version, write};
use clonegate_tests::raw_http::RawHttp;

const ALL: ListQuery = ListQuery { limit: Some(1000), cursor: None };

/// All that a change could have changed.
async fn state(gateway: &Gateway) -> serde_json::Value {
    serde_json::json!({
        "templates": gateway.list_templates(ALL).await.unwrap(),
        "clones": gateway.list_clones(ALL).await.unwrap(),
        "snapshots": gateway.list_snapshots("c-001").await.unwrap(),
        "pools": gateway.list_pools(ALL).await.unwrap(),
        "disks": gateway.list_disks(ALL).await.unwrap(),
        "datastores": gateway.list_datastores(ALL).await.unwrap().items.iter().map(|d| (&d.name, &d.health)).collect::<Vec<_>>(),
        "update": gateway.show_update("t").await.unwrap(),
    })
}

async fn lab() -> (Lab, std::sync::Arc<Gateway>) {
    let lab = Lab::new(&["a"]);
    let gateway = lab.gateway(1).await;
    version(&gateway, "t", 1).await;
    gateway.create_clones(order("c", "t", Some(4)), false).await.unwrap();
    write(&gateway, "c-001", 8192, b"mine").await;
    gateway.snapshot_clone("c-001", "kept").await.unwrap();
    version(&gateway, "t", 2).await;
    let draft = ImportTemplate { name: "t".to_owned(), draft: true, ..ImportTemplate::default() };
    import(&gateway, draft, image(3)).await.unwrap();
    let pool =
        CreatePool { name: "p".to_owned(), template: "t".to_owned(), size: 2, max: Some(4), ..CreatePool::default() };
    gateway.create_pool(pool, false).await.unwrap();
    let disk = CreateDisk { name: "d".to_owned(), size: 1 << 20, ..CreateDisk::default() };
    gateway.create_disk(disk, false).await.unwrap();
    let canary = UpdateClones {
        template: "t".to_owned(),
        canary: Some(1),
        clones: vec!["c-002".into(), "c-003".into()],
        ..UpdateClones::default()
    };
    assert_eq!(gateway.update_clones(canary, false).await.unwrap().state, "awaits-promotion");
    (lab, gateway)
}

fn said(touched: &Touched, word: &str) -> bool {
    touched.dry_run && touched.notes.iter().any(|note| note.contains(word))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_says_what_would_happen_and_changes_nothing() {
    let (lab, gateway) = lab().await;
    let before = state(&gateway).await;
    let clone = || "c-001".to_owned();
    let template = || "t".to_owned();
    let url = format!("file://{}/new", lab.path().display());
    for (change, word) in [
        (Would::AddDatastore(AddDatastore { name: "b".into(), url, ..AddDatastore::default() }), "probed"),
        (Would::Maintenance { datastore: "a".into(), on: true }, "takes no new clones; the 6"),
        (Would::Import(ImportTemplate { name: template(), ..ImportTemplate::default() }), "version 4, not published"),
        (Would::Publish { template: template(), version: Some(1) }, "instead of version 2"),
        (Would::RollBack { template: template() }, "instead of version 2"),
        (Would::Snapshot { clone: clone(), snapshot: "new".into() }, "is kept"),
        (Would::DropSnapshot { clone: clone(), snapshot: "kept".into() }, "cannot be had back"),
        (
            Would::ToTemplate { clone: clone(), request: ToTemplate { template: template(), ..ToTemplate::default() } },
            "version 4",
        ),
        (Would::Power { clone: clone(), event: PowerEvent::Off }, "it is kept"),
        (Would::Power { clone: "p-001".into(), event: PowerEvent::Logoff }, "it is reset"),
        (Would::Hold { clone: clone(), why: None }, "it is not held"),
        (
            Would::Lifetime {
                clone: clone(),
                lifetime: Some(LifetimeView::Persistent.into()),
                rules: Some(ResetRulesView { every_seconds: None, at_bytes: Some(4) }),
            },
            "it is reset once its machine is off",
        ),
        (
            Would::ChangePool {
                pool: "p".into(),
                change: ChangePool { spares: Some(4), max: Some(8), ..ChangePool::default() },
            },
            "2 clones are made",
        ),
        (Would::Allocate { pool: "p".into(), user: "anna".into() }, "one of 2 free"),
        (Would::Steer { template: template(), action: RolloutAction::Promote }, "running"),
        (Would::Steer { template: template(), action: RolloutAction::Rollback }, "get back what they held"),
    ] {
        let touched = gateway.would(change.clone()).await.unwrap_or_else(|error| panic!("{change:?}: {error}"));
        assert!(said(&touched, word), "{change:?}: {touched:?}");
    }
    let sealed = gateway.would(Would::Seal { template: template(), version: None, force: false }).await.unwrap();
    assert_eq!(sealed.names, ["t:3"]);
    let back = gateway.would(Would::Steer { template: template(), action: RolloutAction::Rollback }).await.unwrap();
    assert_eq!(back.names, ["c-002"], "the one that was moved");
    let again = UpdateClones { template: template(), ..UpdateClones::default() };
    let second = gateway.update_clones(again, true).await.unwrap();
    assert!(second.notes.iter().any(|note| note.contains("would be refused")), "two at once: {second:?}");
    assert_eq!(state(&gateway).await, before);
    check_clean(&gateway).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_is_refused_as_the_change_would_be() {
    let (_lab, gateway) = lab().await;
    gateway.change_pool("p", ChangePool { maintenance: Some(true), ..ChangePool::default() }).await.unwrap();
    let before = state(&gateway).await;
    let small = ResetRulesView { every_seconds: Some(0), at_bytes: None };
    for (change, code) in [
        (
            Would::AddDatastore(AddDatastore { name: "a".into(), url: "file:///x".into(), ..AddDatastore::default() }),
            "name-taken",
        ),
        (
            Would::AddDatastore(AddDatastore { name: "b".into(), url: "x".into(), ..AddDatastore::default() }),
            "bad-store-url",
        ),
        (Would::Maintenance { datastore: "nowhere".into(), on: true }, "unknown-datastore"),
        (
            Would::Reference(ReferenceTemplate {
                name: "r".into(),
                datastore: None,
                description: None,
                publish: None,
                slots: None,
                draft: false,
                force: false,
                url: "file:///etc/passwd".into(),
            }),
            "source-not-permitted",
        ),
        (Would::Publish { template: "t".into(), version: Some(3) }, "not-sealed"),
        (Would::Publish { template: "t".into(), version: Some(9) }, "unknown-version-of-template"),
        (Would::Seal { template: "p".into(), version: None, force: false }, "unknown-template"),
        (Would::Snapshot { clone: "c-001".into(), snapshot: "kept".into() }, "name-taken"),
        (Would::DropSnapshot { clone: "c-001".into(), snapshot: "none".into() }, "unknown-snapshot"),
        (Would::Power { clone: "nobody".into(), event: PowerEvent::On }, "unknown-clone"),
        (Would::Hold { clone: "c-001".into(), why: Some("x".repeat(600)) }, "bad-text"),
        (Would::Lifetime { clone: "c-001".into(), lifetime: None, rules: Some(small) }, "bad-rule"),
        (
            Would::ChangePool { pool: "p".into(), change: ChangePool { spares: Some(99), ..ChangePool::default() } },
            "bad-count",
        ),
        (Would::Allocate { pool: "p".into(), user: "anna".into() }, "pool-maintenance"),
        (Would::Steer { template: "t".into(), action: RolloutAction::Resume }, "update-state"),
        (Would::Steer { template: "u".into(), action: RolloutAction::Pause }, "no-update"),
    ] {
        let refused = match gateway.would(change.clone()).await {
            Ok(touched) => panic!("{change:?}: {touched:?}"),
            Err(refused) => refused,
        };
        assert_eq!(refused.code(), code, "{change:?}: {refused}");
    }
    assert_eq!(state(&gateway).await, before);
}

#[test]
fn dry_run_where_it_means_nothing_is_refused_and_the_command_line_tries_what_it_would_do() {
    let program = Program::up(&["--clones", "1", "--template", "demo"]);
    let refused = RawHttp::connect(program.http()).request("POST", "/v1/datastores/local/probe?dry_run=true", &[]);
    assert_eq!((refused.status, refused.code().as_str()), (400, "no-dry-run"));
    for (words, said) in [
        (vec!["clone", "snapshot", "demo-001", "s", "--dry-run"], "demo-001@s: would be made"),
        (vec!["clone", "power", "off", "demo-001", "--dry-run"], "would be told"),
        (vec!["clone", "hold", "demo-001", "--reason", "x", "--dry-run"], "would be held"),
        (vec!["template", "publish", "demo", "--dry-run"], "demo:1: would be published"),
        (vec!["datastore", "maintenance", "local", "on", "--dry-run"], "would be changed"),
        (vec!["clone", "to-template", "demo-001", "demo", "--dry-run"], "version 2"),
    ] {
        let text = program.cli_ok(&words);
        assert!(text.contains(said), "{words:?}: {text}");
    }
    let shown: serde_json::Value =
        serde_json::from_str(&program.cli_ok(&["clone", "show", "demo-001", "--output", "json"])).unwrap();
    assert_eq!((&shown["hold"], shown["may_run"].is_null()), (&serde_json::Value::Null, true), "{shown}");
    assert_eq!(program.cli_ok(&["clone", "snapshots", "demo-001", "--output", "json"]).trim(), "[]");
    let log = program.cli_ok(&["audit", "list", "--output", "json"]);
    assert!(!log.contains("snapshot"), "what was only tried is not in the log: {log}");
}
