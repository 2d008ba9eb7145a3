//! What a `Store` promises, over memory, a directory, faults and stores that cannot be trusted.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clonegate::clock::Clock;
use clonegate::store::{Key, Operation, PutNew, Store, StoreConfig, exclusive, keys};
use clonegate_core::ErrorKind;
use clonegate_core::ids::{BaseId, GatewayId};
use clonegate_core::units::ByteRange;
use clonegate_tests::faults::{Fault, FaultStore, Faults, Rates, Sloppy, SloppyStore};
use clonegate_tests::small_disk::SmallDisk;
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt};

fn key(text: &str) -> Key {
    keys::foreign(text).unwrap()
}

/// Short waits: the stores here answer at once or never.
fn impatient(label: &str) -> StoreConfig {
    StoreConfig {
        request_timeout: Duration::from_millis(200),
        retry_for: Duration::from_secs(1),
        ..StoreConfig::new(label)
    }
}

fn faulty(faults: &Arc<Faults>) -> (Store, Arc<dyn ObjectStore>) {
    let below: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let objects = Arc::new(FaultStore::new(Arc::clone(&below), Arc::clone(faults)));
    (Store::over(objects, &impatient("faulty:"), &Clock::system()), below)
}

fn stores() -> (tempfile::TempDir, Vec<Store>) {
    let directory = tempfile::tempdir().unwrap();
    let urls = ["memory://".to_owned(), format!("file://{}/new/top", directory.path().display())];
    let stores = urls.iter().map(|url| Store::open(&StoreConfig::new(url), &Clock::system()).unwrap()).collect();
    (directory, stores)
}

#[tokio::test]
async fn an_object_is_created_once_and_reads_back_whole_and_in_part() {
    let (_directory, stores) = stores();
    for store in stores {
        let at = key("packs/p");
        assert_eq!(store.find(&at).await.unwrap(), None);
        assert_eq!(store.put_new(&at, "0123456789".into()).await.unwrap(), PutNew::Created);
        assert_eq!(store.put_new(&at, "other".into()).await.unwrap(), PutNew::Exists("0123456789".into()));
        assert_eq!(store.put_new(&at, "0123456789".into()).await.unwrap(), PutNew::Created, "our own, again");
        assert_eq!(store.get(&at).await.unwrap(), "0123456789");
        assert_eq!(store.get_range(&at, ByteRange::new(2, 5), None).await.unwrap(), "234");
        assert_eq!(store.get_range(&at, ByteRange::new(7, 7), None).await.unwrap(), "");
        assert_eq!(store.head(&at).await.unwrap().size, 10);
    }
}

#[tokio::test]
async fn a_range_beyond_the_end_is_an_error_that_names_the_object() {
    let (_directory, stores) = stores();
    for store in stores {
        let at = key("packs/p");
        store.put_new(&at, "0123456789".into()).await.unwrap();
        for range in [ByteRange::new(5, 11), ByteRange::new(10, 12), ByteRange::new(100, 200)] {
            let error = store.get_range(&at, range, None).await.unwrap_err();
            assert_eq!((error.code(), error.kind()), ("object-too-short", ErrorKind::Corrupt), "{store:?} {range:?}");
            assert!(error.object().unwrap().ends_with("/packs/p"));
        }
    }
}

#[tokio::test]
async fn what_is_missing_is_not_found_and_deleting_it_is_success() {
    let (_directory, stores) = stores();
    for store in stores {
        let at = key("a/b");
        assert_eq!(store.get(&at).await.unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(store.head(&at).await.unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(store.get_range(&at, ByteRange::new(0, 1), None).await.unwrap_err().kind(), ErrorKind::NotFound);
        store.delete(&at).await.unwrap();
        store.put_new(&at, "x".into()).await.unwrap();
        store.delete(&at).await.unwrap();
        assert_eq!(store.find(&at).await.unwrap(), None);
    }
}

#[tokio::test]
async fn lists_show_what_was_written_and_only_that() {
    let (_directory, stores) = stores();
    for store in stores {
        let base = BaseId::from_bytes([7; 16]);
        for slot in [0, 5, 12] {
            store.put_new(&keys::slot(base, slot), Bytes::from(vec![1; 10 + slot as usize])).await.unwrap();
        }
        store.put_new(&keys::retired(base), "r".into()).await.unwrap();
        let slots: BTreeSet<_> =
            store.list(&keys::slots(base)).await.unwrap().into_iter().map(|l| (l.key, l.size)).collect();
        assert_eq!(slots, BTreeSet::from([("0000".into(), 10), ("0005".into(), 15), ("0012".into(), 22)]));
        assert_eq!(store.list(&keys::all()).await.unwrap().len(), 4);
        assert_eq!(store.list(&keys::packs()).await.unwrap(), []);
        assert_eq!(store.list_dirs(&keys::bases()).await.unwrap(), [base.to_string()]);
        assert_eq!(store.list_dirs(&keys::packs()).await.unwrap(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_pinned_object_that_changes_is_an_error_that_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("win11.raw");
    std::fs::write(&file, "first bytes").unwrap();
    let url = format!("file://{}", directory.path().display());
    let store = Store::open(&StoreConfig::new(&url), &Clock::system()).unwrap();
    let (at, range) = (key("win11.raw"), ByteRange::new(0, 5));
    let etag = store.head(&at).await.unwrap().etag.unwrap();
    assert_eq!(store.get_range(&at, range, Some(&etag)).await.unwrap(), "first");
    std::fs::write(&file, "other bytes!").unwrap();
    let error = store.get_range(&at, range, Some(&etag)).await.unwrap_err();
    assert_eq!((error.code(), error.kind()), ("source-changed", ErrorKind::Conflict));
    std::fs::remove_file(&file).unwrap();
    assert_eq!(store.get_range(&at, range, Some(&etag)).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_pinned_object_in_memory_that_is_replaced_is_an_error_too() {
    let memory = Arc::new(InMemory::new());
    let store = Store::new(Arc::<InMemory>::clone(&memory), "memory:", &Clock::system());
    let at = key("win11.raw");
    store.put_new(&at, "first bytes".into()).await.unwrap();
    let etag = store.head(&at).await.unwrap().etag.unwrap();
    assert!(store.get_range(&at, ByteRange::new(0, 5), Some(&etag)).await.is_ok());
    memory.put(&"win11.raw".into(), "other bytes".into()).await.unwrap();
    let error = store.get_range(&at, ByteRange::new(0, 5), Some(&etag)).await.unwrap_err();
    assert_eq!(error.code(), "source-changed");
}

#[tokio::test]
async fn exists_means_ours_when_our_reply_was_lost() {
    let faults = Faults::none();
    let (store, _) = faulty(&faults);
    faults.next(Fault::After);
    assert_eq!(store.put_new(&key("a"), "mine".into()).await.unwrap(), PutNew::Created);
    // One put that was applied, one that met it, one get that recognised it.
    assert_eq!(faults.calls(), 3);
}

#[tokio::test]
async fn exists_means_theirs_when_another_was_first_although_our_reply_was_lost() {
    let faults = Faults::none();
    let (store, below) = faulty(&faults);
    below.put(&"a".into(), "theirs".into()).await.unwrap();
    faults.next(Fault::After);
    assert_eq!(store.put_new(&key("a"), "mine".into()).await.unwrap(), PutNew::Exists("theirs".into()));
}

#[tokio::test]
async fn exists_with_nothing_there_is_tried_again() {
    // The third meaning: a conflict that S3 reports while another write is only just under way, and comes to nothing.
    let below: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let conflicts = Arc::new(conflicting::ConflictOnce::new(Arc::clone(&below), 3));
    let store = Store::over(conflicts, &impatient("conflicting:"), &Clock::system());
    assert_eq!(store.put_new(&key("a"), "mine".into()).await.unwrap(), PutNew::Created);
    assert_eq!(below.get(&"a".into()).await.unwrap().bytes().await.unwrap(), "mine");
}

#[tokio::test]
async fn a_body_that_ends_early_is_fetched_again_and_never_passed_on() {
    let faults = Faults::none();
    let (store, _) = faulty(&faults);
    store.put_new(&key("a"), "0123456789".into()).await.unwrap();
    faults.next(Fault::Truncated);
    assert_eq!(store.get(&key("a")).await.unwrap(), "0123456789");
    faults.next(Fault::Truncated);
    assert_eq!(store.get_range(&key("a"), ByteRange::new(1, 9), None).await.unwrap(), "12345678");
}

#[tokio::test]
async fn a_request_that_hangs_is_given_up_and_sent_again() {
    let faults = Faults::none();
    let (store, _) = faulty(&faults);
    faults.next(Fault::Hang);
    assert_eq!(store.put_new(&key("a"), "mine".into()).await.unwrap(), PutNew::Created);
    faults.next(Fault::Hang);
    assert_eq!(store.get(&key("a")).await.unwrap(), "mine");
}

#[tokio::test]
async fn an_outage_is_unavailable_and_passes() {
    let faults = Faults::none();
    let (store, _) = faulty(&faults);
    store.put_new(&key("a"), "mine".into()).await.unwrap();
    faults.outage();
    for error in [
        store.get(&key("a")).await.unwrap_err(),
        store.put_new(&key("b"), "x".into()).await.unwrap_err(),
        store.list(&keys::all()).await.unwrap_err(),
        store.delete(&key("a")).await.unwrap_err(),
    ] {
        assert_eq!((error.kind(), error.code()), (ErrorKind::Unavailable, "store-busy"));
        assert!(error.object().unwrap().starts_with("faulty:/"));
    }
    faults.heal();
    assert_eq!(store.get(&key("a")).await.unwrap(), "mine");
}

#[tokio::test]
async fn on_a_bad_day_every_name_still_has_one_owner_and_whole_bytes() {
    for seed in 0..4 {
        let below: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let gateways: Vec<Store> = (0..3)
            .map(|gateway| {
                let faults = Faults::random(seed * 10 + gateway, Rates::BAD_DAY);
                let objects = Arc::new(FaultStore::new(Arc::clone(&below), faults));
                let patient = StoreConfig { retry_for: Duration::from_secs(30), ..impatient("faulty:") };
                Store::over(objects, &patient, &Clock::system())
            })
            .collect();
        let mut tasks = Vec::new();
        for (who, store) in gateways.iter().enumerate() {
            for n in 0..20 {
                let (store, body) = (store.clone(), Bytes::from(format!("gateway {who} {}", "x".repeat(1000))));
                tasks.push(tokio::spawn(async move { (n, who, store.put_new(&key(&format!("o/{n}")), body).await) }));
            }
        }
        let mut owners = BTreeSet::new();
        for task in tasks {
            let (n, who, put) = task.await.unwrap();
            if put.unwrap().is_created() {
                assert!(owners.insert(n), "object {n} has two owners");
                let body = below.get(&format!("o/{n}").into()).await.unwrap().bytes().await.unwrap();
                assert!(body.starts_with(format!("gateway {who} ").as_bytes()) && body.len() > 1000);
            }
        }
        assert_eq!(owners.len(), 20);
    }
}

#[tokio::test]
async fn a_batch_on_a_directory_is_durable_visible_and_if_absent() {
    let (directory, stores) = stores();
    let store = &stores[1];
    let objects = |who: &str| -> Vec<(Key, Bytes)> {
        (0..300).map(|n| (key(&format!("d{}/o{n}", n % 3)), Bytes::from(format!("{who} {n}")))).collect()
    };
    store.put_new(&key("d1/o1"), "first".into()).await.unwrap();
    let results = store.put_new_batch(objects("mine")).await;
    for (n, result) in results.into_iter().enumerate() {
        let expected = if n == 1 { PutNew::Exists("first".into()) } else { PutNew::Created };
        assert_eq!(result.unwrap(), expected);
    }
    assert_eq!(store.list(&keys::all()).await.unwrap().len(), 300);
    let mut staged = Vec::new();
    for part in ["d0", "d1", "d2"] {
        for entry in std::fs::read_dir(directory.path().join("new/top").join(part)).unwrap() {
            staged.extend(entry.unwrap().file_name().to_str().filter(|name| name.contains('#')).map(str::to_owned));
        }
    }
    assert_eq!(staged, Vec::<String>::new());
    assert!(store.counts().of(Operation::Put).requests >= 301);
}

#[tokio::test]
async fn small_objects_of_a_thousand_clones_are_created_quickly() {
    let (_directory, stores) = stores();
    for store in stores {
        let place = |n: usize| {
            if n.is_multiple_of(2) { format!("bases/b{}/slots/{n}", n / 256) } else { format!("catalog/clone/c{n}.1") }
        };
        let objects = (0..2000).map(|n| (key(&place(n)), Bytes::from(vec![7; 200]))).collect();
        let begun = std::time::Instant::now();
        let results = store.put_new_batch(objects).await;
        println!("2,000 objects of 200 bytes, {store:?}: {:?}", begun.elapsed());
        assert!(results.iter().all(|put| put.as_ref().is_ok_and(PutNew::is_created)));
    }
}

#[tokio::test]
async fn a_full_disk_is_one_clear_line_and_leaves_nothing_half_done() {
    let Some(disk) = SmallDisk::mount(1) else {
        println!("skipped: needs the right to mount a tmpfs");
        return;
    };
    let store = Store::open(&StoreConfig::new(format!("file://{}", disk.path().display())), &Clock::system()).unwrap();
    let big = Bytes::from(vec![7; 300_000]);
    let one = (0..5).map(|n| (key(&format!("a/{n}")), big.clone()));
    let mut errors = Vec::new();
    for (at, body) in one.clone() {
        errors.extend(store.put_new(&at, body).await.err());
    }
    errors.extend(store.put_new_batch(one.collect()).await.into_iter().filter_map(Result::err));
    assert!(!errors.is_empty());
    for error in errors {
        assert_eq!((error.kind(), error.code()), (ErrorKind::Exhausted, "disk-full"), "{error}");
        assert!(error.to_string().contains("disk full"));
    }
    for listed in store.list(&keys::all()).await.unwrap() {
        assert_eq!(listed.size, 300_000);
    }
}

#[tokio::test]
async fn a_staged_file_that_a_crash_left_is_not_listed_and_hinders_nobody() {
    let (directory, stores) = stores();
    let store = &stores[1];
    std::fs::create_dir_all(directory.path().join("new/top/d")).unwrap();
    std::fs::write(directory.path().join("new/top/d/o#12345"), "half").unwrap();
    assert_eq!(store.list(&keys::all()).await.unwrap(), []);
    assert_eq!(store.put_new(&key("d/o"), "whole".into()).await.unwrap(), PutNew::Created);
    assert_eq!(store.list(&keys::all()).await.unwrap().len(), 1);
}

#[tokio::test]
async fn requests_and_bytes_are_counted() {
    let store = Store::open(&StoreConfig::new("memory://"), &Clock::system()).unwrap();
    store.put_new(&key("a"), Bytes::from(vec![0; 1000])).await.unwrap();
    store.get_range(&key("a"), ByteRange::new(0, 100), None).await.unwrap();
    store.list(&keys::all()).await.unwrap();
    store.delete(&key("a")).await.unwrap();
    assert!(store.get(&key("a")).await.is_err());
    let count = |operation| (store.counts().of(operation).requests, store.counts().of(operation).bytes);
    assert_eq!(count(Operation::Put), (1, 1000));
    assert_eq!(count(Operation::Get), (2, 100));
    assert_eq!(count(Operation::List), (1, 0));
    assert_eq!(count(Operation::Delete), (1, 0));
    assert_eq!(store.counts().of(Operation::Get).failures, 0, "not found is an answer");
}

fn gateway(n: u8) -> GatewayId {
    GatewayId::from_bytes([n; 16])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_store_is_admitted_and_nothing_of_the_probe_stays() {
    let (_directory, stores) = stores();
    for store in stores {
        let admission = store.admit(gateway(1), "host").await.unwrap();
        assert!(admission.put_if_absent && admission.etags, "{store:?} {admission:?}");
        assert!(admission.clock_ahead_s.abs() < 60);
        assert_eq!(store.list(&keys::all()).await.unwrap(), []);
    }
}

fn sloppy(how: Sloppy, exclusive: bool, below: &Arc<dyn ObjectStore>) -> Store {
    let objects = Arc::new(SloppyStore::new(Arc::clone(below), how));
    Store::over(objects, &StoreConfig { exclusive, ..impatient("sloppy:") }, &Clock::system())
}

#[tokio::test]
async fn a_store_without_put_if_absent_is_refused_with_what_to_do() {
    for (how, code) in [
        (Sloppy::Overwrites, "store-several-winners"),
        (Sloppy::LooksThenWrites, "store-several-winners"),
        (Sloppy::Refuses, "store-cannot"),
    ] {
        let below: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let error = sloppy(how, false, &below).admit(gateway(1), "host").await.unwrap_err();
        assert_eq!((error.code(), error.kind()), (code, ErrorKind::Unsupported));
        assert!(error.object().unwrap().starts_with("sloppy:"));
        assert!(error.what_to_do().unwrap().contains("exclusive = true"), "{error}");
    }
}

#[tokio::test]
async fn an_exclusive_store_has_put_if_absent_within_its_one_gateway() {
    for how in [Sloppy::Overwrites, Sloppy::LooksThenWrites, Sloppy::Refuses] {
        let below: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let store = sloppy(how, true, &below);
        let early = store.put_new(&key("a"), "x".into()).await.unwrap_err();
        assert_eq!(early.code(), "exclusive-unclaimed");
        let admission = store.admit(gateway(1), "alpha").await.unwrap();
        assert!(!admission.put_if_absent);
        let tries = (0..16).map(|n| {
            let store = store.clone();
            async move { store.put_new(&key("a"), Bytes::from(format!("{n}"))).await.unwrap().is_created() }
        });
        let wins = futures::future::join_all(tries).await.into_iter().filter(|won| *won).count();
        assert_eq!(wins, 1);
    }
}

#[tokio::test]
async fn an_exclusive_store_refuses_every_other_gateway_and_says_whose_it_is() {
    let below: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let first = sloppy(Sloppy::Overwrites, true, &below);
    first.admit(gateway(1), "alpha").await.unwrap();
    let error = sloppy(Sloppy::Overwrites, true, &below).admit(gateway(2), "beta").await.unwrap_err();
    assert_eq!((error.code(), error.kind()), ("exclusive-elsewhere", ErrorKind::Denied));
    assert!(error.to_string().contains("alpha") && error.to_string().contains(&gateway(1).to_string()), "{error}");
    assert!(error.what_to_do().unwrap().contains("sloppy:/exclusive"), "{error}");
    // One who has not marked it is refused as well.
    let error = sloppy(Sloppy::Overwrites, false, &below).admit(gateway(2), "beta").await.unwrap_err();
    assert_eq!(error.code(), "exclusive-not-marked");
    // The owner comes back after a restart; it alone can give it up, and then another takes it.
    sloppy(Sloppy::Overwrites, true, &below).admit(gateway(1), "alpha").await.unwrap();
    assert_eq!(exclusive::release(&first, gateway(2)).await.unwrap_err().code(), "exclusive-elsewhere");
    exclusive::release(&first, gateway(1)).await.unwrap();
    let second = sloppy(Sloppy::Overwrites, true, &below);
    second.admit(gateway(2), "beta").await.unwrap();
    assert_eq!(exclusive::owner(&second).await.unwrap().unwrap().gateway, gateway(2));
}

#[tokio::test]
async fn of_gateways_that_claim_an_exclusive_store_together_one_stays() {
    let below: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let claims = (1..=4).map(|n| {
        let store = sloppy(Sloppy::Overwrites, true, &below);
        async move { store.admit(gateway(n), "host").await.is_ok() }
    });
    let won = futures::future::join_all(claims).await.into_iter().filter(|won| *won).count();
    assert_eq!(won, 1);
}

mod conflicting {
    //! A store that answers "conflict" some times although nothing is there.

    use std::fmt;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use async_trait::async_trait;
    use futures::stream::BoxStream;
    use object_store::path::Path;
    use object_store::{
        CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
        PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
    };

    #[derive(Debug)]
    pub(super) struct ConflictOnce {
        inner: Arc<dyn ObjectStore>,
        left: AtomicU32,
    }

    impl ConflictOnce {
        pub(super) fn new(inner: Arc<dyn ObjectStore>, times: u32) -> Self {
            Self { inner, left: AtomicU32::new(times) }
        }
    }

    impl fmt::Display for ConflictOnce {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("conflicting")
        }
    }

    #[async_trait]
    impl ObjectStore for ConflictOnce {
        async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
            let less = |left: u32| left.checked_sub(1);
            if self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok() {
                return Err(Error::AlreadyExists { path: at.to_string(), source: "conflict".into() });
            }
            self.inner.put_opts(at, payload, options).await
        }
        async fn put_multipart_opts(&self, at: &Path, o: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
            self.inner.put_multipart_opts(at, o).await
        }
        async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
            self.inner.get_opts(at, options).await
        }
        fn delete_stream(&self, all: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
            self.inner.delete_stream(all)
        }
        fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
            self.inner.list(prefix)
        }
        async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
            self.inner.list_with_delimiter(prefix).await
        }
        async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
            self.inner.copy_opts(from, to, options).await
        }
    }
}
