//! What a delta costs in the store: what stays of it after writes have come to rest, and the requests on the way there.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clonegate::clock::Clock;
use clonegate::delta::DeltaSettings;
use clonegate::delta::load::Listing;
use clonegate::device::{Device, WriteOptions};
use clonegate::exports::Exports;
use clonegate::lifecycle::views::{CreateClones, CreateDisk, DurabilityView, ImportTemplate};
use clonegate::store::{Operation, keys};
use clonegate::volume::Volume;
use clonegate_core::format::clone::Durability;
use clonegate_core::units::ByteRange;
use clonegate_tests::faults::Faults;
use clonegate_tests::lab::{import, order};
use clonegate_tests::rehearsal::Stores;
use clonegate_tests::sim::{SimGateway, World, runtime};
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 24 * MIB;

/// A world with the settings of production, but a grace of two minutes.
fn world(durability: Durability) -> World {
    let mut world = World::new(7, durability, SIZE);
    world.settings = DeltaSettings { grace: Duration::from_secs(120), ..DeltaSettings::default() };
    world
}

fn run<T>(durability: Durability, test: impl AsyncFnOnce(&World, &SimGateway, &Arc<Volume>) -> T) -> T {
    let mut world = world(durability);
    let directory = tempfile::tempdir().unwrap();
    let journal = (durability == Durability::Local).then(|| directory.path().join("journal"));
    let runtime = runtime();
    world.clock = runtime.block_on(async { Clock::simulated(7) });
    runtime.block_on(async {
        let gateway = world.gateway(1, &Faults::none(), journal.as_deref()).unwrap();
        let volume = world.open(&gateway).await.unwrap();
        test(&world, &gateway, &volume).await
    })
}

async fn write(volume: &Volume, block: u64, fill: u8) {
    volume.write(block * 4096, Bytes::from(vec![fill; 4096]), WriteOptions::default()).await.unwrap();
}

async fn stored(world: &World) -> u64 {
    world.store().list(&keys::clone_dir(world.record.id)).await.unwrap().iter().map(|object| object.size).sum()
}

fn put(gateway: &SimGateway) -> (u64, u64) {
    let count = gateway.store.counts().of(Operation::Put);
    (count.requests, count.bytes)
}

/// Random writes that go over everything several times, with a flush after so many; afterwards the bytes of each block.
async fn write_at_random(volume: &Volume, random: &mut StdRng, bytes: u64, flush_every: u64) -> Vec<Option<u8>> {
    let blocks = SIZE / 4096;
    let mut model = vec![None; usize::try_from(blocks).unwrap()];
    for n in 0..bytes / 4096 {
        // A working set, as desktops have: most writes go to a fifth of the volume.
        let hot = random.random_range(0..10u32) < 7;
        let block = random.random_range(0..if hot { blocks / 5 } else { blocks });
        let fill = u8::try_from(n % 251).unwrap();
        write(volume, block, fill).await;
        model[usize::try_from(block).unwrap()] = Some(fill);
        if n % flush_every == 0 {
            volume.flush().await.unwrap();
        }
        if n % 16 == 0 {
            tokio::time::sleep(Duration::from_millis(random.random_range(0..20))).await;
        }
    }
    volume.flush().await.unwrap();
    model
}

fn random_writes_cost_at_most_1_3_times_what_is_live(durability: Durability, flush_every: u64) {
    run(durability, async |world, gateway, volume| {
        let mut random = StdRng::seed_from_u64(3);
        let guest = 4 * SIZE;
        let model = write_at_random(volume, &mut random, guest, flush_every).await;
        let live = 4096 * model.iter().filter(|block| block.is_some()).count() as u64;
        let busy = stored(world).await;
        // Nobody asks for it: it comes to rest by itself.
        tokio::time::sleep(Duration::from_secs(900)).await;
        let rest = stored(world).await;
        let (_, sent) = put(gateway);
        println!(
            "{durability:?}, a flush for {flush_every} writes: {} MiB live of {} MiB written; stored at the last write {} % of what is live, at rest {} %; sent {} % of \
             what was written",
            live / MIB,
            guest / MIB,
            busy * 100 / live,
            rest * 100 / live,
            sent * 100 / guest,
        );
        assert!(rest * 10 <= live * 13, "{rest} bytes are stored of {live} live ones");
        assert!(sent * 10 <= guest * 13, "{sent} bytes were sent of {guest} written ones");
        for (n, block) in model.iter().enumerate().filter_map(|(n, block)| Some((n as u64, (*block)?))) {
            let read = volume.read(ByteRange::new(n * 4096, (n + 1) * 4096)).await.unwrap().concat();
            assert!(read.iter().all(|byte| *byte == block), "block {n}");
        }
        // And then it is left alone.
        let before = gateway.store.counts().requests();
        tokio::time::sleep(Duration::from_secs(24 * 3600)).await;
        assert_eq!(gateway.store.counts().requests(), before, "a volume at rest asks nothing of the store");
        assert_eq!(stored(world).await, rest);
    });
}

#[test]
fn what_opening_has_to_read_is_bounded_however_fast_a_volume_is_written() {
    let mut world = world(Durability::Object);
    world.settings.checkpoint_bytes = MIB;
    world.settings.dirty_bytes_per_volume = 2 * MIB;
    let runtime = runtime();
    world.clock = runtime.block_on(async { Clock::simulated(7) });
    runtime.block_on(async {
        let gateway = world.gateway(1, &Faults::none(), None).unwrap();
        let volume = world.open(&gateway).await.unwrap();
        let mut random = StdRng::seed_from_u64(5);
        let mut most = 0;
        // In less time than passes between two looks at the garbage.
        for n in 0..4 * SIZE / 4096 {
            write(&volume, random.random_range(0..SIZE / 4096), u8::try_from(n % 251).unwrap()).await;
            if n % 1024 == 1023 {
                volume.flush().await.unwrap();
                most = most.max(behind_the_newest_checkpoint(&world).await);
            }
        }
        assert!(most <= 12 * MIB, "{} MiB of {} lie behind the newest checkpoint", most / MIB, 4 * SIZE / MIB);
    });
}

/// Bytes of the records that are read at an opening besides the newest checkpoint.
async fn behind_the_newest_checkpoint(world: &World) -> u64 {
    let listing = Listing::read(&world.store(), world.record.id).await.unwrap();
    let newest = listing.checkpoints.last().map(|(at, _)| *at);
    listing.logs.iter().filter(|(at, _)| newest.is_none_or(|newest| *at > newest)).map(|(_, size)| size).sum()
}

#[test]
fn random_writes_to_an_object_clone_leave_at_most_1_3_times_what_is_live() {
    random_writes_cost_at_most_1_3_times_what_is_live(Durability::Object, 97);
}

#[test]
fn random_writes_that_are_each_flushed_leave_at_most_1_3_times_what_is_live() {
    random_writes_cost_at_most_1_3_times_what_is_live(Durability::Object, 1);
}

#[test]
fn random_writes_to_a_local_clone_leave_at_most_1_3_times_what_is_live() {
    random_writes_cost_at_most_1_3_times_what_is_live(Durability::Local, 97);
}

#[test]
fn a_flush_of_an_object_clone_is_one_put_and_those_of_many_share_it() {
    run(Durability::Object, async |_, gateway, volume| {
        volume.claim().await.unwrap();
        let (before, _) = put(gateway);
        for n in 0..100 {
            write(volume, n * 3, 1).await;
            volume.flush().await.unwrap();
        }
        let (alone, _) = put(gateway);
        assert_eq!(alone - before, 100, "a flush is one request");
        for round in 0..20 {
            let many = (0..32).map(|n| async move {
                write(volume, 1000 + round * 32 + n, 2).await;
                volume.flush().await.unwrap();
            });
            futures::future::join_all(many).await;
        }
        let (together, _) = put(gateway);
        println!("{} requests for {} flushes that came 32 at a time", together - alone, 20 * 32);
        assert!(together - alone <= 20 * 4, "{} requests for 20 times 32 flushes at once", together - alone);
        // Flushes with nothing to flush.
        for _ in 0..50 {
            volume.flush().await.unwrap();
        }
        assert_eq!(put(gateway).0, together);
    });
}

#[test]
fn of_too_many_small_objects_the_oldest_are_folded_and_the_others_stay() {
    const MOST: usize = 64;
    let mut world = world(Durability::Object);
    world.settings.small_objects_per_volume = (MOST, MOST);
    world.settings.checkpoint_records = 32;
    let runtime = runtime();
    world.clock = runtime.block_on(async { Clock::simulated(7) });
    runtime.block_on(async {
        let gateway = world.gateway(1, &Faults::none(), None).unwrap();
        let volume = world.open(&gateway).await.unwrap();
        let blocks = 10 * MOST as u64;
        for n in 0..blocks {
            write(&volume, n * 3, u8::try_from(n % 251).unwrap()).await;
            volume.flush().await.unwrap();
        }
        // Longer than garbage waits, so that what was folded is gone.
        tokio::time::sleep(Duration::from_secs(600)).await;
        let listing = Listing::read(&world.store(), world.record.id).await.unwrap();
        let data: Vec<_> = listing.logs.iter().filter(|(_, size)| *size > 4096).collect();
        println!("{} records and {} segments hold {blocks} blocks", data.len(), listing.segments.len());
        assert!(data.len() <= MOST + 32, "{} small objects are left", data.len());
        assert!(data.len() >= MOST / 2, "the newest were folded too: {} are left", data.len());
        assert!(!listing.segments.is_empty());
        for n in 0..blocks {
            let read = volume.read(ByteRange::new(n * 3 * 4096, (n * 3 + 1) * 4096)).await.unwrap().concat();
            assert!(read.iter().all(|byte| u64::from(*byte) == n % 251), "block {n}");
        }
    });
}

/// A gateway beside the others whose requests for data take a hundredth of a second each.
fn slow_reader(world: &World) -> SimGateway {
    let slow = ThrottleConfig { wait_get_per_call: Duration::from_millis(10), ..ThrottleConfig::default() };
    let objects = Arc::new(ThrottledStore::new(Arc::clone(&world.objects), slow));
    world.gateway_on(2, objects, &Faults::none(), None).unwrap()
}

#[test]
fn what_lies_in_many_small_objects_is_fetched_side_by_side() {
    run(Durability::Object, async |world, _, volume| {
        for n in 0..64 {
            write(volume, n, u8::try_from(n).unwrap()).await;
            volume.flush().await.unwrap();
        }
        let reader = slow_reader(world);
        let volume = world.open(&reader).await.unwrap();
        volume.read(ByteRange::new(SIZE - 4096, SIZE)).await.unwrap();
        let begun = tokio::time::Instant::now();
        let read = volume.read(ByteRange::new(0, 64 * 4096)).await.unwrap().concat();
        assert!(read.iter().enumerate().all(|(at, byte)| usize::from(*byte) == at / 4096));
        let took = begun.elapsed();
        assert!(took <= Duration::from_millis(60), "64 requests of 10 ms took {took:?}");
    });
}

#[test]
fn a_reader_that_goes_straight_ahead_asks_for_each_object_once_and_seldom_waits() {
    const BLOCKS: u64 = 1024;
    run(Durability::Object, async |world, _, volume| {
        for n in 0..BLOCKS {
            write(volume, n, u8::try_from(n % 251).unwrap()).await;
            volume.flush().await.unwrap();
        }
        let reader = slow_reader(world);
        let volume = world.open(&reader).await.unwrap();
        volume.read(ByteRange::new(SIZE - 4096, SIZE)).await.unwrap();
        let (before, begun) = (reader.store.counts().of(Operation::Get).requests, tokio::time::Instant::now());
        for n in 0..BLOCKS {
            let read = volume.read(ByteRange::new(n * 4096, (n + 1) * 4096)).await.unwrap().concat();
            assert!(read.iter().all(|byte| u64::from(*byte) == n % 251), "block {n}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let asked = reader.store.counts().of(Operation::Get).requests - before;
        let took = begun.elapsed();
        println!("{asked} requests, {took:?}");
        assert!(asked <= BLOCKS + BLOCKS / 16, "{asked} requests for {BLOCKS} objects");
        assert!(took <= Duration::from_millis(10 * BLOCKS / 4), "{BLOCKS} blocks took {took:?}");
    });
}

#[test]
fn a_fold_reads_what_lives_however_large_and_sparse_its_objects_are() {
    const PIECE: u64 = 1024;
    const PIECES: u64 = 16;
    let lives = |block: u64| block % 100 == 7;
    let mut world = world(Durability::Object);
    world.record.size = PIECES * PIECE * 4096;
    let runtime = runtime();
    world.clock = runtime.block_on(async { Clock::simulated(7) });
    runtime.block_on(async {
        let gateway = world.gateway(1, &Faults::none(), None).unwrap();
        let volume = world.open(&gateway).await.unwrap();
        for piece in 0..PIECES {
            let bytes = Bytes::from(vec![1; usize::try_from(PIECE * 4096).unwrap()]);
            volume.write(piece * PIECE * 4096, bytes, WriteOptions::default()).await.unwrap();
            volume.flush().await.unwrap();
        }
        // Of each of these records a hundredth is left, each block far from the next.
        let mut at = 0;
        while at < PIECES * PIECE {
            let end = (at..PIECES * PIECE).find(|block| lives(*block)).unwrap_or(PIECES * PIECE);
            if at < end {
                let bytes = Bytes::from(vec![2; usize::try_from((end - at) * 4096).unwrap()]);
                volume.write(at * 4096, bytes, WriteOptions::default()).await.unwrap();
            }
            at = end + 1;
        }
        volume.flush().await.unwrap();
        let before = gateway.store.counts().of(Operation::Get);
        tokio::time::sleep(Duration::from_secs(900)).await;
        let after = gateway.store.counts().of(Operation::Get);
        let listing = Listing::read(&world.store(), world.record.id).await.unwrap();
        assert!(!listing.segments.is_empty(), "nothing was folded");
        let live = 4096 * (0..PIECES * PIECE).filter(|block| lives(*block)).count() as u64;
        let (read, requests) = (after.bytes - before.bytes, after.requests - before.requests);
        println!("{} KiB in {requests} requests were read to fold {} KiB", read / 1024, live / 1024);
        assert!(read <= 4 * live, "{read} bytes were read of objects in which {live} live");
        for block in (0..PIECES * PIECE).step_by(97).chain((7..PIECES * PIECE).step_by(100)) {
            let found = volume.read(ByteRange::new(block * 4096, (block + 1) * 4096)).await.unwrap().concat();
            assert!(found.iter().all(|byte| *byte == if lives(block) { 1 } else { 2 }), "block {block}");
        }
    });
}

/// Two records of so many blocks, of which one has the even blocks of the volume and the other the odd ones.
async fn write_in_turns(volume: &Volume, blocks: u64) {
    for odd in 0..2 {
        for n in 0..blocks {
            write(volume, 2 * n + odd, u8::try_from(n % 251).unwrap()).await;
        }
        volume.flush().await.unwrap();
    }
}

#[test]
fn what_lies_in_turns_in_two_objects_is_asked_for_once_by_a_reader_that_goes_straight_ahead() {
    const BLOCKS: u64 = 1000;
    run(Durability::Object, async |world, _, volume| {
        write_in_turns(volume, BLOCKS).await;
        let reader = slow_reader(world);
        let volume = world.open(&reader).await.unwrap();
        volume.read(ByteRange::new(SIZE - 4096, SIZE)).await.unwrap();
        let before = reader.store.counts().of(Operation::Get);
        for n in 0..2 * BLOCKS {
            let read = volume.read(ByteRange::new(n * 4096, (n + 1) * 4096)).await.unwrap().concat();
            assert!(read.iter().all(|byte| u64::from(*byte) == n / 2 % 251), "block {n}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let after = reader.store.counts().of(Operation::Get);
        let (bytes, requests) = (after.bytes - before.bytes, after.requests - before.requests);
        println!("{bytes} bytes in {requests} requests");
        assert_eq!(bytes, 2 * BLOCKS * 4100, "each line of each object is asked for once");
        assert!(requests <= BLOCKS / 16, "{requests} requests for {} lines", 2 * BLOCKS.div_ceil(16));
    });
}

#[test]
fn many_who_read_the_same_share_one_request_and_one_who_goes_away_keeps_nobody_waiting() {
    run(Durability::Object, async |world, _, volume| {
        write_in_turns(volume, 64).await;
        let reader = slow_reader(world);
        let volume = world.open(&reader).await.unwrap();
        volume.read(ByteRange::new(SIZE - 4096, SIZE)).await.unwrap();
        let before = reader.store.counts().of(Operation::Get).requests;
        let read = |first: u64| {
            let volume = Arc::clone(&volume);
            tokio::spawn(async move { volume.read(ByteRange::new(first * 4096, (first + 4) * 4096)).await })
        };
        let first = read(0);
        tokio::time::sleep(Duration::from_millis(3)).await;
        let others: Vec<_> = (0..16).map(|n| read(n % 4 * 2)).collect();
        tokio::time::sleep(Duration::from_millis(3)).await;
        // The one for whom it is being fetched.
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        for (n, other) in others.into_iter().enumerate() {
            let found = tokio::time::timeout(Duration::from_secs(60), other).await.expect("it waits for ever");
            let first = n as u64 % 4;
            let bytes = found.unwrap().unwrap().concat();
            assert!(bytes.iter().enumerate().all(|(at, byte)| u64::from(*byte) == first + at as u64 / 8192));
        }
        let asked = reader.store.counts().of(Operation::Get).requests - before;
        assert_eq!(asked, 2, "one line of each of two objects");
        // A failure is told to those who waited, and not kept.
        reader.faults.outage();
        let failing = read(100);
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop(failing);
        reader.faults.heal();
        let bytes = read(100).await.unwrap().unwrap().concat();
        assert!(bytes.iter().enumerate().all(|(at, byte)| u64::from(*byte) == 50 + at as u64 / 8192));
    });
}

#[test]
fn garbage_does_not_wait_for_its_grace_when_there_is_too_much_of_it() {
    let mut world = world(Durability::Object);
    world.settings.grace = Duration::from_secs(3600);
    let runtime = runtime();
    world.clock = runtime.block_on(async { Clock::simulated(7) });
    runtime.block_on(async {
        let gateway = world.gateway(1, &Faults::none(), None).unwrap();
        let volume = world.open(&gateway).await.unwrap();
        let piece = Bytes::from(vec![7; 4 << 20]);
        for n in 0..140u64 {
            volume.write(n % 3 * (4 << 20), piece.clone(), WriteOptions::default()).await.unwrap();
            volume.flush().await.unwrap();
        }
        assert!(stored(&world).await > 256 * MIB, "the load makes garbage");
        tokio::time::sleep(Duration::from_secs(600)).await;
        let left = stored(&world).await;
        assert!(left < 64 * MIB, "{left} bytes are left ten minutes later, of 12 MiB live ones");
    });
}

#[test]
fn reading_a_delta_larger_than_all_caches_takes_nothing_of_the_shared_cache_of_bases() {
    let stores = Stores::new(&["fast"]);
    runtime().block_on(async {
        let gateway = stores.gateway(1, &Faults::none()).await.unwrap();
        let mut random = StdRng::seed_from_u64(5);
        let image: Vec<u8> = (0..4 * MIB / 8).flat_map(|_| random.random_range(0..u64::MAX).to_le_bytes()).collect();
        let request = ImportTemplate { name: "t".to_owned(), ..ImportTemplate::default() };
        import(&gateway, request, image.clone()).await.unwrap();
        let clones = CreateClones { durability: Some(DurabilityView::Object), ..order("c", "t", Some(2)) };
        gateway.create_clones(clones, false).await.unwrap();
        let base = gateway.open("c-001".parse().unwrap()).await.unwrap();
        let all = ByteRange::new(0, 4 * MIB);
        assert!(base.read(all).await.unwrap().concat() == image);
        let warm = gateway.icache().stats();
        assert!(warm.misses > 0, "{warm:?}");
        // A delta over the same base, and one that is larger than the caches of bases (16 MiB) and of deltas (64 MiB) together.
        let disk = CreateDisk {
            name: "d".to_owned(),
            size: 96 * MIB,
            durability: Some(DurabilityView::Object),
            ..CreateDisk::default()
        };
        gateway.create_disk(disk, false).await.unwrap();
        for (export, size) in [("c-002", 4 * MIB), ("disk/d", 96 * MIB)] {
            let device = gateway.open(export.parse().unwrap()).await.unwrap();
            for at in (0..size).step_by(4 << 20) {
                let piece = Bytes::from(vec![u8::try_from(at >> 20).unwrap() + 1; 4 << 20]);
                device.write(at, piece, WriteOptions::default()).await.unwrap();
            }
            device.flush().await.unwrap();
            for at in (0..size).step_by(1 << 20) {
                let read = device.read(ByteRange::new(at, at + MIB)).await.unwrap().concat();
                assert!(read.iter().all(|byte| u64::from(*byte) == (at >> 20) / 4 * 4 + 1), "{export} at {at}");
            }
        }
        let before = gateway.icache().stats();
        assert_eq!(
            (before.misses, before.resident_bytes),
            (warm.misses, warm.resident_bytes),
            "a delta went through the cache of bases"
        );
        assert!(base.read(all).await.unwrap().concat() == image);
        assert_eq!(gateway.icache().stats().misses, warm.misses, "what the base held there was put out");
        assert!(gateway.engine().cache_bytes() <= 64 * MIB);
    });
}
