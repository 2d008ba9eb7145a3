//! A fixed script, rerun so that the gateway dies before and after each of its store requests.

use std::time::Duration;

use clonegate_core::format::clone::Durability;
use clonegate_tests::faults::Faults;
use clonegate_tests::sim::{World, read_all, runtime};
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::script::{Model, Step, act, compare, draw};

const SIZE: u64 = 64 * 4096;
const PATIENCE: Duration = Duration::from_secs(120);

/// Steps that touch every kind of request: commits, checkpoints, folds, collection, snapshots, reset, restore, undo.
fn script(seed: u64, length: u32) -> Vec<Step> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut steps: Vec<Step> = Vec::new();
    for n in 0..length {
        steps.push(draw(&mut random, SIZE, u64::from(n) + 1));
        if n % 3 == 2 {
            steps.push(Step::Flush);
        }
        match n % 12 {
            4 => steps.push(Step::Snapshot(0)),
            6 | 10 => steps.push(Step::Tend),
            8 => steps.push(Step::Reset(2)),
            9 => steps.push(Step::Undo),
            11 => steps.push(Step::Restore(0)),
            _ => {}
        }
    }
    steps
}

/// Runs the script with a death at request `dies_at`; then restarts and looks. Says how many requests there were.
fn run(durability: Durability, steps: &[Step], dies_at: Option<(u64, bool)>) -> u64 {
    let mut world = World::new(5, durability, SIZE);
    let directory = tempfile::tempdir().expect("a directory for the journal");
    let journal = (durability == Durability::Local).then(|| directory.path().join("journal"));
    let mut model = Model::new(world.born(1));
    let runtime_1 = runtime();
    let faults = Faults::none();
    if let Some((call, applied)) = dies_at {
        faults.die_at(call, applied);
    }
    runtime_1.block_on(async {
        world.clock = clonegate::clock::Clock::simulated(5);
        let Ok(gateway) = world.gateway(1, &faults, journal.as_deref()) else { return };
        let Ok(Ok(volume)) = tokio::time::timeout(PATIENCE, world.open(&gateway)).await else { return };
        for step in steps {
            let done = tokio::time::timeout(PATIENCE, act(&world, &volume, &mut model, step)).await;
            match done {
                Ok(Ok(())) => {}
                // What it was doing may or may not have happened: the model has it as open.
                Ok(Err(_)) | Err(_) if dies_at.is_some() => return,
                Ok(Err(error)) => panic!("without a death: {error:?}"),
                Err(_) => panic!("without a death, {step:?} does not end"),
            }
        }
    });
    drop(runtime_1);
    let calls = faults.calls();
    let runtime_2 = runtime();
    runtime_2.block_on(async {
        world.clock = clonegate::clock::Clock::simulated(6);
        // With a journal it is the same gateway that comes back, otherwise it may be any.
        let n = if journal.is_some() { 1 } else { 2 };
        let gateway = world.gateway(n, &Faults::none(), journal.as_deref()).expect("a journal of its own");
        let volume = world.open(&gateway).await.expect("no faults");
        let found = read_all(&volume).await.expect("no faults");
        assert!(
            model.settle(&found).is_some(),
            "dead at {dies_at:?}: acknowledged writes are lost, or the bytes are wrong"
        );
        // It goes on: a write, a round of upkeep, and the same bytes.
        act(&world, &volume, &mut model, &Step::Write(4096, vec![7; 4096].into())).await.expect("no faults");
        volume.tend().await.expect("no faults");
        compare(&volume, &model, "after going on").await;
        for (n, bytes) in model.snapshots.clone() {
            act(&world, &volume, &mut model, &Step::Restore(n)).await.expect("no faults");
            assert!(model.now() == bytes);
            compare(&volume, &model, "a snapshot after going on").await;
        }
        let report = clonegate::delta::check::check(&world.store(), &world.record, true).await.expect("no faults");
        assert!(report.is_sound(), "dead at {dies_at:?}: {report:#?}");
    });
    drop(runtime_2);
    calls
}

fn die_everywhere(durability: Durability, least: u64) {
    let mut points = 0;
    for seed in 0..super::long().div_ceil(5) {
        let steps = script(seed, 40);
        let calls = run(durability, &steps, None);
        for call in 0..calls {
            for applied in [false, true] {
                run(durability, &steps, Some((call, applied)));
                points += 1;
            }
        }
    }
    println!("crash points, {durability:?}: {points}; 0 acknowledged writes lost, 0 wrong bytes");
    assert!(points >= least, "a script of {points} crash points tests little");
}

#[test]
fn a_death_at_any_store_request_loses_nothing_that_was_acknowledged() {
    die_everywhere(Durability::Object, 200);
}

#[test]
fn a_death_at_any_store_request_loses_nothing_that_the_journal_acknowledged() {
    die_everywhere(Durability::Local, 100);
}
