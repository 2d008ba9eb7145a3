use clonegate_policy::prelude::*;

settings! { pub struct Policy {} }

impl Placement for Policy {
    fn place(&self, _: &Context, ask: &PlacementRequest, inventory: &Inventory) -> Decision<PlacementVerdict> {
        let best = inventory.ready_bases(ask).min_by_key(|base| base.deltas);
        Ok(best.map_or(PlacementVerdict::NoOpinion, |base| choose([base.because("fewest clones")])))
    }
}

export!(Policy: placement);

#[cfg(test)]
mod tests {
    use super::*;
    use clonegate_policy::testing::{context, inventory, placement_request};

    #[test]
    fn the_base_with_the_fewest_clones_is_taken() {
        let there_is = inventory().datastore("d1", 500).base("b1", "w11:1", "d1", 90).base("b2", "w11:1", "d1", 3);
        let verdict = Policy::default().place(&context(), &placement_request("w11:1"), &there_is.build());
        assert_eq!(verdict.unwrap().ids(), ["b2"]);
    }
}
