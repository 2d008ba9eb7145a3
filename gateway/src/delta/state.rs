//! What the log of a clone adds up to: one record after the other is applied, the same when it is made and when it is replayed.

use std::sync::Arc;

use clonegate_core::format::checkpoint::{self, BlockObject, CheckpointRecord, Kept};
use clonegate_core::format::clone::CloneRecord;
use clonegate_core::format::log::{Change, CommitRecord, LogExtent, ObjectName, Position};
use clonegate_core::ids::{BaseId, CloneId, Epoch, Name, Nonce};
use clonegate_core::limits::SNAPSHOTS_MAX;
use clonegate_core::units::BlockIndex;
use clonegate_core::{Error, Result};

use super::map::{BlockMap, Loader, MapRun, Place};
use super::object::{Object, Objects};
use bytes::Bytes;

/// One state of the volume's bytes: a base and what lies over it.
#[derive(Debug, Clone)]
pub struct Image {
    /// The base.
    pub base: Option<BaseId>,
    /// What lies over it.
    pub map: BlockMap,
}

/// A snapshot, or the state that a reset can be undone to.
#[derive(Debug, Clone)]
pub struct KeptImage {
    /// What is stored of it.
    pub kept: Kept,
    /// Its image, when it is in memory; otherwise its checkpoint has it.
    pub image: Option<Image>,
    /// The checkpoint record that its position calls for, as long as it is not written.
    pub unwritten: Option<Arc<CheckpointRecord>>,
}

/// The state of a clone after a number of commit records.
#[derive(Debug, Clone)]
pub struct LogState {
    /// The volume.
    pub clone: CloneId,
    /// The last record that is in it; none for a clone that was never written.
    pub at: Option<Position>,
    /// Its present bytes.
    pub image: Image,
    /// What the maps point into.
    pub objects: Objects,
    /// Changes of its bytes since it was made.
    pub change: u64,
    /// The epoch of the last of them; 0 when there was none.
    pub changed_in: Epoch,
    /// When its bytes last changed, milliseconds since 1970 UTC.
    pub modified_ms: u64,
    /// Journal entries up to this number are in it.
    pub journal_mark: u64,
    /// Flushed writes may be missing.
    pub lost_tail: bool,
    /// Snapshots and the undo state, oldest first.
    pub kept: Vec<KeptImage>,
    /// The newest checkpoint that is known.
    pub checkpoint: Option<Position>,
    /// Records and their bytes since then.
    pub records_since: u64,
    /// Bytes of those records.
    pub bytes_since: u64,
    /// Size of the newest checkpoint, bytes.
    pub checkpoint_bytes: u64,
    /// Counts images that were taken in from checkpoints, for those who look at a copy of this.
    pub adoptions: u64,
}

/// A record to be applied, with what its object says.
#[derive(Debug)]
pub struct Applied<'a> {
    /// The record.
    pub record: &'a CommitRecord,
    /// Its extents.
    pub extents: &'a [LogExtent],
    /// Where its frames begin.
    pub frames_at: u32,
    /// The size of its object, bytes.
    pub size: u64,
}

impl LogState {
    /// The state of a clone that was never written.
    pub fn born(record: &CloneRecord) -> Self {
        Self {
            clone: record.id,
            at: None,
            image: Image { base: record.base, map: BlockMap::new() },
            objects: Objects::default(),
            change: 0,
            changed_in: Epoch(0),
            modified_ms: record.created_ms,
            journal_mark: 0,
            lost_tail: false,
            kept: Vec::new(),
            checkpoint: None,
            records_since: 0,
            bytes_since: 0,
            checkpoint_bytes: 0,
            adoptions: 0,
        }
    }

    /// The state that a checkpoint object holds.
    ///
    /// # Errors
    /// `Corrupt` when it is not one of this clone at this position.
    pub fn from_checkpoint(clone: CloneId, at: Position, object: &[u8]) -> Result<Self> {
        let mut map = Loader::default();
        let (record, objects) = checkpoint::decode_checkpoint_into(object, |run| {
            let place = run.place.map_or(Place::Zero, |(object, frame)| Place::Object { object, frame });
            map.push(MapRun { start: run.start.0, end: run.start.0 + u64::from(run.blocks), place });
        })?;
        if record.clone != clone || record.at != at {
            return Err(Error::corrupt("misplaced", format!("the checkpoint of {} {:?}", record.clone, record.at)));
        }
        let mut table = Objects::default();
        for facts in objects {
            table.add(Object::new(clone, facts));
        }
        let kept = record.kept.iter().map(|k| KeptImage { kept: k.clone(), image: None, unwritten: None }).collect();
        Ok(Self {
            clone,
            at: Some(at),
            image: Image { base: record.base, map: map.finish() },
            objects: table,
            change: record.change,
            changed_in: record.changed_in,
            modified_ms: record.modified_ms,
            journal_mark: record.journal_mark,
            lost_tail: record.lost_tail,
            kept,
            checkpoint: Some(at),
            records_since: 0,
            bytes_since: 0,
            checkpoint_bytes: object.len() as u64,
            adoptions: 0,
        })
    }

    /// Drops the delta: an `ephemeral` volume shows nothing of what a gateway that is gone put into the store. Its bytes are those of its base, and
    /// so is their version.
    pub fn forget_delta(&mut self) {
        self.change = 0;
        self.changed_in = Epoch(0);
        self.image.map = BlockMap::new();
        self.objects = Objects::default();
        self.kept.clear();
    }

    /// The checkpoint record of this state, without its tables.
    pub fn checkpoint_record(&self, at: Position, nonce: Nonce) -> CheckpointRecord {
        CheckpointRecord {
            clone: self.clone,
            at,
            nonce,
            base: self.image.base,
            change: self.change,
            changed_in: self.changed_in,
            modified_ms: self.modified_ms,
            journal_mark: self.journal_mark,
            lost_tail: self.lost_tail,
            kept: self.kept.iter().map(|k| k.kept.clone()).collect(),
            objects: 0,
            objects_crc: 0,
            runs: 0,
            runs_crc: 0,
        }
    }

    /// The snapshot of this name; `None` is the undo state.
    pub fn kept(&self, name: Option<&Name>) -> Option<&KeptImage> {
        self.kept.iter().find(|k| k.kept.name.as_ref() == name)
    }

    /// Takes in the image of a kept state, read from its checkpoint.
    pub fn load_kept(&mut self, at: Position, loaded: &Self) {
        let image = self.adopt(loaded);
        self.adoptions += 1;
        for kept in self.kept.iter_mut().filter(|k| k.kept.at == at) {
            kept.image = Some(image.clone());
        }
    }

    /// The image of another state of the same clone, over our table of objects.
    fn adopt(&mut self, other: &Self) -> Image {
        let known: std::collections::HashMap<ObjectName, u32> =
            self.objects.iter().map(|(index, object)| (object.facts.name, index)).collect();
        let mut indexes = std::collections::HashMap::new();
        for (index, object) in other.objects.iter() {
            let ours = known.get(&object.facts.name).copied();
            indexes.insert(index, ours.unwrap_or_else(|| self.objects.add(Arc::clone(object))));
        }
        let mut map = Loader::default();
        for run in other.image.map.iter() {
            let place = match run.place {
                Place::Zero => Place::Zero,
                Place::Object { object, frame } => {
                    Place::Object { object: indexes.get(&object).copied().unwrap_or(object), frame }
                }
            };
            map.push(MapRun { place, ..run });
        }
        Image { base: other.image.base, map: map.finish() }
    }

    /// The position of a kept state whose image has to be in memory before this change can be applied.
    pub fn needs(&self, what: &Change) -> Option<Position> {
        let kept = match what {
            Change::Restore { name, .. } => self.kept(Some(name)),
            Change::Undo => self.kept(None),
            _ => None,
        };
        kept.filter(|k| k.image.is_none()).map(|k| k.kept.at)
    }

    /// Applies the next record.
    ///
    /// # Errors
    /// `Corrupt` when the record cannot follow this state; the state is then as before.
    pub fn apply(&mut self, applied: &Applied<'_>) -> Result<()> {
        let record = applied.record;
        if record.clone != self.clone {
            return Err(Error::corrupt("misplaced", format!("a record of {}", record.clone)));
        }
        // The first record says what the clone was born over: the clone's own is that of the base it has moved to since.
        if self.at.is_none() {
            self.image.base = record.base;
        }
        match &record.what {
            Change::Open { lost_tail, fresh, .. } => {
                if *fresh {
                    self.image = Image { base: record.base, map: BlockMap::new() };
                    self.kept.clear();
                }
                self.lost_tail |= *lost_tail;
            }
            Change::Data => self.write(applied),
            Change::Snapshot { name } => {
                self.kept.retain(|k| k.kept.name.as_ref() != Some(name));
                if self.kept.len() > SNAPSHOTS_MAX {
                    return Err(Error::corrupt("bad-record", "more snapshots than a clone takes"));
                }
                self.keep(Some(name.clone()), record.time_ms, 0);
            }
            Change::DropSnapshot { name } => self.kept.retain(|k| k.kept.name.as_ref() != Some(name)),
            Change::Restore { name, undo_until_ms } => {
                let image = self.image_of(Some(name))?;
                self.replace(image, record.time_ms, *undo_until_ms);
            }
            Change::Reset { undo_until_ms } => {
                let image = Image { base: record.base, map: BlockMap::new() };
                self.replace(image, record.time_ms, *undo_until_ms);
                self.lost_tail = false;
            }
            Change::Undo => {
                self.image = self.image_of(None)?;
                self.kept.retain(|k| k.kept.name.is_some());
            }
            Change::Promote => {
                self.image.base = None;
                self.kept.retain(|k| k.kept.name.is_some());
            }
            Change::Unlink { .. } | Change::Close | Change::Poison { .. } => {}
        }
        if self.image.base != record.base {
            return Err(Error::corrupt("bad-record", "a record whose base is not that of its clone"));
        }
        if record.change != self.change {
            self.change = record.change;
            self.changed_in = record.at.epoch;
            self.modified_ms = record.time_ms;
        }
        self.journal_mark = self.journal_mark.max(record.journal_mark);
        self.at = Some(record.at);
        self.records_since += 1;
        self.bytes_since += applied.size;
        Ok(())
    }

    fn write(&mut self, applied: &Applied<'_>) {
        let record = applied.record;
        let object = (record.blocks > 0).then(|| {
            self.objects.add(Object::new(
                self.clone,
                BlockObject {
                    name: ObjectName::Log(record.at),
                    nonce: record.nonce,
                    frames_at: applied.frames_at,
                    frames: record.blocks,
                },
            ))
        });
        for extent in applied.extents {
            let place = match (extent.frame, object) {
                (Some(frame), Some(object)) => Place::Object { object, frame },
                _ => Place::Zero,
            };
            let BlockIndex(start) = extent.start;
            // Over no base a hole is as good as a run of zeroes, but only where nothing lies: keep it simple and say it.
            self.image.map.insert(start, start + u64::from(extent.blocks), place);
        }
    }

    fn keep(&mut self, name: Option<Name>, time_ms: u64, until_ms: u64) {
        let Some(at) = self.at else { return };
        let unwritten = (self.checkpoint != Some(at)).then(|| Arc::new(self.checkpoint_record(at, Nonce([0; 16]))));
        let kept = Kept { name, at, base: self.image.base, time_ms, until_ms };
        self.kept.push(KeptImage { kept, image: Some(self.image.clone()), unwritten });
    }

    fn replace(&mut self, image: Image, time_ms: u64, undo_until_ms: u64) {
        self.kept.retain(|k| k.kept.name.is_some());
        if undo_until_ms > 0 {
            self.keep(None, time_ms, undo_until_ms);
        }
        self.image = image;
    }

    fn image_of(&self, name: Option<&Name>) -> Result<Image> {
        self.kept(name)
            .and_then(|k| k.image.clone())
            .ok_or_else(|| Error::corrupt("bad-record", "a record that goes back to a state that is not kept"))
    }

    /// The checkpoint object of one image of this state.
    ///
    /// # Errors
    /// `Exhausted` when it is too large.
    pub fn encode_checkpoint(&self, record: CheckpointRecord, image: &Image) -> Result<Bytes> {
        let mut indexes = vec![u32::MAX; self.objects.capacity()];
        let mut objects = Vec::new();
        let runs: Vec<checkpoint::MapRun> = image
            .map
            .iter()
            .map(|run| {
                let place = match run.place {
                    Place::Zero => None,
                    Place::Object { object, frame } => {
                        let slot = indexes.get_mut(object as usize);
                        let facts = self.objects.get(object).map(|o| o.facts);
                        let (Some(slot), Some(facts)) = (slot, facts) else {
                            return Err(Error::internal("bad-map", "a run in an object that is not known"));
                        };
                        if *slot == u32::MAX {
                            *slot = u32::try_from(objects.len()).unwrap_or(u32::MAX - 1);
                            objects.push(facts);
                        }
                        Some((*slot, frame))
                    }
                };
                let blocks = u32::try_from(run.end - run.start)
                    .map_err(|_| Error::internal("bad-map", "a run that is too long"))?;
                Ok(checkpoint::MapRun { start: BlockIndex(run.start), blocks, place })
            })
            .collect::<Result<_>>()?;
        checkpoint::encode_checkpoint(record, &objects, runs.into_iter())
    }
}
