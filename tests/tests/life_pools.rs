//! Pools: names that do not collide, clones given to users and taken back, spares, updates of a pool alone.

use std::collections::HashSet;

use clonegate::exports::Detach;
use clonegate::lifecycle::views::{AssignmentView, ChangePool, CreatePool, LifetimeView, ListQuery, UpdateClones};
use clonegate_tests::lab::{Lab, check_clean, machine, machine_writes, order, read, until, version, write};

fn pool(name: &str, size: u32) -> CreatePool {
    CreatePool { name: name.to_owned(), template: "t".to_owned(), size, ..CreatePool::default() }
}

const ALL: ListQuery = ListQuery { limit: Some(10_000), cursor: None };

#[tokio::test(flavor = "multi_thread")]
async fn a_pattern_that_collides_is_refused_before_anything_is_made() {
    let lab = Lab::new(&["a"]);
    let gateway = lab.gateway(1).await;
    version(&gateway, "t", 1).await;
    gateway.create_clones(order("lab-007", "t", None), false).await.unwrap();
    let taken = gateway.create_pool(pool("lab", 10), false).await.unwrap_err();
    assert_eq!((taken.code(), taken.object()), ("pattern-collides", Some("lab")));
    gateway.create_pool(pool("desk", 5), false).await.unwrap();
    let same = CreatePool { pattern: Some("desk-{nn}".to_owned()), ..pool("other", 3) };
    assert_eq!(gateway.create_pool(same, false).await.unwrap_err().code(), "pattern-collides", "later it would");
    let hidden = CreatePool { pattern: Some("desk-00{n}".to_owned()), ..pool("other", 3) };
    assert_eq!(gateway.create_pool(hidden, false).await.unwrap_err().code(), "pattern-collides");
    let bad = CreatePool { pattern: Some("x{n}{n}".to_owned()), ..pool("other", 3) };
    assert_eq!(gateway.create_pool(bad, false).await.unwrap_err().code(), "bad-pattern");
    assert_eq!(gateway.create_pool(pool("big", 10_001), false).await.unwrap_err().code(), "bad-count");
    let plan = gateway.create_pool(pool("dry", 4), true).await.unwrap();
    assert_eq!((plan.dry_run, plan.clones), (true, 4));
    assert_eq!(gateway.list_pools(ALL).await.unwrap().items.len(), 1);
    assert_eq!(gateway.list_clones(ALL).await.unwrap().items.len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_two_users_get_one_clone_whichever_gateway_they_ask() {
    let lab = Lab::new(&["a"]);
    let (one, two) = (lab.gateway(1).await, lab.gateway(2).await);
    version(&one, "t", 1).await;
    one.create_pool(pool("lab", 24), false).await.unwrap();
    let asked = (0..24).map(|user| {
        let gateway = if user % 2 == 0 { &one } else { &two };
        async move { gateway.allocate("lab", format!("user-{user}")).await.unwrap().clone }
    });
    let got = futures::future::join_all(asked).await;
    assert_eq!(got.iter().collect::<HashSet<_>>().len(), 24);
    assert_eq!(two.allocate("lab", "user-3").await.unwrap().clone, got[3], "the same user, the same clone");
    assert_eq!(one.allocate("lab", "one-more").await.unwrap_err().code(), "pool-empty");
    assert_eq!(one.show_pool("lab").await.unwrap().free, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_floating_clone_goes_back_empty_and_a_dedicated_one_stays_with_its_user() {
    let lab = Lab::new(&["a"]);
    let gateway = lab.gateway(1).await;
    version(&gateway, "t", 1).await;
    gateway.create_pool(pool("float", 1), false).await.unwrap();
    let dedicated = CreatePool { assignment: AssignmentView::Dedicated, ..pool("own", 1) };
    gateway.create_pool(dedicated, false).await.unwrap();
    for (of, stays) in [("float", false), ("own", true)] {
        let got = gateway.allocate(of, "alice").await.unwrap().clone;
        let vm = machine(&gateway, &got, "10.0.0.1").await;
        machine_writes(&*vm, 0, b"hers").await;
        vm.detach(Detach::Clean);
        if stays {
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            assert_eq!(gateway.allocate(of, "bob").await.unwrap_err().code(), "pool-empty");
            assert_eq!(read(&gateway, &got, 0).await, b"hers");
        } else {
            until(&gateway, &got, |clone| clone.last_reset_ms.is_some()).await;
            for _ in 0..2400 {
                if gateway.show_pool(of).await.unwrap().free == 1 {
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(25)).await;
            }
            let next = gateway.allocate(of, "bob").await.unwrap();
            assert_eq!((next.clone.as_str(), next.again), (got.as_str(), false));
            assert_eq!(read(&gateway, &got, 0).await, [1; 4], "bob sees nothing of alice");
        }
    }
    let own = gateway.allocate("own", "alice").await.unwrap();
    assert!(own.again);
    gateway.release_clone("own", "alice", false).await.unwrap();
    assert_eq!(read(&gateway, &own.clone, 0).await, [1; 4], "released, nobody gets another's data");
    assert_eq!(gateway.allocate("own", "bob").await.unwrap().clone, own.clone);
    assert_eq!(gateway.release_clone("own", "carol", false).await.unwrap_err().code(), "not-allocated");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_grows_for_its_spares_scales_and_is_not_deleted_under_its_users() {
    let lab = Lab::new(&["a"]);
    let gateway = lab.gateway(1).await;
    version(&gateway, "t", 1).await;
    gateway.create_pool(CreatePool { max: Some(6), spares: 2, ..pool("lab", 3) }, false).await.unwrap();
    let mut got = HashSet::new();
    for user in ["a", "b", "c", "d"] {
        got.insert(gateway.allocate("lab", user).await.unwrap().clone);
    }
    assert_eq!(got.len(), 4, "it grew past its size");
    for _ in 0..2400 {
        if gateway.show_pool("lab").await.unwrap().free == 2 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
    let view = gateway.show_pool("lab").await.unwrap();
    assert_eq!((view.clones, view.assigned, view.free), (6, 4, 2), "and keeps spares, up to its maximum");

    assert_eq!(gateway.scale_pool("lab", 3_u32, false).await.unwrap_err().code(), "pool-in-use");
    assert_eq!(gateway.scale_pool("lab", 5_u32, true).await.unwrap().names.len(), 1);
    assert_eq!(gateway.show_pool("lab").await.unwrap().clones, 6);
    let grown = gateway.scale_pool("lab", 8_u32, false).await.unwrap();
    assert_eq!(grown.names, ["lab-007", "lab-008"]);
    assert_eq!(gateway.delete_pool("lab", false, false).await.unwrap_err().code(), "referenced");
    let busy = gateway.change_pool("lab", ChangePool { maintenance: Some(true), ..Default::default() }).await.unwrap();
    assert!(busy.maintenance);
    assert_eq!(gateway.allocate("lab", "new").await.unwrap_err().code(), "pool-maintenance");
    assert!(gateway.allocate("lab", "a").await.unwrap().again, "who has one keeps it");
    gateway.delete_pool("lab", true, false).await.unwrap();
    assert!(gateway.list_clones(ALL).await.unwrap().items.is_empty());
    assert_eq!(gateway.show_pool("lab").await.unwrap_err().code(), "unknown-pool");
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_and_updates_of_a_pool_reach_its_clones_and_no_others() {
    let lab = Lab::new(&["a", "b"]);
    let gateway = lab.gateway(1).await;
    version(&gateway, "t", 1).await;
    gateway.create_pool(pool("lab", 4), false).await.unwrap();
    gateway.create_clones(order("other", "t", None), false).await.unwrap();
    assert_eq!(gateway.show_clone("lab-001").await.unwrap().lifetime, LifetimeView::Ephemeral);
    let change = ChangePool { lifetime: Some(LifetimeView::Persistent), ..ChangePool::default() };
    gateway.change_pool("lab", change).await.unwrap();
    assert_eq!(gateway.show_clone("lab-004").await.unwrap().lifetime, LifetimeView::Persistent);
    write(&gateway, "other", 0, b"mine").await;
    version(&gateway, "t", 2).await;
    assert_eq!(gateway.show_pool("lab").await.unwrap().outdated, 4);
    let request = UpdateClones { template: "t".to_owned(), pool: Some("lab".to_owned()), ..UpdateClones::default() };
    assert_eq!(gateway.update_clones(request, false).await.unwrap().updated.len(), 4);
    assert_eq!(gateway.show_pool("lab").await.unwrap().outdated, 0);
    assert_eq!(read(&gateway, "other", 0).await, b"mine");
    check_clean(&gateway).await;
}
