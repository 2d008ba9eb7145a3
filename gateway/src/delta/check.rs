//! Checks one clone in its datastore, without a gateway: is every object owned, is everything there that is needed, is
//! every byte what was written.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use clonegate_core::format::clone::CloneRecord;
use clonegate_core::format::envelope;
use clonegate_core::format::frame::{self, FRAME_BYTES};
use clonegate_core::format::log::{Change, EpochRecord, ObjectName, Position};
use clonegate_core::format::segment::decode_segment;
use clonegate_core::ids::{CloneId, Epoch};
use clonegate_core::units::ByteRange;
use clonegate_core::{Error, ErrorKind, Result};

use super::collect::names_of;
use super::load::{End, Listing, Loaded, load, read_checkpoint, read_head};
use super::object::{Object, key_of};
use crate::store::{Store, keys};

/// Frames that are verified by one read.
const STRIDE: u32 = 1024;

/// How an object stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Standing {
    /// Needed.
    Owned,
    /// Not needed any more; the owner's next round of upkeep deletes it after its grace.
    Grace,
    /// Needed by nobody, and no owner is bound to find it.
    Orphan,
    /// Needed, and not there.
    Missing,
    /// There, and not what was written.
    Corrupt,
}

/// What was found of one object.
#[derive(Debug, Clone)]
pub struct Finding {
    /// Its key within the datastore.
    pub key: String,
    /// How it stands.
    pub standing: Standing,
    /// Its size, bytes; 0 when it is missing.
    pub size: u64,
    /// Why, for people.
    pub detail: String,
}

/// What [`check`] found of one clone.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// One for each object, by key.
    pub findings: Vec<Finding>,
    /// Blocks whose checksums were verified.
    pub blocks_verified: u64,
    /// The newest checkpoint.
    pub checkpoint: Option<Position>,
}

impl Report {
    /// How many objects stand so.
    pub fn count(&self, standing: Standing) -> usize {
        self.findings.iter().filter(|finding| finding.standing == standing).count()
    }

    /// Whether an orphan may be deleted by one who does not own the volume. A record behind the end of its epoch is read by nobody. A
    /// segment may still be named by a checkpoint that a stalled owner puts, unless there is one of a later epoch.
    pub fn may_go(&self, finding: &Finding) -> bool {
        let mut parts = finding.key.rsplit('/');
        // What is named otherwise is not ours to delete.
        let number = parts.next().and_then(keys::number);
        let epoch = number.and(parts.next()).and_then(keys::number);
        match (finding.standing, parts.next(), epoch) {
            (Standing::Orphan, Some("log"), Some(_)) => true,
            (Standing::Orphan, Some("seg"), Some(epoch)) => self.checkpoint.is_some_and(|at| at.epoch.0 > epoch),
            _ => false,
        }
    }

    /// Whether nothing is missing or corrupt.
    pub fn is_sound(&self) -> bool {
        self.count(Standing::Missing) + self.count(Standing::Corrupt) == 0
    }
}

struct Checker<'a> {
    store: &'a Store,
    clone: CloneId,
    findings: BTreeMap<String, Finding>,
}

impl Checker<'_> {
    fn note(&mut self, key: &crate::store::Key, size: u64, standing: Standing, detail: impl Into<String>) {
        let finding = Finding { key: key.to_string(), standing, size, detail: detail.into() };
        let worse = self.findings.get(&finding.key).is_none_or(|old| old.standing < standing);
        if worse {
            self.findings.insert(finding.key.clone(), finding);
        }
    }

    fn note_name(&mut self, name: ObjectName, size: u64, standing: Standing, detail: &str) {
        self.note(&key_of(self.clone, name), size, standing, detail);
    }

    fn note_error(&mut self, name: ObjectName, size: u64, error: &Error) -> Result<()> {
        match error.kind() {
            ErrorKind::Corrupt | ErrorKind::Unsupported => {
                self.note_name(name, size, Standing::Corrupt, error.message());
                Ok(())
            }
            ErrorKind::NotFound => {
                self.note_name(name, 0, Standing::Missing, "it is gone");
                Ok(())
            }
            _ => Err(error.clone()),
        }
    }

    async fn frames(&mut self, object: &Object, size: u64) -> Result<u64> {
        let facts = object.facts;
        let mut verified = 0;
        for first in (0..facts.frames).step_by(STRIDE as usize) {
            let end = facts.frames.min(first + STRIDE);
            let at = |frame: u32| u64::from(facts.frames_at) + u64::from(frame) * FRAME_BYTES as u64;
            let read = self.store.get_range(&object.key(), ByteRange::new(at(first), at(end)), None).await;
            match read.and_then(|bytes| frame::take(&facts.nonce, first, &bytes)) {
                Ok(_) => verified += u64::from(end - first),
                Err(error) => self.note_error(facts.name, size, &error)?,
            }
        }
        Ok(verified)
    }
}

/// Checks one clone; with `blocks`, also every block that anything needs.
///
/// # Errors
/// What the store gives; what is wrong with the clone is in the report.
pub async fn check(store: &Store, record: &CloneRecord, blocks: bool) -> Result<Report> {
    let mut checker = Checker { store, clone: record.id, findings: BTreeMap::new() };
    let listing = Listing::read(store, record.id).await?;
    let sizes = sizes_of(&listing);
    for epoch in &listing.epochs {
        let key = keys::epoch(record.id, Epoch(*epoch));
        match store.get(&key).await.and_then(|bytes| envelope::decode::<EpochRecord>(&bytes)) {
            Ok(_) => checker.note(&key, 0, Standing::Owned, "claim"),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported) => {
                checker.note(&key, 0, Standing::Corrupt, error.message());
            }
            Err(error) => return Err(error),
        }
    }
    for other in &listing.others {
        let key = keys::clone_dir(record.id).key(other)?;
        checker.note(&key, 0, Standing::Orphan, "not a name of this program");
    }
    for impossible in &listing.impossible {
        let key = keys::clone_dir(record.id).key(impossible)?;
        checker.note(&key, 0, Standing::Corrupt, "a number that no clone comes to");
    }
    let (mut verified, mut checkpoint) = (0, None);
    match load(store, record).await {
        Ok(loaded) => {
            checkpoint = loaded.state.checkpoint;
            let objects = classify(&mut checker, &listing, &loaded, &sizes).await?;
            if blocks {
                for object in objects {
                    let size = sizes.get(&object.facts.name).copied().unwrap_or(0);
                    verified += checker.frames(&object, size).await?;
                }
            }
        }
        Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound | ErrorKind::Unsupported) => {
            broken(&mut checker, &listing, &error).await?;
        }
        Err(error) => return Err(error),
    }
    Ok(Report { findings: checker.findings.into_values().collect(), blocks_verified: verified, checkpoint })
}

fn sizes_of(listing: &Listing) -> HashMap<ObjectName, u64> {
    let logs = listing.logs.iter().map(|(at, size)| (ObjectName::Log(*at), *size));
    let checkpoints = listing.checkpoints.iter().map(|(at, size)| (ObjectName::Checkpoint(*at), *size));
    let segments = listing.segments.iter().map(|(epoch, n, size)| (ObjectName::Segment(*epoch, *n), *size));
    logs.chain(checkpoints).chain(segments).collect()
}

/// The clone cannot be loaded: says which of its objects are damaged, each looked at by itself.
async fn broken(checker: &mut Checker<'_>, listing: &Listing, error: &Error) -> Result<()> {
    let (store, clone) = (checker.store, checker.clone);
    for (at, size) in &listing.logs {
        match read_head(store, clone, *at, Some(*size)).await {
            Ok(_) => checker.note_name(ObjectName::Log(*at), *size, Standing::Owned, "readable"),
            Err(error) => checker.note_error(ObjectName::Log(*at), *size, &error)?,
        }
    }
    for (at, size) in &listing.checkpoints {
        match read_checkpoint(store, clone, *at, Some(*size)).await {
            Ok(_) => checker.note_name(ObjectName::Checkpoint(*at), *size, Standing::Owned, "readable"),
            Err(error) => checker.note_error(ObjectName::Checkpoint(*at), *size, &error)?,
        }
    }
    for (epoch, number, size) in &listing.segments {
        checker.note_name(ObjectName::Segment(*epoch, *number), *size, Standing::Owned, "not looked into");
    }
    let standing = if error.code() == "missing-object" { Standing::Missing } else { Standing::Corrupt };
    let object = error.object().unwrap_or_default().to_owned();
    let key = object.rsplit_once("clones/").map_or(object.clone(), |(_, rest)| format!("clones/{rest}"));
    checker.findings.insert(key.clone(), Finding { key, standing, size: 0, detail: error.message().to_owned() });
    Ok(())
}

/// Sorts the objects of a clone that loads; gives back those that hold blocks that anything needs.
async fn classify(
    checker: &mut Checker<'_>,
    listing: &Listing,
    loaded: &Loaded,
    sizes: &HashMap<ObjectName, u64>,
) -> Result<Vec<Arc<Object>>> {
    let (store, clone) = (checker.store, checker.clone);
    let state = &loaded.state;
    let mut needed: HashSet<ObjectName> = names_of(&state.objects, &state.image);
    let mut holders: HashMap<ObjectName, Arc<Object>> =
        state.objects.iter().map(|(_, object)| (object.facts.name, Arc::clone(object))).collect();
    let mut checkpoints: HashSet<Position> = state.checkpoint.into_iter().collect();
    for kept in &state.kept {
        if kept.image.is_some() {
            if let Some(image) = &kept.image {
                needed.extend(names_of(&state.objects, image));
            }
            continue;
        }
        let at = kept.kept.at;
        checkpoints.insert(at);
        match read_checkpoint(store, clone, at, None).await {
            Ok(loaded) => {
                needed.extend(names_of(&loaded.objects, &loaded.image));
                holders.extend(loaded.objects.iter().map(|(_, object)| (object.facts.name, Arc::clone(object))));
            }
            Err(error) => checker.note_error(ObjectName::Checkpoint(at), 0, &error)?,
        }
    }
    for (at, size) in &listing.checkpoints {
        let (standing, why) = if checkpoints.contains(at) {
            (Standing::Owned, "checkpoint")
        } else {
            (Standing::Grace, "older than the newest checkpoint")
        };
        checker.note_name(ObjectName::Checkpoint(*at), *size, standing, why);
    }
    let opened = state.at.map_or(0, |at| at.epoch.0);
    for (epoch, number, size) in &listing.segments {
        let name = ObjectName::Segment(*epoch, *number);
        let (standing, why) = match (needed.contains(&name), epoch.0 < opened) {
            (true, _) => (Standing::Owned, "blocks"),
            (false, true) => (Standing::Orphan, "no checkpoint names it, and its epoch is over"),
            (false, false) => (Standing::Grace, "no checkpoint names it (yet)"),
        };
        checker.note_name(name, *size, standing, why);
    }
    logs(checker, listing, loaded, &needed).await?;
    for name in &needed {
        if !sizes.contains_key(name) {
            // It may have come since the list was made.
            let key = key_of(clone, *name);
            if let Err(error) = store.head(&key).await {
                checker.note_error(*name, 0, &error)?;
            }
        }
    }
    let mut objects: Vec<Arc<Object>> = Vec::new();
    for name in needed {
        let Some(object) = holders.get(&name) else { continue };
        if let ObjectName::Segment(epoch, number) = name {
            segment(checker, object, epoch, number, sizes.get(&name).copied().unwrap_or(0)).await?;
        }
        objects.push(Arc::clone(object));
    }
    objects.sort_by_key(|object| object.facts.name);
    Ok(objects)
}

async fn segment(checker: &mut Checker<'_>, object: &Object, epoch: Epoch, number: u64, size: u64) -> Result<()> {
    let beginning =
        checker.store.get_range(&object.key(), ByteRange::new(0, u64::from(object.facts.frames_at)), None).await;
    let right = beginning.and_then(|bytes| decode_segment(&bytes, size)).and_then(|(record, at)| {
        let facts = object.facts;
        let same = record.clone == checker.clone && record.epoch == epoch && record.number == number;
        if same && record.nonce == facts.nonce && at == facts.frames_at && record.blocks == facts.frames {
            Ok(())
        } else {
            Err(Error::corrupt("misplaced", "not the segment that the checkpoint names"))
        }
    });
    match right {
        Ok(()) => Ok(()),
        Err(error) => checker.note_error(object.facts.name, size, &error),
    }
}

async fn logs(
    checker: &mut Checker<'_>,
    listing: &Listing,
    loaded: &Loaded,
    needed: &HashSet<ObjectName>,
) -> Result<()> {
    let (store, clone) = (checker.store, checker.clone);
    let behind = loaded.state.checkpoint;
    let mut over: HashMap<u64, bool> = HashMap::new();
    let open_end = loaded.end.filter(|(_, end)| *end == End::Open).map(|(next, _)| next);
    for (at, size) in &listing.logs {
        let name = ObjectName::Log(*at);
        let head = match read_head(store, clone, *at, Some(*size)).await {
            Ok((head, _)) => head,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => {
                checker.note_error(name, *size, &error)?;
                continue;
            }
        };
        let ends = matches!(head.record.what, Change::Poison { .. } | Change::Close);
        let ended = over.entry(at.epoch.0).or_default();
        let (standing, why) = if ends {
            (Standing::Owned, "end of an epoch")
        } else if needed.contains(&name) {
            (Standing::Owned, "blocks")
        } else if behind.is_some_and(|behind| *at <= behind) {
            (Standing::Grace, "the checkpoint has what it says")
        } else if *ended {
            (Standing::Orphan, "behind the end of its epoch, never acknowledged")
        } else if open_end.is_some_and(|next| next.epoch == at.epoch && *at > next) {
            (Standing::Grace, "under way")
        } else {
            (Standing::Owned, "commit record")
        };
        if ends && behind.is_none_or(|behind| *at > behind) {
            *ended = true;
        }
        checker.note_name(name, *size, standing, why);
    }
    Ok(())
}
