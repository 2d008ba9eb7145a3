//! A volume is a byte array, whatever is done to it and in whatever order, in every durability mode, also across restarts.

use std::sync::Arc;
use std::time::Duration;

use clonegate::device::{Device, Source, WriteOptions};
use clonegate::volume::Volume;
use clonegate_core::ErrorKind;
use clonegate_core::format::clone::Durability;
use clonegate_core::ids::Name;
use clonegate_core::units::ByteRange;
use clonegate_tests::faults::Faults;
use clonegate_tests::sim::{SimGateway, World, base_id, read_all, runtime};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const SIZE: u64 = 40 * 4096 + 512;

/// Everything a volume may be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Action {
    Write,
    WriteThrough,
    WriteAtOnce,
    WriteIfUnchanged,
    Zeroes,
    Trim,
    Flush,
    Read,
    Extents,
    Snapshot,
    DropSnapshot,
    Restore,
    Reset,
    Undo,
    Tend,
    Wait,
    Reopen,
    Refused,
}

use Action::*;
const ACTIONS: &[Action] = &[
    Write,
    Write,
    Write,
    Write,
    WriteThrough,
    WriteAtOnce,
    WriteIfUnchanged,
    Zeroes,
    Trim,
    Flush,
    Read,
    Read,
    Extents,
    Snapshot,
    DropSnapshot,
    Restore,
    Reset,
    Undo,
    Tend,
    Wait,
    Reopen,
    Refused,
];

struct Machine {
    world: World,
    random: StdRng,
    bytes: Vec<u8>,
    snapshots: Vec<(u8, Vec<u8>)>,
    /// What an undo goes back to.
    before: Option<Vec<u8>>,
    journal: Option<tempfile::TempDir>,
    done: std::collections::BTreeMap<Action, u32>,
    stamp: u32,
}

fn at(n: u64) -> usize {
    usize::try_from(n).expect("a small volume")
}

fn name(n: u8) -> Name {
    Name::new(format!("kept-{n}")).expect("a valid name")
}

impl Machine {
    fn new(seed: u64, durability: Durability) -> Self {
        let world = World::new(seed, durability, SIZE);
        let journal = (durability == Durability::Local).then(|| tempfile::tempdir().expect("a directory"));
        let bytes = world.born(1);
        let random = StdRng::seed_from_u64(seed);
        Self { world, random, bytes, snapshots: Vec::new(), before: None, journal, done: Default::default(), stamp: 0 }
    }

    fn open_gateway(&self) -> SimGateway {
        let journal = self.journal.as_ref().map(|dir| dir.path().join("journal"));
        self.world.gateway(1, &Faults::none(), journal.as_deref()).expect("a journal of its own")
    }

    fn range(&mut self) -> ByteRange {
        let from = self.random.random_range(0..SIZE);
        let longest = if self.random.random_range(0..6u32) == 0 { SIZE } else { 9000 };
        let to = (from + self.random.random_range(1..=longest)).min(SIZE);
        // Often whole blocks, sometimes up to the odd end.
        if self.random.random_range(0..2u32) == 0 {
            ByteRange::new(from / 4096 * 4096, to.next_multiple_of(4096).min(SIZE))
        } else {
            ByteRange::new(from, to)
        }
    }

    fn data(&mut self, range: ByteRange) -> Vec<u8> {
        self.stamp += 1;
        let mut stamped = self.stamp.to_le_bytes().into_iter().cycle();
        range.as_range().map(|n| stamped.next().unwrap_or_default() ^ (n / 4096) as u8).collect()
    }

    fn put(&mut self, range: ByteRange, data: &[u8]) {
        self.bytes[at(range.start())..at(range.end())].copy_from_slice(data);
    }

    /// An `ephemeral` volume that was closed is its base again.
    fn closed(&mut self, volume: &Volume) {
        if self.world.record.durability == Durability::Ephemeral {
            let base = volume.status().base.map_or(1, |base| base.bytes()[0]);
            self.bytes = self.world.born(base);
            self.before = None;
        }
    }

    async fn act(&mut self, volume: &Volume, action: Action) {
        let range = self.range();
        let n = u8::try_from(self.random.random_range(0..3u32)).expect("small");
        let ephemeral = self.world.record.durability == Durability::Ephemeral;
        match action {
            Write | WriteThrough => {
                let data = self.data(range);
                let options = WriteOptions { fua: action == WriteThrough, expect: None };
                volume.write(range.start(), data.clone().into(), options).await.expect("a write");
                self.put(range, &data);
            }
            WriteAtOnce => {
                let data = self.data(range);
                if let Ok(done) = volume.try_write(range.start(), data.clone().into()) {
                    done.expect("a write");
                    self.put(range, &data);
                }
            }
            WriteIfUnchanged => {
                let data = self.data(range);
                let now = volume.version().0;
                let other = clonegate::device::Version { change: now.change + 1, ..now };
                let options = |expect| WriteOptions { fua: false, expect: Some(expect) };
                let refused = volume.write(range.start(), data.clone().into(), options(other)).await;
                assert_eq!(refused.expect_err("another version").kind(), ErrorKind::Conflict);
                // A first write makes it the owner's, which may be another version: then nothing is written.
                let now = volume.version().0;
                match volume.write(range.start(), data.clone().into(), options(now)).await {
                    Ok(()) => self.put(range, &data),
                    Err(error) => assert_eq!(error.code(), "version-changed"),
                }
            }
            Zeroes | Trim => {
                volume.write_zeroes(range, action == Trim, n == 0).await.expect("zeroes");
                self.put(range, &vec![0; at(range.len())]);
            }
            Flush => volume.flush().await.expect("a flush"),
            Read => {
                let got = volume.read(range).await.expect("a read").concat();
                assert!(got == self.bytes[at(range.start())..at(range.end())], "a read of {range:?} is wrong");
            }
            Extents => self.extents(volume, range).await,
            Snapshot if ephemeral => {
                assert_eq!(volume.snapshot(name(n)).await.expect_err("it keeps nothing").code(), "ephemeral");
            }
            Snapshot => {
                volume.snapshot(name(n)).await.expect("a snapshot");
                self.snapshots.retain(|(m, _)| *m != n);
                self.snapshots.push((n, self.bytes.clone()));
            }
            DropSnapshot => {
                let known = self.snapshots.iter().position(|(m, _)| *m == n).map(|n| self.snapshots.remove(n));
                match volume.drop_snapshot(name(n)).await {
                    Ok(()) => assert!(known.is_some()),
                    Err(error) => assert!(known.is_none() && error.code() == "unknown-snapshot", "{error:?}"),
                }
            }
            Restore => match self.snapshots.iter().find(|(m, _)| *m == n).cloned() {
                Some((_, kept)) => {
                    volume.restore(name(n)).await.expect("a restore");
                    self.before = Some(std::mem::replace(&mut self.bytes, kept));
                }
                None => {
                    assert_eq!(volume.restore(name(n)).await.expect_err("unknown").code(), "unknown-snapshot");
                }
            },
            Reset => {
                let base = n % 2 + 1;
                volume.reset(Some(base_id(base))).await.expect("a reset");
                self.before = Some(std::mem::replace(&mut self.bytes, self.world.born(base))).filter(|_| !ephemeral);
            }
            Undo => match self.before.take() {
                Some(before) => {
                    volume.undo().await.expect("an undo");
                    self.bytes = before;
                }
                None => {
                    assert_eq!(volume.undo().await.expect_err("nothing to undo").code(), "nothing-to-undo");
                }
            },
            Tend => volume.tend().await.expect("upkeep"),
            Wait => tokio::time::sleep(Duration::from_millis(self.random.random_range(0..3000))).await,
            Reopen => unreachable!("the volume is replaced by its owner"),
            Refused => {
                // What goes beyond the end changes nothing.
                let beyond = volume.write(SIZE - 1, vec![1, 2].into(), WriteOptions::default()).await;
                assert_eq!(beyond.expect_err("beyond the end").code(), "beyond-end");
                let beyond = volume.write_zeroes(ByteRange::new(SIZE - 1, SIZE + 1), true, false).await;
                assert_eq!(beyond.expect_err("beyond the end").code(), "beyond-end");
                let beyond = volume.read(ByteRange::new(SIZE - 1, SIZE + 1)).await;
                assert_eq!(beyond.expect_err("beyond the end").code(), "beyond-end");
            }
        }
    }

    /// Extents are without gap, and what is said to be zero is.
    async fn extents(&self, volume: &Volume, range: ByteRange) {
        let mut next = range.start();
        for extent in volume.extents(range).await.expect("extents") {
            assert_eq!(extent.range.start(), next, "a gap");
            next = extent.range.end();
            let bytes = &self.bytes[at(extent.range.start())..at(next)];
            assert!(extent.source != Source::Zero || bytes.iter().all(|byte| *byte == 0), "{extent:?} is not zero");
        }
        assert_eq!(next, range.end());
    }

    /// A clean close, and the same clone again on the same gateway.
    async fn reopen(&mut self, gateway: &SimGateway, volume: Arc<Volume>) -> Arc<Volume> {
        volume.close().await.expect("a clean close");
        self.closed(&volume);
        drop(volume);
        // Its committer lets go of it when it has been told.
        tokio::time::sleep(Duration::from_millis(1)).await;
        self.world.open(gateway).await.expect("it opens")
    }

    async fn life(&mut self, steps: u32) {
        let gateway = self.open_gateway();
        let mut volume = self.world.open(&gateway).await.expect("it opens");
        for _ in 0..steps {
            let action = ACTIONS[self.random.random_range(0..ACTIONS.len())];
            if action == Reopen {
                volume = self.reopen(&gateway, volume).await;
            } else {
                self.act(&volume, action).await;
            }
            *self.done.entry(action).or_default() += 1;
            if self.random.random_range(0..8u32) == 0 {
                assert!(read_all(&volume).await.expect("a read") == self.bytes, "after {action:?}");
            }
        }
        assert!(read_all(&volume).await.expect("a read") == self.bytes, "at the end");
        volume.close().await.expect("a clean close");
        self.closed(&volume);
    }
}

fn run_all(durability: Durability, seeds: u64) {
    let (mut actions, mut kinds) = (0, std::collections::BTreeSet::new());
    for seed in 0..seeds {
        let done = std::panic::catch_unwind(|| {
            let mut machine = Machine::new(seed, durability);
            for life in 0..3 {
                runtime().block_on(async {
                    machine.world.clock = clonegate::clock::Clock::simulated(seed * 3 + life);
                    machine.life(60).await;
                });
            }
            machine.done
        });
        let Ok(done) = done else { panic!("seed {seed} of {durability:?} failed") };
        actions += done.values().sum::<u32>();
        kinds.extend(done.into_keys());
    }
    println!("state machine, {durability:?}: {seeds} seeds, {actions} actions of {} kinds; 0 wrong bytes", kinds.len());
    assert!(ACTIONS.iter().all(|action| kinds.contains(action)), "only {kinds:?}");
}

#[test]
fn a_volume_is_a_byte_array_in_object_mode() {
    run_all(Durability::Object, 12 * super::long());
}

#[test]
fn a_volume_is_a_byte_array_in_local_mode() {
    run_all(Durability::Local, 12 * super::long());
}

#[test]
fn a_volume_is_a_byte_array_in_ephemeral_mode() {
    run_all(Durability::Ephemeral, 12 * super::long());
}
