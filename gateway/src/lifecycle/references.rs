//! What needs the versions of a template: clones by the slots of its bases; pools, updates that wait and updates under way by the catalog.
//!
//! Whoever deletes a version marks it as going and then looks here again; whoever comes to need one writes that down and then looks whether it is
//! still there. One sees the other.

use clonegate_core::format::catalog::{CloneEntry, PoolEntry, RolloutEntry, RolloutState, TemplateEntry};
use clonegate_core::ids::Name;
use clonegate_core::{Error, Result};

use super::gateway::Gateway;
use super::pending::pending;
use super::rollouts::{is_open, word};
use super::update::may_be_moved_back;
use super::waiting::listed;
use crate::catalog::Named;

/// What the catalog says of who needs versions of a template.
pub(super) struct Referrers {
    template: Name,
    published: Option<u32>,
    updates: Vec<Named<RolloutEntry>>,
    pools: Vec<Named<PoolEntry>>,
    clones: Vec<Named<CloneEntry>>,
}

impl Referrers {
    /// Whether a clone is on this version, or a pool, an update under way, or an update that waits for a machine to be off needs it.
    pub(super) fn need_or_are_on(&self, number: u32) -> bool {
        self.updates.iter().any(|update| self.is_of(update, number))
            || self.pools.iter().any(|pool| self.takes(pool, number))
            || self.clones.iter().any(|clone| self.is_on(clone, number) || self.moves_to(clone, number))
    }

    /// A pool needs the version that it is pinned to, or else the published one.
    fn takes(&self, pool: &Named<PoolEntry>, number: u32) -> bool {
        pool.state.version.or(self.published) == Some(number)
    }

    fn is_on(&self, clone: &Named<CloneEntry>, number: u32) -> bool {
        clone.state.template == self.template && clone.state.version == number
    }

    fn moves_to(&self, clone: &Named<CloneEntry>, number: u32) -> bool {
        pending(&clone.state) == Some((&self.template, number))
    }

    /// An update needs the version that it moves clones to, and one that is rolled back also those that they came from.
    fn is_of(&self, update: &Named<RolloutEntry>, number: u32) -> bool {
        let back = |clone: &Named<CloneEntry>| {
            let from = clone.state.moved_from.as_ref();
            clone.state.template == update.name
                && may_be_moved_back(clone, &update.state)
                && from.is_some_and(|from| from.template == self.template && from.version == number)
        };
        (update.name == self.template && update.state.version == number)
            || (update.state.state == RolloutState::RollingBack && self.clones.iter().any(back))
    }

    /// Refuses while anything needs one of these versions, or the whole template, and lists what does. `on_it` are the clones on their bases.
    pub(super) fn refuse(&self, numbers: &[u32], whole: bool, on_it: &[String]) -> Result<()> {
        let any = |needs: &dyn Fn(u32) -> bool| numbers.iter().any(|number| needs(*number));
        let pools = self.pools.iter().filter(|pool| whole || any(&|n| self.takes(pool, n)));
        let waiting = self.clones.iter().filter(|clone| any(&|n| self.moves_to(clone, n)));
        let updates = self.updates.iter().filter(|u| (whole && u.name == self.template) || any(&|n| self.is_of(u, n)));
        let pools: Vec<String> = pools.map(|pool| pool.name.to_string()).collect();
        let waiting: Vec<String> = waiting.map(|clone| clone.name.to_string()).collect();
        let (mut said, mut hint) = (Vec::new(), Vec::new());
        if !on_it.is_empty() {
            said.push(need(on_it, "clones"));
            hint.push("delete or move the clones first".to_owned());
        }
        if !pools.is_empty() {
            said.push(need(&pools, "pools"));
            hint.push("delete the pools first, or publish another version for those that follow it".to_owned());
        }
        if !waiting.is_empty() {
            said.push(format!("{} clones move to it when their machines are off: {}", waiting.len(), listed(&waiting)));
            hint.push(format!("switch those off, or clonegate update rollback {}", self.template));
        }
        for update in updates {
            said.push(format!("an update of clones of {} is {}", update.name, word(update.state.state)));
            hint.push(format!("clonegate update cancel {} ends it", update.name));
        }
        if said.is_empty() {
            return Ok(());
        }
        Err(Error::conflict("referenced", said.join("; ")).on(self.template.as_str()).hint(hint.join("; ")))
    }
}

impl Gateway {
    /// Who needs versions of a template of which `published` is published.
    pub(super) async fn referrers(&self, template: &Name, published: Option<u32>) -> Result<Referrers> {
        // In this order: an update that is no longer under way has written down already what waits for it.
        let mut updates = self.catalog.list::<RolloutEntry>().await?;
        updates.retain(|update| is_open(update.state.state));
        let mut pools = self.catalog.list::<PoolEntry>().await?;
        pools.retain(|pool| pool.state.template == *template);
        let clones = self.catalog.list::<CloneEntry>().await?;
        Ok(Referrers { template: template.clone(), published, updates, pools, clones })
    }

    /// Refuses when anything needs these versions, or the whole template, and lists what does.
    pub(super) async fn check_unused(
        &self,
        name: &Name,
        template: &TemplateEntry,
        numbers: &[u32],
        whole: bool,
    ) -> Result<()> {
        let mut clones = Vec::new();
        for (datastore, base) in self.bases_of(name, template, numbers).await? {
            clones.extend(datastore.table.slots(base).await?.into_iter().map(|record| record.name.to_string()));
        }
        clones.sort();
        self.referrers(name, template.published).await?.refuse(numbers, whole, &clones)
    }
}

/// The refusal to remove what others need.
pub(super) fn refuse_used(object: &str, what: &str, users: &[String]) -> Result<()> {
    if users.is_empty() {
        return Ok(());
    }
    Err(Error::conflict("referenced", need(users, what)).on(object).hint("delete or move those first"))
}

fn need(users: &[String], what: &str) -> String {
    format!("{} {what} need it: {}", users.len(), listed(users))
}
