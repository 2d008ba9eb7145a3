//! What a client does to a volume, and a model of what the volume has to be afterwards.

use bytes::Bytes;
use clonegate::device::{Device, WriteOptions};
use clonegate::volume::Volume;
use clonegate_core::Result;
use clonegate_core::ids::Name;
use clonegate_core::units::ByteRange;
use clonegate_tests::sim::{World, base_id, read_all};
use rand::RngExt;
use rand::rngs::StdRng;

/// One change of the bytes, as the model knows it.
#[derive(Debug, Clone)]
pub enum Change {
    /// These bytes were written there.
    Write(u64, Bytes),
    /// This range became zero.
    Zero(u64, u64),
    /// Everything became this.
    Whole(Vec<u8>),
}

impl Change {
    pub fn apply(&self, bytes: &mut Vec<u8>) {
        let at = |n: u64| usize::try_from(n).expect("a small volume");
        match self {
            Self::Write(offset, data) => bytes[at(*offset)..at(*offset) + data.len()].copy_from_slice(data),
            Self::Zero(from, to) => bytes[at(*from)..at(*to)].fill(0),
            Self::Whole(all) => bytes.clone_from(all),
        }
    }
}

/// What the volume may be: a prefix of the changes, no shorter than what was acknowledged.
#[derive(Debug, Clone)]
pub struct Model {
    /// The bytes after all changes that are certain.
    pub certain: Vec<u8>,
    /// Changes accepted since, in order. After a crash any prefix of them may have survived.
    pub open: Vec<Change>,
    /// Snapshots by name.
    pub snapshots: Vec<(u8, Vec<u8>)>,
    /// What an undo goes back to.
    pub undo: Option<Vec<u8>>,
    /// The bytes that are in the store whatever becomes of a journal, and the acknowledged changes since.
    stored: (Vec<u8>, Vec<Change>),
    /// Changes that were acknowledged as durable.
    pub acknowledged: u64,
}

impl Model {
    pub fn new(born: Vec<u8>) -> Self {
        let stored = (born.clone(), Vec::new());
        Self { certain: born, open: Vec::new(), snapshots: Vec::new(), undo: None, stored, acknowledged: 0 }
    }

    /// The bytes as a reader sees them now.
    pub fn now(&self) -> Vec<u8> {
        let mut bytes = self.certain.clone();
        self.open.iter().for_each(|change| change.apply(&mut bytes));
        bytes
    }

    /// The first `count` open changes were acknowledged as durable.
    pub fn flushed(&mut self, count: usize) {
        for change in self.open.drain(..count) {
            change.apply(&mut self.certain);
            self.stored.1.push(change);
            self.acknowledged += 1;
        }
    }

    /// Everything is in the store now.
    pub fn uploaded(&mut self) {
        self.flushed(self.open.len());
        self.stored = (self.certain.clone(), Vec::new());
    }

    /// After a takeover without the journal of the last owner: takes the prefix of all changes that survived. Says how many
    /// acknowledged ones are lost, or that it is no prefix.
    pub fn settle_without_journal(&mut self, found: &[u8]) -> Option<usize> {
        let (mut bytes, acknowledged) = std::mem::take(&mut self.stored);
        let mut survived = (bytes == found).then_some(0);
        for (n, change) in acknowledged.iter().chain(&self.open).enumerate() {
            change.apply(&mut bytes);
            if bytes == found {
                survived = Some(n + 1);
            }
        }
        self.certain = found.to_vec();
        self.open.clear();
        self.stored = (found.to_vec(), Vec::new());
        survived.map(|n| acknowledged.len().saturating_sub(n))
    }

    /// After a crash: takes the prefix that survived. Says how many changes did, or that it is none.
    pub fn settle(&mut self, found: &[u8]) -> Option<usize> {
        let mut bytes = self.certain.clone();
        let mut survived = (bytes == found).then_some(0);
        for (n, change) in self.open.iter().enumerate() {
            change.apply(&mut bytes);
            if bytes == found {
                survived = Some(n + 1);
            }
        }
        if survived.is_some() {
            // Those of them that survived are in the store or in the journal, like the acknowledged ones.
            self.stored.1.extend(self.open.drain(..survived.unwrap_or(0)));
            self.certain = found.to_vec();
            self.open.clear();
        }
        survived
    }
}

/// What may be done in one step.
#[derive(Debug, Clone)]
pub enum Step {
    Write(u64, Bytes),
    Zero(u64, u64),
    Flush,
    Read(u64, u64),
    Snapshot(u8),
    Restore(u8),
    Reset(u8),
    Undo,
    Tend,
    Wait(u64),
}

/// A step at random. `stamp` makes the bytes of each write its own.
pub fn draw(random: &mut StdRng, size: u64, stamp: u64) -> Step {
    let mut range = || {
        let at = random.random_range(0..size);
        let longest = if random.random_range(0..8u32) == 0 { 200_000 } else { 12_000 };
        let mut length = random.random_range(1..=longest);
        let mut from = at;
        if random.random_range(0..2u32) == 0 {
            from = at / 4096 * 4096;
            length = (length / 4096 + 1) * 4096;
        }
        (from, (from + length).min(size))
    };
    let (from, to) = range();
    match random.random_range(0..100u32) {
        0..45 => {
            let length = usize::try_from(to - from).expect("a small volume");
            let mut data: Vec<u8> = stamp.to_le_bytes().iter().copied().cycle().take(length).collect();
            data[0] = data[0].wrapping_add(17);
            Step::Write(from, data.into())
        }
        45..53 => Step::Zero(from, to),
        53..72 => Step::Flush,
        72..84 => Step::Read(from, to),
        84..86 => Step::Snapshot(u8::try_from(random.random_range(0..3u32)).expect("small")),
        86..88 => Step::Restore(u8::try_from(random.random_range(0..3u32)).expect("small")),
        88..90 => Step::Reset(u8::try_from(random.random_range(1..3u32)).expect("small")),
        90 => Step::Undo,
        91 => Step::Tend,
        _ => Step::Wait(random.random_range(0..2500)),
    }
}

fn name(n: u8) -> Name {
    Name::new(format!("snapshot-{n}")).expect("a valid name")
}

/// Does a step and tells the model. After an error a write was not accepted; what replaces the whole volume may have been
/// done nevertheless when the volume is dead.
///
/// # Errors
/// What the volume gives.
pub async fn act(world: &World, volume: &Volume, model: &mut Model, step: &Step) -> Result<()> {
    match step {
        Step::Write(at, data) => {
            model.open.push(Change::Write(*at, data.clone()));
            let done = volume.write(*at, data.clone(), WriteOptions::default()).await;
            done.inspect_err(|_| drop(model.open.pop()))
        }
        Step::Zero(from, to) => {
            model.open.push(Change::Zero(*from, *to));
            let done = volume.write_zeroes(ByteRange::new(*from, *to), true, false).await;
            done.inspect_err(|_| drop(model.open.pop()))
        }
        Step::Flush => {
            let count = model.open.len();
            volume.flush().await?;
            model.flushed(count);
            Ok(())
        }
        Step::Read(from, to) => {
            let range = ByteRange::new(*from, *to);
            let got = match volume.try_read(range) {
                Some(got) => got,
                None => volume.read(range).await?,
            };
            let at = |n: u64| usize::try_from(n).expect("a small volume");
            assert!(got.concat() == model.now()[at(*from)..at(*to)], "a read of {from}..{to} is wrong");
            Ok(())
        }
        Step::Snapshot(n) => {
            let bytes = model.now();
            model.snapshots.retain(|(m, _)| m != n);
            volume.snapshot(name(*n)).await?;
            model.uploaded();
            model.snapshots.push((*n, bytes));
            Ok(())
        }
        Step::Restore(n) => match model.snapshots.iter().find(|(m, _)| m == n).cloned() {
            Some((_, bytes)) => replace(volume, model, bytes, volume.restore(name(*n)), true).await,
            None => Ok(()),
        },
        Step::Reset(n) => replace(volume, model, world.born(*n), volume.reset(Some(base_id(*n))), true).await,
        Step::Undo => match model.undo.take() {
            Some(bytes) => replace(volume, model, bytes, volume.undo(), false).await,
            None => Ok(()),
        },
        Step::Tend => volume.tend().await,
        Step::Wait(ms) => {
            tokio::time::sleep(std::time::Duration::from_millis(*ms)).await;
            Ok(())
        }
    }
}

async fn replace(
    volume: &Volume,
    model: &mut Model,
    bytes: Vec<u8>,
    done: impl Future<Output = Result<()>>,
    undoable: bool,
) -> Result<()> {
    let before = model.now();
    model.undo = None;
    model.open.push(Change::Whole(bytes));
    match done.await {
        Ok(()) => {
            model.uploaded();
            model.undo = undoable.then_some(before);
            Ok(())
        }
        Err(error) => {
            if volume.status().dead.is_none() {
                model.open.pop();
            }
            Err(error)
        }
    }
}

/// Reads everything and compares it with the model.
pub async fn compare(volume: &Volume, model: &Model, what: &str) {
    let found = read_all(volume).await.expect("a store without faults");
    assert!(found == model.now(), "{what}: the volume is not what the model says");
}
