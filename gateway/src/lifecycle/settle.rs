//! Finishes moves of clones that a crash has cut: the log says where a clone is, and its record and slots follow.

use std::collections::HashMap;
use std::sync::Arc;

use clonegate_core::Result;
use clonegate_core::format::catalog::CloneEntry;
use clonegate_core::format::clone::CloneRecord;
use clonegate_core::ids::{CloneId, Name};

use super::gateway::Gateway;
use crate::catalog::Named;
use crate::volume::Volume;

impl Gateway {
    /// Makes the record of a clone say the base that its log says. Gives the new record when it changed.
    pub(super) async fn settle_base(&self, clone: &Named<CloneEntry>, volume: &Volume) -> Result<Option<CloneRecord>> {
        let (there, said) = (volume.status().base, clone.state.record.base);
        if there.is_none() && said.is_some() {
            return self.finish_promotion(clone, volume).await;
        }
        let (Some(base), true) = (there, there != said) else { return Ok(None) };
        let datastore = self.datastores.get(&clone.state.datastore)?;
        let id = clone.state.record.id;
        let of = datastore.table.record(base).await?;
        let slots = datastore.table.slots(base).await?;
        let record = match slots.into_iter().find(|record| record.id == id) {
            Some(record) => record,
            None => {
                // Its slot was given away: it takes another one, so that the base is not deleted under it.
                let make = |name: &Name, base, slot| CloneRecord {
                    name: name.clone(),
                    nonce: self.clock.nonce(),
                    base: Some(base),
                    slot,
                    ..clone.state.record.clone()
                };
                datastore.table.refresh().await?;
                let (mut records, _) = datastore.table.claim(base, vec![clone.name.clone()], &make).await?;
                let Some(record) = records.pop() else {
                    tracing::error!(clone = %clone.name, %base, "the clone is on a base that has no slot for it");
                    return Ok(None);
                };
                record
            }
        };
        tracing::info!(clone = %clone.name, %base, "a move that was cut short is finished");
        self.adopt(clone, (&of.template, of.version), &record).await?;
        Ok(Some(record))
    }

    /// Looks at the slots of all bases of a template that a clone has besides its own, and finishes or takes back the moves that left them.
    pub(super) async fn settle_moves(self: &Arc<Self>, template: &Name) -> Result<()> {
        let clones: HashMap<CloneId, Named<CloneEntry>> =
            self.catalog.list::<CloneEntry>().await?.into_iter().map(|c| (c.state.record.id, c)).collect();
        // A clone on its way to another datastore has a slot there too, which its job cares for.
        let at_work = self.job_volumes().await?;
        for datastore in self.datastores.all() {
            if datastore.check_online().is_err() {
                continue;
            }
            datastore.table.refresh().await?;
            for base in datastore.table.bases() {
                if base.record.template != *template {
                    continue;
                }
                for slot in datastore.table.slots(base.record.id).await? {
                    let Some(clone) = clones.get(&slot.id).filter(|_| !at_work.contains(&slot.id)) else { continue };
                    let id = base.record.id;
                    if (clone.state.record.base, clone.state.record.slot) == (Some(id), slot.slot) {
                        continue;
                    }
                    // Opening it adopts the slot when its log is there.
                    let (_open, _volume) = self.volume(clone).await?;
                    // It was quiet when the slot was taken for it.
                    self.machines.off(slot.id);
                    let now: Named<CloneEntry> = self.catalog.get(&clone.name).await?;
                    if (now.state.record.base, now.state.record.slot) != (Some(id), slot.slot) {
                        datastore.table.give_back_if_ours(&slot, id).await?;
                    }
                }
            }
        }
        Ok(())
    }
}
