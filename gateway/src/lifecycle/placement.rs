//! Where clones go: asks the policy, checks its answer against the invariants, makes bases as they are needed, claims slots.

use std::collections::HashMap;
use std::sync::Arc;

use clonegate_core::advice::{
    self, Base, BaseState, Candidate, Health, Inventory, Label, Lifetime, PlacementRequest, PlacementVerdict,
    Rejection, RolloverRequest, RolloverTrigger, RolloverVerdict, Target, check,
};
use clonegate_core::format::catalog::{TemplateEntry, TemplateVersion};
use clonegate_core::format::clone::CloneRecord;
use clonegate_core::ids::{BaseId, Name};
use clonegate_core::{Error, Result};

use super::datastores::{Datastore, NO_END};
use super::gateway::Gateway;
use super::table::KnownBase;
use super::views::PlacementView;

/// Makes the record of the clone of this name in this slot of this base.
pub(super) type Maker<'a> = &'a (dyn Fn(&Name, BaseId, u32) -> CloneRecord + Send + Sync);

/// Why a datastore that is not thin takes no linked clones.
const NOT_THIN: &str = "is not thin: bytes that no clone wrote would take space there, so it takes no linked clones";
/// How often one order asks the policy again without getting a single slot.
const FRUITLESS_MAX: u32 = 16;

/// Clones that are ordered together.
#[derive(Debug, Clone)]
pub(super) struct Order {
    pub(super) template: Name,
    pub(super) version: TemplateVersion,
    pub(super) pool: Option<Name>,
    pub(super) lifetime: Lifetime,
    pub(super) expected_delta: u64,
    pub(super) labels: Vec<Label>,
}

impl Order {
    fn image(&self) -> String {
        image(&self.template, self.version.number)
    }
}

/// A template version as policies name it.
pub(super) fn image(template: &Name, version: u32) -> String {
    format!("{template}:{version}")
}

/// Some clones of an order and where they go.
#[derive(Debug, Clone)]
pub(super) struct Group {
    pub(super) datastore: Arc<Datastore>,
    /// The base; `None`: one is to be made.
    pub(super) base: Option<BaseId>,
    pub(super) clones: u32,
    by: String,
    reason: String,
}

impl Group {
    pub(super) fn view(&self) -> PlacementView {
        PlacementView {
            datastore: self.datastore.name.to_string(),
            base: self.base.map(|id| id.to_string()),
            clones: self.clones,
            by: self.by.clone(),
            reason: self.reason.clone(),
        }
    }
}

/// Slots that an order got on one base.
#[derive(Debug)]
pub(super) struct Claimed {
    pub(super) datastore: Arc<Datastore>,
    pub(super) records: Vec<CloneRecord>,
    pub(super) base: BaseId,
}

impl Gateway {
    /// Whether a base holds this template version: its name and number say so, and its bytes are the same.
    pub(super) fn holds(base: &KnownBase, template: &Name, version: &TemplateVersion) -> bool {
        let record = &base.record;
        record.version == version.number && record.template == *template && record.data == version.data
    }

    /// What policies see: the datastores, and the bases of the image in question.
    pub(super) fn inventory(&self, template: &Name, version: &TemplateVersion, pool: Option<&Name>) -> Inventory {
        let pool_clones = pool.map(|pool| self.pool_clones(pool)).unwrap_or_default();
        let mut inventory = Inventory { revision: self.clock.now_ms(), ..Inventory::default() };
        for datastore in self.datastores.all() {
            let bases = datastore.table.bases();
            let entry = datastore.entry();
            inventory.datastores.push(advice::Datastore {
                id: datastore.name.to_string(),
                // One that is not thin must not take linked clones; to a policy it is in maintenance.
                health: if entry.thin { datastore.health() } else { Health::Maintenance },
                capacity: datastore.capacity().unwrap_or(NO_END),
                free: datastore.free().unwrap_or(NO_END),
                reserved: entry.reserve,
                bases: u32::try_from(bases.len()).unwrap_or(u32::MAX),
                clones: bases.iter().map(KnownBase::count).sum(),
                pool_clones: pool_clones.get(&datastore.name).copied().unwrap_or(0),
                latency_us: None,
                labels: entry.labels,
            });
            let of_image = bases.iter().filter(|base| Self::holds(base, template, version));
            inventory.bases.extend(of_image.map(|base| advised(base, &datastore.name)));
        }
        inventory.bases.sort_by(|a, b| a.id.cmp(&b.id));
        inventory
    }

    fn pool_clones(&self, pool: &Name) -> HashMap<Name, u32> {
        let mut counts = HashMap::new();
        for clone in self.catalog.remembered_all::<clonegate_core::format::catalog::CloneEntry>() {
            if clone.state.pool.as_ref() == Some(pool) {
                *counts.entry(clone.state.datastore).or_default() += 1;
            }
        }
        counts
    }

    /// Asks where the next of `remaining` clones go, and takes the first place that holds.
    async fn choose(
        &self,
        order: &Order,
        clone: &Name,
        remaining: u32,
        inventory: &Inventory,
        rejected: &mut Vec<Rejection>,
    ) -> Result<Group> {
        let mut request = PlacementRequest {
            clone: clone.to_string(),
            pool: order.pool.as_ref().map(Name::to_string).unwrap_or_default(),
            image: order.image(),
            size: order.version.size,
            lifetime: order.lifetime,
            expected_delta: order.expected_delta,
            count: remaining,
            labels: order.labels.clone(),
            rejected: rejected.clone(),
        };
        // Once more with what could not be used, so that a policy can think of something else.
        for _ in 0..2 {
            let advice = self.advisor.place(&request, inventory).await;
            let candidates = match advice.verdict {
                PlacementVerdict::Choose(candidates) => candidates,
                // What it named before could not be used: that is what people are to hear.
                PlacementVerdict::Refuse(_) if !request.rejected.is_empty() => break,
                PlacementVerdict::Refuse(why) => {
                    return Err(refusal(&request, inventory, &advice.by, why, &self.why_not(order)));
                }
                PlacementVerdict::Defer(deferral) => {
                    return Err(Error::unavailable("placement-deferred", deferral.reason)
                        .on(clone.as_str())
                        .hint(format!("the policy {:?} says: try again in {} s", advice.by, deferral.seconds)));
                }
                PlacementVerdict::NoOpinion => Vec::new(),
            };
            for Candidate { target, reason } in candidates {
                if request.rejected.iter().any(|r| r.target == target) {
                    continue;
                }
                match self.usable(order, &request, inventory, &target, remaining) {
                    Ok((datastore, base, room)) => {
                        return Ok(Group { datastore, base, clones: remaining.min(room), by: advice.by, reason });
                    }
                    Err(why) => request.rejected.push(Rejection { target, why }),
                }
            }
        }
        *rejected = request.rejected;
        let tried: Vec<String> =
            rejected.iter().map(|Rejection { target, why }| format!("{}: {why}", place_name(target))).collect();
        Err(Error::exhausted("no-place", "no datastore can take the clone")
            .on(clone.as_str())
            .hint(if tried.is_empty() { "the policy named no place".to_owned() } else { tried.join("; ") }))
    }

    /// Why each datastore takes none of an order, for people.
    fn why_not(&self, order: &Order) -> String {
        let reasons = self.datastores.all().into_iter().map(|datastore| {
            let entry = datastore.entry();
            let free = datastore.free().unwrap_or(NO_END).saturating_sub(entry.reserve);
            let why = match datastore.health() {
                Health::Offline => "does not answer".to_owned(),
                Health::Maintenance => "is in maintenance".to_owned(),
                _ if !entry.thin => NOT_THIN.to_owned(),
                _ => format!(
                    "has {free} bytes free without its reserve, and a delta is expected to grow to {}",
                    order.expected_delta
                ),
            };
            format!("{} {why}", datastore.name)
        });
        reasons.collect::<Vec<_>>().join("; ")
    }

    /// Whether a place holds against the invariants, whatever the policy thinks, and how many clones fit there.
    fn usable(
        &self,
        order: &Order,
        request: &PlacementRequest,
        inventory: &Inventory,
        target: &Target,
        remaining: u32,
    ) -> std::result::Result<(Arc<Datastore>, Option<BaseId>, u32), String> {
        check::usable(request, inventory, target)?;
        let (name, base, room) = match target {
            Target::Base(id) => {
                let base = inventory.bases.iter().find(|b| &b.id == id).ok_or("there is no such base")?;
                let parsed = id.parse::<BaseId>().map_err(|e| e.to_string())?;
                (&base.datastore, Some(parsed), base.delta_limit.saturating_sub(base.deltas))
            }
            Target::NewBaseOn(name) => (name, None, order.version.slots),
        };
        let name = Name::new(name.as_str()).map_err(|e| e.to_string())?;
        let datastore = self.datastores.find(&name).ok_or("there is no such datastore")?;
        if !datastore.entry().thin {
            return Err(NOT_THIN.to_owned());
        }
        if let Some(limit) = datastore.promise_limit() {
            let promised = datastore.promised();
            let fits = limit.saturating_sub(promised) / order.version.size.max(1);
            if fits == 0 {
                return Err(format!(
                    "its clones may grow to {promised} bytes already, and {limit} is what its overcommit permits"
                ));
            }
            return Ok((datastore, base, room.min(u32::try_from(fits).unwrap_or(u32::MAX)).min(remaining)));
        }
        Ok((datastore, base, room))
    }

    /// Where the clones of an order would go, without doing anything.
    pub(super) async fn plan(&self, order: &Order, names: &[Name]) -> Result<Vec<Group>> {
        let mut inventory = self.inventory(&order.template, &order.version, order.pool.as_ref());
        let mut groups = Vec::new();
        let mut at = 0;
        while let Some(name) = names.get(at) {
            let remaining = u32::try_from(names.len() - at).unwrap_or(u32::MAX);
            let group = self.choose(order, name, remaining, &inventory, &mut Vec::new()).await?;
            let taken = group.clones.max(1);
            match group.base {
                Some(id) => {
                    let id = id.to_string();
                    let base = inventory.bases.iter_mut().find(|b| b.id == id);
                    base.into_iter().for_each(|b| b.deltas += taken);
                }
                None => {
                    if let Some(d) = inventory.datastores.iter_mut().find(|d| d.id == group.datastore.name.as_str()) {
                        d.bases += 1;
                        d.clones += taken;
                    }
                }
            }
            at += taken as usize;
            groups.push(group);
        }
        Ok(groups)
    }

    /// Claims a slot for each name of an order. On an error nothing stays claimed.
    pub(super) async fn claim_all(
        &self,
        order: &Order,
        names: &[Name],
        make: Maker<'_>,
    ) -> Result<(Vec<Claimed>, Vec<PlacementView>, u32)> {
        let mut claimed: Vec<Claimed> = Vec::new();
        let mut views: Vec<PlacementView> = Vec::new();
        let mut new_bases = 0;
        let result = self.claim_into(order, names, make, &mut claimed, &mut views, &mut new_bases).await;
        match result {
            Ok(()) => Ok((claimed, views, new_bases)),
            Err(error) => {
                for group in &claimed {
                    group.datastore.table.give_back(&group.records, group.base).await;
                }
                Err(error)
            }
        }
    }

    async fn claim_into(
        &self,
        order: &Order,
        names: &[Name],
        make: Maker<'_>,
        claimed: &mut Vec<Claimed>,
        views: &mut Vec<PlacementView>,
        new_bases: &mut u32,
    ) -> Result<()> {
        let mut rejected = Vec::new();
        let mut fruitless = 0;
        let mut waiting: Vec<Name> = names.to_vec();
        while let Some(name) = waiting.first() {
            let remaining = u32::try_from(waiting.len()).unwrap_or(u32::MAX);
            let inventory = self.inventory(&order.template, &order.version, order.pool.as_ref());
            let group = self.choose(order, name, remaining, &inventory, &mut rejected).await?;
            let base = match group.base {
                Some(base) => base,
                None => {
                    let (base, made) = self.base_with_room(&group.datastore, order).await?;
                    *new_bases += u32::from(made);
                    base
                }
            };
            let later = waiting.split_off((group.clones as usize).min(waiting.len()));
            let table = &group.datastore.table;
            let (records, unplaced) = table.claim(base, std::mem::take(&mut waiting), make).await?;
            waiting = unplaced;
            waiting.extend(later);
            if records.is_empty() {
                fruitless += 1;
                if fruitless > FRUITLESS_MAX {
                    let error = Error::conflict("busy", "others keep taking the slots");
                    return Err(error.on(names[0].as_str()).hint("try again"));
                }
                // What looked free is not: look again before asking again.
                table.refresh().await?;
                continue;
            }
            views.push(PlacementView {
                base: Some(base.to_string()),
                clones: u32::try_from(records.len()).unwrap_or(u32::MAX),
                ..group.view()
            });
            claimed.push(Claimed { datastore: group.datastore, records, base });
        }
        Ok(())
    }

    /// A base of the order's image with room on this datastore: one that another request has just made, or a new one. Tells whether it is new.
    pub(super) async fn base_with_room(&self, datastore: &Arc<Datastore>, order: &Order) -> Result<(BaseId, bool)> {
        let _making = datastore.making.lock().await;
        datastore.table.refresh().await?;
        let roomy = datastore
            .table
            .bases()
            .into_iter()
            .filter(|base| Self::holds(base, &order.template, &order.version) && base.room() > 0)
            .max_by_key(|base| (base.count(), base.record.id));
        if let Some(base) = roomy {
            return Ok((base.record.id, false));
        }
        let record = self.make_base(datastore, &order.template, &order.version).await?;
        Ok((record.id, true))
    }

    /// Asks whether bases that took clones need successors, and does what is permitted. Failures are logged: the clones are made.
    pub(super) async fn roll_over(
        &self,
        template: &Name,
        version: &TemplateVersion,
        trigger: RolloverTrigger,
        bases: &[BaseId],
    ) {
        for id in bases {
            if let Err(error) = self.roll_over_one(template, version, trigger.clone(), *id).await {
                tracing::warn!(base = %id, %error, "rollover failed; it is tried again with the next clone");
            }
        }
    }

    async fn roll_over_one(
        &self,
        template: &Name,
        version: &TemplateVersion,
        trigger: RolloverTrigger,
        id: BaseId,
    ) -> Result<()> {
        let inventory = self.inventory(template, version, None);
        let Some(subject) = inventory.bases.iter().find(|b| b.id == id.to_string()).cloned() else { return Ok(()) };
        let here = Name::new(subject.datastore.as_str())?;
        let superseded = self
            .catalog
            .remembered::<TemplateEntry>(template)
            .is_some_and(|t| t.state.published.is_some_and(|p| p > version.number));
        let request = RolloverRequest { trigger, subject, pending: 0, superseded };
        let advice = self.advisor.roll_over(&request, &inventory).await;
        let (seal, successor) = match advice.verdict {
            RolloverVerdict::NoOpinion | RolloverVerdict::Keep => return Ok(()),
            RolloverVerdict::Seal(why) | RolloverVerdict::Retire(why) => (Some(why), None),
            RolloverVerdict::Prepare(successor) => (None, Some(successor)),
            RolloverVerdict::RollOver(successor) => (Some(successor.reason.clone()), Some(successor)),
        };
        if let Some(successor) = successor {
            let mut wanted: Vec<Name> =
                successor.datastores.iter().filter_map(|d| Name::new(d.as_str()).ok()).collect();
            if wanted.is_empty() {
                wanted.push(here.clone());
            }
            self.successor(template, version, id, &wanted).await?;
        }
        let datastore = self.datastores.get(&here)?;
        // A full base needs no seal: it takes no more clones, and takes some again when clones go.
        let full = datastore.table.base(id).is_none_or(|base| base.room() == 0);
        if let Some(why) = seal.filter(|_| !full) {
            datastore.table.retire(id, &format!("{}: {why}", advice.by)).await?;
        }
        Ok(())
    }

    /// Makes the next base on the first datastore that can have it, unless one with room is there.
    async fn successor(&self, template: &Name, version: &TemplateVersion, old: BaseId, wanted: &[Name]) -> Result<()> {
        for name in wanted {
            let datastore = self.datastores.get(name)?;
            if datastore.health() != Health::Online || !datastore.entry().thin {
                continue;
            }
            let _making = datastore.making.lock().await;
            let there = datastore
                .table
                .bases()
                .into_iter()
                .any(|base| base.record.id != old && Self::holds(&base, template, version) && base.room() > 0);
            if !there {
                self.make_base(&datastore, template, version).await?;
            }
            return Ok(());
        }
        Ok(())
    }
}

/// A base as policies see it.
pub(super) fn advised(base: &KnownBase, datastore: &Name) -> Base {
    let record = &base.record;
    Base {
        id: record.id.to_string(),
        image: image(&record.template, record.version),
        datastore: datastore.to_string(),
        state: if base.retired { BaseState::Sealed } else { BaseState::Ready },
        deltas: base.count(),
        delta_limit: record.slots,
        size: record.size,
        delta_bytes: 0,
        created_ms: record.created_ms,
        labels: Vec::new(),
    }
}

fn place_name(target: &Target) -> String {
    match target {
        Target::Base(id) => format!("base {id}"),
        Target::NewBaseOn(name) => format!("datastore {name}"),
    }
}

/// No room is another thing than a policy that does not want to.
fn refusal(request: &PlacementRequest, inventory: &Inventory, by: &str, why: String, each: &str) -> Error {
    let somewhere = inventory
        .datastores
        .iter()
        .any(|d| check::usable(request, inventory, &Target::NewBaseOn(d.id.clone())).is_ok());
    if somewhere {
        Error::denied("placement-refused", why).on(request.clone.clone()).hint(format!("the policy {by:?} said so"))
    } else {
        Error::exhausted("no-place", why)
            .on(request.clone.clone())
            .hint(if each.is_empty() { "add a datastore: clonegate datastore add NAME URL" } else { each }.to_owned())
    }
}
