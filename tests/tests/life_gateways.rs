//! Several gateways on one directory: names, slots and deletions hold whoever is first.

use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clonegate::clock::Clock;
use clonegate::delta::DeltaSettings;
use clonegate::exports::Exports;
use clonegate::import::{Input, NoProgress};
use clonegate::lifecycle::advisor::BuiltIn;
use clonegate::lifecycle::views::{CreateClones, ImportTemplate, ListQuery, TemplateView};
use clonegate::lifecycle::{DatastoreSettings, Gateway, GatewaySettings};
use clonegate::store::{Operation, Store, StoreConfig, keys};
use clonegate_core::ErrorKind;
use clonegate_core::ids::Name;
use clonegate_core::units::ByteRange;
use clonegate_tests::faults::Faults;
use clonegate_tests::rehearsal::Stores;
use clonegate_tests::sim;

async fn gateway(dir: &Path, number: u8) -> Arc<Gateway> {
    let clock = Clock::system();
    let url = |part: &str| StoreConfig::new(format!("file://{}/{part}", dir.display()));
    let settings = GatewaySettings {
        home: url("home"),
        datastores: vec![DatastoreSettings::new(Name::new("local").unwrap(), url("store"))],
        sources: Vec::new(),
        gateway: clock.id(),
        host: format!("host-{number}"),
        icache_bytes: 16 << 20,
        delta: DeltaSettings { journal: Some(dir.join(format!("journal-{number}"))), ..DeltaSettings::default() },
        idle_close: Duration::from_secs(300),
        power_off_grace: Duration::from_secs(30),
        slots_per_base: 128,
    };
    Gateway::start(settings, Arc::new(BuiltIn), clock).await.unwrap()
}

fn image(byte: u8) -> Vec<u8> {
    let mut image = vec![0; 1 << 20];
    image[..512].fill(byte);
    image
}

async fn import(gateway: &Gateway, name: &str, byte: u8, slots: Option<u32>) -> TemplateView {
    let image = image(byte);
    let size = Some(image.len() as u64);
    let request = ImportTemplate { name: name.to_owned(), slots, ..ImportTemplate::default() };
    let input = Input::RawStream { reader: Box::new(Cursor::new(image)), size };
    gateway.import_template(request, input, Arc::new(NoProgress)).await.unwrap()
}

fn order(name: &str, template: &str, count: Option<u32>) -> CreateClones {
    CreateClones { name: name.to_owned(), template: template.to_owned(), count, ..CreateClones::default() }
}

const ALL: ListQuery = ListQuery { limit: Some(10_000), cursor: None };

#[tokio::test(flavor = "multi_thread")]
async fn of_two_gateways_that_want_one_name_one_gets_it() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (gateway(dir.path(), 1).await, gateway(dir.path(), 2).await);
    import(&one, "t", 1, None).await;
    let mut won = 0;
    for round in 0..8 {
        let name = format!("same-{round}");
        let (a, b) = tokio::join!(
            one.create_clones(order(&name, "t", None), false),
            two.create_clones(order(&name, "t", None), false)
        );
        for made in [a, b] {
            match made {
                Ok(_) => won += 1,
                Err(error) => assert_eq!((error.code(), error.object()), ("name-taken", Some(name.as_str()))),
            }
        }
    }
    assert_eq!(won, 8);
    // A loser gave its slot back.
    let bases = one.list_bases(ALL).await.unwrap().items;
    assert_eq!(bases.iter().map(|base| base.taken).sum::<u32>(), 8);
    assert_eq!(two.list_clones(ALL).await.unwrap().items.len(), 8);
}

#[test]
fn asking_whether_a_gateway_is_ready_costs_its_home_one_small_request_a_second_however_many_ask() {
    let stores = Stores::new(&["fast"]);
    sim::runtime().block_on(async {
        let faults = Faults::none();
        let gateway = stores.gateway(1, &faults).await.unwrap();
        import(&gateway, "t", 1, None).await;
        gateway.create_clones(order("c", "t", Some(8)), false).await.unwrap();
        let asked = || Operation::ALL.map(|operation| gateway.home().counts().of(operation).requests);
        let before = asked();
        for answer in futures::future::join_all((0..50).map(|_| gateway.ready())).await {
            answer.unwrap();
        }
        let cost: Vec<u64> = asked().iter().zip(before).map(|(after, before)| after - before).collect();
        assert!(cost.iter().sum::<u64>() <= 2, "{:?}: {cost:?}", Operation::ALL);
        // What is remembered is not kept for long.
        faults.outage();
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(gateway.ready().await.unwrap_err().kind(), ErrorKind::Unavailable);
        faults.heal();
        tokio::time::sleep(Duration::from_secs(2)).await;
        gateway.ready().await.unwrap();
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_creates_at_once_never_pass_the_cap() {
    let dir = tempfile::tempdir().unwrap();
    let gateways = [gateway(dir.path(), 1).await, gateway(dir.path(), 2).await];
    import(&gateways[0], "t", 1, Some(8)).await;
    let creates = (0..64).map(|n| {
        let gateway = Arc::clone(&gateways[n % 2]);
        tokio::spawn(async move { gateway.create_clones(order(&format!("c{n}"), "t", None), false).await })
    });
    for made in futures::future::join_all(creates).await {
        made.unwrap().unwrap();
    }
    let store =
        Store::open(&StoreConfig::new(format!("file://{}/store", dir.path().display())), &Clock::system()).unwrap();
    let mut slots = 0;
    for base in store.list_dirs(&keys::bases()).await.unwrap() {
        let taken = store.list(&keys::slots(base.parse().unwrap())).await.unwrap().len();
        assert!(taken <= 8, "{base} has {taken} deltas");
        slots += taken;
    }
    assert_eq!(slots, 64);
    assert_eq!(gateways[1].list_clones(ALL).await.unwrap().items.len(), 64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_clones_are_made_in_one_order_and_roll_over() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = gateway(dir.path(), 1).await;
    import(&gateway, "t", 7, None).await;
    let plan = gateway.create_clones(order("desk", "t", Some(1000)), true).await.unwrap();
    assert!(plan.dry_run && plan.clones.is_empty());
    assert_eq!(gateway.list_clones(ALL).await.unwrap().items.len(), 0, "a dry run does nothing");
    let made = gateway.create_clones(order("desk", "t", Some(1000)), false).await.unwrap();
    assert_eq!((made.clones.len(), made.new_bases), (1000, 7));
    assert_eq!((made.names[0].as_str(), made.names[999].as_str()), ("desk-0001", "desk-1000"));
    let device = gateway.open("desk-0777".parse().unwrap()).await.unwrap();
    let read = device.read(ByteRange::new(0, 512)).await.unwrap();
    assert!(read.iter().flatten().all(|byte| *byte == 7), "usable the moment it is made");
    // What an empty clone takes in the store.
    let bytes: u64 =
        ["home", "store"].iter().map(|part| tree_bytes(&dir.path().join(part), &["catalog/clone", "slots"])).sum();
    assert!(bytes / 1000 <= 4096, "{} bytes a clone", bytes / 1000);
}

/// Bytes of the files below `dir` whose path holds one of `parts`.
fn tree_bytes(dir: &Path, parts: &[&str]) -> u64 {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let path = entry.path();
        if path.is_dir() {
            bytes += tree_bytes(&path, parts);
        } else if parts.iter().any(|part| path.to_string_lossy().contains(part)) {
            bytes += entry.metadata().unwrap().len();
        }
    }
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_referenced_is_not_deleted_and_the_referrers_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = gateway(dir.path(), 1).await;
    import(&gateway, "t", 1, None).await;
    gateway.create_clones(order("c", "t", Some(2)), false).await.unwrap();
    for refusal in [
        gateway.delete_template("t", None, false).await.unwrap_err(),
        gateway.delete_template("t", Some(1), true).await.unwrap_err(),
    ] {
        assert_eq!(refusal.code(), "referenced");
        assert!(refusal.message().contains("c-001, c-002"), "{refusal}");
    }
    let refusal = gateway.remove_datastore("local", false).await.unwrap_err();
    assert_eq!(refusal.code(), "referenced");
    assert!(refusal.message().contains("template t:1"), "{refusal}");
    for clone in ["c-001", "c-002"] {
        gateway.delete_clone(clone, false).await.unwrap();
        assert_eq!(gateway.show_clone(clone).await.unwrap_err().code(), "unknown-clone");
    }
    // The slots go in the background.
    for _ in 0..3000 {
        if gateway.delete_template("t", None, false).await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(gateway.show_template("t").await.unwrap_err().code(), "unknown-template");
    // The name is free again, and what is made under it is new.
    import(&gateway, "t", 9, None).await;
    gateway.create_clones(order("c-001", "t", None), false).await.unwrap();
    let device = gateway.open("c-001".parse().unwrap()).await.unwrap();
    assert_eq!(device.read(ByteRange::new(0, 1)).await.unwrap()[0][0], 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_through_one_clone_is_seen_by_that_clone_alone_and_by_the_next_gateway() {
    let dir = tempfile::tempdir().unwrap();
    let first = gateway(dir.path(), 1).await;
    import(&first, "t", 1, None).await;
    first.create_clones(order("c", "t", Some(2)), false).await.unwrap();
    let device = first.open("c-001".parse().unwrap()).await.unwrap();
    device.write(100, bytes::Bytes::from_static(b"mine"), Default::default()).await.unwrap();
    device.flush().await.unwrap();
    drop(device);
    first.stop().await;
    let next = gateway(dir.path(), 2).await;
    for (clone, expect) in [("c-001", b"mine"), ("c-002", &[1; 4])] {
        let device = next.open(clone.parse().unwrap()).await.unwrap();
        let read: Vec<u8> = device.read(ByteRange::new(100, 104)).await.unwrap().concat();
        assert_eq!(read, expect, "{clone}");
    }
    next.reset_clone("c-001", false).await.unwrap();
    let device = next.open("c-001".parse().unwrap()).await.unwrap();
    assert_eq!(device.read(ByteRange::new(100, 104)).await.unwrap().concat(), [1; 4], "a reset clone is its base");
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_are_published_rolled_back_and_reach_new_clones_only() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = gateway(dir.path(), 1).await;
    import(&gateway, "t", 1, None).await;
    gateway.create_clones(order("old", "t", None), false).await.unwrap();
    let two = import(&gateway, "t", 2, None).await;
    assert_eq!((two.published, two.versions.len()), (Some(1), 2), "a later version waits to be published");
    gateway.publish_template("t", None).await.unwrap();
    gateway.create_clones(order("new", "t", None), false).await.unwrap();
    for (clone, byte) in [("old", 1), ("new", 2), ("template/t", 2)] {
        let device = gateway.open(clone.parse().unwrap()).await.unwrap();
        assert_eq!(device.read(ByteRange::new(0, 1)).await.unwrap()[0][0], byte, "{clone}");
    }
    assert_eq!(gateway.rollback_template("t").await.unwrap().published, Some(1));
    let device = gateway.open("template/t".parse().unwrap()).await.unwrap();
    assert_eq!(device.read(ByteRange::new(0, 1)).await.unwrap()[0][0], 1);
    assert_eq!(gateway.rollback_template("t").await.unwrap_err().code(), "nothing-to-roll-back-to");
    assert_eq!(gateway.publish_template("t", Some(7)).await.unwrap_err().code(), "unknown-version-of-template");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_machine_writes_to_a_clone_at_a_time() {
    use clonegate::exports::{Attach, Detach};
    let dir = tempfile::tempdir().unwrap();
    let gateway = gateway(dir.path(), 1).await;
    import(&gateway, "t", 1, None).await;
    gateway.create_clones(order("c", "t", None), false).await.unwrap();
    let by = |client: &str| Attach { client: client.to_owned(), write: true };
    let one = gateway.attach("c".parse().unwrap(), by("10.0.0.1")).await.unwrap();
    one.begin_write().unwrap();
    // The same machine again may write too; another may read.
    let again = gateway.attach("c".parse().unwrap(), by("10.0.0.1")).await.unwrap();
    again.begin_write().unwrap();
    let reader = gateway.attach("c".parse().unwrap(), by("10.0.0.2")).await.unwrap();
    let refused = reader.begin_write().unwrap_err();
    assert_eq!((refused.code(), refused.kind().nbd_errno()), ("attached-elsewhere", 1), "EPERM");
    assert!(refused.to_string().contains("10.0.0.1"), "{refused}");
    assert_eq!(gateway.show_clone("c").await.unwrap().attached, ["10.0.0.1", "10.0.0.2"]);
    assert_eq!(gateway.delete_clone("c", false).await.unwrap_err().code(), "attached");
    assert_eq!(gateway.reset_clone("c", false).await.unwrap_err().code(), "attached");
    one.detach(Detach::Clean);
    again.detach(Detach::Lost);
    // It is there already: now that the other is gone it may write.
    reader.begin_write().unwrap();
    reader.detach(Detach::Clean);
    gateway.delete_clone("c", false).await.unwrap();
    // Where a cluster file system is to be, several may write.
    let labels = std::collections::BTreeMap::from([("writers".to_owned(), "many".to_owned())]);
    gateway.create_clones(CreateClones { labels, ..order("many", "t", None) }, false).await.unwrap();
    let mut machines = Vec::new();
    for client in ["10.0.0.1", "10.0.0.2"] {
        machines.push(gateway.attach("many".parse().unwrap(), by(client)).await.unwrap());
    }
    machines.iter().for_each(|machine| machine.begin_write().unwrap());
}
