//! Objects in the store that hold blocks, and the table of those that a volume's maps point into.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use clonegate_core::format::checkpoint::BlockObject;
use clonegate_core::format::log::ObjectName;
use clonegate_core::ids::CloneId;

use crate::store::{Key, keys};

/// The key of an object of a clone.
pub fn key_of(clone: CloneId, name: ObjectName) -> Key {
    match name {
        ObjectName::Log(at) => keys::log(clone, at.epoch, at.sequence),
        ObjectName::Segment(epoch, number) => keys::segment(clone, epoch, number),
        ObjectName::Checkpoint(at) => keys::checkpoint(clone, at.epoch, at.sequence),
    }
}

/// One object that holds blocks; never changes. Small: a volume that is flushed after each write has one for each block.
#[derive(Debug)]
pub struct Object {
    /// Names it in caches of this process.
    pub uid: u64,
    /// The volume that it is of.
    clone: CloneId,
    /// Its name, nonce and frames.
    pub facts: BlockObject,
}

static NEXT_UID: AtomicU64 = AtomicU64::new(1);

impl Object {
    /// The object of a clone.
    pub fn new(clone: CloneId, facts: BlockObject) -> Arc<Self> {
        let uid = NEXT_UID.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self { uid, clone, facts })
    }

    /// Its key.
    pub fn key(&self) -> Key {
        key_of(self.clone, self.facts.name)
    }
}

/// The objects by the index that maps use.
#[derive(Debug, Clone, Default)]
pub struct Objects {
    slots: Vec<Option<Arc<Object>>>,
    free: Vec<u32>,
}

impl Objects {
    /// Takes an object in; gives its index.
    pub fn add(&mut self, object: Arc<Object>) -> u32 {
        if let Some(index) = self.free.pop() {
            if let Some(slot) = self.slots.get_mut(index as usize) {
                *slot = Some(object);
            }
            return index;
        }
        self.slots.push(Some(object));
        u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX - 1)
    }

    /// The object of an index.
    pub fn get(&self, index: u32) -> Option<&Arc<Object>> {
        self.slots.get(index as usize).and_then(Option::as_ref)
    }

    /// The index of an object.
    pub fn find(&self, name: ObjectName) -> Option<u32> {
        self.iter().find(|(_, object)| object.facts.name == name).map(|(index, _)| index)
    }

    /// All with their indexes.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Arc<Object>)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| Some((u32::try_from(index).ok()?, slot.as_ref()?)))
    }

    /// One more than the largest index.
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets those that `used` does not hold for; their indexes are given out again.
    pub fn retain(&mut self, used: impl Fn(u32) -> bool) {
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let Ok(index) = u32::try_from(index) else { break };
            if slot.is_some() && !used(index) {
                *slot = None;
                self.free.push(index);
            }
        }
    }
}
