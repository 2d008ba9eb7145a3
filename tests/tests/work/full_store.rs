//! A datastore that fills up under verbs and jobs: whoever waits is told, it is seen from outside, and with room it goes on.

use std::sync::Arc;
use std::time::Duration;

use clonegate::exports::Exports;
use clonegate::lifecycle::Gateway;
use clonegate::lifecycle::views::{
    AlertView, CreateClones, DurabilityView, JobStateView, JobView, ListQuery, PowerEvent, Started, UpdateClones,
};
use clonegate_core::ErrorKind;
use clonegate_core::units::ByteRange;
use clonegate_tests::faults::{FaultStore, Faults};
use clonegate_tests::lab::{check_clean, machine, order, read, version, write};
use clonegate_tests::rehearsal::Stores;
use clonegate_tests::sim::runtime;

/// A gateway with three written clones whose datastore `fast` can be filled up; the home always has room.
async fn lab() -> (Arc<Gateway>, Arc<Faults>) {
    let faults = Faults::none();
    let of_fast = Arc::clone(&faults);
    let stores = Stores::new(&["fast"]);
    let gateway = stores
        .gateway_behind(1, move |name, store| match name {
            "fast" => Arc::new(FaultStore::new(store, Arc::clone(&of_fast))),
            _ => store,
        })
        .await
        .unwrap();
    version(&gateway, "t", 1).await;
    let request = CreateClones { durability: Some(DurabilityView::Object), ..order("c", "t", Some(3)) };
    gateway.create_clones(request, false).await.unwrap();
    for clone in ["c-001", "c-002", "c-003"] {
        write(&gateway, clone, 8192, b"mine").await;
    }
    (gateway, faults)
}

/// A machine's write that the store has no room for.
async fn write_in_vain(gateway: &Gateway, clone: &str) {
    let device = gateway.open(clone.parse().unwrap()).await.unwrap();
    device.write(0, bytes::Bytes::from_static(b"more"), Default::default()).await.unwrap();
    let refused = device.flush().await.unwrap_err();
    assert_eq!((refused.kind(), refused.code()), (ErrorKind::Exhausted, "store-full"));
}

fn full(alerts: Vec<AlertView>) -> Option<AlertView> {
    alerts.into_iter().find(|alert| alert.kind == "datastore" && alert.name == "fast")
}

async fn until(gateway: &Gateway, id: &str, wanted: impl Fn(&JobView) -> bool) -> JobView {
    for _ in 0..1200 {
        let job = gateway.show_job(id).await.unwrap();
        if wanted(&job) {
            return job;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    panic!("it never came: {:?}", gateway.show_job(id).await.unwrap());
}

#[test]
fn who_waits_for_room_is_told_and_with_room_it_goes_on() {
    runtime().block_on(async {
        let (gateway, faults) = lab().await;
        faults.fill(true);
        write_in_vain(&gateway, "c-002").await;
        let told = gateway.reset_clone("c-001", false).await.unwrap_err();
        assert_eq!((told.code(), told.object()), ("store-full", Some("c-001")));
        assert!(told.message().contains("datastore fast"), "{told}");
        let told = gateway.snapshot_clone("c-003", "before").await.unwrap_err();
        assert_eq!(told.code(), "store-full");
        let shown = gateway.show_datastore("fast").await.unwrap();
        assert_eq!(shown.waiting, ["c-001", "c-002", "c-003"]);
        assert_eq!(gateway.list_datastores(ListQuery::default()).await.unwrap().items[0].waiting, shown.waiting);
        let alert = full(gateway.alerts().await.unwrap()).expect("an alert");
        let detail = alert.detail.as_deref().unwrap_or_default();
        assert!(alert.level == "critical" && detail.contains("c-001, c-002, c-003"), "{alert:?}");
        assert_eq!(read(&gateway, "c-003", 8192).await, b"mine", "reads go on");

        faults.fill(false);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(gateway.show_clone("c-001").await.unwrap().last_reset_ms.is_some(), "what was asked for is done");
        assert_eq!(read(&gateway, "c-001", 8192).await, [0; 4]);
        assert_eq!(gateway.list_snapshots("c-003").await.unwrap()[0].name, "before");
        gateway.open("c-002".parse().unwrap()).await.unwrap().flush().await.unwrap();
        assert!(gateway.show_datastore("fast").await.unwrap().waiting.is_empty());
        assert!(full(gateway.alerts().await.unwrap()).is_none());
        check_clean(&gateway).await;
    });
}

#[test]
fn a_job_that_waits_for_room_says_so_and_can_be_cancelled() {
    runtime().block_on(async {
        let (gateway, faults) = lab().await;
        faults.fill(true);
        for cancelled in [true, false] {
            let Started::Job(job) = gateway.promote_clone("c-001", false).await.unwrap() else { panic!() };
            let waiting = until(&gateway, &job.id, |job| job.waits.is_some()).await;
            let said = waiting.waits.unwrap();
            assert!(said.contains("datastore fast") && said.contains("c-001"), "{said}");
            assert_eq!(waiting.note, said, "also in lists and on other gateways");
            assert_eq!(gateway.show_datastore("fast").await.unwrap().waiting, ["c-001"]);
            if cancelled {
                gateway.cancel_job(&job.id, false).await.unwrap();
            } else {
                faults.fill(false);
            }
            let ended = until(&gateway, &job.id, |job| job.state.is_over()).await;
            assert_eq!((ended.state == JobStateView::Cancelled, ended.waits), (cancelled, None), "{:?}", ended.error);
        }
        assert_eq!(gateway.show_clone("c-001").await.unwrap().kind, "full");
        assert_eq!(read(&gateway, "c-001", 8192).await, b"mine");
        check_clean(&gateway).await;
    });
}

#[test]
fn a_clone_whose_writes_wait_for_room_is_deleted_at_once_and_an_update_stops_and_says_why() {
    runtime().block_on(async {
        let (gateway, faults) = lab().await;
        version(&gateway, "t", 2).await;
        faults.fill(true);
        write_in_vain(&gateway, "c-002").await;
        gateway.delete_clone("c-002", false).await.unwrap();
        assert_eq!(gateway.show_clone("c-002").await.unwrap_err().code(), "unknown-clone");
        assert!(gateway.show_datastore("fast").await.unwrap().waiting.is_empty(), "nobody waits for it any more");
        let request = UpdateClones { template: "t".to_owned(), ..UpdateClones::default() };
        let stopped = gateway.update_clones(request, false).await.unwrap();
        assert_eq!(stopped.state, "stopped");
        assert!(stopped.failed.as_deref().is_some_and(|why| why.contains("no room")), "{stopped:?}");
        faults.fill(false);
        tokio::time::sleep(Duration::from_secs(120)).await;
        let done = gateway.steer_update("t", clonegate::lifecycle::views::RolloutAction::Resume).await.unwrap();
        assert_eq!((done.state.as_str(), done.updated.len()), ("done", 2), "{done:?}");
        let device = gateway.open("c-001".parse().unwrap()).await.unwrap();
        assert_eq!(device.read(ByteRange::new(0, 4)).await.unwrap().concat(), [2; 4]);
        check_clean(&gateway).await;
    });
}

#[test]
fn a_full_store_keeps_no_machine_from_booting_though_an_update_waits_for_it() {
    runtime().block_on(async {
        let (gateway, faults) = lab().await;
        version(&gateway, "t", 2).await;
        let request = UpdateClones { template: "t".to_owned(), at_next_power_on: true, ..UpdateClones::default() };
        assert_eq!(gateway.update_clones(request, false).await.unwrap().later.len(), 3);
        faults.fill(true);
        let off = gateway.power_clone("c-001", PowerEvent::Off).await.unwrap();
        assert!(off.action == "kept" && off.reason.contains("goes on waiting"), "{off:?}");
        let vm = machine(&gateway, "c-001", "10.0.0.1").await;
        assert_eq!(vm.device().read(ByteRange::new(8192, 8196)).await.unwrap().concat(), b"mine");
        let shown = gateway.show_clone("c-001").await.unwrap();
        assert_eq!((shown.version, shown.pending_version), (1, Some(2)));
        assert!(shown.pending_failed.as_deref().is_some_and(|why| why.contains("no room")), "{shown:?}");
        drop(vm);
        faults.fill(false);
        let done = gateway.power_clone("c-001", PowerEvent::Off).await.unwrap();
        assert_eq!(done.action, "updated", "{done:?}");
        assert_eq!(gateway.show_clone("c-001").await.unwrap().pending_failed, None);
        check_clean(&gateway).await;
    });
}

#[test]
fn a_gateway_stops_though_its_store_takes_nothing() {
    runtime().block_on(async {
        let (gateway, faults) = lab().await;
        faults.fill(true);
        write_in_vain(&gateway, "c-002").await;
        // In simulated time: it would be for ever if it were waited for.
        tokio::time::timeout(Duration::from_secs(3600), gateway.stop()).await.expect("it stops");
    });
}
