//! Updates of many clones: first ones, waves, roll back, undo; and what lost connections and restarts never do.

use clonegate::exports::Detach;
use clonegate::lifecycle::Gateway;
use clonegate::lifecycle::views::{LifetimeView, ResetRulesView, RolloutAction, UpdateClones, UpdatedClones};
use clonegate_tests::lab::{
    Lab, check_clean, image, import, machine, machine_writes, order, read, until, version, write,
};

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
    let request = clonegate::lifecycle::views::CreateClones {
        lifetime: Some(LifetimeView::Ephemeral),
        reset: rules,
        ..order("c", "t", Some(2))
    };
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
        let bytes = vm.device().read(clonegate_core::units::ByteRange::new(0, 4)).await.unwrap().concat();
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
        let off = gateway.power_clone(clone, clonegate::lifecycle::views::PowerEvent::Off).await.unwrap();
        assert_eq!(off.action == "reset", clone == "c-001", "{off:?}");
    }
    assert_eq!(read(&gateway, "c-001", 0).await, [1; 4]);
    assert_eq!(read(&gateway, "c-002", 0).await, [9; 4], "a persistent clone without a rule keeps everything");
    gateway.undo_clone("c-001", false).await.unwrap();
    assert_eq!(read(&gateway, "c-001", 0).await, [9; 4], "and a reset can be taken back");
}
