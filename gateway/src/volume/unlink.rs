//! Garbage on its way out: named in the log by `unlink` records, then deleted.
//!
//! One record at a time, and some with data in between: a volume that is written does not wait for a large collection.

use std::collections::VecDeque;

use clonegate_core::Result;
use clonegate_core::format::log::{Change, ObjectName};
use clonegate_core::limits::UNLINK_OBJECTS_MAX;
use tokio::sync::oneshot;

use super::commit::Committer;
use super::upkeep::House;

/// Records with data that go before the next that names garbage, when there are any.
const BETWEEN: u32 = 8;

/// Garbage of one round that is being named in the log. Until all of it is, the house is here: no other round begins.
pub(super) struct Unlinking {
    house: House,
    /// What the next records name.
    waiting: VecDeque<Vec<ObjectName>>,
    /// What was named.
    named: Vec<ObjectName>,
    /// Records with data since the last of these.
    between: u32,
    /// Those who asked for the round; they are answered when all is deleted.
    asked: Vec<oneshot::Sender<Result<()>>>,
}

impl Committer {
    /// Takes garbage that is to be named and deleted; there is some.
    pub(super) fn unlink(&mut self, house: House, objects: &[ObjectName]) {
        self.unlinking = Some(Unlinking {
            house,
            waiting: objects.chunks(UNLINK_OBJECTS_MAX).map(<[_]>::to_vec).collect(),
            named: Vec::with_capacity(objects.len()),
            between: 0,
            asked: std::mem::take(&mut self.tended),
        });
    }

    /// Whether enough data has gone before the next record that names garbage: no more is begun until it is on its way.
    pub(super) fn unlink_is_next(&self) -> bool {
        self.unlinking.as_ref().is_some_and(|unlinking| unlinking.between >= BETWEEN && !unlinking.waiting.is_empty())
    }

    /// A record with data was begun.
    pub(super) fn count_between(&mut self) {
        if let Some(unlinking) = &mut self.unlinking {
            unlinking.between += 1;
        }
    }

    /// Sends the next record off that names garbage, when nothing is on its way: it says what the log says then.
    pub(super) fn begin_unlink(&mut self) -> Result<()> {
        if !self.in_flight.is_empty() {
            return Ok(());
        }
        let Some(unlinking) = &mut self.unlinking else { return Ok(()) };
        let Some(objects) = unlinking.waiting.pop_front() else { return Ok(()) };
        unlinking.between = 0;
        let (record, upto) = self.record(Change::Unlink { objects }, 0, None);
        self.begin_alone(record, upto)
    }

    /// These names are in the log. When they were the last, all of them are deleted, and upkeep goes on.
    pub(super) fn unlinked(&mut self, objects: Vec<ObjectName>) {
        let Some(mut unlinking) = self.unlinking.take() else { return };
        unlinking.house.count_own_record();
        unlinking.named.extend(objects);
        if !unlinking.waiting.is_empty() {
            self.unlinking = Some(unlinking);
            return;
        }
        let Unlinking { mut house, named, asked, .. } = unlinking;
        // What it does not finish is garbage again.
        let deletion = house.delete(&self.core, named);
        self.core.engine.handle.spawn(async move {
            deletion.await;
            asked.into_iter().for_each(|reply| drop(reply.send(Ok(()))));
        });
        house.note_unwritten(&self.core);
        self.house = Some(house);
    }
}
