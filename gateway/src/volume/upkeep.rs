//! Upkeep of an owned volume, beside its commits: fold, checkpoint, find garbage.
//!
//! The order makes it crash-safe. A segment is put before the checkpoint that names it; the states that are kept have
//! their checkpoints before the present one; garbage is looked for only behind a checkpoint of our own epoch; and it is
//! deleted only after the `unlink` record that names it was accepted.
//!
//! While a volume is written, little is folded: most of it would be written over. When it has rested for a while, it is
//! folded until little of what it keeps in the store is dead; then it is left alone and costs no more requests.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use clonegate_core::format::checkpoint::CheckpointRecord;
use clonegate_core::format::log::{Change, ObjectName, Position};
use clonegate_core::limits::UNLINK_OBJECTS_MAX;
use clonegate_core::units::BLOCK_BYTES;
use clonegate_core::{Error, Result};
use tokio::task::JoinError;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::commit::Committer;
use super::core::Core;
use crate::delta::DeltaSettings;
use crate::delta::collect::{self, Memory, Needed};
use crate::delta::fold;
use crate::delta::load::{on_the_side, read_checkpoint};
use crate::delta::map::{BlockMap, Place};
use crate::delta::state::{Image, LogState};
use crate::store::{PutNew, keys};

/// Segments that one round of upkeep writes at most.
const FOLDS_MAX: u32 = 8;
/// Objects of an earlier owner from which on a new one cleans up at once.
const LEFTOVERS: usize = 64;
/// After a failure, and while garbage waits for its grace, upkeep is looked at after this time.
const AGAIN: Duration = Duration::from_secs(30);

/// Of a run in a checkpoint, about.
const RUN_BYTES: usize = 16;
/// As many times the size of the last checkpoint are written before the next one; of records so many that reading them takes long, fewer.
const CHECKPOINTS_WORTH: u64 = 16;
const CHECKPOINTS_WORTH_OF_MANY: u64 = 8;
/// Runs of a fold that the map takes in under its lock at once.
const ADOPTED_AT_ONCE: usize = 512;
/// Records of one round that name garbage.
const UNLINKS_MAX: usize = 16;

/// A volume whose bytes did not change for so long is at rest.
const REST: Duration = Duration::from_secs(45);

/// What upkeep remembers from one round to the next.
#[derive(Debug)]
pub(super) struct House {
    memory: Memory,
    pub(super) wanted: bool,
    /// When garbage or a failure is looked at again; until then nothing is folded and nothing collected.
    pub(super) look: Option<Instant>,
    /// The last round failed: until the next look nothing is tried.
    failed: bool,
    /// The change of the volume that was seen last, and when it has rested since long enough.
    change: u64,
    pub(super) rests: Option<Instant>,
    /// It rests, and is to be folded.
    resting: bool,
    /// The checkpoint of the last round.
    last: Option<Last>,
}

/// A checkpoint that is in the store.
#[derive(Debug)]
struct Last {
    at: Position,
    needed: Needed,
    kept: Vec<Position>,
    /// Records of upkeep itself since then: they change nothing that would call for the next.
    own_records: u64,
}

impl House {
    pub(super) fn new(leftovers: usize) -> Self {
        Self {
            memory: Memory::default(),
            wanted: leftovers >= LEFTOVERS,
            look: None,
            failed: false,
            change: 0,
            rests: None,
            resting: false,
            last: None,
        }
    }

    /// The last checkpoint, when it says all that there is to say of the present state.
    fn last_if_same(&self, log: &LogState) -> bool {
        let unwritten = log.kept.iter().any(|k| k.unwritten.is_some());
        let same = |last: &Last| {
            log.records_since <= last.own_records && last.kept.iter().eq(log.kept.iter().map(|k| &k.kept.at))
        };
        !unwritten && self.last.as_ref().is_some_and(same)
    }

    /// A state that was kept while the house was away has no checkpoint yet: that is for a round to come.
    pub(super) fn note_unwritten(&mut self, core: &Core) {
        self.wanted |= core.state.read().log.kept.iter().any(|k| k.unwritten.is_some());
    }

    /// A record of upkeep itself is in the log.
    pub(super) fn count_own_record(&mut self) {
        if let Some(last) = &mut self.last {
            last.own_records += 1;
        }
    }

    /// Begins to delete what is named in the log.
    pub(super) fn delete(&self, core: &Core, objects: Vec<ObjectName>) -> impl Future<Output = ()> + use<> {
        self.memory.delete(&core.store, core.record.id, objects)
    }
}

/// A round of upkeep that came to its end.
pub(super) struct Round {
    house: House,
    result: Result<Swept>,
}

impl Round {
    /// What stands for a round whose task did not come to its end.
    pub(super) fn lost(ended: &JoinError) -> Self {
        let error = Error::internal("upkeep-lost", format!("a round of upkeep ended early: {ended}"));
        Self { house: House::new(LEFTOVERS), result: Err(error) }
    }
}

/// What a round came to.
#[derive(Debug, Default)]
struct Swept {
    /// A segment was written.
    folded: bool,
    /// What may be deleted.
    garbage: Vec<ObjectName>,
}

/// Dead blocks that are not worth a fold, however little else there is.
fn slack(settings: &DeltaSettings) -> u64 {
    settings.checkpoint_bytes / BLOCK_BYTES / 64
}

/// Whether so much lies behind the last checkpoint that the next is due. A large checkpoint is worth more records: what it costs to write, and
/// what it costs to read them at the next opening, are kept in proportion.
fn checkpoint_due(log: &LogState, settings: &DeltaSettings) -> bool {
    is_behind(log, settings.checkpoint_bytes, settings.checkpoint_records, 32)
}

/// Whether the next checkpoint cannot wait until folding and collecting are due as well. A volume that is written at full speed has one for
/// some hundreds of megabytes, which cost less than a tenth of a second at the next opening.
fn checkpoint_overdue(log: &LogState, settings: &DeltaSettings) -> bool {
    is_behind(log, 4 * settings.checkpoint_bytes, settings.checkpoint_records.saturating_mul(16), 4)
}

/// Whether so many bytes or records are behind the last checkpoint as it is worth, or, whatever it is worth, `most` times so many records.
fn is_behind(log: &LogState, bytes: u64, records: u64, most: u64) -> bool {
    let last = log.checkpoint_bytes;
    log.bytes_since >= bytes.max(CHECKPOINTS_WORTH * last)
        || (log.records_since >= records && log.bytes_since >= CHECKPOINTS_WORTH_OF_MANY * last)
        || log.records_since >= records.saturating_mul(most)
}

impl Committer {
    /// Begins a round when one is due and none is under way.
    pub(super) fn begin_upkeep(&mut self) {
        let Some(mut house) = self.house.take() else { return };
        let settings = &self.core.engine.settings;
        let now = Instant::now();
        let (due, overdue, wasteful, hung) = {
            let state = self.core.state.read();
            if house.change != state.log.change {
                house.change = state.log.change;
                house.rests = Some(now + REST);
                house.resting = false;
            }
            let rests = house.rests.is_some_and(|at| at <= now);
            house.rests = house.rests.filter(|_| !rests);
            let asked = rests || house.resting || !self.tending.is_empty();
            let due = checkpoint_due(&state.log, settings);
            let overdue = checkpoint_overdue(&state.log, settings);
            let wasteful = asked && fold::is_wasteful(&state.log, slack(settings));
            (due, overdue, wasteful, state.log.at == state.log.checkpoint)
        };
        house.resting = wasteful;
        if wasteful && hung {
            // A moment that is past would wake the committer over and over while the record is on its way.
            house.wanted |= house.look.take_if(|at| *at <= now).is_some();
            // A checkpoint has a record of its own to stand at.
            if self.in_flight.is_empty() {
                let (record, upto) = self.record(Change::Unlink { objects: Vec::new() }, 0, None);
                if let Err(error) = self.begin_alone(record, upto) {
                    tracing::warn!(clone = %self.core.record.name, %error, "upkeep of the delta cannot begin");
                }
            }
            self.house = Some(house);
            return;
        }
        let look = house.look.is_some_and(|at| at <= now);
        let pausing = house.look.is_some() && !look && !house.wanted;
        let whole = !self.tending.is_empty() || house.wanted || look || wasteful || (due && !pausing);
        let core = Arc::clone(&self.core);
        if !whole {
            if !overdue || house.failed {
                self.house = Some(house);
                return;
            }
            self.spawn(async move {
                let result = only_checkpoint(&core, &mut house).await.map(|()| Swept::default());
                Round { house, result }
            });
            return;
        }
        self.tended.append(&mut self.tending);
        house.wanted = false;
        house.look = None;
        let thorough = !self.tended.is_empty();
        self.spawn(async move {
            let result = round(&core, &mut house, thorough).await;
            Round { house, result }
        });
    }

    fn spawn(&mut self, round: impl Future<Output = Round> + Send + 'static) {
        self.upkeep = Some(AbortOnDropHandle::new(self.core.engine.handle.spawn(round)));
    }

    /// Takes a round in; its garbage is named in the log next, and then deleted.
    pub(super) fn end_upkeep(&mut self, round: Round) {
        self.upkeep = None;
        let Round { mut house, result } = round;
        let told = result.as_ref().map(drop).map_err(Clone::clone);
        // What was folded so far may not be all, and what rests meanwhile may be wasteful no more.
        house.resting &= result.as_ref().is_ok_and(|done| done.folded);
        let result = result.map(|done| done.garbage);
        let waits = house.memory.waits() || self.core.state.read().log.kept(None).is_some();
        house.failed = result.is_err();
        match result {
            Ok(garbage) if garbage.is_empty() => {
                house.note_unwritten(&self.core);
                house.look = house.look.or_else(|| waits.then(|| Instant::now() + AGAIN));
            }
            Ok(objects) => {
                house.look = waits.then(|| Instant::now() + AGAIN);
                self.unlink(house, &objects);
                return;
            }
            Err(error) => {
                tracing::warn!(clone = %self.core.record.name, %error, "upkeep of the delta failed; it is tried again");
                house.look = Some(Instant::now() + AGAIN);
            }
        }
        self.tended.drain(..).for_each(|reply| drop(reply.send(told.clone())));
        self.house = Some(house);
    }
}

/// One round. Gives back the garbage that may be deleted. A `thorough` one looks for it even if there should be none.
async fn round(core: &Arc<Core>, house: &mut House, thorough: bool) -> Result<Swept> {
    let _turn = core.engine.upkeep.acquire().await.map_err(|_| super::read::stopping())?;
    let settings = &core.engine.settings;
    let epoch = core.state.read().log.at.map(|at| at.epoch);
    let Some(epoch) = epoch else { return Ok(Swept::default()) };
    let small_max = core.engine.small_objects_max();
    let (mut swept, mut failed) = (Swept::default(), None);
    for _ in 0..FOLDS_MAX {
        let state = core.state.read().log.clone();
        let plan = match house.resting {
            true => fold::plan_at_rest(&state, slack(settings)),
            false => fold::plan(&state, small_max),
        };
        let Some(plan) = plan else { break };
        let number = core.segments.fetch_add(1, Ordering::Relaxed) + 1;
        match fold::fold(&core.store, &core.engine.clock, &state, plan, epoch, number).await {
            Ok(folded) => {
                let index = change(core, |log| log.adopt_segment(&folded)).await;
                for part in folded.moved.chunks(ADOPTED_AT_ONCE) {
                    change(core, |log| log.adopt_runs(index, part)).await;
                    // Reads and writes of the volume go in between.
                    tokio::task::yield_now().await;
                }
            }
            // A block that cannot be read keeps nobody from opening the volume: first the checkpoint, then the error.
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
        swept.folded = true;
    }
    change(core, |log| {
        let now = core.engine.clock.now_ms();
        log.kept.retain(|k| k.kept.until_ms == 0 || k.kept.until_ms > now);
    })
    .await;
    let same = !swept.folded && house.last_if_same(&core.state.read().log);
    if same && failed.is_none() && !house.memory.waits() && !thorough {
        return Ok(swept);
    }
    if !same {
        house.last = Some(checkpoint(core).await?);
    }
    if let Some(error) = failed {
        return Err(error);
    }
    let Some(last) = &house.last else { return Ok(swept) };
    let state = core.state.read().log.clone();
    let (at, needed) = (last.at, &last.needed);
    swept.garbage = collect::garbage(&core.store, &state, at, needed, settings.grace, &mut house.memory).await?;
    swept.garbage.truncate(UNLINKS_MAX * UNLINK_OBJECTS_MAX);
    forget_objects(core, &state).await;
    Ok(swept)
}

/// A round between two looks at the garbage, so that opening the volume never has long to read, however fast it is written.
async fn only_checkpoint(core: &Arc<Core>, house: &mut House) -> Result<()> {
    let _turn = core.engine.upkeep.acquire().await.map_err(|_| super::read::stopping())?;
    house.last = Some(checkpoint(core).await?);
    Ok(())
}

/// Puts the checkpoints that are due: those of kept states, oldest first, then that of the present one. Says where it is
/// and what it needs.
async fn checkpoint(core: &Arc<Core>) -> Result<Last> {
    let state = core.state.read().log.clone();
    for kept in &state.kept {
        let (Some(record), Some(image)) = (&kept.unwritten, &kept.image) else { continue };
        let record = CheckpointRecord { nonce: core.engine.clock.nonce(), ..CheckpointRecord::clone(record) };
        put(core, &state, record, image).await?;
        change(core, |log| {
            for mine in log.kept.iter_mut().filter(|k| k.kept.at == kept.kept.at) {
                mine.unwritten = None;
                mine.image = None;
            }
        })
        .await;
    }
    let at = state.at.ok_or_else(|| Error::internal("no-open", "upkeep before the first record"))?;
    let record = state.checkpoint_record(at, core.engine.clock.nonce());
    let (size, needed) = put(core, &state, record, &state.image).await?;
    change(core, |log| {
        log.checkpoint = Some(at);
        log.checkpoint_bytes = size;
        log.records_since -= state.records_since.min(log.records_since);
        log.bytes_since -= state.bytes_since.min(log.bytes_since);
    })
    .await;
    Ok(Last { at, needed, kept: state.kept.iter().map(|k| k.kept.at).collect(), own_records: 0 })
}

/// Puts one checkpoint. When there is one of that place already, by an attempt of which we never heard or by an earlier
/// owner, that one counts.
async fn put(core: &Core, state: &LogState, record: CheckpointRecord, image: &Image) -> Result<(u64, Needed)> {
    let at = record.at;
    let key = keys::checkpoint(state.clone, at.epoch, at.sequence);
    let (of, image_of) = (state.clone(), image.clone());
    let object: Bytes =
        on_the_side(image.map.len() * RUN_BYTES, move || of.encode_checkpoint(record, &image_of)).await?;
    let size = object.len() as u64;
    match core.store.put_new(&key, object).await? {
        PutNew::Created => Ok((size, Needed::new(state, image))),
        PutNew::Exists(there) => {
            let loaded = read_checkpoint(&core.store, state.clone, at, Some(there.len() as u64)).await?;
            Ok((there.len() as u64, Needed::new(&loaded, &loaded.image)))
        }
    }
}

/// Forgets objects in memory that neither the present map nor a kept one pointed to in `then`, a moment ago: what was
/// written since points to objects that are newer.
async fn forget_objects(core: &Core, then: &LogState) {
    let mut used: HashSet<u32> = HashSet::new();
    let kept = then.kept.iter().filter_map(|k| k.image.as_ref().map(|image| &image.map));
    for run in std::iter::once(&then.image.map).chain(kept).flat_map(BlockMap::iter) {
        if let Place::Object { object, .. } = run.place {
            used.insert(object);
        }
    }
    change(core, |log| {
        // An image that was read back since may point to anything.
        if log.adoptions == then.adoptions {
            let unused = |index| then.objects.get(index).filter(|_| !used.contains(&index)).map(|object| object.uid);
            let needed = log.objects.iter().filter(|(index, object)| unused(*index) != Some(object.uid));
            let needed: HashSet<u32> = needed.map(|(index, _)| index).collect();
            log.objects.retain(|index| needed.contains(&index));
        }
    })
    .await;
}

/// Changes what is known of the log; not in the middle of an operation, which may have found there what it goes on from.
async fn change<R>(core: &Core, change: impl FnOnce(&mut LogState) -> R) -> R {
    let _calm = core.calm.lock().await;
    change(&mut core.state.write().log)
}
