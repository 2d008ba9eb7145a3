//! A question of any size, made up: for measurements when no recorded decision is at hand.

use clonegate_core::advice::{
    Base, BaseState, Context, Datastore, Exit, Health, Inventory, Label, Lifetime, PlacementRequest, Question,
    ResetEvent, ResetRequest, RolloverRequest, RolloverTrigger, Slot, Volume,
};

use crate::tools::{FIXED_MS, Input};

/// Most datastores and bases of a sample.
pub const SAMPLE_RECORDS_MAX: u32 = 10_000;

impl Input {
    /// A question over so many datastores and bases with two labels each, the same each time. Most datastores are online, a fifth
    /// of the bases is of another image, some are sealed or full. Counts beyond [`SAMPLE_RECORDS_MAX`] are cut.
    pub fn sample(slot: Slot, datastores: u32, bases: u32) -> Self {
        let (datastores, bases) = (datastores.min(SAMPLE_RECORDS_MAX), bases.min(SAMPLE_RECORDS_MAX));
        let inventory = Inventory {
            revision: 42,
            datastores: (0..datastores).map(|n| datastore(n, bases / datastores.max(1))).collect(),
            bases: (0..bases).map(|n| base(n, datastores)).collect(),
        };
        let question = match slot {
            Slot::Placement => Question::Placement { request: placement(), inventory },
            Slot::Rollover => Question::Rollover {
                request: RolloverRequest {
                    trigger: RolloverTrigger::DeltaAdded,
                    subject: Base { deltas: 120, ..base(0, datastores) },
                    pending: 3,
                    superseded: false,
                },
                inventory,
            },
            Slot::Reset => Question::Reset {
                request: ResetRequest { event: ResetEvent::PowerOff, subject: volume(), base: base(0, 1) },
            },
        };
        let context = Context { decision: "d_sample".into(), now_ms: FIXED_MS, seed: 7, sequence: 0 };
        Self { context, question, recorded: None }
    }
}

fn labels(n: u32) -> Vec<Label> {
    let tier = if n.is_multiple_of(2) { "nvme" } else { "sas" };
    vec![Label { key: "rack".into(), value: format!("r{}", n % 4) }, Label { key: "tier".into(), value: tier.into() }]
}

fn datastore(n: u32, bases: u32) -> Datastore {
    Datastore {
        id: format!("datastore-{n:03}"),
        health: if n % 7 == 6 { Health::Degraded } else { Health::Online },
        capacity: 1 << 42,
        free: (1_u64 << 41).saturating_sub(u64::from(n) << 30),
        reserved: 1 << 35,
        bases,
        clones: 100,
        pool_clones: n,
        latency_us: Some(400 + n),
        labels: labels(n),
    }
}

fn base(n: u32, datastores: u32) -> Base {
    Base {
        id: format!("b_{n:026}"),
        image: if n % 5 == 4 { "w10:7" } else { "w11:3" }.into(),
        datastore: format!("datastore-{:03}", n % datastores.max(1)),
        state: if n % 9 == 8 { BaseState::Sealed } else { BaseState::Ready },
        deltas: (n * 37) % 129,
        delta_limit: 128,
        size: 40 << 30,
        delta_bytes: u64::from(n) << 30,
        created_ms: FIXED_MS - 86_400_000 + u64::from(n),
        labels: labels(n),
    }
}

fn placement() -> PlacementRequest {
    PlacementRequest {
        clone: "desk-0001".into(),
        pool: "win11-a".into(),
        image: "w11:3".into(),
        size: 40 << 30,
        lifetime: Lifetime::Ephemeral,
        expected_delta: 2 << 30,
        count: 1,
        labels: labels(0),
        rejected: Vec::new(),
    }
}

fn volume() -> Volume {
    Volume {
        id: "desk-0001".into(),
        pool: "win11-a".into(),
        lifetime: Lifetime::Ephemeral,
        created_ms: FIXED_MS - 86_400_000,
        last_reset_ms: None,
        last_exit: Exit::Clean,
        attached: false,
        held: false,
        delta: 3 << 30,
        size: 40 << 30,
        newer: None,
        labels: labels(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clonegate_core::advice::check;

    #[test]
    fn a_sample_is_as_large_as_asked_and_the_built_in_rule_can_answer_it() {
        for slot in Slot::ALL {
            for (datastores, bases) in [(0, 0), (1, 1), (20, 100), (3, 10_000)] {
                let input = Input::sample(slot, datastores, bases);
                assert_eq!(input.question.slot(), slot);
                check::validate(&input.question, &input.question.builtin()).unwrap();
                if let Question::Placement { inventory, .. } = &input.question {
                    assert_eq!(
                        (inventory.datastores.len(), inventory.bases.len()),
                        (datastores as usize, bases as usize)
                    );
                }
            }
        }
        assert_eq!(Input::sample(Slot::Placement, 20, 100).question.builtin().word(), "choose");
        assert_eq!(
            Input::sample(Slot::Placement, 0, u32::MAX).question.records(),
            Input::sample(Slot::Placement, 0, 10_000).question.records()
        );
    }
}
