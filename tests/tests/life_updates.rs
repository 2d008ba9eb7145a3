//! Updates of many clones: first ones, waves, roll back, undo; and what lost connections and restarts never do.

use std::time::Duration;

use clonegate::exports::Detach;
use clonegate::lifecycle::Gateway;
use clonegate::lifecycle::views::{
    CreateClones, CreatePool, DurabilityView, LifetimeView, ListAudit, PowerEvent, ResetRulesView, RolloutAction,
    UpdateClones, UpdatedClones,
};
use clonegate_core::units::ByteRange;
use clonegate_tests::faults::Faults;
use clonegate_tests::lab::{
    Lab, check_clean, image, import, machine, machine_writes, order, read, until, version, write,
};
use clonegate_tests::rehearsal::Stores;
use clonegate_tests::sim::runtime;

fn update() -> UpdateClones {
    UpdateClones { template: "t".to_owned(), ..UpdateClones::default() }
}

async fn steer(gateway: &Gateway, action: RolloutAction) -> UpdatedClones {
    gateway.steer_update("t", action).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_clones_wait_for_promotion_and_a_roll_back_gives_all_their_bytes_back() {
    let lab = Lab::new(&["a", "b"]);
    let gateway = lab.gateway(1).await;
    version(&gateway, "t", 1).await;
    gateway.create_clones(order("c", "t", Some(6)), false).await.unwrap();
    for clone in ["c-001", "c-004"] {
        write(&gateway, clone, 8192, b"mine").await;
    }
    version(&gateway, "t", 2).await;

    let plan = gateway.update_clones(UpdateClones { canary: Some(2), ..update() }, true).await.unwrap();
    assert_eq!((plan.state.as_str(), plan.total, plan.updated.len()), ("planned", 6, 6));
    assert!(plan.delta_bytes >= 8 && plan.notes.iter().any(|n| n.contains("clone undo")), "{plan:?}");
    assert_eq!(gateway.show_update("t").await.unwrap_err().code(), "no-update", "a dry run leaves nothing");

    let canary = UpdateClones { canary: Some(2), max_unavailable: Some(3), ..update() };
    let first = gateway.update_clones(canary, false).await.unwrap();
    assert_eq!(
        (first.state.as_str(), &first.updated[..]),
        ("awaits-promotion", &["c-001", "c-002"].map(String::from)[..])
    );
    assert_eq!(read(&gateway, "c-001", 0).await, [2; 4]);
    assert_eq!(read(&gateway, "c-003", 0).await, [1; 4], "the others wait");
    let second = gateway.update_clones(update(), false).await.unwrap_err();
    assert_eq!((second.code(), second.object()), ("update-running", Some("t")), "two at once are refused");

    let all = steer(&gateway, RolloutAction::Promote).await;
    assert_eq!((all.state.as_str(), all.updated.len()), ("done", 6));
    write(&gateway, "c-004", 0, b"new.").await;
    let back = steer(&gateway, RolloutAction::Rollback).await;
    assert_eq!((back.state.as_str(), back.updated.len(), back.failed), ("rolled-back", 6, None));
    for clone in ["c-001", "c-004"] {
        assert_eq!(read(&gateway, clone, 8192).await, b"mine", "{clone} has back what it held");
        assert_eq!(read(&gateway, clone, 0).await, [1; 4]);
        assert_eq!(gateway.show_clone(clone).await.unwrap().version, 1);
    }
    check_clean(&gateway).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_failure_stops_it_and_it_goes_on_when_that_is_mended() {
    let lab = Lab::new(&["a"]);
    let gateway = lab.gateway(1).await;
    version(&gateway, "t", 1).await;
    gateway.create_clones(order("c", "t", Some(5)), false).await.unwrap();
    write(&gateway, "c-003", 0, b"keep").await;
    gateway.snapshot_clone("c-003", "before").await.unwrap();
    version(&gateway, "t", 2).await;
    let stopped = gateway.update_clones(UpdateClones { max_unavailable: Some(1), ..update() }, false).await.unwrap();
    assert_eq!((stopped.state.as_str(), stopped.updated.len()), ("stopped", 2));
    assert!(
        stopped.failed.as_ref().is_some_and(|why| why.contains("c-003") && why.contains("snapshots")),
        "{stopped:?}"
    );
    assert_eq!(read(&gateway, "c-003", 0).await, b"keep");
    gateway.drop_snapshot("c-003", "before").await.unwrap();
    let done = steer(&gateway, RolloutAction::Resume).await;
    assert_eq!((done.state.as_str(), done.updated.len(), done.failed), ("done", 5, None));
    check_clean(&gateway).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_larger_image_makes_the_disks_larger_and_undo_brings_the_old_bytes_back() {
    let lab = Lab::new(&["a"]);
    let gateway = lab.gateway(1).await;
    version(&gateway, "t", 1).await;
    gateway.create_clones(order("c", "t", None), false).await.unwrap();
    write(&gateway, "c", 4096, b"mine").await;
    let mut larger = image(2);
    larger.resize(2 << 20, 7);
    let request =
        clonegate::lifecycle::views::ImportTemplate { name: "t".to_owned(), publish: Some(true), ..Default::default() };
    import(&gateway, request, larger).await.unwrap();
    gateway.update_clones(update(), false).await.unwrap();
    assert_eq!(gateway.show_clone("c").await.unwrap().size, 2 << 20);
    assert_eq!(read(&gateway, "c", (2 << 20) - 4).await, [7; 4]);
    let plan = gateway.undo_clone("c", true).await.unwrap();
    assert!(plan.dry_run);
    gateway.undo_clone("c", false).await.unwrap();
    let back = gateway.show_clone("c").await.unwrap();
    assert_eq!((back.version, read(&gateway, "c", 4096).await), (1, b"mine".to_vec()));
    assert_eq!(gateway.update_clones(update(), false).await.unwrap().updated, ["c"], "it can move again");
    check_clean(&gateway).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_a_lost_connection_nor_a_restart_discards_a_byte_by_itself() {
    let lab = Lab::new(&["a"]);
    let gateway = lab.gateway(1).await;
    version(&gateway, "t", 1).await;
    let rules = ResetRulesView { every_seconds: Some(1), at_bytes: Some(1) };
    let request = CreateClones { lifetime: Some(LifetimeView::Ephemeral), reset: rules, ..order("c", "t", Some(2)) };
    gateway.create_clones(request, false).await.unwrap();
    // The connection of one is lost; the other is attached when the gateway is stopped.
    let lost = machine(&gateway, "c-001", "10.0.0.1").await;
    let attached = machine(&gateway, "c-002", "10.0.0.2").await;
    for vm in [&lost, &attached] {
        machine_writes(&**vm, 0, b"mine").await;
    }
    lost.detach(Detach::Lost);
    version(&gateway, "t", 2).await;
    let later = gateway.update_clones(update(), false).await.unwrap();
    assert_eq!((later.updated.len(), later.later.len()), (0, 2), "neither was seen to be off: {later:?}");
    gateway.stop().await;
    drop((attached, gateway));

    let gateway = lab.gateway(1).await;
    for clone in ["c-001", "c-002"] {
        let view = gateway.show_clone(clone).await.unwrap();
        assert!(view.may_run.is_some(), "{view:?}");
        let vm = machine(&gateway, clone, "10.0.0.1").await;
        let bytes = vm.device().read(ByteRange::new(0, 4)).await.unwrap().concat();
        assert_eq!(bytes, b"mine", "{clone} comes back to its own bytes");
        machine_writes(&*vm, 512, b"more").await;
        // Now it is switched off: what waited is done.
        vm.detach(Detach::Clean);
        until(&gateway, clone, |view| view.version == 2).await;
        assert_eq!(read(&gateway, clone, 0).await, [2; 4]);
    }
    check_clean(&gateway).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_roll_back_brings_nothing_back_that_was_dropped_since_the_update() {
    let lab = Lab::new(&["a"]);
    let gateway = lab.gateway(1).await;
    version(&gateway, "t", 1).await;
    gateway.create_clones(order("c", "t", Some(2)), false).await.unwrap();
    version(&gateway, "t", 2).await;
    assert_eq!(gateway.update_clones(update(), false).await.unwrap().updated.len(), 2);
    for clone in ["c-001", "c-002"] {
        write(&gateway, clone, 8192, b"hers").await;
        gateway.reset_clone(clone, false).await.unwrap();
    }
    // One goes back at once, the other when its machine is off.
    let vm = machine(&gateway, "c-002", "10.0.0.1").await;
    machine_writes(&*vm, 0, b"late").await;
    assert_eq!(steer(&gateway, RolloutAction::Rollback).await.state, "rolled-back");
    vm.detach(Detach::Clean);
    for clone in ["c-001", "c-002"] {
        until(&gateway, clone, |view| (view.version, view.pending_version) == (1, None)).await;
        assert_eq!((read(&gateway, clone, 0).await, read(&gateway, clone, 8192).await), (vec![1; 4], vec![0; 4]));
    }
    check_clean(&gateway).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_waits_for_versions_of_its_own_template_only() {
    let lab = Lab::new(&["a"]);
    let gateway = lab.gateway(1).await;
    for template in ["t", "u"] {
        version(&gateway, template, 1).await;
        version(&gateway, template, 2).await;
    }
    let first = CreateClones { version: Some(1), ..order("c", "u", None) };
    gateway.create_clones(first, false).await.unwrap();
    let attached = machine(&gateway, "c", "10.0.0.1").await;
    let to = UpdateClones { clones: vec!["c".to_owned()], ..update() };
    let stopped = gateway.update_clones(to, false).await.unwrap();
    assert!(stopped.failed.as_ref().is_some_and(|why| why.contains("it is of u")), "{stopped:?}");
    assert_eq!(gateway.show_clone("c").await.unwrap().pending_version, None);
    drop(attached);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_gateway_goes_on_with_an_update_that_was_paused() {
    let lab = Lab::new(&["a"]);
    let (one, two) = (lab.gateway(1).await, lab.gateway(2).await);
    version(&one, "t", 1).await;
    one.create_clones(order("c", "t", Some(4)), false).await.unwrap();
    version(&one, "t", 2).await;
    one.update_clones(UpdateClones { canary: Some(1), ..update() }, false).await.unwrap();
    assert_eq!(steer(&one, RolloutAction::Pause).await.state, "paused");
    assert_eq!(two.steer_update("t", RolloutAction::Promote).await.unwrap_err().code(), "update-state");
    // A pause of one that awaited promotion goes on waiting for it when it is resumed.
    let resumed = two.steer_update("t", RolloutAction::Resume).await.unwrap();
    assert_eq!((resumed.state.as_str(), resumed.updated.len()), ("awaits-promotion", 1));
    let done = two.steer_update("t", RolloutAction::Promote).await.unwrap();
    assert_eq!((done.state.as_str(), done.updated.len()), ("done", 4), "{done:?}");
    one.stop().await;
    check_clean(&two).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_the_operator_asked_for_is_discarded_by_rule_once_the_machine_is_off() {
    let lab = Lab::new(&["a"]);
    let gateway = lab.gateway(1).await;
    version(&gateway, "t", 1).await;
    gateway.create_clones(order("c", "t", Some(2)), false).await.unwrap();
    let rules = ResetRulesView { every_seconds: None, at_bytes: Some(4096) };
    gateway.set_lifetime("c-001", None, Some(rules)).await.unwrap();
    let zero = ResetRulesView { every_seconds: Some(0), at_bytes: None };
    assert_eq!(gateway.set_lifetime("c-001", None, Some(zero)).await.unwrap_err().code(), "bad-rule");
    for clone in ["c-001", "c-002"] {
        write(&gateway, clone, 0, &[9; 8192]).await;
        let off = gateway.power_clone(clone, PowerEvent::Off).await.unwrap();
        assert_eq!(off.action == "reset", clone == "c-001", "{off:?}");
    }
    assert_eq!(read(&gateway, "c-001", 0).await, [1; 4]);
    assert_eq!(read(&gateway, "c-002", 0).await, [9; 4], "a persistent clone without a rule keeps everything");
    gateway.undo_clone("c-001", false).await.unwrap();
    assert_eq!(read(&gateway, "c-001", 0).await, [9; 4], "and a reset can be taken back");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_cannot_be_done_keeps_no_machine_from_booting_and_clone_show_says_why() {
    let lab = Lab::new(&["a"]);
    let gateway = lab.gateway(1).await;
    version(&gateway, "t", 1).await;
    gateway.create_clones(order("c", "t", None), false).await.unwrap();
    let vm = machine(&gateway, "c", "10.0.0.1").await;
    machine_writes(&*vm, 8192, b"mine").await;
    version(&gateway, "t", 2).await;
    assert_eq!(gateway.update_clones(update(), false).await.unwrap().later, ["c"]);
    // Made after the update was noted.
    gateway.snapshot_clone("c", "before").await.unwrap();
    vm.detach(Detach::Clean);
    until(&gateway, "c", |clone| clone.pending_failed.is_some()).await;
    let would = gateway.would(clonegate::lifecycle::views::Would::Power { clone: "c".into(), event: PowerEvent::On });
    let would = would.await.unwrap();
    assert!(would.notes.iter().any(|note| note.contains("goes on waiting")), "{would:?}");
    let told = gateway.power_clone("c", PowerEvent::On).await.unwrap();
    assert!(told.action == "kept" && told.reason.contains("before"), "{told:?}");
    let vm = machine(&gateway, "c", "10.0.0.1").await;
    assert_eq!(vm.device().read(ByteRange::new(8192, 8196)).await.unwrap().concat(), b"mine");
    machine_writes(&*vm, 512, b"more").await;
    let shown = gateway.show_clone("c").await.unwrap();
    assert_eq!((shown.version, shown.pending_version), (1, Some(2)));
    let why = shown.pending_failed.unwrap_or_default();
    assert!(why.contains("snapshots need its base: before") && why.contains("clone snapshot c before --drop"), "{why}");
    let query =
        ListAudit { object: Some("c".to_owned()), action: Some("clone update".to_owned()), ..Default::default() };
    let log = gateway.list_audit(query).await.unwrap().items;
    assert!(!log.is_empty() && log.iter().all(|entry| entry.outcome == "has-snapshots"), "{log:?}");
    gateway.drop_snapshot("c", "before").await.unwrap();
    vm.detach(Detach::Clean);
    until(&gateway, "c", |clone| clone.version == 2 && clone.pending_failed.is_none()).await;
    assert_eq!(read(&gateway, "c", 8192).await, [0; 4]);
    check_clean(&gateway).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_floating_clone_whose_update_cannot_be_done_is_reset_and_given_back_all_the_same() {
    let lab = Lab::new(&["a"]);
    let gateway = lab.gateway(1).await;
    version(&gateway, "t", 1).await;
    let pool = CreatePool { name: "lab".to_owned(), template: "t".to_owned(), size: 1, ..CreatePool::default() };
    gateway.create_pool(pool, false).await.unwrap();
    let clone = gateway.allocate("lab", "alice").await.unwrap().clone;
    let vm = machine(&gateway, &clone, "10.0.0.1").await;
    machine_writes(&*vm, 8192, b"hers").await;
    version(&gateway, "t", 2).await;
    assert_eq!(gateway.update_clones(update(), false).await.unwrap().later, [clone.as_str()]);
    gateway.snapshot_clone(clone.as_str(), "s").await.unwrap();
    drop(vm);
    let off = gateway.power_clone(clone.as_str(), PowerEvent::Off).await.unwrap();
    assert!(off.action == "reset" && off.reason.contains("goes on waiting"), "{off:?}");
    assert_eq!(read(&gateway, &clone, 8192).await, [0; 4]);
    let given = gateway.allocate("lab", "bob").await.unwrap();
    assert_eq!((given.clone.as_str(), given.again), (clone.as_str(), false), "it went back to its pool");
    let shown = gateway.show_clone(clone.as_str()).await.unwrap();
    assert_eq!((shown.version, shown.pending_version), (1, Some(2)));
    gateway.drop_snapshot(clone.as_str(), "s").await.unwrap();
    gateway.release_clone("lab", "bob", false).await.unwrap();
    assert_eq!(gateway.show_clone(clone.as_str()).await.unwrap().version, 2, "a release does what waited");
    check_clean(&gateway).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_of_a_clone_with_snapshots_is_refused_and_not_noted_for_later() {
    let lab = Lab::new(&["a"]);
    let gateway = lab.gateway(1).await;
    version(&gateway, "t", 1).await;
    gateway.create_clones(order("c", "t", Some(2)), false).await.unwrap();
    gateway.snapshot_clone("c-001", "s").await.unwrap();
    version(&gateway, "t", 2).await;
    let attached = machine(&gateway, "c-001", "10.0.0.1").await;
    for at_next_power_on in [false, true] {
        let request = UpdateClones { at_next_power_on, clones: vec!["c-001".to_owned()], ..update() };
        let stopped = gateway.update_clones(request, false).await.unwrap();
        assert_eq!(stopped.state, "stopped");
        assert!(stopped.failed.as_ref().is_some_and(|why| why.contains("snapshots need its base: s")), "{stopped:?}");
        assert_eq!(gateway.show_clone("c-001").await.unwrap().pending_version, None);
    }
    drop(attached);
    check_clean(&gateway).await;
}

/// Plays an update that waits with an outage of the stores from a request of it on. Says how many requests there were.
async fn update_cut(stores: &Stores, dies_at: Option<(u64, bool)>) -> u64 {
    let at = format!("dead at {dies_at:?}");
    let faults = Faults::none();
    let gateway = stores.gateway(1, &faults).await.unwrap();
    let begin = faults.calls();
    if let Some((call, applied)) = dies_at {
        faults.die_at(begin + call, applied);
    }
    let powered = gateway.power_clone("c", PowerEvent::On);
    tokio::pin!(powered);
    let told = tokio::select! {
        told = &mut powered => told,
        // An outage that is longer than anything that is read is tried again; what is written waits it out.
        () = faults.died() => {
            tokio::time::sleep(Duration::from_secs(120)).await;
            faults.heal();
            powered.await
        }
    };
    let calls = faults.calls() - begin;
    faults.heal();
    // What is open now is what its record says, whether it was moved or not.
    let bytes = (read(&gateway, "c", 0).await, read(&gateway, "c", 8192).await);
    let shown = gateway.show_clone("c").await.unwrap();
    let moved = match shown.version {
        1 => {
            assert_eq!((bytes, shown.pending_version), ((vec![1; 4], b"mine".to_vec()), Some(2)), "{at}: {told:?}");
            false
        }
        2 => {
            assert_eq!((bytes, shown.pending_version), ((vec![2; 4], vec![0; 4]), None), "{at}: {told:?}");
            true
        }
        other => panic!("{at}: on version {other}"),
    };
    if let Ok(told) = &told {
        assert_eq!(told.action == "updated", moved, "{at}: {told:?}");
    }
    let again = gateway.power_clone("c", PowerEvent::On).await.unwrap();
    assert_eq!(again.action == "updated", !moved, "{at}: the next try does it: {again:?}");
    let vm = machine(&gateway, "c", "10.0.0.1").await;
    assert_eq!(vm.device().read(ByteRange::new(0, 4)).await.unwrap().concat(), [2; 4], "{at}");
    drop(vm);
    let undone = gateway.undo_clone("c", false).await;
    assert!(undone.is_err() || read(&gateway, "c", 8192).await == b"mine", "{at}: an undo brings nothing else back");
    gateway.fsck(true, Some(0), false).await.unwrap();
    let left = gateway.fsck(false, Some(0), false).await.unwrap().findings;
    assert!(left.is_empty(), "{at}: {left:?}");
    calls
}

#[test]
fn an_update_that_waits_and_is_cut_at_any_request_leaves_the_machine_all_of_one_version() {
    let world = Stores::new(&["fast"]);
    runtime().block_on(async {
        let gateway = world.gateway(1, &Faults::none()).await.unwrap();
        version(&gateway, "t", 1).await;
        let request = CreateClones { durability: Some(DurabilityView::Object), ..order("c", "t", None) };
        gateway.create_clones(request, false).await.unwrap();
        write(&gateway, "c", 8192, b"mine").await;
        version(&gateway, "t", 2).await;
        let request = UpdateClones { at_next_power_on: true, ..update() };
        assert_eq!(gateway.update_clones(request, false).await.unwrap().later, ["c"]);
        gateway.stop().await;
    });
    let play = |dies_at| {
        let (stores, runtime) = (world.fork(), runtime());
        runtime.block_on(update_cut(&stores, dies_at))
    };
    let calls = play(None);
    for point in 0..calls * 2 {
        play(Some((point / 2, point % 2 == 1)));
    }
    println!("{calls} requests");
    assert!(calls >= 8, "{calls} requests test little");
}
