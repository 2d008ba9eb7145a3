//! The delta engine at its edges: stale owners, deleted volumes, lost journals, snapshots as devices.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clonegate::clock::Clock;
use clonegate::delta::check::{Standing, check};
use clonegate::delta::fence::{bury, fence};
use clonegate::device::{Device, WriteOptions};
use clonegate::store::keys;
use clonegate::volume::Volume;
use clonegate_core::format::clone::Durability;
use clonegate_core::ids::{GatewayId, Name};
use clonegate_core::units::ByteRange;
use clonegate_core::{ErrorKind, Result};
use clonegate_tests::faults::Faults;
use clonegate_tests::sim::{World, read_all, runtime};

const SIZE: u64 = 64 * 4096;
const FUA: WriteOptions = WriteOptions { fua: true, expect: None };

fn world(durability: Durability) -> World {
    World::new(7, durability, SIZE)
}

/// Runs in a runtime of its own whose end is the sudden end of every gateway in it.
fn life<T>(world: &mut World, seed: u64, run: impl AsyncFnOnce(&World) -> T) -> T {
    let runtime = runtime();
    world.clock = runtime.block_on(async { Clock::simulated(seed) });
    runtime.block_on(run(world))
}

async fn put(volume: &Volume, block: u64, fill: u8) -> Result<()> {
    volume.write(block * 4096, Bytes::from(vec![fill; 4096]), FUA).await
}

async fn byte(device: &dyn Device, block: u64) -> Result<u8> {
    Ok(device.read(ByteRange::new(block * 4096, (block + 1) * 4096)).await?.concat()[0])
}

#[test]
fn an_owner_that_was_taken_over_stops_answering_reads_within_the_staleness() {
    life(&mut world(Durability::Object), 1, async |world| {
        let (one, two) =
            (world.gateway(1, &Faults::none(), None).unwrap(), world.gateway(2, &Faults::none(), None).unwrap());
        let old = world.open(&one).await.unwrap();
        put(&old, 3, 1).await.unwrap();
        let new = world.open(&two).await.unwrap();
        put(&new, 3, 2).await.unwrap();
        // It cannot know yet.
        assert_eq!(byte(&*old, 3).await.unwrap(), 1);
        tokio::time::sleep(world.settings.staleness + Duration::from_secs(2)).await;
        assert!(old.try_read(ByteRange::new(0, 512)).is_none(), "what may be old is not given away without a look");
        let error = byte(&*old, 3).await.unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::Fenced, "taken-over"));
        // The new owner, which nobody took over, goes on after any idle time.
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(byte(&*new, 3).await.unwrap(), 2);
    });
}

#[test]
fn an_outage_of_the_store_stops_no_reads_of_what_is_known() {
    life(&mut world(Durability::Object), 1, async |world| {
        let faults = [Faults::none(), Faults::none()];
        let (one, two) = (world.gateway(1, &faults[0], None).unwrap(), world.gateway(2, &faults[1], None).unwrap());
        let owner = world.open(&one).await.unwrap();
        put(&owner, 3, 1).await.unwrap();
        let reader = world.open(&two).await.unwrap();
        assert_eq!(byte(&*reader, 3).await.unwrap(), 1);
        assert_eq!(byte(&*owner, 3).await.unwrap(), 1);
        faults.iter().for_each(|faults| faults.outage());
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_secs(20)).await;
            assert_eq!(byte(&*owner, 3).await.unwrap(), 1);
            assert_eq!(byte(&*reader, 3).await.unwrap(), 1);
        }
        faults.iter().for_each(|faults| faults.heal());
        put(&owner, 3, 9).await.unwrap();
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert_eq!(byte(&*reader, 3).await.unwrap(), 9);
    });
}

#[test]
fn a_deleted_volume_takes_no_write_of_a_stalled_owner_and_is_not_opened_again() {
    for durability in [Durability::Object, Durability::Local, Durability::Ephemeral] {
        life(&mut world(durability), 1, async |world| {
            let directory = tempfile::tempdir().unwrap();
            let journal = (durability == Durability::Local).then(|| directory.path().join("journal"));
            let one = world.gateway(1, &Faults::none(), journal.as_deref()).unwrap();
            let two = world.gateway(2, &Faults::none(), None).unwrap();
            let (owner, reader) = (world.open(&one).await.unwrap(), world.open(&two).await.unwrap());
            put(&owner, 3, 1).await.unwrap();
            let (store, id) = (world.store(), GatewayId::from_bytes([9; 16]));
            bury(&store, &world.record, &world.clock).await.unwrap();
            let stays = fence(&store, &world.record, id, &world.clock).await.unwrap();
            // What a removal leaves for a while.
            let own = keys::clone_dir(world.record.id);
            for object in store.list(&own).await.unwrap() {
                let key = own.key(&object.key).unwrap();
                if !stays.contains(&key) {
                    store.delete(&key).await.unwrap();
                }
            }
            let left = store.list(&own).await.unwrap().len();
            assert!(left <= 12, "{left} objects stay");
            // The stalled owner wakes: whatever it does, nothing of it comes into the store.
            let _ = put(&owner, 4, 2).await;
            tokio::time::sleep(Duration::from_secs(30)).await;
            assert_eq!(put(&owner, 5, 2).await.unwrap_err().kind(), ErrorKind::Fenced, "{durability:?}");
            assert_eq!(byte(&*reader, 3).await.unwrap_err().code(), "clone-deleted");
            // It is closed from then on: whoever asks for it by its name finds out why.
            assert_eq!(put(&reader, 3, 3).await.unwrap_err().code(), "closed");
            drop((owner, reader));
            let third = world.gateway(3, &Faults::none(), None).unwrap();
            assert_eq!(world.open(&third).await.unwrap_err().code(), "clone-deleted");
            assert_eq!(
                store.list(&own).await.unwrap().len(),
                left,
                "{durability:?}: something was written after the end"
            );
        });
    }
}

#[test]
fn an_owner_that_slept_until_nothing_was_left_of_its_deleted_volume_acknowledges_nothing() {
    for durability in [Durability::Object, Durability::Local, Durability::Ephemeral] {
        life(&mut world(durability), 1, async |world| {
            let directory = tempfile::tempdir().unwrap();
            let journal = (durability == Durability::Local).then(|| directory.path().join("journal"));
            let gateway = world.gateway(1, &Faults::none(), journal.as_deref()).unwrap();
            let owner = world.open(&gateway).await.unwrap();
            put(&owner, 3, 1).await.unwrap();
            tokio::time::sleep(Duration::from_secs(60)).await;
            // Deleted by another gateway, and an hour later the fence goes too, while this one stands still.
            let store = world.store();
            bury(&store, &world.record, &world.clock).await.unwrap();
            fence(&store, &world.record, GatewayId::from_bytes([9; 16]), &world.clock).await.unwrap();
            tokio::time::sleep(Duration::from_secs(3700)).await;
            let own = keys::clone_dir(world.record.id);
            for object in store.list(&own).await.unwrap() {
                store.delete(&own.key(&object.key).unwrap()).await.unwrap();
            }
            let first = put(&owner, 4, 2).await;
            // A journal and an ephemeral volume promise nothing that needs the store; they learn it right after.
            assert!(durability != Durability::Object || first.is_err(), "a write into nothing was acknowledged");
            tokio::time::sleep(Duration::from_secs(30)).await;
            let error = put(&owner, 5, 2).await.unwrap_err();
            assert_eq!((error.kind(), error.code()), (ErrorKind::Fenced, "clone-deleted"), "{durability:?}");
            assert!(byte(&*owner, 3).await.is_err(), "{durability:?}: reads go on");
        });
    }
}

#[test]
fn an_owner_that_was_idle_for_hours_goes_on() {
    for durability in [Durability::Object, Durability::Local, Durability::Ephemeral] {
        life(&mut world(durability), 1, async |world| {
            let gateway = world.gateway(1, &Faults::none(), None).unwrap();
            let owner = world.open(&gateway).await.unwrap();
            for hours in 0..4u8 {
                put(&owner, 3, hours).await.unwrap();
                assert_eq!(byte(&*owner, 3).await.unwrap(), hours);
                tokio::time::sleep(Duration::from_secs(3 * 3600)).await;
            }
            // Also when the store does not answer at first.
            gateway.faults.outage();
            let writing = {
                let owner = Arc::clone(&owner);
                tokio::spawn(async move { put(&owner, 3, 9).await })
            };
            tokio::time::sleep(Duration::from_secs(300)).await;
            gateway.faults.heal();
            writing.await.unwrap().unwrap();
            assert_eq!(byte(&*owner, 3).await.unwrap(), 9);
        });
    }
}

#[test]
fn a_store_that_fills_up_in_the_middle_of_anything_is_waited_out() {
    for durability in [Durability::Object, Durability::Local] {
        for (round, after) in [0u64, 1, 2, 3, 5, 8, 13].into_iter().enumerate() {
            life(&mut world(durability), round as u64, async |world| {
                let directory = tempfile::tempdir().unwrap();
                let journal = (durability == Durability::Local).then(|| directory.path().join("journal"));
                let gateway = world.gateway(1, &Faults::none(), journal.as_deref()).unwrap();
                let volume = world.open(&gateway).await.unwrap();
                for n in 0..24u8 {
                    put(&volume, u64::from(n % 7), n).await.unwrap();
                }
                // It is full some requests into a fold, a checkpoint, a collection.
                let upkeep = {
                    let volume = Arc::clone(&volume);
                    tokio::spawn(async move { volume.tend().await })
                };
                let begun = gateway.faults.calls();
                while gateway.faults.calls() < begun + after && !upkeep.is_finished() {
                    tokio::task::yield_now().await;
                }
                gateway.faults.fill(true);
                let mut acknowledged = [None; 16];
                let mut refused = 0;
                for n in 0..8u8 {
                    let block = u64::from(8 + n % 4);
                    volume.write(block * 4096, vec![100 + n; 4096].into(), WriteOptions::default()).await.unwrap();
                    match tokio::time::timeout(Duration::from_secs(60), volume.flush()).await {
                        Ok(Ok(())) => acknowledged[usize::try_from(block).unwrap()] = Some(100 + n),
                        Ok(Err(error)) => {
                            assert_eq!((error.kind(), error.code()), (ErrorKind::Exhausted, "store-full"));
                            refused += 1;
                        }
                        Err(_) => refused += 1,
                    }
                }
                match durability {
                    Durability::Object => assert_eq!(refused, 8, "what is nowhere was acknowledged"),
                    _ => assert_eq!(refused, 0, "the journal has room"),
                }
                assert!(volume.status().dead.is_none());
                // What reads is not concerned.
                assert_eq!(byte(&*volume, 2).await.unwrap(), 23);
                gateway.faults.fill(false);
                tokio::time::sleep(Duration::from_secs(60)).await;
                volume.flush().await.expect("there is room again");
                let _ = upkeep.await.unwrap();
                volume.tend().await.expect("there is room again");
                let now = read_all(&volume).await.unwrap();
                for (block, fill) in acknowledged.iter().enumerate().filter_map(|(n, fill)| Some((n, (*fill)?))) {
                    assert!(now[block * 4096] >= fill, "block {block}");
                }
                assert!((8..12).all(|block| now[block * 4096] == 100 + u8::try_from(block).unwrap() - 4));
                volume.close().await.unwrap();
                let other = world.gateway(2, &Faults::none(), None).unwrap();
                assert!(read_all(&world.open(&other).await.unwrap()).await.unwrap() == now);
                let report = check(&world.store(), &world.record, true).await.unwrap();
                assert!(report.is_sound(), "{report:#?}");
            });
        }
    }
}

#[test]
fn a_fence_takes_the_place_of_a_record_that_is_still_under_way() {
    life(&mut world(Durability::Object), 1, async |world| {
        let one = world.gateway(1, &Faults::none(), None).unwrap();
        let owner = world.open(&one).await.unwrap();
        for block in 0..6 {
            put(&owner, block, 1).await.unwrap();
        }
        drop(owner);
        tokio::time::sleep(Duration::from_secs(5)).await;
        // Records 5 and 6 arrived, 4 is still on its way: nothing from 4 on was acknowledged.
        let (store, id) = (world.store(), world.record.id);
        let missing = keys::log(id, clonegate_core::ids::Epoch(1), clonegate_core::ids::Sequence(4));
        let bytes = store.get(&missing).await.unwrap();
        store.delete(&missing).await.unwrap();
        bury(&store, &world.record, &world.clock).await.unwrap();
        fence(&store, &world.record, GatewayId::from_bytes([9; 16]), &world.clock).await.unwrap();
        assert!(!store.put_new(&missing, bytes).await.unwrap().is_created(), "it arrived behind the fence");
    });
}

#[test]
fn a_lost_journal_leaves_a_prefix_says_so_and_needs_a_yes() {
    let mut world = world(Durability::Local);
    let directory = tempfile::tempdir().unwrap();
    let (old, new) = (directory.path().join("old"), directory.path().join("new"));
    life(&mut world, 1, async |world| {
        let gateway = world.gateway(1, &Faults::none(), Some(&old)).unwrap();
        let volume = world.open(&gateway).await.unwrap();
        put(&volume, 1, 1).await.unwrap();
        tokio::time::sleep(Duration::from_secs(5)).await;
        // Flushed, and only in the journal when the host dies.
        put(&volume, 1, 2).await.unwrap();
        put(&volume, 2, 2).await.unwrap();
    });
    life(&mut world, 2, async |world| {
        let gateway = world.gateway(1, &Faults::none(), Some(&new)).unwrap();
        let volume = world.open(&gateway).await.unwrap();
        assert_eq!(
            (byte(&*volume, 1).await.unwrap(), volume.status().lost_tail),
            (1, false),
            "what was uploaded can be read"
        );
        let error = put(&volume, 9, 9).await.unwrap_err();
        assert_eq!((error.kind(), error.code(), error.object()), (ErrorKind::Conflict, "lost-tail", Some("clone-1")));
        assert!(error.message().contains("everything up to 20"), "{error}");
        let told = volume.lost_tail().await.unwrap().unwrap();
        assert_eq!(told.message(), error.message());
        assert_eq!(byte(&*volume, 2).await.unwrap(), world.born(1)[2 * 4096], "nothing was changed by asking");
        volume.accept_lost_tail();
        put(&volume, 9, 9).await.unwrap();
        assert!(volume.status().lost_tail);
        assert!(volume.lost_tail().await.unwrap().is_none());
        volume.tend().await.unwrap();
        volume.close().await.unwrap();
    });
    life(&mut world, 3, async |world| {
        let gateway = world.gateway(2, &Faults::none(), None).unwrap();
        let volume = world.open(&gateway).await.unwrap();
        assert!(volume.status().lost_tail, "the mark stays with the clone");
        assert_eq!((byte(&*volume, 1).await.unwrap(), byte(&*volume, 9).await.unwrap()), (1, 9));
        volume.reset(None).await.unwrap();
        assert!(!volume.status().lost_tail, "a reset makes it whole");
        drop(volume);
    });
    // The old journal comes back: what was given up stays given up.
    life(&mut world, 4, async |world| {
        let gateway = world.gateway(1, &Faults::none(), Some(&old)).unwrap();
        assert_eq!(gateway.engine.pending_clones(), [world.record.id]);
        let volume = world.open(&gateway).await.unwrap();
        assert_eq!(read_all(&volume).await.unwrap(), world.born(1));
        assert!(gateway.engine.pending_clones().is_empty());
    });
}

#[test]
fn what_a_journal_holds_is_shipped_by_its_own_gateway_and_by_no_other() {
    let mut world = world(Durability::Local);
    let directory = tempfile::tempdir().unwrap();
    let journal = directory.path().join("journal");
    life(&mut world, 1, async |world| {
        let gateway = world.gateway(1, &Faults::none(), Some(&journal)).unwrap();
        put(&world.open(&gateway).await.unwrap(), 1, 7).await.unwrap();
    });
    life(&mut world, 2, async |world| {
        let error = world.gateway(2, &Faults::none(), Some(&journal)).unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::Conflict, "journal-of-another"));
        let elsewhere = directory.path().join("elsewhere");
        std::fs::create_dir(&elsewhere).unwrap();
        std::fs::write(elsewhere.join("photos"), b"of the cat").unwrap();
        assert_eq!(world.gateway(2, &Faults::none(), Some(&elsewhere)).unwrap_err().code(), "not-a-journal");
        let other = world.gateway(2, &Faults::none(), Some(&directory.path().join("own"))).unwrap();
        assert_eq!(put(&world.open(&other).await.unwrap(), 1, 8).await.unwrap_err().code(), "lost-tail");
        let gateway = world.gateway(1, &Faults::none(), Some(&journal)).unwrap();
        assert_eq!(world.gateway(1, &Faults::none(), Some(&journal)).unwrap_err().code(), "journal-in-use");
        let volume = world.open(&gateway).await.unwrap();
        assert_eq!(byte(&*volume, 1).await.unwrap(), 7);
        volume.close().await.unwrap();
    });
}

#[test]
fn a_snapshot_is_a_device_that_never_changes() {
    for durability in [Durability::Object, Durability::Local] {
        life(&mut world(durability), 1, async |world| {
            let gateway = world.gateway(1, &Faults::none(), None).unwrap();
            let volume = world.open(&gateway).await.unwrap();
            let name = Name::new("before").unwrap();
            assert_eq!(volume.open_snapshot(&name).await.unwrap_err().code(), "unknown-snapshot");
            put(&volume, 1, 1).await.unwrap();
            volume.write_zeroes(ByteRange::new(8 * 4096, 12 * 4096), true, true).await.unwrap();
            let then = read_all(&volume).await.unwrap();
            volume.snapshot(name.clone()).await.unwrap();
            let snapshot = volume.open_snapshot(&name).await.unwrap();
            assert_eq!((snapshot.info().name.as_str(), snapshot.info().read_only), ("clone-1@before", true));
            for round in 2..40 {
                put(&volume, round % 5, u8::try_from(round).unwrap()).await.unwrap();
            }
            volume.reset(None).await.unwrap();
            for _ in 0..3 {
                volume.tend().await.unwrap();
            }
            let whole = ByteRange::new(0, SIZE);
            assert_eq!(snapshot.read(whole).await.unwrap().concat(), then);
            let again = volume.open_snapshot(&name).await.unwrap();
            assert_eq!(again.read(whole).await.unwrap().concat(), then);
            assert_eq!(again.version(), snapshot.version());
            let other = world.open(&world.gateway(2, &Faults::none(), None).unwrap()).await.unwrap();
            let elsewhere = other.open_snapshot(&name).await.unwrap();
            assert_eq!(elsewhere.read(whole).await.unwrap().concat(), then);
            let refused = snapshot.write(0, Bytes::from_static(&[1; 512]), FUA).await.unwrap_err();
            assert_eq!((refused.kind(), refused.code()), (ErrorKind::Denied, "read-only"));
            assert_eq!(snapshot.read(ByteRange::new(0, SIZE + 1)).await.unwrap_err().code(), "beyond-end");
            // Given up and collected: an error that says so, never other bytes.
            volume.drop_snapshot(name.clone()).await.unwrap();
            for _ in 0..3 {
                volume.tend().await.unwrap();
            }
            let fresh = Arc::new(world.gateway(3, &Faults::none(), None).unwrap());
            drop(fresh);
            match elsewhere.read(ByteRange::new(4096, 8192)).await {
                Ok(bytes) => assert_eq!(bytes.concat(), then[4096..8192]),
                Err(error) => assert_eq!(error.code(), "missing-object"),
            }
        });
    }
}

#[test]
fn a_record_that_was_taken_away_is_named_and_other_clones_are_unharmed() {
    life(&mut world(Durability::Object), 1, async |world| {
        let gateway = world.gateway(1, &Faults::none(), None).unwrap();
        let volume = world.open(&gateway).await.unwrap();
        for block in 0..5 {
            put(&volume, block, 1).await.unwrap();
        }
        volume.close().await.unwrap();
        drop(volume);
        let store = world.store();
        let key = keys::log(world.record.id, clonegate_core::ids::Epoch(1), clonegate_core::ids::Sequence(2));
        store.delete(&key).await.unwrap();
        let error = world.open(&gateway).await.unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::Corrupt, "missing-object"));
        assert!(error.object().unwrap().contains(key.as_str()), "{error}");
        let report = check(&store, &world.record, true).await.unwrap();
        let missing: Vec<_> = report.findings.iter().filter(|f| f.standing == Standing::Missing).collect();
        assert_eq!(missing.len(), 1, "{report:#?}");
        assert_eq!(missing[0].key, key.as_str());
    });
}
