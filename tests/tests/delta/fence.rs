//! Who may write: three gateways on one clone, whose every store request waits until a schedule lets it in: in any order,
//! with its answer lost, or long after its sender has given up or died.
//!
//! The schedules are random and replay from a seed. They go beyond a bounded model of the protocol in that they run the
//! engine itself, and with it what the model leaves out: poison that is planted ahead of a quick incumbent, deletes and
//! collections of an owner that was taken over, requests that arrive after a takeover, and the removal of the clone while all of
//! them are at work.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clonegate::delta::check::{Standing, check};
use clonegate::delta::fence::{bury, fence};
use clonegate::delta::load::Listing;
use clonegate::device::{Device, WriteOptions};
use clonegate::store::{Key, Store, keys};
use clonegate::volume::Volume;
use clonegate_core::format::clone::Durability;
use clonegate_core::format::log::{Change, CommitRecord, Head, Position, decode_head, encode_commit};
use clonegate_core::ids::{Epoch, GatewayId, Sequence};
use clonegate_core::{ErrorKind, Result};
use clonegate_tests::faults::Faults;
use clonegate_tests::gates::{GateStore, Gates, Kind, Verdict};
use clonegate_tests::late::Late;
use clonegate_tests::sim::{World, base_byte, read_all, runtime};
use futures::TryStreamExt;
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const ACTORS: u8 = 3;
/// Who removes the clone, in the schedules that do.
const REMOVER: u8 = ACTORS;
/// Writes of each gateway, each to a block of its own.
const WRITES: u8 = 24;
const SIZE: u64 = ACTORS as u64 * WRITES as u64 * 4096;
/// Requests that a schedule lets in before the door opens for all.
const REQUESTS: u32 = 900;

/// What the gateways were told, and saw.
#[derive(Debug, Default)]
struct History {
    /// Acknowledged writes: epoch, block.
    acknowledged: BTreeSet<(u64, u8)>,
    /// The blocks that were there when an epoch had been opened.
    opened: BTreeMap<u64, BTreeSet<u8>>,
    /// Writes that were refused because of a takeover, or because the clone is gone.
    fenced: u64,
    /// From here on nothing may be acknowledged that had not begun before: the clone was removed.
    removed: bool,
}

type Shared = Arc<Mutex<History>>;

fn history(shared: &Shared) -> std::sync::MutexGuard<'_, History> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Default)]
struct Figures {
    schedules: u64,
    requests: u64,
    answers_lost: u64,
    refused: u64,
    arrived_late: u64,
    takeovers: u64,
    fenced: u64,
    far_poisons: u64,
    stale_deletes: u64,
    acknowledged: u64,
    removals: u64,
    after_removal: u64,
}

/// The block that write `n` of a gateway goes to: all of it is this byte.
fn stamp(actor: u8, n: u8) -> u8 {
    0x80 | (actor * WRITES + n)
}

fn block_of(actor: u8, n: u8) -> u8 {
    actor * WRITES + n
}

/// The blocks that were written. Anything else than a whole write or the base is a failure.
fn written(bytes: &[u8], base_size: u64) -> BTreeSet<u8> {
    let mut there = BTreeSet::new();
    for (n, block) in (0..ACTORS * WRITES).zip(bytes.chunks(4096)) {
        if block.iter().all(|byte| *byte == 0x80 | n) {
            there.insert(n);
            continue;
        }
        let at = u64::from(n) * 4096;
        let born = (at..at + 4096).map(|at| if at < base_size { base_byte(1, at) } else { 0 });
        assert!(block.iter().copied().eq(born), "block {n} is neither what was written nor the base");
    }
    there
}

/// One gateway at work: claims, looks, writes and flushes some at a time, does its upkeep.
async fn gateway(world: Arc<World>, gates: Arc<Gates>, actor: u8, shared: Shared, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let objects: Arc<dyn ObjectStore> = Arc::<InMemory>::clone(&world.objects);
    let door = Arc::new(GateStore::new(objects, &gates, actor));
    let gateway = world.gateway_on(actor + 1, door, &Faults::none(), None).expect("no journal");
    let volume = loop {
        match world.open(&gateway).await {
            Ok(volume) => break volume,
            Err(error) if error.code() == "clone-deleted" => return,
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    };
    loop {
        let late = history(&shared).removed;
        match volume.claim().await {
            Ok(()) => {
                assert!(!late, "a removed clone was claimed");
                break;
            }
            Err(error) if matches!(error.code(), "taken-over" | "clone-deleted" | "closed") => return,
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
    let Some(epoch) = volume.status().epoch.map(|epoch| epoch.0) else { return };
    if let Ok(bytes) = read_all(&volume).await {
        history(&shared).opened.insert(epoch, written(&bytes, world.base_size));
    }
    let mut next = 0;
    while next < WRITES && volume.status().dead.is_none() {
        let some = random.random_range(1..=4).min(WRITES - next);
        let writes = (next..next + some).map(|n| write(&volume, actor, n, epoch, &shared));
        futures::future::join_all(writes).await;
        next += some;
        if random.random_range(0..3u32) == 0 {
            drop(volume.tend().await);
        }
    }
    drop(volume.tend().await);
    // It is not closed: whoever comes next takes over.
    std::future::pending::<()>().await;
}

async fn write(volume: &Volume, actor: u8, n: u8, epoch: u64, shared: &Shared) {
    let data = vec![stamp(actor, n); 4096];
    let at = u64::from(block_of(actor, n)) * 4096;
    loop {
        let late = history(shared).removed;
        match volume.write(at, data.clone().into(), WriteOptions { fua: true, expect: None }).await {
            Ok(()) => {
                assert!(!late, "block {n} of gateway {actor} was written to a removed clone, and acknowledged");
                history(shared).acknowledged.insert((epoch, block_of(actor, n)));
                return;
            }
            Err(_) if volume.status().dead.is_some() => {
                history(shared).fenced += 1;
                return;
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

struct Schedule {
    random: StdRng,
    gates: Arc<Gates>,
    objects: Arc<InMemory>,
    shared: Shared,
    late: Vec<Late>,
    /// How likely each gateway's requests are let in; 0 is a stall.
    weights: [u32; ACTORS as usize + 1],
    figures: Figures,
}

impl Schedule {
    /// Lets one request in. Says whether there was one.
    async fn step(&mut self) -> bool {
        // Everybody else runs until all of them wait.
        tokio::time::sleep(Duration::from_millis(1)).await;
        if !self.late.is_empty() && self.random.random_range(0..12u32) == 0 {
            let late = self.late.swap_remove(self.random.random_range(0..self.late.len()));
            late.arrive(&*self.objects).await;
            self.figures.arrived_late += 1;
        }
        if self.random.random_range(0..40u32) == 0 {
            let actor = self.random.random_range(0..self.weights.len());
            self.weights[actor] = [0, 1, 4, 40][self.random.random_range(0..4usize)];
        }
        let waiting = self.gates.look();
        let weights: Vec<u32> = waiting.iter().map(|(actor, _)| self.weights[usize::from(*actor)]).collect();
        let sum: u32 = weights.iter().sum();
        if sum == 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            return false;
        }
        let mut drawn = self.random.random_range(0..sum);
        let chosen = weights.iter().position(|weight| {
            let here = drawn < *weight;
            drawn = drawn.saturating_sub(*weight);
            here
        });
        let Some(request) = chosen.and_then(|index| self.gates.take(index)) else { return false };
        if request.kind == Kind::Delete && !request.is_given_up() {
            let newest = history(&self.shared).opened.keys().next_back().copied().unwrap_or(0);
            // Epochs are claimed in the order of takeovers; a path says of which epoch the object was, not who deletes.
            self.figures.stale_deletes += u64::from(newest > 1 && request.actor == 0);
        }
        let verdict = match self.random.random_range(0..20u32) {
            0 => Verdict::Lose,
            1 => Verdict::Refuse,
            _ => Verdict::Do,
        };
        self.figures.requests += 1;
        self.figures.answers_lost += u64::from(verdict == Verdict::Lose);
        self.figures.refused += u64::from(verdict == Verdict::Refuse);
        self.late.extend(request.decide(verdict));
        // Its answer reaches the sender before the next one is let in.
        tokio::task::yield_now().await;
        true
    }
}

async fn far_poisons(objects: &InMemory) -> u64 {
    let mut poisons: BTreeMap<String, u64> = BTreeMap::new();
    let listed: Vec<_> = objects.list(None).try_collect().await.expect("a list");
    for meta in listed.iter().filter(|meta| meta.location.as_ref().contains("/log/")) {
        let bytes = objects.get(&meta.location).await.expect("it is there").bytes().await.expect("bytes");
        if let Ok(Head::Whole(head)) = decode_head(&bytes, bytes.len() as u64)
            && matches!(head.record.what, Change::Poison { .. })
        {
            *poisons.entry(head.record.at.epoch.0.to_string()).or_default() += 1;
        }
    }
    poisons.values().map(|count| count - 1).sum()
}

/// The removal of the clone, as a gateway does it: begun anew until it comes to its end.
async fn remove(world: Arc<World>, gates: Arc<Gates>, shared: Shared) {
    let objects: Arc<dyn ObjectStore> = Arc::<InMemory>::clone(&world.objects);
    let store = Store::new(Arc::new(GateStore::new(objects, &gates, REMOVER)), "gates", &world.clock);
    while let Err(error) = remove_once(&store, &world, &shared).await {
        assert!(matches!(error.kind(), ErrorKind::Unavailable), "{error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn remove_once(store: &Store, world: &World, shared: &Shared) -> Result<Vec<Key>> {
    bury(store, &world.record, &world.clock).await?;
    let stays = fence(store, &world.record, GatewayId::from_bytes([9; 16]), &world.clock).await?;
    history(shared).removed = true;
    let own = keys::clone_dir(world.record.id);
    for object in store.list(&own).await? {
        let key = own.key(&object.key)?;
        if !stays.contains(&key) {
            store.delete(&key).await?;
        }
    }
    Ok(stays)
}

/// What is there after a removal and everything that arrived afterwards: nothing that anybody would read, and all of it goes.
async fn after_removal(world: &World, shared: &Shared) -> u64 {
    let last = world.gateway(9, &Faults::none(), None).expect("no journal");
    let error = world.open(&last).await.expect_err("it was removed");
    assert_eq!(error.code(), "clone-deleted");
    let (store, own) = (world.store(), keys::clone_dir(world.record.id));
    let before = store.list(&own).await.expect("no faults").len();
    let stays = remove_once(&store, world, shared).await.expect("no faults");
    let left = store.list(&own).await.expect("no faults");
    let stays: BTreeSet<String> = stays.iter().map(Key::to_string).collect();
    let named = |object: &str| own.key(object).expect("a name of a clone's").to_string();
    let strangers: Vec<_> = left.iter().filter(|object| !stays.contains(&named(&object.key))).collect();
    assert!(strangers.is_empty(), "another removal leaves {strangers:?}");
    before as u64
}

/// One schedule.
async fn run(seed: u64) -> Figures {
    let mut random = StdRng::seed_from_u64(seed);
    let mut world = World::new(seed, Durability::Object, SIZE);
    world.clock = clonegate::clock::Clock::simulated(seed);
    world.settings.checkpoint_records = 4;
    world.settings.checkpoint_bytes = 16 * 4096;
    world.settings.small_objects_per_volume = (2, 2);
    let world = Arc::new(world);
    let (gates, shared) = (Arc::<Gates>::default(), Shared::default());
    let mut schedule = Schedule {
        gates: Arc::clone(&gates),
        objects: Arc::clone(&world.objects),
        shared: Arc::clone(&shared),
        late: Vec::new(),
        weights: [[1, 4, 40][random.random_range(0..3usize)], 1, [1, 4][random.random_range(0..2usize)], 4],
        figures: Figures { schedules: 1, ..Figures::default() },
        random: StdRng::seed_from_u64(seed ^ 0x5eed),
    };
    // The first is the incumbent, the others come when it is at work.
    let begins = [0, random.random_range(20..300), random.random_range(20..600)];
    let dies = random.random_range(0..2 * REQUESTS);
    // In some the clone is removed, by one who knows nothing of what the others are at.
    let removed = Some(random.random_range(100..REQUESTS)).filter(|_| seed % 4 == 3);
    let mut remover = None;
    let mut tasks: Vec<Option<tokio::task::JoinHandle<()>>> = vec![None, None, None];
    for n in 0..REQUESTS {
        for actor in 0..ACTORS {
            if n == begins[usize::from(actor)] {
                let seed = random.random_range(0..u64::MAX);
                let work = gateway(Arc::clone(&world), Arc::clone(&gates), actor, Arc::clone(&shared), seed);
                tasks[usize::from(actor)] = Some(tokio::spawn(work));
            }
        }
        if Some(n) == removed {
            let work = remove(Arc::clone(&world), Arc::clone(&gates), Arc::clone(&shared));
            remover = Some(tokio::spawn(work));
        }
        if n == dies
            && let Some(task) = tasks[usize::from(random.random_range(0..ACTORS))].take()
        {
            task.abort();
        }
        schedule.step().await;
    }
    // Everything that is still on its way arrives, and every gateway that is still there comes to an end.
    schedule.late.extend(gates.open());
    for late in std::mem::take(&mut schedule.late) {
        late.arrive(&*world.objects).await;
        schedule.figures.arrived_late += 1;
    }
    tokio::time::sleep(Duration::from_secs(120)).await;
    for task in tasks.into_iter().flatten() {
        if let Err(error) = task_end(task).await {
            std::panic::resume_unwind(error);
        }
    }
    let mut figures = schedule.figures;
    match remover {
        Some(remover) => {
            assert!(remover.is_finished(), "the removal does not come to its end");
            remover.await.expect("no panic");
            figures.removals = 1;
            figures.after_removal = after_removal(&world, &shared).await;
        }
        None => {
            figures.far_poisons = far_poisons(&world.objects).await;
            afterwards(&world, &shared).await;
        }
    }
    let history = history(&shared);
    figures.acknowledged = history.acknowledged.len() as u64;
    figures.fenced = history.fenced;
    figures.takeovers = history.opened.keys().filter(|epoch| **epoch > 1).count() as u64;
    figures
}

/// Ends a gateway. Gives back the panic that it ended with, if so.
async fn task_end(task: tokio::task::JoinHandle<()>) -> std::result::Result<(), Box<dyn std::any::Any + Send>> {
    task.abort();
    match task.await {
        Err(error) if error.is_panic() => Err(error.into_panic()),
        _ => Ok(()),
    }
}

async fn afterwards(world: &World, shared: &Shared) {
    {
        let history = history(shared);
        // Nothing that was acknowledged by an owner is missing from what a later owner began with.
        for (epoch, there) in &history.opened {
            for (older, block) in history.acknowledged.range(..(*epoch, 0)) {
                assert!(
                    there.contains(block),
                    "epoch {older} acknowledged block {block}, and epoch {epoch} began without it"
                );
            }
        }
    }
    let last = world.gateway(9, &Faults::none(), None).expect("no journal");
    let volume = world.open(&last).await.expect("no faults");
    volume.claim().await.expect("nobody else claims");
    let there = written(&read_all(&volume).await.expect("no faults"), world.base_size);
    for (epoch, block) in &history(shared).acknowledged {
        assert!(there.contains(block), "epoch {epoch} acknowledged block {block}, and it is lost");
    }
    for _ in 0..4 {
        volume.tend().await.expect("no faults");
    }
    let after = written(&read_all(&volume).await.expect("no faults"), world.base_size);
    assert_eq!(there, after, "upkeep changed the bytes");
    let report = check(&world.store(), &world.record, true).await.expect("no faults");
    let left: Vec<_> = report.findings.iter().filter(|finding| finding.standing != Standing::Owned).collect();
    assert!(left.is_empty(), "left behind or wrong: {left:#?}");
    volume.close().await.expect("no faults");
}

fn run_all(name: &str, seeds: std::ops::Range<u64>) {
    let mut sum = Figures::default();
    for seed in seeds {
        let done = std::panic::catch_unwind(|| runtime().block_on(run(seed)));
        let Ok(figures) = done else { panic!("schedule {seed} failed") };
        sum.schedules += figures.schedules;
        sum.requests += figures.requests;
        sum.answers_lost += figures.answers_lost;
        sum.refused += figures.refused;
        sum.arrived_late += figures.arrived_late;
        sum.takeovers += figures.takeovers;
        sum.fenced += figures.fenced;
        sum.far_poisons += figures.far_poisons;
        sum.stale_deletes += figures.stale_deletes;
        sum.acknowledged += figures.acknowledged;
        sum.removals += figures.removals;
        sum.after_removal += figures.after_removal;
    }
    println!("{name}: {sum:?}; 0 acknowledged writes lost, 0 orphans");
    assert!(sum.acknowledged > 0 && sum.arrived_late > 0, "{sum:?}");
    assert!(sum.removals > 0, "{sum:?}");
    assert!(sum.takeovers > 0 && sum.fenced > 0 && sum.far_poisons > 0 && sum.stale_deletes > 0, "{sum:?}");
}

#[test]
fn whatever_the_order_of_requests_no_acknowledged_write_is_lost_at_a_takeover() {
    run_all("fencing", 0..60 * super::long());
}

/// An owner that stands still while its clone is removed again and again, as one whose removal failed is, has nothing acknowledged
/// when it wakes up; also when somebody had planted poison far ahead of it before.
#[test]
fn a_removal_that_is_begun_anew_leaves_what_stops_a_stalled_owner() {
    for (removals, ahead) in [(1, None), (5, None), (1, Some(7)), (5, Some(7))] {
        runtime().block_on(async {
            let world = World::new(1, Durability::Object, SIZE);
            let gateway = world.gateway(1, &Faults::none(), None).expect("no journal");
            let volume = world.open(&gateway).await.expect("no faults");
            let write = |n: u8| volume.write(u64::from(n) * 4096, vec![stamp(0, n); 4096].into(), durable());
            for n in 0..6 {
                write(n).await.expect("nobody is in the way");
            }
            let (store, shared) = (world.store(), Shared::default());
            let next =
                Listing::read(&store, world.record.id).await.expect("no faults").logs.last().expect("a log").0.next();
            if let Some(ahead) = ahead {
                let far = Position { epoch: next.epoch, sequence: Sequence(next.sequence.0 + ahead) };
                let poison = encode_commit(poison(&world, far), &[]).expect("it is small").0;
                store.put_new(&keys::log(world.record.id, far.epoch, far.sequence), poison).await.expect("no faults");
            }
            for _ in 0..removals {
                remove_once(&store, &world, &shared).await.expect("no faults");
            }
            for n in 6..WRITES {
                let answer = write(n).await;
                assert!(answer.is_err(), "write {n} is acknowledged after {removals} removals, poison at {ahead:?}");
            }
            after_removal(&world, &shared).await;
        });
    }
}

fn poison(world: &World, at: Position) -> CommitRecord {
    CommitRecord {
        clone: world.record.id,
        at,
        nonce: world.clock.nonce(),
        base: world.record.base,
        change: 0,
        time_ms: 0,
        journal_mark: 0,
        settled: Sequence(0),
        what: Change::Poison { by: Epoch(2) },
        extents: 0,
        blocks: 0,
        table_crc: 0,
    }
}

/// A machine that goes on writing while its clone is removed elsewhere is stopped, however quick it is.
#[test]
fn a_removal_ends_a_writer_that_never_pauses() {
    const MOST: u32 = 20_000;
    runtime().block_on(async {
        let world = World::new(1, Durability::Object, SIZE);
        let gateway = world.gateway(1, &Faults::none(), None).expect("no journal");
        let volume = world.open(&gateway).await.expect("no faults");
        let written = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&written);
        let writer = tokio::spawn(async move {
            let each = |n: u32| volume.write(u64::from(n % 64) * 4096, vec![1; 4096].into(), durable());
            for n in 0..MOST {
                if futures::future::try_join3(each(n), each(n + 1), each(n + 2)).await.is_err() {
                    break;
                }
                counted.store(n + 1, Relaxed);
            }
        });
        // Time stands still as long as anybody has work.
        while written.load(Relaxed) < 50 {
            tokio::task::yield_now().await;
        }
        let (store, shared) = (world.store(), Shared::default());
        remove_once(&store, &world, &shared).await.expect("no faults");
        writer.await.expect("no panic");
        let written = written.load(Relaxed);
        assert!(written < MOST, "it wrote {written} times, and was not stopped");
    });
}

fn durable() -> WriteOptions {
    WriteOptions { fua: true, expect: None }
}
