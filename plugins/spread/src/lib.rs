//! Spreads each pool over failure domains: no domain holds more than a share of it, and the emptiest domain is filled first.
//! A clone without a pool is none of its business.

use clonegate_policy::prelude::*;

settings! {
    /// What a failure domain is, and how much of a pool one may hold.
    pub struct Spread {
        /// The label of a datastore that names its failure domain; a datastore without it is one of its own.
        domain: String = "rack".to_owned(),
        /// Share of a pool that one domain may hold, percent.
        share_percent: u8 = 40 => 1..=100,
        /// Clones of the pool from which the share is enforced; a small pool is only spread.
        enforce_from: u32 = 10 => 0..=10_000,
    }
}

impl Spread {
    fn domain_of<'a>(&self, datastore: &'a Datastore) -> &'a str {
        datastore.label(&self.domain).unwrap_or(&datastore.id)
    }
}

impl Placement for Spread {
    fn place(&self, context: &Context, ask: &PlacementRequest, inventory: &Inventory) -> Decision<PlacementVerdict> {
        if ask.pool.is_empty() {
            return Ok(PlacementVerdict::NoOpinion);
        }
        let total: u64 = inventory.datastores.iter().map(|d| u64::from(d.pool_clones)).sum();
        let over = |held: u64| {
            total >= u64::from(self.enforce_from) && (held + 1) * 100 > (total + 1) * u64::from(self.share_percent)
        };
        let domains: Vec<&str> = inventory.datastores.iter().map(|d| self.domain_of(d)).collect();
        // Clones of the pool in a domain.
        let held = |domain: &str| -> u64 {
            let here = domains.iter().zip(&inventory.datastores).filter(|(of, _)| **of == domain);
            here.map(|(_, d)| u64::from(d.pool_clones)).sum()
        };
        // The fullest ready base of each datastore.
        let mut fullest: Vec<Option<&Base>> = vec![None; domains.len()];
        for base in inventory.ready_bases(ask) {
            if let Some(best) = inventory.position(&base.datastore).and_then(|at| fullest.get_mut(at))
                && best.is_none_or(|best| best.deltas <= base.deltas)
            {
                *best = Some(base);
            }
        }
        let mut places = Vec::new();
        let mut full = 0;
        for ((datastore, domain), base) in inventory.datastores.iter().zip(&domains).zip(fullest) {
            if !datastore.takes(ask) {
                continue;
            }
            let held = held(domain);
            if over(held) {
                full += 1;
                continue;
            }
            let rejected = |r: &Rejection| matches!(&r.target, Target::NewBaseOn(id) if *id == datastore.id);
            if base.is_some() || !ask.rejected.iter().any(rejected) {
                // Ties by seed, so that several orders at once do not all go the same way.
                let tie = context.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ fold(&datastore.id);
                places.push((held, datastore.pool_clones, tie, domain, datastore, base));
            }
        }
        if places.is_empty() && full > 0 {
            let percent = self.share_percent;
            return Ok(refuse(format!("every domain with room holds {percent} % of the pool {}", ask.pool)));
        }
        places.sort_by_key(|(held, here, tie, ..)| (*held, *here, *tie));
        Ok(choose(places.into_iter().map(|(held, _, _, domain, datastore, base)| {
            let reason = format!("{domain} holds {held} of {total} clones of {}", ask.pool);
            match base {
                Some(base) => base.because(reason),
                None => datastore.because(reason),
            }
        })))
    }
}

/// FNV-1a.
fn fold(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

export!(Spread: placement);

#[cfg(test)]
mod tests {
    use super::*;
    use clonegate_policy::testing::{context, inventory, placement_request};

    fn there_is(held: [(&str, u32); 3]) -> Inventory {
        let mut all = inventory();
        for (n, (rack, clones)) in held.into_iter().enumerate() {
            all = all.datastore(&format!("d{n}"), 500).with(|d| d.pool_clones = clones).labelled("rack", rack);
        }
        all.base("b1", "w11:1", "d1", 3).build()
    }

    fn place(spread: &Spread, inventory: &Inventory, pool: &str) -> PlacementVerdict {
        let ask = PlacementRequest { pool: pool.into(), ..placement_request("w11:1") };
        spread.place(&context(), &ask, inventory).unwrap()
    }

    #[test]
    fn the_domain_with_the_fewest_clones_of_the_pool_comes_first() {
        let inventory = there_is([("a", 4), ("b", 2), ("a", 0)]);
        assert_eq!(place(&Spread::default(), &inventory, "w").ids(), ["b1", "+d2", "+d0"]);
    }

    #[test]
    fn a_domain_at_its_share_is_left_out_and_all_at_it_is_a_refusal() {
        let inventory = there_is([("a", 6), ("b", 6), ("c", 2)]);
        assert_eq!(place(&Spread::default(), &inventory, "w").ids(), ["+d2"]);
        let strict = Spread { share_percent: 10, ..Spread::default() };
        assert!(matches!(place(&strict, &inventory, "w"), PlacementVerdict::Refuse(why) if why.contains("10 %")));
    }

    #[test]
    fn a_clone_of_no_pool_is_left_to_others() {
        assert_eq!(place(&Spread::default(), &there_is([("a", 0); 3]), ""), PlacementVerdict::NoOpinion);
    }
}
