//! Which datastores take clones, why others do not, and what a copy of a base costs.

use std::sync::Arc;

use clonegate::lifecycle::Gateway;
use clonegate::lifecycle::views::{AddDatastore, CapacityQuery, CreateClones, ListQuery};
use clonegate_tests::lab::{Lab, SIZE, below, check_clean, order, read, version, write};

const ALL: ListQuery = ListQuery { limit: Some(10_000), cursor: None };

async fn add(gateway: &Gateway, lab: &Lab, name: &str, change: impl FnOnce(AddDatastore) -> AddDatastore) {
    let url = format!("file://{}/{name}", lab.path().display());
    std::fs::create_dir_all(below(lab, name)).unwrap();
    let request = AddDatastore { name: name.to_owned(), url, ..AddDatastore::default() };
    gateway.add_datastore(change(request)).await.unwrap();
}

/// The refusal of one more clone: its code and what it says.
async fn refused(gateway: &Gateway, name: &str) -> (String, String) {
    let error = gateway.create_clones(order(name, "t", None), false).await.unwrap_err();
    (error.code().to_owned(), error.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_datastore_that_takes_no_clones_says_why() {
    let lab = Lab::new(&[]);
    let gateway = lab.gateway(1).await;
    add(&gateway, &lab, "thick", |d| AddDatastore { thin: Some(false), ..d }).await;
    version(&gateway, "t", 1).await;
    let (code, text) = refused(&gateway, "c").await;
    assert!(code == "no-place" && text.contains("thick") && text.contains("not thin"), "{code}: {text}");

    add(&gateway, &lab, "fast", |d| d).await;
    gateway.create_clones(order("c", "t", Some(2)), false).await.unwrap();
    write(&gateway, "c-001", 0, b"mine").await;
    gateway.set_maintenance("fast", true).await.unwrap();
    let (code, text) = refused(&gateway, "d").await;
    assert!(code == "no-place" && text.contains("fast is in maintenance"), "{code}: {text}");
    assert_eq!(read(&gateway, "c-001", 0).await, b"mine", "those that are there go on");
    write(&gateway, "c-002", 0, b"more").await;
    gateway.reset_clone("c-001", false).await.unwrap();
    gateway.set_maintenance("fast", false).await.unwrap();
    gateway.create_clones(order("d", "t", None), false).await.unwrap();

    let query = CapacityQuery { template: "t".to_owned(), clones: 10, ..CapacityQuery::default() };
    let view = gateway.capacity(query).await.unwrap();
    let thick = view.limits.iter().find(|limit| limit.datastore == "thick").unwrap();
    assert!(thick.clones == 0 && thick.binds.contains("not thin"), "{thick:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn overcommit_and_reserve_are_kept_and_capacity_names_the_limit_that_binds() {
    let lab = Lab::new(&[]);
    let gateway = lab.gateway(1).await;
    let capacity = Some(8 * SIZE);
    add(&gateway, &lab, "a", |d| AddDatastore { capacity, overcommit_percent: 150, ..d }).await;
    version(&gateway, "t", 1).await;
    let small = |name: &str, count| CreateClones { expected_delta: Some(4096), ..order(name, "t", Some(count)) };
    let query = CapacityQuery { template: "t".to_owned(), clones: 40, average: Some(4096), staged_update: false };
    let before = gateway.capacity(query.clone()).await.unwrap();
    assert!(before.binds.contains("on a binds first"), "{}", before.binds);
    gateway.create_clones(small("c", 12), false).await.unwrap();
    let error = gateway.create_clones(small("d", 1), false).await.unwrap_err();
    assert!(error.code() == "no-place" && error.to_string().contains("overcommit"), "{error}");
    assert_eq!(gateway.list_clones(ALL).await.unwrap().items.len(), 12);
    let after = gateway.capacity(query).await.unwrap();
    assert_eq!((after.limits[0].clones, after.limits[0].binds.as_str()), (0, "its overcommit"));

    add(&gateway, &lab, "b", |d| AddDatastore { capacity, reserve: 8 * SIZE, ..d }).await;
    let error = gateway.create_clones(small("d", 1), false).await.unwrap_err();
    assert_eq!(error.code(), "no-place", "all of it is kept free for deltas that are there: {error}");

    let rules = clonegate::lifecycle::views::ResetRulesView { every_seconds: None, at_bytes: Some(10_000) };
    gateway.set_lifetime("c-003", None, Some(rules)).await.unwrap();
    write(&gateway, "c-003", 0, &[3; 8192]).await;
    let said = |alerts: Vec<clonegate::lifecycle::views::AlertView>| {
        alerts.into_iter().find(|alert| alert.name == "c-003").map(|alert| alert.level)
    };
    assert_eq!(said(gateway.alerts().await.unwrap()).as_deref(), Some("warning"), "81 % of what its rule permits");
    write(&gateway, "c-003", 8192, &[3; 8192]).await;
    assert_eq!(said(gateway.alerts().await.unwrap()).as_deref(), Some("critical"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_on_another_datastore_costs_each_pack_once_however_many_ask() {
    let lab = Lab::new(&["a"]);
    let gateways = [lab.gateway(1).await, lab.gateway(2).await];
    let all: Vec<u8> = (0..SIZE).map(|at| (at / 4096) as u8 | 1).collect();
    let request = clonegate::lifecycle::views::ImportTemplate { name: "t".to_owned(), ..Default::default() };
    clonegate_tests::lab::import(&gateways[0], request, all).await.unwrap();
    add(&gateways[0], &lab, "b", |d| d).await;
    gateways[0].set_maintenance("a", true).await.unwrap();
    for gateway in &gateways {
        gateway.probe_datastore("b").await.unwrap();
        gateway.set_maintenance("a", true).await.unwrap();
    }
    let orders = (0..8).map(|n| {
        let gateway = Arc::clone(&gateways[n % 2]);
        tokio::spawn(async move { gateway.create_clones(order(&format!("c{n}"), "t", Some(4)), false).await })
    });
    for made in futures::future::join_all(orders).await {
        let made = made.unwrap().unwrap();
        assert!(made.clones.iter().all(|clone| clone.datastore == "b"), "base and delta are together");
    }
    let packs = |name: &str| {
        let mut names: Vec<_> =
            std::fs::read_dir(below(&lab, name).join("packs")).unwrap().flatten().map(|e| e.file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(packs("a"), packs("b"), "the same packs under the same names, each once");
    assert_eq!(read(&gateways[1], "c7-001", 4096 * 6).await, [7; 4]);
    check_clean(&gateways[0]).await;
}
