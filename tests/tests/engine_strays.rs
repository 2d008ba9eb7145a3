//! Objects of a clone that the program did not make, with names and numbers that it never writes: told of by name, harming
//! nobody else, and never a reason to go round for ever.

use bytes::Bytes;
use clonegate::clock::Clock;
use clonegate::delta::check::{Report, Standing, check};
use clonegate::device::{Device, WriteOptions};
use clonegate::store::{Operation, keys};
use clonegate::volume::Volume;
use clonegate_core::format::checkpoint::{decode_checkpoint, encode_checkpoint};
use clonegate_core::format::clone::Durability;
use clonegate_core::units::ByteRange;
use clonegate_core::{ErrorKind, Result};
use clonegate_tests::faults::Faults;
use clonegate_tests::sim::{World, runtime};
use object_store::ObjectStoreExt;
use object_store::path::Path;

const SIZE: u64 = 64 * 4096;
const FUA: WriteOptions = WriteOptions { fua: true, expect: None };

fn life<T>(run: impl AsyncFnOnce(&World) -> T) -> T {
    let mut world = World::new(7, Durability::Object, SIZE);
    let runtime = runtime();
    world.clock = runtime.block_on(async { Clock::simulated(1) });
    runtime.block_on(run(&world))
}

async fn put(volume: &Volume, block: u64, fill: u8) -> Result<()> {
    volume.write(block * 4096, Bytes::from(vec![fill; 4096]), FUA).await
}

async fn byte(volume: &Volume, block: u64) -> Result<u8> {
    Ok(volume.read(ByteRange::new(block * 4096, (block + 1) * 4096)).await?.concat()[0])
}

/// The path of an object of the clone.
fn stray(world: &World, name: &str) -> Path {
    Path::from(format!("{}/{name}", keys::clone_dir(world.record.id).as_str()))
}

async fn plant(world: &World, name: &str) {
    world.objects.put(&stray(world, name), b"not ours".to_vec().into()).await.unwrap();
}

async fn checked(world: &World) -> Report {
    check(&world.store(), &world.record, true).await.unwrap()
}

fn standing(report: &Report, name: &str) -> Option<Standing> {
    report.findings.iter().find(|finding| finding.key.trim_end_matches('/').ends_with(name)).map(|found| found.standing)
}

#[test]
fn a_name_that_is_not_as_the_program_writes_it_is_left_alone_and_told_of() {
    life(async |world| {
        let gateway = world.gateway(1, &Faults::none(), None).unwrap();
        let volume = world.open(&gateway).await.unwrap();
        put(&volume, 3, 1).await.unwrap();
        volume.close().await.unwrap();
        drop(volume);
        let names = [
            "epoch/9999999999999999",
            "epoch/2",
            "log/1/1",
            "log/00000000000000000001/2",
            "ckpt/9/00000000000000000001",
            "seg/+0000000000000000001/00000000000000000001",
            "log/00000000000000000001/00000000000000000001/1",
        ];
        for name in names {
            plant(world, name).await;
        }
        let volume = world.open(&gateway).await.unwrap();
        assert_eq!(byte(&volume, 3).await.unwrap(), 1);
        put(&volume, 3, 2).await.unwrap();
        volume.tend().await.unwrap();
        let report = checked(world).await;
        assert!(report.is_sound(), "{report:#?}");
        for name in names {
            assert_eq!(standing(&report, name), Some(Standing::Orphan), "{name}: {report:#?}");
        }
        assert!(
            !report
                .findings
                .iter()
                .any(|finding| names.iter().any(|name| finding.key.ends_with(name)) && report.may_go(finding))
        );
    });
}

#[test]
fn a_number_that_no_clone_comes_to_is_named_and_other_clones_are_unharmed() {
    let far = format!("{:020}", 10_000_000_000u64);
    let last = u64::MAX.to_string();
    let names = [
        format!("epoch/{far}"),
        format!("epoch/{last}"),
        format!("log/{far}/{:020}", 0),
        format!("log/{far}/{:020}", 3),
        format!("log/{:020}/{last}", 1),
        format!("ckpt/{:020}/{last}", 1),
        format!("seg/{last}/{:020}", 1),
    ];
    for name in names {
        life(async |world| {
            let gateways = [1, 2].map(|n| world.gateway(n, &Faults::none(), None).unwrap());
            let owner = world.open(&gateways[0]).await.unwrap();
            put(&owner, 3, 1).await.unwrap();
            plant(world, &name).await;
            let error = world.open(&gateways[1]).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{name}: {error:?}");
            let object = error.object().expect("an object").trim_end_matches('/').to_owned();
            assert!(stray(world, &name).as_ref().starts_with(&object) || object.ends_with(&name), "{name}: {error:?}");
            assert!(error.what_to_do().is_some(), "{name}: {error:?}");
            let report = checked(world).await;
            assert!(!report.is_sound(), "{name}: {report:#?}");
            assert!(
                report.findings.iter().any(|f| f.standing == Standing::Corrupt
                    && stray(world, &name).as_ref().starts_with(f.key.trim_end_matches('/'))),
                "{name}: {report:#?}"
            );
            // Whoever owns the volume goes on, and so do others.
            put(&owner, 4, 2).await.unwrap();
            assert_eq!(byte(&owner, 4).await.unwrap(), 2);
            let sibling = world.open_sibling(&gateways[1], 1).await.unwrap();
            put(&sibling, 4, 7).await.unwrap();
            owner.close().await.unwrap();
            world.objects.delete(&stray(world, &name)).await.unwrap();
            let again = world.open(&gateways[1]).await.unwrap();
            assert_eq!((byte(&again, 3).await.unwrap(), byte(&again, 4).await.unwrap()), (1, 2));
        });
    }
}

#[test]
fn a_clone_whose_epochs_begin_far_up_is_opened_with_few_requests() {
    life(async |world| {
        plant(world, &format!("epoch/{:020}", 10_000_000_000u64)).await;
        let gateway = world.gateway(1, &Faults::none(), None).unwrap();
        let volume = world.open(&gateway).await.unwrap();
        put(&volume, 3, 1).await.unwrap();
        assert_eq!(byte(&volume, 3).await.unwrap(), 1);
        let puts = gateway.store.counts().of(Operation::Put).requests;
        assert!(puts <= 300, "{puts} requests");
    });
}

#[test]
fn a_checkpoint_with_frames_that_no_object_has_is_refused_by_name() {
    life(async |world| {
        let gateway = world.gateway(1, &Faults::none(), None).unwrap();
        let volume = world.open(&gateway).await.unwrap();
        for block in 0..5 {
            put(&volume, block * 3, 1).await.unwrap();
        }
        volume.tend().await.unwrap();
        volume.close().await.unwrap();
        drop(volume);
        let listed = world.store().list(&keys::checkpoints(world.record.id)).await.unwrap();
        let key = keys::checkpoints(world.record.id).key(&listed.last().unwrap().key).unwrap();
        let path = Path::from(key.as_str());
        let whole = world.store().get(&key).await.unwrap();
        let (record, mut objects, mut runs) = decode_checkpoint(&whole).unwrap();
        // More than a place in the map holds: it would be another place.
        let index = runs[0].place.unwrap().0;
        objects[usize::try_from(index).unwrap()].frames = 1 << 20;
        runs[0].place = Some((index, (1 << 18) + 1));
        let bad = encode_checkpoint(record, &objects, runs.into_iter()).unwrap();
        world.objects.put(&path, bad.into()).await.unwrap();
        let error = world.open(&gateway).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
        assert!(error.object().unwrap().contains(key.as_str()), "{error:?}");
        let report = checked(world).await;
        assert_eq!(standing(&report, key.as_str()), Some(Standing::Corrupt), "{report:#?}");
        let sibling = world.open_sibling(&gateway, 1).await.unwrap();
        put(&sibling, 4, 7).await.unwrap();
        world.objects.put(&path, whole.into()).await.unwrap();
        assert_eq!(byte(&world.open(&gateway).await.unwrap(), 3).await.unwrap(), 1);
    });
}
