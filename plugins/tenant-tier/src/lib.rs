//! Sends clones to datastores of their tenant and tier. A clone (or its pool, or its template) is labelled `tenant=a` and
//! `tier=nvme`; a datastore with a label `tenant` takes only clones of that tenant, and a clone with a tier goes only there.
//! The last share of a datastore stays for the clones that are there already. Where a clone goes within what is permitted is
//! left to the next plugin: candidates are in the order of headroom.

use clonegate_policy::prelude::*;

settings! {
    /// Which labels, and what is kept.
    pub struct TenantTier {
        /// The label that names the tenant.
        tenant: String = "tenant".to_owned(),
        /// The label that names the tier.
        tier: String = "tier".to_owned(),
        /// Share of its capacity that a datastore keeps for the growth of its clones, percent.
        keep_percent: u8 = 10 => 0..=90,
    }
}

impl TenantTier {
    fn permits(&self, datastore: &Datastore, ask: &PlacementRequest) -> bool {
        let tenant = datastore.label(&self.tenant).is_none_or(|owner| Some(owner) == ask.label(&self.tenant));
        let tier = ask.label(&self.tier).is_none_or(|wanted| datastore.label(&self.tier) == Some(wanted));
        tenant && tier
    }

    fn has_room(&self, datastore: &Datastore, ask: &PlacementRequest) -> bool {
        let percent = u64::from(self.keep_percent);
        let kept = datastore.capacity / 100 * percent + datastore.capacity % 100 * percent / 100;
        datastore.takes(ask) && datastore.headroom() >= kept.saturating_add(ask.expected_delta)
    }
}

impl Placement for TenantTier {
    fn place(&self, _: &Context, ask: &PlacementRequest, inventory: &Inventory) -> Decision<PlacementVerdict> {
        let who = ask.label(&self.tenant).unwrap_or("no tenant");
        let tier = ask.label(&self.tier).unwrap_or("any tier");
        if !inventory.datastores.iter().any(|d| self.permits(d, ask)) {
            return Ok(refuse(format!("there is no datastore for {who} and {tier}")));
        }
        let mut stores: Vec<_> =
            inventory.datastores.iter().filter(|d| self.permits(d, ask) && self.has_room(d, ask)).collect();
        stores.sort_by(|a, b| b.headroom().cmp(&a.headroom()).then_with(|| a.id.cmp(&b.id)));
        let reason = |d: &Datastore| format!("{who}, {tier}, {} GiB of headroom", d.headroom() >> 30);
        let ready: Vec<&Base> = inventory.ready_bases(ask).collect();
        let bases = stores.iter().flat_map(|d| {
            let here = ready.iter().filter(|b| b.datastore == d.id);
            here.map(|b| b.because(reason(d)))
        });
        let roomy: Vec<&Datastore> = inventory.roomy_datastores(ask).collect();
        let new = stores.iter().filter(|d| roomy.iter().any(|roomy| roomy.id == d.id)).map(|d| d.because(reason(d)));
        Ok(match choose(bases.chain(new)) {
            PlacementVerdict::NoOpinion => {
                refuse(format!("the datastores for {who} and {tier} are full, or kept for the clones that are there"))
            }
            chosen => chosen,
        })
    }
}

export!(TenantTier: placement);

#[cfg(test)]
mod tests {
    use super::*;
    use clonegate_policy::testing::{context, inventory, label, placement_request};

    fn place(tenant: &str, tier: &str, policy: &TenantTier) -> PlacementVerdict {
        let there_is = inventory()
            .datastore("shared", 300)
            .datastore("fast", 200)
            .labelled("tier", "nvme")
            .datastore("acme", 100 + 120)
            .labelled("tenant", "acme")
            .labelled("tier", "nvme")
            .base("b1", "w11:1", "fast", 4);
        let mut ask = placement_request("w11:1");
        ask.labels =
            [("tenant", tenant), ("tier", tier)].iter().filter(|l| !l.1.is_empty()).map(|l| label(l.0, l.1)).collect();
        policy.place(&context(), &ask, &there_is.build()).unwrap()
    }

    #[test]
    fn a_tenants_datastore_takes_nobody_else() {
        let policy = TenantTier::default();
        assert_eq!(place("", "", &policy).ids(), ["b1", "+shared", "+fast"]);
        assert_eq!(place("acme", "", &policy).ids(), ["b1", "+shared", "+acme", "+fast"]);
    }

    #[test]
    fn a_tier_is_kept_to() {
        assert_eq!(place("acme", "nvme", &TenantTier::default()).ids(), ["b1", "+acme", "+fast"]);
        assert!(
            matches!(place("", "tape", &TenantTier::default()), PlacementVerdict::Refuse(why) if why.contains("tape"))
        );
    }

    #[test]
    fn the_last_share_stays_for_the_clones_that_are_there() {
        let policy = TenantTier { keep_percent: 20, ..TenantTier::default() };
        assert_eq!(place("acme", "nvme", &policy).ids(), ["+acme"]);
        let policy = TenantTier { keep_percent: 50, ..TenantTier::default() };
        assert!(matches!(place("acme", "nvme", &policy), PlacementVerdict::Refuse(why) if why.contains("full")));
    }
}
