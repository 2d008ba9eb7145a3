//! The built-in rules of the gateway as a plugin: with default settings it answers as `clonegate_core::advice::builtin` does,
//! and `tests/same_as_builtin.rs` holds the two together.

use clonegate_policy::prelude::*;

settings! {
    /// The built-in rules, with their numbers as settings.
    pub struct Defaults {
        /// Share of its slots at which a base gets its successor prepared, percent.
        prepare_percent: u8 = 90 => 1..=100,
        /// Share of its capacity that a datastore keeps free of new clones, percent.
        headroom_percent: u8 = 0 => 0..=90,
    }
}

impl Defaults {
    fn room(&self, datastore: &Datastore) -> u64 {
        datastore.headroom().saturating_sub(share(datastore.capacity, self.headroom_percent))
    }

    fn has_room(&self, datastore: &Datastore, ask: &PlacementRequest) -> bool {
        datastore.health == Health::Online && self.room(datastore) >= ask.expected_delta
    }
}

/// So many percent of bytes, rounded down; in 64 bits, since a policy that multiplies in 128 spends its time on that.
fn share(bytes: u64, percent: u8) -> u64 {
    let percent = u64::from(percent);
    bytes / 100 * percent + bytes % 100 * percent / 100
}

impl Placement for Defaults {
    fn place(&self, _: &Context, ask: &PlacementRequest, inventory: &Inventory) -> Decision<PlacementVerdict> {
        let mut bases: Vec<_> = inventory
            .ready_bases(ask)
            // With nothing kept free, what is ready has room.
            .filter(|b| {
                self.headroom_percent == 0 || inventory.datastore(&b.datastore).is_some_and(|d| self.has_room(d, ask))
            })
            .collect();
        bases.sort_unstable_by(|a, b| b.deltas.cmp(&a.deltas).then_with(|| a.id.cmp(&b.id)));
        let mut stores: Vec<_> = inventory.roomy_datastores(ask).filter(|d| self.has_room(d, ask)).collect();
        stores.sort_unstable_by(|a, b| self.room(b).cmp(&self.room(a)).then_with(|| a.id.cmp(&b.id)));

        let verdict = choose(
            bases
                .into_iter()
                .map(|b| b.because(format!("{} of {} slots taken", b.deltas, b.delta_limit)))
                .chain(stores.into_iter().map(|d| d.because(format!("{} bytes of headroom", self.room(d))))),
        );
        Ok(match verdict {
            PlacementVerdict::NoOpinion => refuse(format!(
                "no datastore is online with {} bytes of headroom for a clone of {}",
                ask.expected_delta, ask.image
            )),
            chosen => chosen,
        })
    }
}

impl Rollover for Defaults {
    fn roll_over(&self, _: &Context, ask: &RolloverRequest, _: &Inventory) -> Decision<RolloverVerdict> {
        let (taken, limit) = (u64::from(ask.subject.deltas), u64::from(ask.subject.delta_limit));
        let successor = Successor { datastores: Vec::new(), reason: format!("{taken} of {limit} slots taken") };
        Ok(if taken >= limit {
            RolloverVerdict::RollOver(successor)
        } else if taken * 100 >= limit * u64::from(self.prepare_percent) {
            RolloverVerdict::Prepare(successor)
        } else {
            RolloverVerdict::Keep
        })
    }
}

impl Reset for Defaults {
    fn reset(&self, _: &Context, ask: &ResetRequest) -> Decision<ResetVerdict> {
        let event = match ask.event {
            ResetEvent::PowerOff => "power-off",
            ResetEvent::LogOff => "log-off",
            _ => return Ok(ResetVerdict::Keep),
        };
        if ask.subject.lifetime == Lifetime::Persistent || ask.subject.held {
            return Ok(ResetVerdict::Keep);
        }
        Ok(ResetVerdict::Discard(ResetPlan {
            timing: ResetTiming::WhenDetached,
            onto: ResetOnto::SameBase,
            reason: format!("ephemeral clone at {event}"),
        }))
    }
}

export!(Defaults: placement, rollover, reset);
