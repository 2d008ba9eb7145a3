//! The journal of a gateway that died: shipped whether or not anybody asks, and as much of it as was acknowledged.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clonegate::clock::Clock;
use clonegate::device::{Device, WriteOptions};
use clonegate::lifecycle::views::{CreateClones, CreateDisk, DurabilityView};
use clonegate::volume::Volume;
use clonegate_core::format::clone::Durability;
use clonegate_core::units::ByteRange;
use clonegate_core::{ErrorKind, Result};
use clonegate_tests::faults::{FaultStore, Faults};
use clonegate_tests::lab::{order, read, version, write};
use clonegate_tests::rehearsal::Stores;
use clonegate_tests::sim::{World, claim_in_passing, read_all, runtime};

const SIZE: u64 = 64 * 4096;
const FUA: WriteOptions = WriteOptions { fua: true, expect: None };

/// Three exports with flushed writes that only the journal of gateway 1 holds when it dies.
async fn furnish(stores: &Stores) {
    let gateway = stores.gateway(1, &Faults::none()).await.unwrap();
    version(&gateway, "t", 1).await;
    let clones = CreateClones { durability: Some(DurabilityView::Local), ..order("c", "t", Some(2)) };
    gateway.create_clones(clones, false).await.unwrap();
    let disk = CreateDisk {
        name: "d".to_owned(),
        size: 1 << 20,
        durability: Some(DurabilityView::Local),
        ..CreateDisk::default()
    };
    gateway.create_disk(disk, false).await.unwrap();
    for export in ["c-001", "c-002", "disk/d"] {
        write(&gateway, export, 8192, b"old!").await;
    }
    tokio::time::sleep(Duration::from_secs(30)).await;
    for export in ["c-001", "c-002", "disk/d"] {
        write(&gateway, export, 8192, b"new!").await;
    }
}

#[test]
fn what_a_killed_gateways_journal_holds_is_shipped_at_start_though_nobody_opens_the_clone() {
    let stores = Stores::new(&["fast"]).with_journals();
    let first = runtime();
    first.block_on(furnish(&stores));
    // As with a process that dies, nothing of it is waited for.
    first.shutdown_background();
    runtime().block_on(async {
        let other = stores.gateway(2, &Faults::none()).await.unwrap();
        for export in ["c-001", "c-002", "disk/d"] {
            assert_eq!(read(&other, export, 8192).await, b"old!", "{export}: it was in the store before");
        }
        // The datastore does not answer for the first two minutes.
        let faults = Faults::none();
        faults.outage();
        let between = Arc::clone(&faults);
        let again = stores
            .gateway_behind(1, move |name, store| {
                let faults = if name == "fast" { Arc::clone(&between) } else { Faults::none() };
                Arc::new(FaultStore::new(store, faults))
            })
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert_eq!(again.engine().pending_clones().len(), 3, "nothing was given up");
        faults.heal();
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert!(again.engine().pending_clones().is_empty());
        for export in ["c-001", "c-002", "disk/d"] {
            assert_eq!(read(&other, export, 8192).await, b"new!", "{export}: nobody asked gateway 1 for it");
        }
        again.stop().await;
        let found = other.fsck(false, Some(0), true).await.unwrap().findings;
        assert!(found.is_empty(), "{found:?}");
    });
}

fn life<T>(world: &mut World, seed: u64, run: impl AsyncFnOnce(&World) -> T) -> T {
    let runtime = runtime();
    world.clock = runtime.block_on(async { Clock::simulated(seed) });
    runtime.block_on(run(world))
}

async fn put(volume: &Volume, block: u64, fill: u8) -> Result<()> {
    volume.write(block * 4096, Bytes::from(vec![fill; 4096]), FUA).await
}

async fn byte(device: &dyn Device, block: u64) -> u8 {
    device.read(ByteRange::new(block * 4096, (block + 1) * 4096)).await.unwrap().concat()[0]
}

/// The file of the journal in which something is.
fn journal_file(journal: &Path) -> std::path::PathBuf {
    journal.join("journal-00000000")
}

#[test]
fn a_journal_that_is_torn_anywhere_gives_a_prefix_of_what_was_acknowledged_and_the_clone_is_written_on() {
    let mut world = World::new(7, Durability::Local, SIZE);
    let directory = tempfile::tempdir().unwrap();
    let journal = directory.path().join("journal");
    let mut ends = Vec::new();
    life(&mut world, 1, async |world| {
        let gateway = world.gateway(1, &Faults::none(), Some(&journal)).unwrap();
        let volume = world.open(&gateway).await.unwrap();
        put(&volume, 0, 1).await.unwrap();
        tokio::time::sleep(Duration::from_secs(5)).await;
        // Within the upload lag: all of it is in the journal alone.
        for round in 1..=8u8 {
            put(&volume, u64::from(round % 3), 100 + round).await.unwrap();
            ends.push(std::fs::metadata(journal_file(&journal)).unwrap().len());
        }
    });
    let bytes = std::fs::read(journal_file(&journal)).unwrap();
    let stored = world.objects.fork();
    let last_three = ends[4]..=bytes.len() as u64;
    for cut in last_three.step_by(97).chain(ends[4..].iter().flat_map(|end| [end - 9, *end])) {
        world.objects = Arc::new(stored.fork());
        let torn = bytes[..usize::try_from(cut).unwrap()].to_vec();
        std::fs::write(journal_file(&journal), torn).unwrap();
        let whole = ends.iter().filter(|end| **end <= cut).count();
        let mut wanted = world.born(1);
        let rounds = (1..=8u8).take(whole).map(|round| (usize::from(round % 3), 100 + round));
        for (block, fill) in std::iter::once((0, 1)).chain(rounds) {
            wanted[block * 4096..(block + 1) * 4096].fill(fill);
        }
        life(&mut world, 2, async |world| {
            let gateway = world.gateway(1, &Faults::none(), Some(&journal)).expect("a torn end is no error");
            let volume = world.open(&gateway).await.expect("a torn end is no error");
            assert!(read_all(&volume).await.unwrap() == wanted, "cut at {cut}: not what was acknowledged before it");
            assert!(!volume.status().lost_tail, "cut at {cut}: nothing acknowledged is known to be lost");
            put(&volume, 9, 9).await.unwrap();
            volume.close().await.unwrap();
        });
        life(&mut world, 3, async |world| {
            let volume = world.open(&world.gateway(2, &Faults::none(), None).unwrap()).await.unwrap();
            wanted[9 * 4096..10 * 4096].fill(9);
            assert!(read_all(&volume).await.unwrap() == wanted, "cut at {cut}: after it was written on");
        });
    }
}

#[test]
fn a_damaged_journal_asks_for_a_yes_for_the_clone_that_lost_a_write_and_harms_no_other() {
    let mut world = World::new(7, Durability::Local, SIZE);
    let directory = tempfile::tempdir().unwrap();
    let journal = directory.path().join("journal");
    let mut ends = Vec::new();
    life(&mut world, 1, async |world| {
        let gateway = world.gateway(1, &Faults::none(), Some(&journal)).unwrap();
        let one = world.open(&gateway).await.unwrap();
        let two = world.open_sibling(&gateway, 2).await.unwrap();
        for volume in [&one, &two] {
            put(volume, 1, 1).await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        for (volume, fill) in [(&one, 2), (&two, 2), (&one, 3), (&two, 3), (&one, 4)] {
            put(volume, u64::from(fill), fill).await.unwrap();
            ends.push(std::fs::metadata(journal_file(&journal)).unwrap().len());
        }
    });
    // A byte of the block of the write of 3 to the first clone: what comes before it is its prefix.
    let mut bytes = std::fs::read(journal_file(&journal)).unwrap();
    bytes[usize::try_from(ends[2] - 2000).unwrap()] ^= 1;
    std::fs::write(journal_file(&journal), bytes).unwrap();
    life(&mut world, 2, async |world| {
        let gateway = world.gateway(1, &Faults::none(), Some(&journal)).expect("damage keeps no gateway from starting");
        let two = world.open_sibling(&gateway, 2).await.unwrap();
        assert_eq!((byte(&*two, 2).await, byte(&*two, 3).await), (2, 3), "the other clone has all that it flushed");
        put(&two, 9, 9).await.unwrap();
        assert!(!two.status().lost_tail);
        let one = world.open(&gateway).await.expect("it can be read");
        assert_eq!(byte(&*one, 1).await, 1);
        let error = put(&one, 9, 9).await.unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::Conflict, "lost-tail"));
        assert!(error.message().contains("damaged"), "{error}");
        assert_eq!(one.lost_tail().await.unwrap().unwrap().message(), error.message());
        assert_eq!(gateway.engine.pending_clones(), [world.record.id]);
        one.accept_lost_tail();
        put(&one, 5, 5).await.unwrap();
        assert!(one.status().lost_tail);
        let born = world.born(1)[3 * 4096];
        let found = [byte(&*one, 2).await, byte(&*one, 3).await, byte(&*one, 5).await];
        assert_eq!(found, [2, born, 5], "a prefix of what was flushed, and what came after the yes");
        assert_eq!(byte(&*one, 4).await, world.born(1)[4 * 4096], "what came behind the gap is given up too");
        // It dies again, with the second clone's writes and the damaged file's rest where they are.
    });
    life(&mut world, 3, async |world| {
        let gateway = world.gateway(1, &Faults::none(), Some(&journal)).unwrap();
        let one = world.open(&gateway).await.unwrap();
        let found = [byte(&*one, 2).await, byte(&*one, 4).await, byte(&*one, 5).await];
        assert_eq!(found, [2, world.born(1)[4 * 4096], 5], "what was given up stays given up");
        put(&one, 6, 6).await.unwrap();
        let two = world.open_sibling(&gateway, 2).await.unwrap();
        assert_eq!((byte(&*two, 3).await, byte(&*two, 9).await), (3, 9));
    });
}

#[test]
fn a_damaged_entry_of_nobody_knows_whom_asks_for_a_yes_for_every_clone_that_was_open() {
    let mut world = World::new(7, Durability::Local, SIZE);
    let directory = tempfile::tempdir().unwrap();
    let journal = directory.path().join("journal");
    let mut ends = Vec::new();
    life(&mut world, 1, async |world| {
        let gateway = world.gateway(1, &Faults::none(), Some(&journal)).unwrap();
        let (one, two) = (world.open(&gateway).await.unwrap(), world.open_sibling(&gateway, 2).await.unwrap());
        let closed = world.open_sibling(&gateway, 3).await.unwrap();
        put(&closed, 1, 1).await.unwrap();
        closed.close().await.unwrap();
        for (volume, fill) in [(&one, 2), (&two, 2), (&two, 3)] {
            put(volume, u64::from(fill), fill).await.unwrap();
            ends.push(std::fs::metadata(journal_file(&journal)).unwrap().len());
        }
    });
    let mut bytes = std::fs::read(journal_file(&journal)).unwrap();
    // The magic of the second clone's first entry.
    bytes[usize::try_from(ends[0]).unwrap()] ^= 1;
    std::fs::write(journal_file(&journal), bytes).unwrap();
    for n in [2, 3] {
        life(&mut world, n, async |world| {
            let gateway =
                world.gateway(1, &Faults::none(), Some(&journal)).expect("damage keeps no gateway from starting");
            for volume in [world.open(&gateway).await.unwrap(), world.open_sibling(&gateway, 2).await.unwrap()] {
                assert_eq!(put(&volume, 9, 9).await.unwrap_err().code(), "lost-tail");
            }
            let closed = world.open_sibling(&gateway, 3).await.unwrap();
            put(&closed, 9, 9).await.expect("it was closed: all of it is stored");
            closed.close().await.unwrap();
        });
    }
}

#[test]
fn what_an_owner_flushed_before_it_ended_in_a_living_process_is_there_when_it_is_opened_again() {
    let mut world = World::new(9, Durability::Local, SIZE);
    let directory = tempfile::tempdir().unwrap();
    let journal = directory.path().join("journal");
    let mut wanted = world.born(1);
    life(&mut world, 1, async |world| {
        let gateway = world.gateway(1, &Faults::none(), Some(&journal)).unwrap();
        for round in 1..=3u8 {
            let volume = world.open(&gateway).await.unwrap();
            let epoch = u64::from(round) * 3 - 2;
            put(&volume, 0, round).await.unwrap();
            tokio::time::sleep(Duration::from_secs(5)).await;
            // Within the upload lag: the journal alone has it.
            for block in 1..=5u8 {
                put(&volume, u64::from(block), 10 * round + block).await.unwrap();
            }
            claim_in_passing(world, epoch + 1).await;
            // What is known is older than it may be, so a read looks whether it is still so.
            let error = volume.read(ByteRange::new(0, 4096)).await.unwrap_err();
            assert_eq!(error.code(), "taken-over", "round {round}");
            drop(volume);
            tokio::time::sleep(Duration::from_secs(5)).await;
            assert_eq!(gateway.engine.pending_clones(), [world.record.id], "nobody would ship it");
            let volume = world.open(&gateway).await.unwrap();
            wanted[..4096].fill(round);
            for block in 1..=5u8 {
                let at = usize::from(block) * 4096;
                wanted[at..at + 4096].fill(10 * round + block);
            }
            assert!(read_all(&volume).await.unwrap() == wanted, "round {round}: flushed writes are gone");
            assert!(!volume.status().lost_tail && gateway.engine.pending_clones().is_empty());
            put(&volume, 9, round).await.unwrap();
            wanted[9 * 4096..10 * 4096].fill(round);
            volume.close().await.unwrap();
        }
    });
    // Nor does anything of it come back over what was written later.
    life(&mut world, 2, async |world| {
        let gateway = world.gateway(1, &Faults::none(), Some(&journal)).unwrap();
        let volume = world.open(&gateway).await.unwrap();
        assert!(read_all(&volume).await.unwrap() == wanted);
    });
}
