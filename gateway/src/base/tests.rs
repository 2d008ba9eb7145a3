//! Damage, storms, changed sources and boot sets; that bytes come out right is tested with import.

use std::sync::Arc;

use bytes::Bytes;
use clonegate_core::ErrorKind;
use clonegate_core::format::index::Index;
use clonegate_core::format::making::Maker;
use clonegate_core::ids::{GatewayId, Nonce, PackId};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use super::*;
use crate::clock::Clock;
use crate::import::tests::{file_of, import, noise, open, read};
use crate::import::{Imported, Input};
use crate::store::{Key, Operation};

const CHUNK: u64 = CHUNK_BYTES as u64;

/// A store whose objects can be tampered with.
fn tampered() -> (Store, Arc<InMemory>) {
    let objects = Arc::new(InMemory::new());
    let shared: Arc<dyn ObjectStore> = Arc::<InMemory>::clone(&objects);
    (Store::new(shared, "memory", &Clock::system()), objects)
}

async fn put(objects: &InMemory, key: &Key, body: Vec<u8>) {
    objects.put(&Path::parse(key.as_str()).unwrap(), body.into()).await.unwrap();
}

async fn imported(store: &Store, image: &[u8]) -> Imported {
    import(store, Input::RawFile(file_of(image).path().to_owned())).await.unwrap()
}

async fn packs_of(store: &Store, imported: &Imported) -> Vec<PackId> {
    Index::decode(&store.get(&keys::index(imported.index)).await.unwrap()).unwrap().record.packs
}

fn gets(store: &Store) -> u64 {
    store.counts().of(Operation::Get).requests
}

#[tokio::test(flavor = "multi_thread")]
async fn every_flip_and_cut_of_an_index_or_a_pack_is_an_error_or_harmless() {
    let (store, objects) = tampered();
    let mut image = vec![0; 300_000];
    image.resize(300_032, 0);
    image[70_000..70_600].copy_from_slice(&noise(1, 600));
    image[200_000..200_300].copy_from_slice(&noise(2, 300));
    let imported = imported(&store, &image).await;
    let packs = packs_of(&store, &imported).await;
    assert_eq!(packs.len(), 1);
    let (mut refused, mut harmless) = (0, 0);
    for key in [keys::index(imported.index), keys::pack(packs[0])] {
        let good = store.get(&key).await.unwrap().to_vec();
        let flips = (0..good.len()).map(|at| {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            bad
        });
        let cuts = (0..good.len()).map(|at| good[..at].to_vec());
        for bad in flips.chain(cuts) {
            put(&objects, &key, bad).await;
            let result = match open(&store, &imported, &ICache::new(16 << 20)).await {
                Ok(base) => read(&base, ByteRange::new(0, base.size())).await,
                Err(error) => Err(error),
            };
            match result {
                Ok(bytes) => {
                    assert!(bytes == image, "wrong bytes from {key}");
                    harmless += 1;
                }
                Err(error) => {
                    assert_eq!((error.kind(), error.object()), (ErrorKind::Corrupt, Some(key.as_str())), "{error:?}");
                    refused += 1;
                }
            }
        }
        put(&objects, &key, good).await;
    }
    assert_eq!(harmless, 0, "{refused} were refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_that_passes_is_fetched_again_and_damage_that_stays_names_pack_and_chunk() {
    let (store, objects) = tampered();
    let image = noise(1, 8 * CHUNK_BYTES as usize);
    let imported = imported(&store, &image).await;
    let key = keys::pack(packs_of(&store, &imported).await[0]);
    let good = store.get(&key).await.unwrap().to_vec();
    let mut bad = good.clone();
    bad[3 * CHUNK_BYTES as usize + 9] ^= 4;
    put(&objects, &key, bad).await;
    let base = open(&store, &imported, &ICache::new(16 << 20)).await.unwrap();
    let error = read(&base, ByteRange::new(0, base.size())).await.unwrap_err();
    assert_eq!((error.code(), error.object()), ("bad-chunk", Some(key.as_str())));
    assert!(error.message().contains("chunk 3 "), "{error}");
    // The neighbours that came with it are right and stay.
    assert!(base.try_read(ByteRange::new(0, 3 * CHUNK)).is_some());
    // Errors are not kept.
    put(&objects, &key, good).await;
    assert!(read(&base, ByteRange::new(0, base.size())).await.unwrap() == image);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_readers_fetches_each_chunk_once_and_neighbours_together() {
    let (store, _) = tampered();
    let image = Arc::new(noise(1, 32 * CHUNK_BYTES as usize));
    let imported = imported(&store, &image).await;
    let cache = ICache::new(64 << 20);
    let base = open(&store, &imported, &cache).await.unwrap();
    let before = gets(&store);
    let readers = (0..1000u64).map(|n| {
        let (base, image) = (Arc::clone(&base), Arc::clone(&image));
        tokio::spawn(async move {
            let range = ByteRange::new(n * 17, base.size() - n * 31);
            let right = &image[usize::try_from(range.start()).unwrap()..usize::try_from(range.end()).unwrap()];
            assert!(read(&base, range).await.unwrap() == right);
        })
    });
    for reader in futures::future::join_all(readers).await {
        reader.unwrap();
    }
    // One page of the index and one run of 32 chunks; a reader that began in the middle may have split the run.
    assert!(gets(&store) - before <= 8, "{} GETs", gets(&store) - before);
    let stats = cache.stats();
    assert_eq!((stats.misses, stats.failures, stats.in_flight), (33, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_is_dropped_still_warms_the_cache() {
    let (store, _) = tampered();
    let image = noise(1, 4 * CHUNK_BYTES as usize);
    let imported = imported(&store, &image).await;
    let base = open(&store, &imported, &ICache::new(64 << 20)).await.unwrap();
    let whole = ByteRange::new(0, base.size());
    base.prefetch(ByteRange::new(0, 1)).await.unwrap(); // the page of the index
    let mut dropped = Box::pin(base.read(whole));
    let _ = futures::poll!(&mut dropped);
    drop(dropped);
    while base.try_read(whole).is_none() {
        tokio::task::yield_now().await;
    }
}

#[derive(Debug)]
struct OneSource(Store);

impl RawSources for OneSource {
    fn open(&self, url: &str) -> Result<Store> {
        assert_eq!(url, "memory://somebody");
        Ok(self.0.clone())
    }
}

async fn by_reference(store: &Store, key: &Key) -> Result<BaseRecord> {
    let image = inspect(store, key).await?;
    let clock = Clock::system();
    Ok(BaseRecord {
        id: clock.id(),
        nonce: clock.nonce(),
        size: image.size,
        template: "t".parse()?,
        version: 1,
        slots: 128,
        created_ms: 0,
        data: BaseData::Raw { store: "memory://somebody".into(), key: key.as_str().into(), etag: image.etag },
    })
}

async fn open_raw(record: &BaseRecord, source: &Store, cache: &Arc<ICache>) -> Result<Arc<Base>> {
    let sources = OneSource(source.clone());
    Base::open(tampered().0, record.clone(), &sources, Arc::clone(cache), Handle::current()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raw_image_by_reference_is_read_where_it_lies() {
    let (source, objects) = tampered();
    let image = noise(1, 20 * CHUNK_BYTES as usize + 512);
    let key = keys::foreign("images/win.raw").unwrap();
    put(&objects, &key, image.clone()).await;
    let record = by_reference(&source, &key).await.unwrap();
    let cache = ICache::new(64 << 20);
    let base = open_raw(&record, &source, &cache).await.unwrap();
    let before = gets(&source);
    for (start, end) in [(0, 512), (100, 3 * CHUNK + 7), (0, base.size()), (base.size() - 10, base.size())] {
        let right = &image[usize::try_from(start).unwrap()..usize::try_from(end).unwrap()];
        assert!(read(&base, ByteRange::new(start, end)).await.unwrap() == right);
        assert!(base.try_read(ByteRange::new(start, end)).unwrap().concat() == right);
    }
    assert_eq!(gets(&source) - before, 3, "neighbouring lines come together");
    assert_eq!(cache.stats().misses, 21);
    let extents = base.extents(ByteRange::new(0, base.size())).await.unwrap();
    assert_eq!((extents.len(), extents[0].source), (1, Source::Base));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_source_is_an_error_on_every_read_and_never_mixed_bytes() {
    let (source, objects) = tampered();
    let key = keys::foreign("images/win.raw").unwrap();
    let image = noise(1, 8 * CHUNK_BYTES as usize);
    put(&objects, &key, image.clone()).await;
    let record = by_reference(&source, &key).await.unwrap();
    let cache = ICache::new(64 << 20);
    let base = open_raw(&record, &source, &cache).await.unwrap();
    let first = ByteRange::new(0, CHUNK);
    assert!(read(&base, first).await.is_ok());
    put(&objects, &key, noise(2, image.len())).await;
    // What is in memory is still the old image, and whole.
    assert!(read(&base, first).await.unwrap() == image[..CHUNK_BYTES as usize]);
    assert_eq!(read(&base, ByteRange::new(0, base.size())).await.unwrap_err().code(), "source-changed");
    for range in [first, ByteRange::new(CHUNK, 2 * CHUNK)] {
        assert!(base.try_read(range).is_none());
        let error = read(&base, range).await.unwrap_err();
        assert_eq!((error.code(), error.kind()), ("source-changed", ErrorKind::Conflict));
    }
    assert_eq!(open_raw(&record, &source, &cache).await.unwrap_err().code(), "source-changed");
    // The old image again has another ETag here, but what is gone is told as well.
    objects.delete(&Path::parse(key.as_str()).unwrap()).await.unwrap();
    assert_eq!(open_raw(&record, &source, &cache).await.unwrap_err().code(), "source-changed");
    let refused = Base::open(tampered().0, record, &NoRawSources, cache, Handle::current()).await;
    assert_eq!(refused.unwrap_err().code(), "source-not-permitted");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_a_base_by_reference_is_refused() {
    let (source, objects) = tampered();
    for (body, code) in [
        (Vec::new(), "empty-image"),
        (vec![1; 513], "bad-image-size"),
        ([&b"QFI\xfb"[..], &[0; 508]].concat(), "wrong-format"),
    ] {
        let key = keys::foreign("images/one").unwrap();
        put(&objects, &key, body).await;
        assert_eq!(by_reference(&source, &key).await.unwrap_err().code(), code);
    }
    let missing = by_reference(&source, &keys::foreign("images/none").unwrap()).await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_boot_set_is_recorded_in_order_of_first_touch_and_replayed() {
    let (store, _) = tampered();
    let image = noise(1, 64 * CHUNK_BYTES as usize);
    let imported = imported(&store, &image).await;
    let base = open(&store, &imported, &ICache::new(64 << 20)).await.unwrap();
    assert_eq!(base.save_boot_set(&Clock::system()).await.unwrap(), 0);
    for chunk in [5u64, 40, 5, 6, 0, 40] {
        read(&base, ByteRange::at(chunk * CHUNK + 100, 512).unwrap()).await.unwrap();
    }
    let trace: Vec<u64> = base.boot_trace().iter().map(|chunk| chunk.0).collect();
    assert_eq!(trace, [5, 40, 6, 0]);
    assert_eq!(base.save_boot_set(&Clock::system()).await.unwrap(), 4);
    assert_eq!(base.save_boot_set(&Clock::system()).await.unwrap(), 0, "nothing is new");
    read(&base, ByteRange::at(50 * CHUNK, 1).unwrap()).await.unwrap();
    assert_eq!(base.save_boot_set(&Clock::system()).await.unwrap(), 5);
    let sets = store.list(&keys::boot_sets(base.id())).await.unwrap();
    assert_eq!(sets.len(), 1, "older ones are deleted");
    // The next gateway has what a boot touches before it is asked for, and notes only what was asked for.
    let cache = ICache::new(64 << 20);
    let record = base.record().clone();
    let next = Base::open(store.clone(), record, &NoRawSources, cache, Handle::current()).await.unwrap();
    assert_eq!(next.replay().await.unwrap(), 5);
    assert!(next.boot_trace().is_empty());
    for chunk in trace.into_iter().chain([50]) {
        assert!(next.try_read(ByteRange::at(chunk * CHUNK, CHUNK).unwrap()).is_some());
    }
    assert!(next.try_read(ByteRange::at(7 * CHUNK, CHUNK).unwrap()).is_none());
    // Once all is there, a replay ends without fetching.
    assert_eq!(next.replay().await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_fetched_before_machines_ask_leaves_the_statistics_of_demand_alone() {
    let (store, objects) = tampered();
    let image = noise(1, 64 * CHUNK_BYTES as usize);
    let imported = imported(&store, &image).await;
    let first = open(&store, &imported, &ICache::new(64 << 20)).await.unwrap();
    for chunk in 10..20 {
        read(&first, ByteRange::at(chunk * CHUNK, CHUNK).unwrap()).await.unwrap();
    }
    assert_eq!(first.save_boot_set(&Clock::system()).await.unwrap(), 10);
    let key = keys::foreign("images/win.raw").unwrap();
    put(&objects, &key, image.clone()).await;
    let record = by_reference(&store, &key).await.unwrap();
    let cache = ICache::new(64 << 20);
    let demand = || {
        let stats = cache.stats();
        (stats.hits, stats.misses, stats.joins, stats.spared_bytes)
    };
    let again = first.record().clone();
    let packed = Base::open(store.clone(), again, &NoRawSources, Arc::clone(&cache), Handle::current()).await.unwrap();
    let raw = open_raw(&record, &store, &cache).await.unwrap();
    // A replay, a second one that finds all of it there, what `cache warm` does, and what it does beside another.
    assert_eq!((packed.replay().await.unwrap(), packed.replay().await.unwrap()), (10, 0));
    for base in [&packed, &raw] {
        base.prefetch(ByteRange::new(0, 2 * CHUNK)).await.unwrap();
        let pieces = base.all_pieces().await.unwrap();
        for piece in pieces {
            futures::future::try_join(base.fetch_piece(piece), base.fetch_piece(piece)).await.unwrap();
        }
        assert!(base.boot_pieces().await.is_ok() && base.boot_trace().is_empty());
    }
    assert_eq!(demand(), (0, 0, 0, 0));
    // What machines read is counted.
    let whole = ByteRange::new(0, packed.size());
    assert!(packed.try_read(whole).is_some() && read(&raw, whole).await.unwrap() == image);
    assert_eq!(demand(), (128, 0, 0, 2 * image.len() as u64));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_boot_set_costs_time_only() {
    let (store, objects) = tampered();
    let imported = imported(&store, &noise(1, 4 * CHUNK_BYTES as usize)).await;
    let base = open(&store, &imported, &ICache::new(64 << 20)).await.unwrap();
    put(&objects, &keys::boot_set(base.id(), 7), b"no boot set".to_vec()).await;
    assert_eq!(base.replay().await.unwrap(), 0);
    base.replay_boot_set();
    assert_eq!(base.read(ByteRange::new(0, 1)).await.unwrap().concat(), Bytes::from(noise(1, 1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_index_that_nothing_names_can_be_forgotten() {
    let (store, objects) = tampered();
    let by = Maker { gateway: GatewayId::from_bytes([1; 16]), run: Nonce([1; 16]) };
    let image = imported(&store, &noise(1, 4 * CHUNK_BYTES as usize)).await;
    for listed in store.list_dirs(&keys::bases()).await.unwrap() {
        store.delete(&keys::base(listed.parse().unwrap())).await.unwrap();
    }
    put(&objects, &keys::index(image.index), b"no index".to_vec()).await;
    let forgotten = forget(&store, image.index, by, store.clock().id()).await.unwrap();
    assert!(forgotten.index);
    assert!(
        store.head(&keys::index(image.index)).await.is_err() && store.list(&keys::makings()).await.unwrap().is_empty()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_base_holds_is_forgotten_and_what_is_shared_stays() {
    let (store, _) = tampered();
    let by = Maker { gateway: GatewayId::from_bytes([1; 16]), run: Nonce([1; 16]) };
    let mut image = noise(1, 8 * CHUNK_BYTES as usize);
    let first = imported(&store, &image).await;
    let base = open(&store, &first, &ICache::new(16 << 20)).await.unwrap();
    image[0] ^= 1;
    let second = imported(&store, &image).await;
    let next = open(&store, &second, &ICache::new(16 << 20)).await.unwrap();
    assert_eq!(
        forget(&store, first.index, by, store.clock().id()).await.unwrap(),
        Forgotten::default(),
        "a base names it"
    );
    store.delete(&keys::base(base.id())).await.unwrap();
    // The second image leans on the first one's pack.
    assert_eq!(forget(&store, first.index, by, store.clock().id()).await.unwrap(), Forgotten { index: true, packs: 0 });
    assert!(read(&next, ByteRange::new(0, next.size())).await.unwrap() == image);
    store.delete(&keys::base(next.id())).await.unwrap();
    assert_eq!(
        forget(&store, second.index, by, store.clock().id()).await.unwrap(),
        Forgotten { index: true, packs: 2 }
    );
    assert_eq!(forget(&store, second.index, by, store.clock().id()).await.unwrap(), Forgotten::default(), "again");
    assert!(store.list(&keys::all()).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sequence_of_reads_waits_for_far_fewer_gets_than_chunks() {
    let (store, _) = tampered();
    let image = noise(1, 256 * CHUNK_BYTES as usize);
    let imported = imported(&store, &image).await;
    let base = open(&store, &imported, &ICache::new(64 << 20)).await.unwrap();
    let before = gets(&store);
    let mut bytes = Vec::new();
    for chunk in 0..256 {
        let range = ByteRange::at(chunk * CHUNK, CHUNK).unwrap();
        match base.try_read(range) {
            Some(segments) => bytes.extend(segments.concat()),
            None => bytes.extend(read(&base, range).await.unwrap()),
        }
    }
    assert!(bytes == image);
    assert!(gets(&store) - before < 64, "{} GETs", gets(&store) - before);
}
