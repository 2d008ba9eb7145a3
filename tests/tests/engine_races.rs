//! The delta engine when two things happen at the same moment: a write and a close, a snapshot and a stream of writes, a restart and a
//! takeover, a crash in the middle of a large upload.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use clonegate::clock::Clock;
use clonegate::delta::check::check;
use clonegate::device::{Device, Version, WriteOptions};
use clonegate::volume::Volume;
use clonegate_core::format::clone::Durability;
use clonegate_core::ids::Name;
use clonegate_core::units::ByteRange;
use clonegate_core::{ErrorKind, Result};
use clonegate_tests::faults::{Fault, Faults, Rates};
use clonegate_tests::gates::{GateStore, Gates, Kind, Verdict};
use clonegate_tests::sim::{SimGateway, World, read_all, runtime};
use object_store::ObjectStore;
use object_store::memory::InMemory;

const SIZE: u64 = 64 * 4096;
const FUA: WriteOptions = WriteOptions { fua: true, expect: None };
const LATER: WriteOptions = WriteOptions { fua: false, expect: None };

fn world(durability: Durability) -> World {
    World::new(7, durability, SIZE)
}

/// Runs in a runtime of its own whose end is the sudden end of every gateway in it.
fn life<T>(world: &mut World, seed: u64, run: impl AsyncFnOnce(&World) -> T) -> T {
    let runtime = runtime();
    world.clock = runtime.block_on(async { Clock::simulated(seed) });
    runtime.block_on(run(world))
}

async fn write(volume: &Volume, block: u64, fill: u8, how: WriteOptions) -> Result<()> {
    volume.write(block * 4096, Bytes::from(vec![fill; 4096]), how).await
}

async fn byte(device: &dyn Device, block: u64) -> Result<u8> {
    Ok(device.read(ByteRange::new(block * 4096, (block + 1) * 4096)).await?.concat()[0])
}

#[test]
fn what_is_acknowledged_while_a_volume_closes_is_there_when_it_is_opened_again() {
    for durability in [Durability::Local, Durability::Object] {
        life(&mut world(durability), 1, async |world| {
            let directory = tempfile::tempdir().unwrap();
            let journal = (durability == Durability::Local).then(|| directory.path().join("journal"));
            let gateway = world.gateway(1, &Faults::none(), journal.as_deref()).unwrap();
            for round in 1..=20u8 {
                let volume = world.open(&gateway).await.unwrap();
                write(&volume, 1, round, FUA).await.unwrap();
                volume.flush().await.unwrap();
                tokio::time::sleep(Duration::from_secs(3)).await;
                // The record that closes it is on its way for two seconds.
                gateway.faults.next(Fault::Delay(Duration::from_secs(2)));
                let closing = {
                    let volume = Arc::clone(&volume);
                    tokio::spawn(async move { volume.close().await })
                };
                tokio::time::sleep(Duration::from_millis(u64::from(round))).await;
                let written = write(&volume, 2, round, FUA).await;
                closing.await.unwrap().unwrap();
                drop(volume);
                let again = world.open(&gateway).await.unwrap();
                let there = byte(&*again, 2).await.unwrap() == round;
                assert!(
                    there || written.is_err(),
                    "{durability:?}, round {round}: acknowledged while it closed, and lost"
                );
                again.close().await.unwrap();
            }
        });
    }
}

#[test]
fn a_snapshot_of_a_volume_that_is_written_all_the_time_is_made() {
    for durability in [Durability::Object, Durability::Local] {
        let mut world = world(durability);
        // Room for more than comes while three records are on their way.
        (world.settings.dirty_bytes_per_volume, world.settings.dirty_bytes) = (64 << 20, 64 << 20);
        life(&mut world, 1, async |world| {
            let slow = Faults::random(1, Rates { delay: 1000, ..Rates::default() });
            let volume = world.open(&world.gateway(1, &slow, None).unwrap()).await.unwrap();
            write(&volume, 60, 77, LATER).await.unwrap();
            let writing = {
                let volume = Arc::clone(&volume);
                tokio::spawn(async move {
                    for n in 0u64.. {
                        let fill = u8::try_from(n % 251).unwrap();
                        write(&volume, n % 50, fill, LATER).await.unwrap();
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                })
            };
            tokio::time::sleep(Duration::from_secs(5)).await;
            let name = || Name::new("now").unwrap();
            let made = tokio::time::timeout(Duration::from_secs(60), volume.snapshot(name())).await;
            made.unwrap_or_else(|_| panic!("{durability:?}: it waits for a pause in the writes")).unwrap();
            let snapshot = volume.open_snapshot(&name()).await.unwrap();
            assert_eq!(byte(&*snapshot, 60).await.unwrap(), 77);
            let dropped = tokio::time::timeout(Duration::from_secs(60), volume.drop_snapshot(name())).await;
            dropped.unwrap_or_else(|_| panic!("{durability:?}: it waits for a pause in the writes")).unwrap();
            writing.abort();
        });
    }
}

/// Lets every request in, but keeps the first that puts an object of this kind at the door for as long as it is told to.
async fn attend(gates: Arc<Gates>, part: &'static str, hold: Arc<AtomicBool>, held: Arc<AtomicBool>) {
    let mut kept = Vec::new();
    loop {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let holds = hold.load(Ordering::Relaxed);
        while let Some(request) = gates.take(0) {
            if kept.is_empty() && holds && request.kind == Kind::Put && request.path.contains(part) {
                held.store(true, Ordering::Relaxed);
                kept.push(request);
            } else {
                request.decide(Verdict::Do);
            }
        }
        if !holds {
            kept.drain(..).for_each(|request| drop(request.decide(Verdict::Do)));
        }
    }
}

fn on_gates(world: &World, n: u8, gates: &Arc<Gates>, journal: Option<&Path>) -> SimGateway {
    let objects: Arc<dyn ObjectStore> = Arc::<InMemory>::clone(&world.objects);
    world.gateway_on(n, Arc::new(GateStore::new(objects, gates, n)), &Faults::none(), journal).unwrap()
}

#[test]
fn a_journal_is_not_merged_into_what_another_gateway_wrote_while_its_own_came_back() {
    for with_journal in [false, true] {
        let mut world = world(Durability::Local);
        let directory = tempfile::tempdir().unwrap();
        let journal = directory.path().join("journal-1");
        life(&mut world, 1, async |world| {
            let volume = world.open(&world.gateway(1, &Faults::none(), Some(&journal)).unwrap()).await.unwrap();
            write(&volume, 0, 1, FUA).await.unwrap();
            tokio::time::sleep(Duration::from_secs(5)).await;
            for block in 1..=5 {
                write(&volume, block, 5, FUA).await.unwrap();
            }
        });
        life(&mut world, 2, async |world| {
            let (gates, hold, held) =
                (Arc::<Gates>::default(), Arc::new(AtomicBool::new(true)), Arc::<AtomicBool>::default());
            tokio::spawn(attend(Arc::clone(&gates), "/epoch/", Arc::clone(&hold), Arc::clone(&held)));
            let one = on_gates(world, 1, &gates, Some(&journal));
            let other = directory.path().join("journal-2");
            let two = world.gateway(2, &Faults::none(), with_journal.then_some(other.as_path())).unwrap();
            let opening = async { world.open(&one).await };
            let taking = async {
                while !held.load(Ordering::Relaxed) {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                // An operator said yes to what only the first one's journal has.
                let volume = world.open(&two).await.unwrap();
                volume.accept_lost_tail();
                write(&volume, 10, 10, FUA).await.unwrap();
                tokio::time::sleep(Duration::from_secs(5)).await;
                write(&volume, 11, 11, FUA).await.unwrap();
                hold.store(false, Ordering::Relaxed);
                volume
            };
            let (back, taken) = tokio::join!(opening, taking);
            let back = back.expect("whatever it may do, it can be read");
            let born = world.born(1);
            for block in 1..=5u64 {
                let found = byte(&*back, block).await.unwrap();
                assert_eq!(
                    found,
                    born[usize::try_from(block * 4096).unwrap()],
                    "block {block} of what was given up is back"
                );
            }
            assert_eq!(byte(&*back, 10).await.unwrap(), 10);
            if with_journal {
                // What the second one flushed into its own journal is not given up without a yes.
                let error = write(&back, 20, 20, FUA).await.unwrap_err();
                assert_eq!((error.kind(), error.code()), (ErrorKind::Conflict, "lost-tail"));
            }
            drop(taken);
        });
    }
}

#[test]
fn what_is_kept_during_a_round_of_upkeep_does_not_make_it_fail() {
    for what in ["snapshot", "reset", "restore"] {
        let mut world = world(Durability::Object);
        // No round begins by itself.
        (world.settings.checkpoint_records, world.settings.checkpoint_bytes) = (1 << 40, 1 << 40);
        life(&mut world, 1, async |world| {
            let (gates, hold, held) =
                (Arc::<Gates>::default(), Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
            tokio::spawn(attend(Arc::clone(&gates), "/ckpt/", Arc::clone(&hold), Arc::clone(&held)));
            let volume = world.open(&on_gates(world, 1, &gates, None)).await.unwrap();
            let name = |name: &str| Name::new(name).unwrap();
            write(&volume, 1, 1, FUA).await.unwrap();
            volume.snapshot(name("before")).await.unwrap();
            for n in 2..6 {
                write(&volume, n, 2, FUA).await.unwrap();
                write(&volume, n, 3, FUA).await.unwrap();
            }
            volume.tend().await.unwrap();
            tokio::time::sleep(Duration::from_secs(300)).await;
            write(&volume, 1, 4, FUA).await.unwrap();
            hold.store(true, Ordering::Relaxed);
            let tending = {
                let volume = Arc::clone(&volume);
                tokio::spawn(async move { volume.tend().await })
            };
            while !held.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            // The checkpoint of the present state is on its way; what is kept now is another, and has none yet.
            write(&volume, 1, 5, FUA).await.unwrap();
            match what {
                "snapshot" => volume.snapshot(name("now")).await.unwrap(),
                "reset" => volume.reset(None).await.unwrap(),
                _ => volume.restore(name("before")).await.unwrap(),
            }
            hold.store(false, Ordering::Relaxed);
            tending.await.unwrap().unwrap_or_else(|error| panic!("a {what} during a round: {error}"));
            volume.tend().await.unwrap();
            match what {
                "snapshot" => volume.restore(name("now")).await.unwrap(),
                _ => volume.undo().await.unwrap(),
            }
            for (block, fill) in [(1, 5), (2, 3), (5, 3)] {
                assert_eq!(byte(&*volume, block).await.unwrap(), fill, "after a {what}");
            }
            let report = check(&world.store(), &world.record, true).await.unwrap();
            assert!(report.is_sound(), "{what}: {report:#?}");
        });
    }
}

/// A volume of 64 MiB, with the settings of production.
fn large(durability: Durability) -> World {
    let mut world = World::new(7, durability, 64 << 20);
    world.settings = clonegate::delta::DeltaSettings { staleness: Duration::from_secs(1), ..Default::default() };
    world
}

#[test]
fn a_lost_journal_leaves_a_prefix_also_of_many_small_writes() {
    const WRITES: u64 = 3000;
    // Where there is no base that would have to be read.
    const FIRST: u64 = (48 << 20) / 4096;
    let mut world = large(Durability::Local);
    let directory = tempfile::tempdir().unwrap();
    life(&mut world, 1, async |world| {
        let gateway = world.gateway(1, &Faults::none(), Some(&directory.path().join("journal"))).unwrap();
        let volume = world.open(&gateway).await.unwrap();
        volume.claim().await.unwrap();
        // Sectors of as many blocks, from the last to the first, each flushed before the next is written.
        for n in 0..WRITES {
            volume.write((FIRST + WRITES - n) * 4096, Bytes::from(vec![9; 512]), FUA).await.unwrap();
        }
        // The host dies, with its disk, when the first record is in the store.
        gateway.faults.die_at(gateway.faults.calls(), true);
        tokio::time::sleep(Duration::from_secs(3)).await;
    });
    life(&mut world, 2, async |world| {
        let volume = world.open(&world.gateway(2, &Faults::none(), None).unwrap()).await.unwrap();
        volume.accept_lost_tail();
        volume.claim().await.unwrap();
        let bytes = read_all(&volume).await.unwrap();
        let there = |n: u64| {
            bytes[usize::try_from((FIRST + WRITES - n) * 4096).unwrap()..][..512].iter().all(|byte| *byte == 9)
        };
        let prefix = (0..WRITES).take_while(|n| there(*n)).count() as u64;
        let all = (0..WRITES).filter(|n| there(*n)).count() as u64;
        println!("{all} of {WRITES} flushed writes are left, the first {prefix} of them without a gap");
        assert!(all > 0, "something came into the store");
        assert_eq!(all, prefix, "what is left is no prefix of what was flushed");
    });
}

#[test]
fn no_version_is_said_of_two_contents_though_a_large_upload_breaks_off() {
    let mut world = large(Durability::Object);
    world.record.size = 12 << 20;
    let mut said: HashMap<Version, Vec<u8>> = HashMap::new();
    life(&mut world, 1, async |world| {
        let gateway = world.gateway(1, &Faults::none(), None).unwrap();
        let volume = world.open(&gateway).await.unwrap();
        volume.claim().await.unwrap();
        let count = (4 << 20) / 4096 - 1;
        for n in 0..count {
            write(&volume, 100 + n, 9, LATER).await.unwrap();
            if n + 12 > count {
                said.insert(volume.version().0, read_all(&volume).await.unwrap());
            }
        }
        // With this one it is more than one record takes, and the second of them never comes.
        gateway.faults.die_at(gateway.faults.calls(), true);
        volume.write(0, Bytes::from(vec![8; 64 << 10]), LATER).await.unwrap();
        said.insert(volume.version().0, read_all(&volume).await.unwrap());
        tokio::time::sleep(Duration::from_secs(3)).await;
    });
    life(&mut world, 2, async |world| {
        let volume = world.open(&world.gateway(2, &Faults::none(), None).unwrap()).await.unwrap();
        let (version, _) = volume.version();
        assert!(version.change > 0, "something came into the store");
        let found = read_all(&volume).await.unwrap();
        assert!(said.get(&version).is_none_or(|then| *then == found), "{version:?} was said of other bytes before");
    });
}

#[test]
fn what_nobody_flushes_is_in_the_store_after_the_upload_lag() {
    life(&mut world(Durability::Local), 1, async |world| {
        let directory = tempfile::tempdir().unwrap();
        let gateway = world.gateway(1, &Faults::none(), Some(&directory.path().join("journal"))).unwrap();
        let volume = world.open(&gateway).await.unwrap();
        for round in 1..10u8 {
            write(&volume, 3, round, LATER).await.unwrap();
            // A flush in between makes it no younger.
            tokio::time::sleep(world.settings.upload_lag / 2).await;
            if round % 2 == 0 {
                volume.flush().await.unwrap();
            }
            tokio::time::sleep(world.settings.upload_lag / 2 + Duration::from_millis(20)).await;
            assert_eq!(volume.status().dirty_bytes, 0, "round {round}");
        }
    });
}

#[test]
fn a_full_store_fails_no_flush_that_the_journal_took() {
    life(&mut world(Durability::Local), 1, async |world| {
        let directory = tempfile::tempdir().unwrap();
        let gateway = world.gateway(1, &Faults::none(), Some(&directory.path().join("journal"))).unwrap();
        let volume = world.open(&gateway).await.unwrap();
        write(&volume, 0, 1, FUA).await.unwrap();
        gateway.faults.fill(true);
        for round in 1..100u8 {
            write(&volume, u64::from(round % 50), round, FUA).await.expect("the journal has it");
            tokio::time::sleep(Duration::from_millis(u64::from(round) * 7)).await;
        }
        // Without the journal it is the store that a flush waits for, which says what is wrong.
        world.settings.journal_full.store(true, Ordering::Relaxed);
        let error = write(&volume, 3, 3, FUA).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
        gateway.faults.heal();
        volume.flush().await.unwrap();
    });
}

#[test]
fn an_owner_that_was_stopped_for_long_looks_before_it_answers_a_read() {
    life(&mut world(Durability::Object), 1, async |world| {
        let (one, two) =
            (world.gateway(1, &Faults::none(), None).unwrap(), world.gateway(2, &Faults::none(), None).unwrap());
        let old = world.open(&one).await.unwrap();
        write(&old, 3, 1, FUA).await.unwrap();
        let new = world.open(&two).await.unwrap();
        write(&new, 3, 2, FUA).await.unwrap();
        // As after SIGSTOP and SIGCONT: time has gone by, and no task of it has run.
        tokio::time::advance(Duration::from_secs(600)).await;
        assert!(old.try_read(ByteRange::new(3 * 4096, 4 * 4096)).is_none(), "it gives away what may be old");
        let error = byte(&*old, 3).await.unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::Fenced, "taken-over"));
        assert_eq!(byte(&*new, 3).await.unwrap(), 2);
    });
}

#[test]
fn two_gateways_never_say_one_version_of_different_bytes_of_an_ephemeral_volume() {
    life(&mut world(Durability::Ephemeral), 1, async |world| {
        let owner = world.open(&world.gateway(1, &Faults::none(), None).unwrap()).await.unwrap();
        let mut said: HashMap<Version, Vec<u8>> = HashMap::new();
        // More than there is room for, so that a part of it goes into the store.
        for n in 0..1200u64 {
            write(&owner, n % 64, u8::try_from(n % 251).unwrap(), LATER).await.unwrap();
            said.insert(owner.version().0, read_all(&owner).await.unwrap());
        }
        assert!(owner.status().delta_bytes > 0, "something of it is in the store");
        let reader = world.open(&world.gateway(2, &Faults::none(), None).unwrap()).await.unwrap();
        let (version, bytes) = (reader.version().0, read_all(&reader).await.unwrap());
        assert!(
            said.get(&version).is_none_or(|then| *then == bytes),
            "{version:?} is said of other bytes by the owner"
        );
    });
}

#[test]
fn a_store_that_takes_nothing_stops_no_writes_to_another() {
    for durability in [Durability::Object, Durability::Local] {
        let mut world = world(durability);
        world.record.size = 4 << 20;
        life(&mut world, 1, async |world| {
            let directory = tempfile::tempdir().unwrap();
            let journal = directory.path().join("journal");
            let one = world.gateway(1, &Faults::none(), Some(&journal)).unwrap();
            let beside = World::new(2, durability, SIZE);
            let there = beside.gateway(2, &Faults::none(), None).unwrap();
            // Both stores are of one gateway.
            let two = SimGateway { engine: Arc::clone(&one.engine), ..there };
            let healthy = beside.open_sibling(&two, 99).await.unwrap();
            let mut busy = Vec::new();
            for n in 1..=8 {
                let volume = world.open_sibling(&one, n).await.unwrap();
                write(&volume, 0, 1, FUA).await.unwrap();
                busy.push(volume);
            }
            one.faults.outage();
            // Twice as much as the whole gateway may hold, all of it waiting for the first store.
            let writers: Vec<_> = busy
                .iter()
                .map(|volume| {
                    let volume = Arc::clone(volume);
                    tokio::spawn(async move {
                        for block in 0..512 {
                            write(&volume, block, 7, LATER).await.unwrap();
                        }
                    })
                })
                .collect();
            tokio::time::sleep(Duration::from_secs(30)).await;
            assert!(writers.iter().all(|writer| !writer.is_finished()), "there is room for everything");
            for block in 0..60 {
                let written = write(&healthy, block, 5, FUA);
                let within = Duration::from_secs(30);
                tokio::time::timeout(within, written).await.expect("it waits for the other store").unwrap();
            }
            one.faults.heal();
            for writer in writers {
                writer.await.unwrap();
            }
        });
    }
}
