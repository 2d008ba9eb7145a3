//! Much garbage on its way out of the store, while the volume goes on.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use clonegate::clock::Clock;
use clonegate::delta::load::{Listing, read_head};
use clonegate::device::{Device, WriteOptions};
use clonegate::volume::Volume;
use clonegate_core::format::clone::Durability;
use clonegate_core::format::log::{Change, ObjectName, Position};
use clonegate_core::limits::UNLINK_OBJECTS_MAX;
use clonegate_tests::faults::Faults;
use clonegate_tests::sim::{SimGateway, World, runtime};
use object_store::throttle::{ThrottleConfig, ThrottledStore};

/// A world whose volumes collect nothing until they are asked to.
fn run<T>(slow: ThrottleConfig, test: impl AsyncFnOnce(&World, &SimGateway, &Arc<Volume>) -> T) -> T {
    let mut world = World::new(7, Durability::Object, 64 * 4096);
    world.settings.small_objects_per_volume = (1 << 20, 1 << 20);
    (world.settings.checkpoint_records, world.settings.checkpoint_bytes) = (1 << 40, 1 << 40);
    let runtime = runtime();
    world.clock = runtime.block_on(async { Clock::simulated(7) });
    runtime.block_on(async {
        let objects = Arc::new(ThrottledStore::new(Arc::clone(&world.objects), slow));
        let gateway = world.gateway_on(1, objects, &Faults::none(), None).unwrap();
        let volume = world.open(&gateway).await.unwrap();
        test(&world, &gateway, &volume).await
    })
}

async fn write(volume: &Volume, n: u64) {
    let fill = u8::try_from(n % 251).unwrap();
    volume.write(n % 8 * 4096, Bytes::from(vec![fill; 4096]), WriteOptions::default()).await.unwrap();
    volume.flush().await.unwrap();
}

/// What each record of the log after `at` does.
async fn log(world: &World, at: Position) -> Vec<Change> {
    let store = world.store();
    let mut changes = Vec::new();
    for (position, size) in Listing::read(&store, world.record.id).await.unwrap().logs {
        if position > at {
            changes.push(read_head(&store, world.record.id, position, Some(size)).await.unwrap().0.record.what);
        }
    }
    changes
}

#[test]
fn a_volume_that_is_written_does_not_wait_until_much_garbage_is_named() {
    let slow = ThrottleConfig { wait_put_per_call: Duration::from_millis(10), ..ThrottleConfig::default() };
    run(slow, async |world, _, volume| {
        let garbage = 3 * UNLINK_OBJECTS_MAX as u64 + 100;
        for n in 0..garbage {
            write(volume, n).await;
        }
        let last = Listing::read(&world.store(), world.record.id).await.unwrap().logs.last().unwrap().0;
        let over = Arc::new(AtomicBool::new(false));
        let writing = {
            let (volume, over) = (Arc::clone(volume), Arc::clone(&over));
            tokio::spawn(async move {
                for n in 0u64.. {
                    write(&volume, n).await;
                    if over.load(Ordering::Relaxed) {
                        return n;
                    }
                }
                0
            })
        };
        volume.tend().await.unwrap();
        over.store(true, Ordering::Relaxed);
        writing.await.unwrap();
        let changes = log(world, last).await;
        let named: Vec<usize> = (0..changes.len())
            .filter(|n| matches!(&changes[*n], Change::Unlink { objects } if !objects.is_empty()))
            .collect();
        assert!(named.len() >= 4, "{} records name {garbage} objects", named.len());
        for pair in named.windows(2) {
            assert!(pair[1] - pair[0] >= 2, "nothing was written between two records that name garbage: {named:?}");
        }
        let left = Listing::read(&world.store(), world.record.id).await.unwrap().logs.len() as u64;
        assert!(left < garbage / 10, "{left} records are left");
    });
}

#[test]
fn what_is_being_deleted_is_not_named_again() {
    let slow = ThrottleConfig { wait_delete_per_call: Duration::from_secs(5), ..ThrottleConfig::default() };
    run(slow, async |world, _, volume| {
        for n in 0..100 {
            write(volume, n).await;
        }
        let first = {
            let volume = Arc::clone(volume);
            tokio::spawn(async move { volume.tend().await })
        };
        tokio::time::sleep(Duration::from_secs(8)).await;
        assert!(!first.is_finished(), "deleting takes longer");
        for n in 0..100 {
            write(volume, n).await;
        }
        volume.tend().await.unwrap();
        first.await.unwrap().unwrap();
        let mut named: HashMap<ObjectName, u32> = HashMap::new();
        for change in log(world, Position::new(0, 0)).await {
            if let Change::Unlink { objects } = change {
                objects.into_iter().for_each(|name| *named.entry(name).or_default() += 1);
            }
        }
        assert!(named.len() > 100, "{} objects were named", named.len());
        let twice = named.values().filter(|times| **times > 1).count();
        assert_eq!(twice, 0, "{twice} of {} objects were named twice", named.len());
    });
}
