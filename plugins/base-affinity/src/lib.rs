//! Keeps small orders on bases that are there, and makes a base only for a large order: a base copy of many gigabytes for three
//! machines is not worth it. Of the bases it takes the one that most clones can still join.

use clonegate_policy::prelude::*;

settings! {
    /// When a new base is worth it.
    pub struct BaseAffinity {
        /// Clones that an order must have before a new base is made for it.
        new_base_from: u32 = 16 => 1..=10_000,
        /// Share of its slots from which a base counts as full, percent: then a new base is made whatever the order.
        full_percent: u8 = 85 => 1..=100,
    }
}

impl Placement for BaseAffinity {
    fn place(&self, _: &Context, ask: &PlacementRequest, inventory: &Inventory) -> Decision<PlacementVerdict> {
        let full = |b: &Base| u64::from(b.deltas) * 100 >= u64::from(b.delta_limit) * u64::from(self.full_percent);
        let mut bases: Vec<_> = inventory.ready_bases(ask).collect();
        // Those that take the whole order first, of these the fullest: it stays warm, and others stay empty.
        bases.sort_by(|a, b| {
            let part = (a.room() < ask.count).cmp(&(b.room() < ask.count));
            part.then(b.deltas.cmp(&a.deltas)).then_with(|| a.id.cmp(&b.id))
        });
        let all_full = bases.iter().all(|b| full(b));
        if !all_full && ask.count < self.new_base_from {
            return Ok(choose(
                bases.iter().map(|b| b.because(format!("{} slots free, {} wanted", b.room(), ask.count))),
            ));
        }
        let mut roomy: Vec<_> = inventory.roomy_datastores(ask).collect();
        roomy.sort_by(|a, b| b.headroom().cmp(&a.headroom()).then_with(|| a.id.cmp(&b.id)));
        let fitting = bases.iter().filter(|b| b.room() >= ask.count);
        let new = roomy.iter().take(3).map(|d| d.because(format!("a base for {} clones", ask.count)));
        let rest = bases.iter().filter(|b| b.room() < ask.count);
        info!("{} bases, all full: {all_full}, order of {}", bases.len(), ask.count);
        Ok(choose(
            fitting
                .map(|b| b.because("takes the whole order"))
                .chain(new)
                .chain(rest.map(|b| b.because("takes part of the order"))),
        ))
    }
}

export!(BaseAffinity: placement);

#[cfg(test)]
mod tests {
    use super::*;
    use clonegate_policy::testing::{context, inventory, placement_request};

    fn ids(count: u32, deltas: [u32; 2]) -> Vec<String> {
        let there_is =
            inventory().datastore("d1", 500).base("b1", "w11:1", "d1", deltas[0]).base("b2", "w11:1", "d1", deltas[1]);
        let ask = PlacementRequest { count, ..placement_request("w11:1") };
        BaseAffinity::default().place(&context(), &ask, &there_is.build()).unwrap().ids()
    }

    #[test]
    fn a_small_order_goes_to_the_fullest_base_that_takes_it() {
        assert_eq!(ids(3, [5, 60]), ["b2", "b1"]);
        assert_eq!(ids(15, [5, 120]), ["b1", "b2"]);
    }

    #[test]
    fn a_large_order_gets_a_base_unless_one_takes_it_whole() {
        assert_eq!(ids(100, [5, 60])[0], "b1");
        assert_eq!(ids(100, [60, 60])[0], "+d1");
    }

    #[test]
    fn full_bases_do_not_keep_a_small_order() {
        assert_eq!(ids(1, [110, 128]), ["b1", "+d1"]);
        assert_eq!(ids(1, [128, 128]), ["+d1"]);
    }
}
