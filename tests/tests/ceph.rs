//! The promises of a `Store` on Ceph RGW, a real S3 service.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clonegate::clock::Clock;
use clonegate::delta::DeltaSettings;
use clonegate::device::WriteOptions;
use clonegate::exports::Exports;
use clonegate::import::{Input, NoProgress};
use clonegate::lifecycle::advisor::BuiltIn;
use clonegate::lifecycle::views::{CreateClones, ImportTemplate, ListQuery};
use clonegate::lifecycle::{DatastoreSettings, Gateway, GatewaySettings};
use clonegate::store::{Key, PutNew, Secret, Store, StoreConfig, keys};
use clonegate_core::ErrorKind;
use clonegate_core::ids::{GatewayId, Name};
use clonegate_core::units::ByteRange;
use clonegate_tests::ceph::Ceph;
use clonegate_tests::serve::Serve;
use clonegate_tests::stamped::{self, Client, block};

fn key(text: &str) -> Key {
    keys::foreign(text).unwrap()
}

fn on_runtime(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(async {
        tokio::time::timeout(Duration::from_secs(300), test).await.expect("it ends in time");
    });
}

fn open(config: &StoreConfig) -> Store {
    Store::open(config, &Clock::system()).unwrap()
}

fn gateway(n: u8) -> GatewayId {
    GatewayId::from_bytes([n; 16])
}

fn it_is_admitted_with_put_if_absent_and_etags() {
    on_runtime(async {
        let store = open(&Ceph::start().bucket().await);
        let begun = Instant::now();
        let admission = store.admit(gateway(1), "host").await.unwrap();
        println!("probe of Ceph RGW: {:?}, {admission:?}", begun.elapsed());
        assert!(admission.put_if_absent && admission.etags);
        assert_eq!(store.list(&keys::all()).await.unwrap(), []);
    });
}

fn an_object_is_created_once_and_reads_back_whole_and_in_part() {
    on_runtime(async {
        let store = open(&Ceph::start().bucket().await);
        let at = key("packs/p");
        assert_eq!(store.find(&at).await.unwrap(), None);
        assert_eq!(store.put_new(&at, "0123456789".into()).await.unwrap(), PutNew::Created);
        assert_eq!(store.put_new(&at, "other".into()).await.unwrap(), PutNew::Exists("0123456789".into()));
        assert_eq!(store.put_new(&at, "0123456789".into()).await.unwrap(), PutNew::Created);
        assert_eq!(store.get(&at).await.unwrap(), "0123456789");
        assert_eq!(store.get_range(&at, ByteRange::new(2, 5), None).await.unwrap(), "234");
        for range in [ByteRange::new(5, 11), ByteRange::new(10, 12), ByteRange::new(100, 200)] {
            assert_eq!(store.get_range(&at, range, None).await.unwrap_err().code(), "object-too-short", "{range:?}");
        }
        store.delete(&at).await.unwrap();
        store.delete(&at).await.unwrap();
        assert_eq!(store.head(&at).await.unwrap_err().kind(), ErrorKind::NotFound);
    });
}

fn a_pinned_object_that_changes_is_an_error_that_says_so() {
    on_runtime(async {
        let store = open(&Ceph::start().bucket().await);
        let (at, range) = (key("win11.raw"), ByteRange::new(0, 5));
        store.put_new(&at, "first bytes".into()).await.unwrap();
        let etag = store.head(&at).await.unwrap().etag.unwrap();
        for _ in 0..2 {
            assert_eq!(store.get_range(&at, range, Some(&etag)).await.unwrap(), "first");
        }
        store.delete(&at).await.unwrap();
        store.put_new(&at, "other bytes".into()).await.unwrap();
        assert_eq!(store.get_range(&at, range, Some(&etag)).await.unwrap_err().code(), "source-changed");
        // Also for one who has not yet learnt how this service wants its ETags.
        let again = open(&Ceph::start().config(store.label().split('/').nth(2).unwrap()));
        assert_eq!(again.get_range(&at, range, Some(&etag)).await.unwrap_err().code(), "source-changed");
    });
}

fn lists_page_and_show_what_was_written() {
    on_runtime(async {
        let store = open(&Ceph::start().bucket().await);
        let objects = (0..1100).map(|n| (key(&format!("d{}/o{n}", n % 3)), Bytes::from(vec![7; 20]))).collect();
        assert!(store.put_new_batch(objects).await.iter().all(|put| put.as_ref().is_ok_and(PutNew::is_created)));
        let listed = store.list(&keys::all()).await.unwrap();
        assert_eq!(listed.len(), 1100);
        assert!(listed.iter().all(|object| object.size == 20));
        let mut directories = store.list_dirs(&keys::all()).await.unwrap();
        directories.sort();
        assert_eq!(directories, ["d0", "d1", "d2"]);
    });
}

fn of_two_gateways_that_create_the_same_objects_one_has_each() {
    on_runtime(async {
        let config = Ceph::start().bucket().await;
        let batch = |who: &str| (0..200).map(|n| (key(&format!("o{n}")), Bytes::from(format!("{who} {n}")))).collect();
        let (one, other) = (open(&config), open(&config));
        let (first, second) = tokio::join!(one.put_new_batch(batch("alpha")), other.put_new_batch(batch("beta")));
        for (n, (first, second)) in first.into_iter().zip(second).enumerate() {
            let (first, second) = (first.unwrap(), second.unwrap());
            assert!(first.is_created() != second.is_created(), "object {n}: {first:?}, {second:?}");
        }
    });
}

fn a_large_object_goes_and_comes_back_whole() {
    on_runtime(async {
        let store = open(&Ceph::start().bucket().await);
        let body: Bytes = (0..64u32 << 20).map(|n| u8::try_from(n % 251).unwrap()).collect::<Vec<_>>().into();
        assert!(store.put_new(&key("packs/p"), body.clone()).await.unwrap().is_created());
        assert!(store.get(&key("packs/p")).await.unwrap() == body);
        let (start, end) = (33 << 20, (33 << 20) + 65_536);
        let range = ByteRange::new(start as u64, end as u64);
        assert!(store.get_range(&key("packs/p"), range, None).await.unwrap() == body[start..end]);
    });
}

fn what_the_operator_got_wrong_is_said() {
    on_runtime(async {
        let ceph = Ceph::start();
        let good = StoreConfig { retry_for: Duration::from_secs(1), ..ceph.bucket().await };
        let wrong_secret = StoreConfig { secret_access_key: Some(Secret::new("wrong")), ..good.clone() };
        let wrong_key = StoreConfig { access_key_id: Some("nobody".into()), ..good.clone() };
        let wrong_port = StoreConfig { endpoint: Some("http://127.0.0.1:1".into()), ..good.clone() };
        let wrong_scheme = StoreConfig { endpoint: Some(ceph.endpoint().replace("http:", "https:")), ..good.clone() };
        for (config, code) in [
            (ceph.config("no-such-bucket"), "no-such-bucket"),
            (wrong_secret, "bad-credentials"),
            (wrong_key, "bad-credentials"),
            (wrong_port, "store-unreachable"),
            (wrong_scheme, "tls-failed"),
        ] {
            let store = open(&config);
            let put = store.put_new(&key("a"), "x".into()).await.unwrap_err();
            let get = store.get(&key("a")).await.unwrap_err();
            let list = store.list(&keys::all()).await.unwrap_err();
            let admit = store.admit(gateway(1), "host").await.unwrap_err();
            for error in [put, get, list, admit] {
                assert_eq!(error.code(), code, "{error}");
                assert!(error.what_to_do().is_some(), "{error}");
                assert!(!error.to_string().contains("clonegate-secret"), "{error}");
            }
        }
    });
}

fn small_objects_of_a_thousand_clones_are_created_quickly() {
    on_runtime(async {
        let store = open(&Ceph::start().bucket().await);
        let objects = |part: &str| -> Vec<(Key, Bytes)> {
            (0..2000).map(|n| (key(&format!("{part}/o{n}")), Bytes::from(vec![7; 200]))).collect()
        };
        let begun = Instant::now();
        let results = store.put_new_batch(objects("a")).await;
        println!("2,000 objects of 200 bytes on Ceph RGW: {:?}", begun.elapsed());
        assert!(results.iter().all(|put| put.as_ref().is_ok_and(PutNew::is_created)));
    });
}

async fn start_gateway(home: &StoreConfig, datastore: &StoreConfig, local: &Path, number: u8) -> Arc<Gateway> {
    let settings = GatewaySettings {
        home: home.clone(),
        datastores: vec![DatastoreSettings::new(Name::new("ceph").unwrap(), datastore.clone())],
        sources: Vec::new(),
        gateway: gateway(number),
        host: format!("host-{number}"),
        icache_bytes: 16 << 20,
        delta: DeltaSettings { journal: Some(local.join(format!("journal-{number}"))), ..DeltaSettings::default() },
        idle_close: Duration::from_secs(300),
        power_off_grace: Duration::from_secs(30),
        slots_per_base: 128,
    };
    Gateway::start(settings, Arc::new(BuiltIn), Clock::system()).await.unwrap()
}

fn two_gateways_share_a_service_as_their_only_tie() {
    on_runtime(async {
        let ceph = Ceph::start();
        let (home, datastore) = (ceph.bucket().await, ceph.bucket().await);
        let local = tempfile::tempdir().unwrap();
        let one = start_gateway(&home, &datastore, local.path(), 1).await;
        let two = start_gateway(&home, &datastore, local.path(), 2).await;
        let image: Vec<u8> = (0..1 << 20).map(|n| u8::try_from(n / 4096 % 251).unwrap()).collect();
        let request = ImportTemplate { name: "t".to_owned(), ..ImportTemplate::default() };
        let input = Input::RawStream { reader: Box::new(Cursor::new(image.clone())), size: Some(image.len() as u64) };
        one.import_template(request, input, Arc::new(NoProgress)).await.unwrap();
        let order = |name: &str, count| CreateClones {
            name: name.to_owned(),
            template: "t".to_owned(),
            count,
            ..CreateClones::default()
        };
        // Of two who want one name, one gets it.
        for round in 0..4 {
            let name = format!("same-{round}");
            let (a, b) = tokio::join!(
                one.create_clones(order(&name, None), false),
                two.create_clones(order(&name, None), false)
            );
            assert!(a.is_ok() != b.is_ok(), "{name}: {:?}, {:?}", a.err(), b.err());
        }
        let begun = Instant::now();
        let made = one.create_clones(order("desk", Some(1000)), false).await.unwrap();
        println!("1,000 clones on Ceph RGW, home and datastore: {:?}", begun.elapsed());
        assert_eq!(made.clones.len(), 1000);
        let all = ListQuery { limit: Some(10_000), cursor: None };
        assert_eq!(two.list_clones(all).await.unwrap().items.len(), 1004);
        // What one writes and flushes to the store, the other reads.
        let device = one.open("desk-0001".parse().unwrap()).await.unwrap();
        device.write(4096, Bytes::from(vec![0xee; 4096]), WriteOptions::default()).await.unwrap();
        device.flush().await.unwrap();
        one.stop().await;
        let device = two.open("desk-0001".parse().unwrap()).await.unwrap();
        let read = device.read(ByteRange::new(0, 12_288)).await.unwrap().concat();
        assert!(
            read[..4096] == image[..4096] && read[4096..8192] == [0xee; 4096] && read[8192..] == image[8192..12_288]
        );
        let sibling = two.open("desk-0002".parse().unwrap()).await.unwrap();
        assert!(sibling.read(ByteRange::new(0, 12_288)).await.unwrap().concat() == image[..12_288]);
    });
}

const BLOCKS: u32 = 64;
const PATIENCE: Duration = Duration::from_secs(120);

/// Writes to its half of the blocks, each write durable when it is acknowledged, until the gateway refuses. Gives back the
/// newest acknowledged version of each block.
fn write_until_refused(mut client: Client, first: u32, begin: u64) -> (BTreeMap<u32, u64>, Instant) {
    let mut acknowledged = BTreeMap::new();
    for version in begin.. {
        let number = first + u32::try_from(version).unwrap() % (BLOCKS / 2);
        if client.write(number, &block(1, number, version), true).is_err() {
            break;
        }
        acknowledged.insert(number, version);
    }
    (acknowledged, Instant::now())
}

fn of_two_processes_the_one_that_stalled_is_fenced_and_nothing_acknowledged_is_lost() {
    let ceph = Ceph::start();
    let dir = tempfile::tempdir().unwrap();
    let mut urls = Vec::new();
    on_runtime(async {
        for _ in 0..2 {
            urls.push(ceph.bucket().await.url);
        }
    });
    let service = format!("endpoint = \"{}\", region = \"us-east-1\"", ceph.endpoint());
    let config = format!(
        "home = {{ url = \"{}\", {service} }}\ndatastore = [{{ name = \"ceph\", url = \"{}\", {service} }}]\n",
        urls[0], urls[1]
    );
    let gateways = ["one", "two"].map(|name| Serve::start(&dir.path().join(name), &config, &ceph.environment()));
    let image = dir.path().join("image.raw");
    std::fs::write(&image, vec![0; BLOCKS as usize * 4096]).unwrap();
    gateways[0].cli_ok(&["template", "import", "image", image.to_str().unwrap(), "--format", "raw"]);
    gateways[0].cli_ok(&["clone", "create", "desk", "--template", "image", "--durability", "object"]);
    let mut known: BTreeMap<u32, u64> = BTreeMap::new();
    let mut writes = 0;
    for round in 0..3u32 {
        let (stalled, other) = (&gateways[round as usize % 2], &gateways[(round as usize + 1) % 2]);
        let half = BLOCKS / 2 * (round % 2);
        let client = Client::nbd(stalled.nbd(), "desk", PATIENCE).unwrap();
        std::thread::scope(|scope| {
            let first = u64::from(round) * 1_000_000 + 1;
            let load = scope.spawn(move || write_until_refused(client, half, first));
            std::thread::sleep(Duration::from_millis(1500));
            stalled.stall();
            let since = Instant::now();
            let mut client = Client::nbd(other.nbd(), "desk", PATIENCE).unwrap();
            // As a machine that starts: what the other accepted and did not store is gone, and this one knows nothing of it.
            client.read(0).unwrap();
            let mine = BLOCKS / 2 - half;
            let version = first + 500_000;
            client.write(mine, &block(1, mine, version), true).unwrap();
            known.insert(mine, version);
            let took = since.elapsed();
            stalled.wake();
            let woken = Instant::now();
            let (acknowledged, refused) = load.join().unwrap();
            println!(
                "round {round}: written elsewhere {took:?} after the stall, fenced {:?} after it woke; {} blocks acknowledged",
                refused.saturating_duration_since(woken),
                acknowledged.len()
            );
            assert!(!acknowledged.is_empty(), "nothing was written before the stall");
            writes += acknowledged.len();
            known.extend(acknowledged);
            for (number, version) in &known {
                let found = stamped::version(1, *number, &client.read(*number).unwrap(), &[0; 4096]);
                // A write whose answer was lost may have come after the last that was acknowledged.
                assert!(found >= *version, "block {number}: {found} where {version} was acknowledged");
            }
        });
    }
    assert!(writes > 3);
    let checked = gateways[0].cli_ok(&["fsck"]);
    assert!(checked.contains("clean"), "{checked}");
}

clonegate_tests::cases! {
    "radosgw", "ceph-mon", "ceph-osd", "ceph", "python3" => it_is_admitted_with_put_if_absent_and_etags;
    "radosgw", "ceph-mon", "ceph-osd", "ceph", "python3" => an_object_is_created_once_and_reads_back_whole_and_in_part;
    "radosgw", "ceph-mon", "ceph-osd", "ceph", "python3" => a_pinned_object_that_changes_is_an_error_that_says_so;
    "radosgw", "ceph-mon", "ceph-osd", "ceph", "python3" => lists_page_and_show_what_was_written;
    "radosgw", "ceph-mon", "ceph-osd", "ceph", "python3" => of_two_gateways_that_create_the_same_objects_one_has_each;
    "radosgw", "ceph-mon", "ceph-osd", "ceph", "python3" => a_large_object_goes_and_comes_back_whole;
    "radosgw", "ceph-mon", "ceph-osd", "ceph", "python3" => what_the_operator_got_wrong_is_said;
    "radosgw", "ceph-mon", "ceph-osd", "ceph", "python3" => small_objects_of_a_thousand_clones_are_created_quickly;
    "radosgw", "ceph-mon", "ceph-osd", "ceph", "python3" => two_gateways_share_a_service_as_their_only_tie;
    "radosgw", "ceph-mon", "ceph-osd", "ceph", "python3" =>
        of_two_processes_the_one_that_stalled_is_fenced_and_nothing_acknowledged_is_lost;
}
