//! Damaged objects: an error that names the object, or right bytes. Never wrong bytes, never a panic.

use std::collections::BTreeMap;

use clonegate::delta::check::check;
use clonegate::device::{Device, WriteOptions};
use clonegate_core::ErrorKind;
use clonegate_core::format::clone::Durability;
use clonegate_core::units::ByteRange;
use clonegate_tests::faults::Faults;
use clonegate_tests::sim::{World, read_all, runtime};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use super::script::{Model, Step, act};

const SIZE: u64 = 64 * 4096;

type Objects = BTreeMap<String, Vec<u8>>;

async fn dump(objects: &InMemory) -> Objects {
    use futures::TryStreamExt;
    let listed: Vec<_> = objects.list(None).try_collect().await.expect("a list");
    let mut all = Objects::new();
    for meta in listed {
        let bytes = objects.get(&meta.location).await.expect("it is there").bytes().await.expect("bytes");
        all.insert(meta.location.to_string(), bytes.to_vec());
    }
    all
}

async fn put(world: &World, key: &str, bytes: Option<&[u8]>) {
    let path = Path::from(key);
    match bytes {
        Some(bytes) => drop(world.objects.put(&path, bytes.to_vec().into()).await.expect("a put")),
        None => world.objects.delete(&path).await.expect("a delete"),
    }
}

/// A clone with every kind of object: claims, commits, a poison, a checkpoint, a segment, a snapshot.
async fn build(world: &World) -> Model {
    let mut model = Model::new(world.born(1));
    for n in 1..=2u8 {
        let gateway = world.gateway(n, &Faults::none(), None).expect("no journal");
        let volume = world.open(&gateway).await.expect("no faults");
        for block in 0..12u64 {
            let data = vec![u8::try_from(block).expect("small") + n * 16; 5000];
            act(world, &volume, &mut model, &Step::Write(block * 9000, data.into())).await.expect("no faults");
            act(world, &volume, &mut model, &Step::Flush).await.expect("no faults");
            if block == 6 {
                act(world, &volume, &mut model, &Step::Snapshot(n)).await.expect("no faults");
            }
        }
        act(world, &volume, &mut model, &Step::Zero(100_000, 130_000)).await.expect("no faults");
        if n == 1 {
            act(world, &volume, &mut model, &Step::Tend).await.expect("no faults");
        }
        act(world, &volume, &mut model, &Step::Write(200, vec![n; 100].into())).await.expect("no faults");
        act(world, &volume, &mut model, &Step::Flush).await.expect("no faults");
    }
    model
}

/// Opens and reads everything. Wrong bytes are a failure; an error has to be of a kind that says damage.
async fn look(world: &World, model: &Model, what: &str) -> bool {
    let gateway = world.gateway(9, &Faults::none(), None).expect("no journal");
    let volume = match world.open(&gateway).await {
        Ok(volume) => volume,
        Err(error) => {
            assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported), "{what}: {error:?}");
            assert!(error.object().is_some(), "{what}: an error that names nothing: {error:?}");
            return true;
        }
    };
    let now = model.now();
    let mut noticed = false;
    for block in 0..SIZE / 4096 {
        let range = ByteRange::new(block * 4096, block * 4096 + 4096);
        match volume.read(range).await {
            Ok(bytes) => {
                let at = usize::try_from(block * 4096).expect("small");
                assert!(bytes.concat() == now[at..at + 4096], "{what}: wrong bytes in block {block}");
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error:?}");
                assert!(error.object().is_some(), "{what}: an error that names nothing: {error:?}");
                noticed = true;
            }
        }
    }
    noticed
}

fn damaged(bytes: &[u8], n: usize) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let step = (bytes.len() / n).max(1);
    for at in (0..bytes.len()).step_by(step) {
        let mut flipped = bytes.to_vec();
        flipped[at] ^= 1 << (at % 8);
        all.push(flipped);
        all.push(bytes[..at].to_vec());
    }
    all
}

#[test]
fn a_flipped_byte_or_a_truncation_of_any_object_is_an_error_or_harmless() {
    let mut cases = 0;
    runtime().block_on(async {
        let world = World::new(3, Durability::Object, SIZE);
        let model = build(&world).await;
        let all = dump(&world.objects).await;
        let kinds: Vec<&str> = ["epoch/", "log/", "ckpt/", "seg/"].into();
        for kind in &kinds {
            assert!(all.keys().any(|key| key.contains(kind)), "no object of {kind}");
        }
        let per_object = usize::try_from(24 * super::long()).unwrap_or(usize::MAX);
        for (key, bytes) in &all {
            for bad in damaged(bytes, per_object) {
                put(&world, key, Some(&bad)).await;
                look(&world, &model, key).await;
                cases += 1;
            }
            put(&world, key, Some(bytes)).await;
        }
        assert!(!look(&world, &model, "mended").await);
    });
    println!("damaged objects: {cases}");
}

#[test]
fn a_deleted_object_is_never_read_as_zeroes_and_the_check_names_it() {
    runtime().block_on(async {
        let world = World::new(3, Durability::Object, SIZE);
        let model = build(&world).await;
        let sound = check(&world.store(), &world.record, true).await.expect("no faults");
        assert!(sound.is_sound(), "{sound:#?}");
        let mut named = 0;
        let all = dump(&world.objects).await;
        let last = all.keys().rfind(|key| key.contains("log/")).cloned().unwrap_or_default();
        for (key, bytes) in all {
            // Nothing can tell that a claim is gone, or the very last record.
            if key.contains("epoch/") || key == last {
                continue;
            }
            put(&world, &key, None).await;
            let noticed = look(&world, &model, &key).await;
            let report = check(&world.store(), &world.record, true).await.expect("no faults");
            // What only a snapshot needs is found by the check and not by reading.
            assert!(!(noticed && report.is_sound()), "{key}: {report:#?}");
            named += usize::from(!report.is_sound());
            put(&world, &key, Some(&bytes)).await;
        }
        assert!(named > 10, "the check found {named} deleted objects");
    });
}

#[test]
fn the_check_names_a_damaged_block_and_other_blocks_are_unharmed() {
    runtime().block_on(async {
        let world = World::new(4, Durability::Object, SIZE);
        let gateway = world.gateway(1, &Faults::none(), None).expect("no journal");
        let volume = world.open(&gateway).await.expect("no faults");
        let data = vec![5; 40 * 4096];
        volume.write(0, data.into(), WriteOptions { fua: true, expect: None }).await.expect("no faults");
        let all = dump(&world.objects).await;
        let (key, bytes) = all.iter().max_by_key(|(_, bytes)| bytes.len()).expect("a commit");
        let mut bad = bytes.clone();
        let last = bad.len() - 100;
        bad[last] ^= 1;
        put(&world, key, Some(&bad)).await;
        let reader = world.open(&world.gateway(2, &Faults::none(), None).expect("no journal")).await.expect("it opens");
        assert!(reader.read(ByteRange::new(0, 4096)).await.is_ok());
        let error = reader.read(ByteRange::new(39 * 4096, 40 * 4096)).await.expect_err("a damaged block");
        assert_eq!((error.kind(), error.code()), (ErrorKind::Corrupt, "bad-block"));
        assert!(error.object().is_some_and(|object| object.contains("log/")));
        let report = check(&world.store(), &world.record, true).await.expect("no faults");
        assert!(report.findings.iter().any(|f| f.key == *key && !report.is_sound()), "{report:#?}");
        let _ = read_all(&reader).await;
    });
}
