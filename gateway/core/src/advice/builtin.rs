//! The rules that stand when no plugin has an opinion. `plugins/defaults` says the same in WebAssembly,
//! and a test holds the two together.

use super::check::CANDIDATES_MAX;
use super::{
    BaseState, Candidate, Health, Inventory, Lifetime, PlacementRequest, PlacementVerdict, ResetEvent, ResetOnto,
    ResetPlan, ResetRequest, ResetTiming, ResetVerdict, RolloverRequest, RolloverVerdict, Successor, Target,
};

/// Share of its slots at which a base gets its successor prepared, percent.
pub const PREPARE_AT_PERCENT: u64 = 90;

/// Fills the fullest ready base of the image that has room first, so that few bases are warm; then a new base on the datastore
/// with the most headroom (free less reserved). Datastores must be online and have room for the expected delta.
pub fn place(request: &PlacementRequest, inventory: &Inventory) -> PlacementVerdict {
    let headroom = |id: &str| {
        inventory
            .datastores
            .iter()
            .find(|d| d.id == id && d.health == Health::Online)
            .map(|d| d.free.saturating_sub(d.reserved))
            .filter(|&room| room >= request.expected_delta)
    };
    let tried = |target: &Target| request.rejected.iter().any(|r| &r.target == target);

    let mut bases: Vec<_> = inventory
        .bases
        .iter()
        .filter(|b| b.image == request.image && b.state == BaseState::Ready && b.deltas < b.delta_limit)
        .filter(|b| headroom(&b.datastore).is_some() && !tried(&Target::Base(b.id.clone())))
        .collect();
    bases.sort_by(|a, b| b.deltas.cmp(&a.deltas).then_with(|| a.id.cmp(&b.id)));
    let mut candidates: Vec<_> = bases
        .into_iter()
        .map(|b| Candidate {
            target: Target::Base(b.id.clone()),
            reason: format!("{} of {} slots taken", b.deltas, b.delta_limit),
        })
        .collect();

    let mut stores: Vec<_> =
        inventory.datastores.iter().filter_map(|d| headroom(&d.id).map(|room| (room, d))).collect();
    stores.retain(|(_, d)| !tried(&Target::NewBaseOn(d.id.clone())));
    stores.sort_by(|(a, da), (b, db)| b.cmp(a).then_with(|| da.id.cmp(&db.id)));
    candidates.extend(stores.into_iter().map(|(room, d)| Candidate {
        target: Target::NewBaseOn(d.id.clone()),
        reason: format!("{room} bytes of headroom"),
    }));
    candidates.truncate(CANDIDATES_MAX);
    if candidates.is_empty() {
        return PlacementVerdict::Refuse(format!(
            "no datastore is online with {} bytes of headroom for a clone of {}",
            request.expected_delta, request.image
        ));
    }
    PlacementVerdict::Choose(candidates)
}

/// Prepares a successor at [`PREPARE_AT_PERCENT`] of the slots and rolls over when all are taken, on the same datastore.
pub fn roll_over(request: &RolloverRequest) -> RolloverVerdict {
    let base = &request.subject;
    let (taken, limit) = (u64::from(base.deltas), u64::from(base.delta_limit));
    let successor = || Successor { datastores: Vec::new(), reason: format!("{taken} of {limit} slots taken") };
    if taken >= limit {
        RolloverVerdict::RollOver(successor())
    } else if taken * 100 >= limit * PREPARE_AT_PERCENT {
        RolloverVerdict::Prepare(successor())
    } else {
        RolloverVerdict::Keep
    }
}

/// Discards the delta of an ephemeral clone at power-off and log-off, once nobody has it open; keeps everything else
/// and whatever is held.
pub fn reset(request: &ResetRequest) -> ResetVerdict {
    let event = match request.event {
        ResetEvent::PowerOff => "power-off",
        ResetEvent::LogOff => "log-off",
        ResetEvent::PowerOn | ResetEvent::Interval(_) | ResetEvent::SizeThreshold(_) | ResetEvent::ImagePublished => {
            return ResetVerdict::Keep;
        }
    };
    if request.subject.lifetime == Lifetime::Persistent || request.subject.held {
        return ResetVerdict::Keep;
    }
    ResetVerdict::Discard(ResetPlan {
        timing: ResetTiming::WhenDetached,
        onto: ResetOnto::SameBase,
        reason: format!("ephemeral clone at {event}"),
    })
}
