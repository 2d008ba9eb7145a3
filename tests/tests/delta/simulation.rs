//! Seeded simulation: random steps of a client, faults in the way to the store, crashes, and takeovers by a second gateway.

use std::hash::{DefaultHasher, Hasher};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clonegate::delta::check::{Standing, check};
use clonegate::device::Device;
use clonegate::volume::Volume;
use clonegate_core::ErrorKind;
use clonegate_core::format::clone::Durability;
use clonegate_core::units::ByteRange;
use clonegate_tests::faults::{Fault, Faults, Rates};
use clonegate_tests::late::Late;
use clonegate_tests::sim::{SimGateway, World, claim_in_passing, read_all, runtime};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::script::{Model, Step, act, compare, draw};

const SIZE: u64 = 80 * 4096 + 512;
const PATIENCE: Duration = Duration::from_secs(300);

#[derive(Debug, Default)]
struct Figures {
    seeds: u64,
    steps: u64,
    faults: u64,
    late: u64,
    crashes: u64,
    takeovers: u64,
    full: u64,
    /// Owners that ended in a process that lived on.
    lost: u64,
    acknowledged: u64,
}

impl Figures {
    fn add(&mut self, other: &Self) {
        self.seeds += other.seeds;
        self.steps += other.steps;
        self.faults += other.faults;
        self.late += other.late;
        self.crashes += other.crashes;
        self.takeovers += other.takeovers;
        self.full += other.full;
        self.lost += other.lost;
        self.acknowledged += other.acknowledged;
    }
}

struct Simulation {
    world: World,
    random: StdRng,
    model: Model,
    trace: DefaultHasher,
    figures: Figures,
    stamp: u64,
    /// Requests whose senders gave them up, and that may still reach the store.
    late: Vec<Late>,
}

impl Simulation {
    fn new(seed: u64, durability: Durability) -> Self {
        let world = World::new(seed, durability, SIZE);
        let model = Model::new(world.born(1));
        Self {
            world,
            random: StdRng::seed_from_u64(seed),
            model,
            trace: DefaultHasher::new(),
            figures: Figures::default(),
            stamp: 0,
            late: Vec::new(),
        }
    }

    /// Some of the requests that were given up reach the store now.
    async fn deliver(&mut self, faults: &Faults, all: bool) {
        self.late.extend(faults.take_late());
        while !self.late.is_empty() && (all || self.random.random_range(0..4u32) == 0) {
            let late = self.late.swap_remove(self.random.random_range(0..self.late.len()));
            late.arrive(&*self.world.objects).await;
            self.figures.late += 1;
        }
    }

    fn note(&mut self, what: u64) {
        self.trace.write_u64(what);
        self.trace.write_u64(self.world.clock.now_ms());
    }

    /// What is there has to be everything that was acknowledged, and a prefix of what was accepted.
    async fn settle(&mut self, volume: &Volume, what: &str) -> usize {
        let found = read_all(volume).await.expect("the store has no faults now");
        let survived = self.model.settle(&found);
        self.note(survived.map_or(u64::MAX, |n| n as u64));
        survived
            .unwrap_or_else(|| panic!("{what}: acknowledged writes are lost, or the bytes are of no moment there was"))
    }

    /// Now and then the store, or the disk of the journal, has no room for a while.
    fn fill_up(&mut self, gateway: &SimGateway) {
        let what = self.random.random_range(0..80u32);
        let time = Duration::from_millis(self.random.random_range(0..20_000));
        match what {
            0 => {
                let faults = Arc::clone(&gateway.faults);
                faults.fill(true);
                tokio::spawn(async move {
                    tokio::time::sleep(time).await;
                    faults.fill(false);
                });
            }
            1 | 2 if self.world.record.durability == Durability::Local => {
                let full = Arc::clone(&gateway.engine.settings.journal_full);
                full.store(true, Ordering::Relaxed);
                tokio::spawn(async move {
                    tokio::time::sleep(time).await;
                    full.store(false, Ordering::Relaxed);
                });
            }
            _ => return,
        }
        self.figures.full += 1;
    }

    /// Random steps. Says whether the volume came through them alive.
    async fn steps(&mut self, gateway: &SimGateway, volume: &Volume, count: u32) -> bool {
        for _ in 0..count {
            self.deliver(&gateway.faults, false).await;
            self.stamp += 1;
            let step = draw(&mut self.random, SIZE, self.stamp);
            self.figures.steps += 1;
            self.fill_up(gateway);
            let done = tokio::time::timeout(PATIENCE, act(&self.world, volume, &mut self.model, &step)).await;
            self.note(match &done {
                Ok(Ok(())) => 0,
                Ok(Err(error)) => error.kind() as u64 + 1,
                Err(_) => 99,
            });
            match done {
                // Dropped in the middle: what it was to replace may or may not be replaced.
                Err(_) => return false,
                Ok(Err(error)) => {
                    // A store without room says so to whoever flushes.
                    let passing = matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Exhausted);
                    assert!(passing, "an error that no fault explains: {error:?}");
                }
                Ok(Ok(())) => {}
            }
        }
        true
    }

    /// The other gateway takes over while this one is stalled, or at work.
    async fn take_over(&mut self, first: &SimGateway, volume: &Arc<Volume>, second: &SimGateway) -> Arc<Volume> {
        self.figures.takeovers += 1;
        let stalled = self.random.random_range(0..2u32) == 0;
        if stalled {
            first.faults.outage();
        }
        let open = self.model.open.len();
        let owner = volume.status().epoch.is_some();
        let last = {
            let volume = Arc::clone(volume);
            tokio::spawn(async move { volume.flush().await })
        };
        let pause = Duration::from_millis(self.random.random_range(0..300));
        tokio::time::sleep(pause).await;
        second.faults.heal();
        let other = self.world.open(second).await.expect("no faults");
        if self.world.record.durability == Durability::Local {
            other.accept_lost_tail();
        }
        other.claim().await.expect("no faults, and nobody else claims");
        first.faults.heal();
        let found = read_all(&other).await.expect("no faults");
        if self.world.record.durability == Durability::Local {
            // A journal is not read by another gateway: what only that has is lost, and it was said. What is left is a prefix.
            let lost = self.model.settle_without_journal(&found);
            drop(tokio::time::timeout(PATIENCE, last).await.expect("it ends"));
            assert!(lost.is_some(), "what is left without the journal is of no moment there was");
            return other;
        }
        let survived = self.model.settle(&found);
        let flushed = tokio::time::timeout(PATIENCE, last).await.expect("it ends").expect("it does not panic");
        let survived = survived.expect("acknowledged writes are lost at a takeover");
        if flushed.is_ok() && owner {
            assert_eq!(survived, open, "the first gateway acknowledged a flush that the second does not have");
        }
        let late =
            volume.write(0, vec![0xee; 4096].into(), clonegate::device::WriteOptions { fua: true, expect: None });
        let late = tokio::time::timeout(PATIENCE, late).await.expect("it ends");
        if owner {
            assert_eq!(late.expect_err("a fenced gateway acknowledged").kind(), ErrorKind::Fenced);
            compare(&other, &self.model, "after a fenced write").await;
            other
        } else {
            // It only read, so its write is a takeover of its own, and ours is fenced now.
            late.expect("no faults");
            let again = Arc::clone(volume);
            super::script::Change::Write(0, vec![0xee; 4096].into()).apply(&mut self.model.certain);
            again
        }
    }

    /// One life of the gateways, from start to crash or close.
    async fn life(&mut self, directory: Option<&Path>) {
        let journals: Vec<_> = [1, 2].iter().map(|n| directory.map(|d| d.join(format!("journal-{n}")))).collect();
        let journal = journals[0].as_deref();
        let seed = self.random.random_range(0..u64::MAX);
        let calm = Faults::none();
        // A life before may have ended while it was full.
        self.world.settings.journal_full = Arc::default();
        let first = self.world.gateway(1, &calm, journal).expect("a journal of its own");
        let volume = self.world.open(&first).await.expect("no faults");
        self.settle(&volume, "after a restart").await;
        let count = self.random.random_range(5..40);
        let ending = self.random.random_range(0..5u32);
        if ending == 0 {
            let at = first.faults.calls() + self.random.random_range(0..60);
            first.faults.die_at(at, self.random.random_range(0..2u32) == 0);
        } else {
            first.faults.turn(seed, Rates::BAD_DAY);
        }
        let alive = self.steps(&first, &volume, count).await;
        self.figures.faults += first.faults.injected();
        self.late.extend(first.faults.take_late());
        if !alive || ending <= 1 {
            self.figures.crashes += 1;
            return;
        }
        first.faults.heal();
        if ending == 2 {
            let second = self.world.gateway(2, &Faults::none(), journals[1].as_deref()).expect("a journal of its own");
            let other = self.take_over(&first, &volume, &second).await;
            compare(&other, &self.model, "after a takeover").await;
            self.steps(&second, &other, 10).await;
            if self.world.record.durability == Durability::Local {
                // Otherwise the next start would have to be that of the second gateway.
                other.close().await.expect("no faults");
                self.model.uploaded();
            }
            self.figures.crashes += 1;
            return;
        }
        let volume = if ending == 4 { self.lose_it_and_come_back(&first, volume).await } else { volume };
        compare(&volume, &self.model, "before closing").await;
        volume.close().await.expect("no faults");
        self.model.uploaded();
    }

    /// Another gateway claims the clone in passing, this one ends as its owner, and opens it again.
    async fn lose_it_and_come_back(&mut self, first: &SimGateway, volume: Arc<Volume>) -> Arc<Volume> {
        // What is written just before is in the journal, or nowhere yet.
        self.steps(first, &volume, 5).await;
        if let Some(epoch) = volume.status().epoch {
            claim_in_passing(&self.world, epoch.0 + 1).await;
            tokio::time::advance(self.world.settings.staleness).await;
            self.figures.lost += u64::from(volume.read(ByteRange::new(0, 4096)).await.is_err());
        }
        drop(volume);
        // A request of it that got no answer is given up some time.
        let again = tokio::time::timeout(PATIENCE, async {
            loop {
                match self.world.open(first).await {
                    Err(error) if error.code() == "already-open" => {}
                    // What the journal has goes into the store first, when that has room.
                    Err(error) if error.code() == "store-full" => tokio::time::sleep(Duration::from_secs(1)).await,
                    opened => return opened.expect("no faults"),
                }
            }
        });
        let again = again.await.expect("its last owner ends");
        self.settle(&again, "after it was opened again").await;
        self.steps(first, &again, 5).await;
        again
    }

    /// After everything: nothing is left behind, and every byte is right.
    async fn quiesce(&mut self, directory: Option<&Path>) {
        self.deliver(&Faults::none(), true).await;
        let journal = directory.map(|directory| directory.join("journal-1"));
        let journal = journal.as_deref();
        self.world.settings.journal_full = Arc::default();
        let gateway = self.world.gateway(1, &Faults::none(), journal).expect("a journal of its own");
        let volume = self.world.open(&gateway).await.expect("no faults");
        self.settle(&volume, "at the end").await;
        let kept: Vec<_> = self.model.snapshots.clone();
        for (n, bytes) in kept {
            act(&self.world, &volume, &mut self.model, &Step::Restore(n)).await.expect("no faults");
            assert!(self.model.now() == bytes, "the model restores");
            compare(&volume, &self.model, "a snapshot").await;
        }
        tokio::time::sleep(Duration::from_secs(2 * 3600)).await;
        for _ in 0..4 {
            volume.tend().await.expect("no faults");
        }
        compare(&volume, &self.model, "after upkeep").await;
        let report = check(&self.world.store(), &self.world.record, true).await.expect("no faults");
        let wrong: Vec<_> = report
            .findings
            .iter()
            .filter(|f| f.standing != Standing::Owned)
            .map(|f| format!("{} {:?} {}", f.key, f.standing, f.detail))
            .collect();
        self.figures.acknowledged = self.model.acknowledged;
        assert!(wrong.is_empty(), "left behind or wrong: {wrong:#?}");
        volume.close().await.expect("no faults");
    }
}

fn run(seed: u64, durability: Durability) -> (u64, Figures) {
    let mut simulation = Simulation::new(seed, durability);
    let directory = tempfile::tempdir().expect("a directory for the journal");
    let journal = (durability == Durability::Local).then(|| directory.path().to_owned());
    let lives = simulation.random.random_range(2..5u32);
    for _ in 0..lives {
        let runtime = runtime();
        simulation.world.clock =
            runtime.block_on(async { clonegate::clock::Clock::simulated(simulation.random.random_range(0..u64::MAX)) });
        runtime.block_on(simulation.life(journal.as_deref()));
        // Dropped with all its tasks: the process is gone.
        drop(runtime);
    }
    let runtime = runtime();
    simulation.world.clock = runtime.block_on(async { clonegate::clock::Clock::simulated(1) });
    runtime.block_on(simulation.quiesce(journal.as_deref()));
    simulation.figures.seeds = 1;
    (simulation.trace.finish(), simulation.figures)
}

fn run_all(durability: Durability, seeds: std::ops::Range<u64>) {
    let mut sum = Figures::default();
    // One seed alone, to look at it.
    let one = std::env::var("CLONEGATE_SEED").ok().and_then(|seed| seed.parse().ok());
    for seed in one.map_or(seeds, |seed: u64| seed..seed + 1) {
        let done = std::panic::catch_unwind(|| run(seed, durability));
        let Ok((_, figures)) = done else { panic!("seed {seed} of {durability:?} failed") };
        sum.add(&figures);
    }
    // Any of these would have ended it.
    println!("simulation, {durability:?}: {sum:?}; 0 acknowledged writes lost, 0 wrong bytes, 0 orphans");
}

#[test]
fn what_was_flushed_survives_faults_crashes_and_takeovers_in_object_mode() {
    run_all(Durability::Object, 0..40 * super::long());
}

#[test]
fn what_was_flushed_survives_faults_and_crashes_in_local_mode() {
    run_all(Durability::Local, 0..25 * super::long());
}

#[test]
fn a_seed_replays() {
    for seed in 1000..1006 {
        assert_eq!(run(seed, Durability::Object).0, run(seed, Durability::Object).0, "seed {seed}");
    }
}

#[test]
fn what_a_stored_checkpoint_keeps_is_not_collected_when_it_is_undone_to_meanwhile() {
    runtime().block_on(async {
        let mut world = World::new(1, Durability::Object, SIZE);
        world.clock = clonegate::clock::Clock::simulated(1);
        let mut model = Model::new(world.born(1));
        let gateway = world.gateway(1, &Faults::none(), None).expect("no journal");
        let volume = world.open(&gateway).await.expect("no faults");
        let write = |at: u64| Step::Write(at, vec![at.to_le_bytes()[1]; 9000].into());
        for step in [write(4096), Step::Flush, Step::Reset(2), Step::Tend, write(16384), Step::Flush] {
            act(&world, &volume, &mut model, &step).await.expect("no faults");
        }
        // The checkpoint is made of what there was before the undo, and arrives after it.
        gateway.faults.next(Fault::Delay(Duration::from_secs(2)));
        let tending = {
            let volume = Arc::clone(&volume);
            tokio::spawn(async move { volume.tend().await })
        };
        tokio::time::sleep(Duration::from_millis(1)).await;
        act(&world, &volume, &mut model, &Step::Undo).await.expect("no faults");
        tending.await.expect("it does not panic").expect("no faults");
        let other = world.gateway(2, &Faults::none(), None).expect("no journal");
        let volume = world.open(&other).await.expect("what the log goes back to is there");
        compare(&volume, &model, "after the undo").await;
    });
}
