//! Pools: clones of one template under one pattern of names and one policy, given to users and taken back.
//!
//! The pool's record is made before its clones and goes after them. A clone says itself to which pool and to whom it belongs; giving it away
//! is one change of its record, so of two gateways that want to give one clone away, one does.

use std::collections::HashSet;
use std::sync::Arc;

use clonegate_core::advice::Lifetime;
use clonegate_core::format::catalog::{Assignment, CloneEntry, PoolEntry};
use clonegate_core::ids::Name;
use clonegate_core::limits::CREATE_COUNT_MAX;
use clonegate_core::{Error, ErrorKind, Result};

use super::gateway::Gateway;
use super::names::Pattern;
use super::placement::Order;
use super::views::{
    Allocated, ChangePool, CreatePool, CreatedClones, ListQuery, Page, PoolMember, PoolView, Touched, page, to_labels,
};
use super::would::size;
use crate::catalog::Named;

/// Longest name of a user, bytes.
const USER_BYTES_MAX: usize = 256;
/// How often an order of more clones is tried when others take the names.
const ATTEMPTS: u32 = 8;

type Pool = Named<PoolEntry>;
type Member = Named<CloneEntry>;

impl Gateway {
    pub(super) async fn do_create_pool(self: Arc<Self>, request: CreatePool, dry_run: bool) -> Result<PoolView> {
        let name = Name::new(request.name.as_str())?;
        let template = Name::new(request.template.as_str())?;
        let max = request.max.unwrap_or(request.size);
        check_sizes(request.size, max, request.spares)?;
        self.version_for_clones(&template, request.version).await?;
        let pattern = match request.pattern {
            Some(pattern) if pattern.contains('{') => pattern,
            stem => format!("{}-{{{}}}", stem.unwrap_or_else(|| name.to_string()), "n".repeat(digits(max))),
        };
        let assignment = request.assignment.into();
        let lifetime = request.lifetime.map_or(
            if assignment == Assignment::Floating { Lifetime::Ephemeral } else { Lifetime::Persistent },
            Into::into,
        );
        let entry = PoolEntry {
            template,
            version: request.version,
            pattern,
            size: request.size,
            max,
            spares: request.spares,
            assignment,
            durability: request.durability.map(Into::into).unwrap_or_default(),
            lifetime,
            reset: request.reset.checked()?,
            labels: to_labels(&request.labels),
            maintenance: false,
            created_ms: self.clock.now_ms(),
        };
        self.check_pattern(&name, &entry).await?;
        let pool = Pool { name: name.clone(), number: 0, written_ms: 0, state: entry.clone() };
        let clones = free_names(&pool, &[], entry.size)?;
        if dry_run {
            let plan = self.order_clones(&pool, &clones, true).await?;
            let notes = plan
                .iter()
                .flat_map(|plan| plan.placements.iter())
                .map(|place| format!("{} on {} ({}: {})", place.clones, place.datastore, place.by, place.reason));
            let (copied, most) = plan.as_ref().map_or((0, 0), |plan| (plan.copy_bytes, plan.most_bytes));
            let space = format!("{} are copied first; at most {} when all is written", size(copied), size(most));
            let notes = notes.chain([space]).collect();
            return Ok(PoolView { dry_run, clones: entry.size, notes, ..self.pool_view(&pool, &[], None) });
        }
        let made = self.catalog.create(&name, entry).await?;
        let filled = async {
            // Whoever deletes a version marks it and then looks for who needs it; the pool is there, and now we look for the mark. One sees the
            // other.
            self.version_for_clones(&made.state.template, made.state.version).await?;
            self.order_clones(&made, &clones, false).await
        };
        if let Err(error) = filled.await {
            self.catalog.delete(&name, |_: &PoolEntry| Ok(())).await?;
            return Err(error);
        }
        self.do_show_pool(name.to_string()).await
    }

    /// Refuses a pattern that makes names which are taken or may be another pool's, before anything is made.
    async fn check_pattern(&self, name: &Name, entry: &PoolEntry) -> Result<()> {
        let collides = |with: String| {
            Error::conflict("pattern-collides", format!("its pattern {} makes names of {with}", entry.pattern))
                .on(name.as_str())
                .hint("choose another pattern")
        };
        let pattern = Pattern::parse(&entry.pattern, entry.max)?;
        let names: HashSet<String> = (1..=entry.max).map(|number| pattern.name(number)).collect();
        if let Some(long) = names.iter().max_by_key(|n| n.len()) {
            Name::new(long.as_str())?;
        }
        for pool in self.catalog.list::<PoolEntry>().await? {
            if pool.name == *name {
                return Err(Error::exists("name-taken", "a pool of this name is there already").on(name.as_str()));
            }
            let other = Pattern::parse(&pool.state.pattern, pool.state.max)?;
            if pattern.meets(&other) || (1..=pool.state.max).any(|number| names.contains(&other.name(number))) {
                return Err(collides(format!("the pool {}", pool.name)));
            }
        }
        let all = self.catalog.list::<CloneEntry>().await?;
        match all.iter().find(|clone| names.contains(clone.name.as_str())) {
            Some(clone) => Err(collides(format!("the clone {}", clone.name))),
            None => Ok(()),
        }
    }

    /// Makes clones of a pool, all or none.
    async fn order_clones(&self, pool: &Pool, names: &[Name], dry_run: bool) -> Result<Option<CreatedClones>> {
        if names.is_empty() {
            return Ok(None);
        }
        let entry = &pool.state;
        let version = self.version_for_clones(&entry.template, entry.version).await?;
        let order = Order {
            template: entry.template.clone(),
            expected_delta: super::clones::EXPECTED_DELTA.min(version.size / 2),
            version,
            pool: Some(pool.name.clone()),
            lifetime: entry.lifetime,
            labels: entry.labels.clone(),
        };
        let finish = |clone: CloneEntry| CloneEntry { reset: entry.reset.clone(), ..clone };
        let made = self.create_in_order(&order, names, entry.durability, &finish, dry_run).await?;
        self.note_created(&made).await;
        Ok(Some(made))
    }

    pub(super) async fn members(&self, pool: &Name) -> Result<Vec<Member>> {
        let mut all = self.catalog.list::<CloneEntry>().await?;
        all.retain(|clone| clone.state.pool.as_ref() == Some(pool));
        Ok(all)
    }

    pub(super) async fn do_list_pools(self: Arc<Self>, query: ListQuery) -> Result<Page<PoolView>> {
        let pools = self.catalog.list::<PoolEntry>().await?;
        let clones = self.catalog.list::<CloneEntry>().await?;
        Ok(page(pools, &query, |pool| pool.name.as_str()).map(|pool| {
            let of: Vec<&Member> = clones.iter().filter(|c| c.state.pool.as_ref() == Some(&pool.name)).collect();
            PoolView { members: Vec::new(), ..self.pool_view(&pool, &of, None) }
        }))
    }

    pub(super) async fn do_show_pool(self: Arc<Self>, name: String) -> Result<PoolView> {
        let pool: Pool = self.catalog.get(&Name::new(name)?).await?;
        let version = self.version_for_clones(&pool.state.template, pool.state.version).await.ok();
        let members = self.members(&pool.name).await?;
        Ok(self.pool_view(&pool, &members.iter().collect::<Vec<_>>(), version.map(|v| v.number)))
    }

    fn pool_view(&self, pool: &Pool, members: &[&Member], version: Option<u32>) -> PoolView {
        let entry = &pool.state;
        let wanted = version.or(entry.version).or_else(|| {
            let template = self.catalog.remembered::<clonegate_core::format::catalog::TemplateEntry>(&entry.template);
            template.and_then(|t| t.state.published)
        });
        let count = |of: &dyn Fn(&Member) -> bool| {
            u32::try_from(members.iter().filter(|member| of(member)).count()).unwrap_or(u32::MAX)
        };
        PoolView {
            dry_run: false,
            notes: Vec::new(),
            name: pool.name.to_string(),
            template: entry.template.to_string(),
            version: entry.version,
            pattern: entry.pattern.clone(),
            size: entry.size,
            max: entry.max,
            spares: entry.spares,
            assignment: entry.assignment.into(),
            durability: entry.durability.into(),
            lifetime: entry.lifetime.into(),
            reset: (&entry.reset).into(),
            maintenance: entry.maintenance,
            clones: count(&|_| true),
            assigned: count(&|m| m.state.assigned.is_some()),
            free: count(&|m| self.is_free(m)),
            outdated: count(&|m| wanted.is_some_and(|wanted| m.state.version != wanted)),
            members: members
                .iter()
                .map(|member| PoolMember {
                    name: member.name.to_string(),
                    version: member.state.version,
                    assigned: member.state.assigned.clone(),
                    attached: self.open.attached(member.state.record.id),
                })
                .collect(),
            created_ms: entry.created_ms,
        }
    }

    /// Whether a clone can be given to somebody.
    pub(super) fn is_free(&self, clone: &Member) -> bool {
        clone.state.assigned.is_none() && self.check_discard(clone).is_ok()
    }

    /// Gives a user a clone: the one that he has, or a free one. Of two who want the same at once, one gets it and the other another.
    pub(super) async fn do_allocate(self: Arc<Self>, pool: String, user: String) -> Result<Allocated> {
        check_user(&user)?;
        let pool: Pool = self.catalog.get(&Name::new(pool)?).await?;
        for _ in 0..ATTEMPTS {
            let members = self.members(&pool.name).await?;
            if let Some(his) = members.iter().find(|m| m.state.assigned.as_ref() == Some(&user)) {
                return Ok(allocated(&pool, his, user, true));
            }
            if pool.state.maintenance {
                return Err(in_maintenance(&pool.name));
            }
            let newest = members.iter().map(|m| m.state.version).max();
            let mut free: Vec<&Member> = members.iter().filter(|m| self.is_free(m)).collect();
            // Those that are up to date first; beginning somewhere, so that two gateways part.
            let somewhere = usize::try_from(self.clock.random_u64()).unwrap_or(0) % free.len().max(1);
            free.rotate_left(somewhere);
            free.sort_by_key(|m| (Some(m.state.version) != newest, m.state.pending_version.is_some()));
            for member in free {
                let give = |entry: &mut CloneEntry| {
                    if entry.assigned.is_some() || entry.pool.as_ref() != Some(&pool.name) {
                        return Ok(false);
                    }
                    entry.assigned = Some(user.clone());
                    Ok(true)
                };
                match self.catalog.change(&member.name, give).await {
                    Ok((given, true)) => {
                        tracing::info!(pool = %pool.name, clone = %given.name, user, "allocated");
                        self.keep_spares_later(&pool.name);
                        return Ok(allocated(&pool, &given, user, false));
                    }
                    Ok((_, false)) => {}
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
            if !self.fill(&pool, 1).await? {
                return Err(empty(&pool.name, members.len()));
            }
        }
        Err(Error::conflict("busy", "others keep taking the clones").on(pool.name.as_str()).hint("try again"))
    }

    /// Takes a clone back from its user. What was written on it goes first, so that nobody gets another's data.
    pub(super) async fn do_release_clone(self: Arc<Self>, pool: String, who: String, dry_run: bool) -> Result<Touched> {
        let pool: Pool = self.catalog.get(&Name::new(pool)?).await?;
        let members = self.members(&pool.name).await?;
        let of = |m: &&Member| m.state.assigned.as_ref() == Some(&who) || m.name.as_str() == who;
        let member = members.iter().find(of).ok_or_else(|| {
            Error::not_found("not-allocated", format!("{who:?} has no clone of the pool"))
                .on(pool.name.as_str())
                .hint(format!("clonegate pool show {}", pool.name))
        })?;
        let touched = Arc::clone(&self).do_reset_clone(member.name.to_string(), dry_run).await?;
        if !dry_run {
            self.note_off(member).await?;
            self.unassign(&member.name).await?;
            let now = self.catalog.get(&member.name).await?;
            // What becomes of an update is told where it is asked for; the clone is free in any case.
            drop(self.do_what_waits(&now).await);
        }
        Ok(touched)
    }

    async fn unassign(&self, clone: &Name) -> Result<()> {
        let take = |entry: &mut CloneEntry| {
            entry.assigned = None;
            Ok(())
        };
        self.catalog.change(clone, take).await.map(drop)
    }

    /// A clone of a floating pool that was reset when its machine went off is free for the next.
    pub(super) async fn back_to_pool(&self, clone: &Member) -> Result<()> {
        let (Some(pool), true) = (&clone.state.pool, clone.state.assigned.is_some()) else { return Ok(()) };
        match self.catalog.find::<PoolEntry>(pool).await? {
            Some(pool) if pool.state.assignment == Assignment::Floating => self.unassign(&clone.name).await,
            _ => Ok(()),
        }
    }

    /// Makes the clones that a pool lacks, of its size and of those that should be free, as far as it may grow; tells whether any is
    /// free then. In one gateway one at a time does so, so that none counts clones as free which another is about to take back.
    async fn fill(&self, pool: &Pool, should_be_free: u32) -> Result<bool> {
        let _alone = self.growing.of(&pool.name).await;
        for _ in 0..ATTEMPTS {
            let members = self.members(&pool.name).await?;
            let have = u32::try_from(members.len()).unwrap_or(u32::MAX);
            let free = u32::try_from(members.iter().filter(|m| self.is_free(m)).count()).unwrap_or(u32::MAX);
            let lacks = pool.state.size.saturating_sub(have).max(should_be_free.saturating_sub(free));
            let more = lacks.min(pool.state.max.saturating_sub(have));
            if more == 0 {
                return Ok(free > 0);
            }
            match self.order_clones(pool, &free_names(pool, &members, more)?, false).await {
                // Another gateway grows it too.
                Err(error) if error.code() == "name-taken" => {}
                made => return made.map(|_| true),
            }
        }
        Err(Error::conflict("busy", "others keep taking the names of new clones")
            .on(pool.name.as_str())
            .hint("try again"))
    }

    fn keep_spares_later(&self, pool: &Name) {
        let (me, pool) = (std::sync::Weak::clone(&self.me), pool.clone());
        self.handle.spawn(async move {
            let Some(gateway) = me.upgrade() else { return };
            if let Err(error) = gateway.keep_spares(&pool).await {
                tracing::warn!(%pool, %error, "the pool could not be filled up");
            }
        });
    }

    /// Makes the clones that a pool lacks: of its size, and of its spares.
    async fn keep_spares(&self, pool: &Name) -> Result<()> {
        let Some(pool) = self.catalog.find::<PoolEntry>(pool).await? else { return Ok(()) };
        if pool.state.maintenance { Ok(()) } else { self.fill(&pool, pool.state.spares).await.map(drop) }
    }

    /// Fills all pools up: what a crash has left unmade, and spares.
    pub(super) async fn fill_pools(self: Arc<Self>) {
        let pools = match self.catalog.list::<PoolEntry>().await {
            Ok(pools) => pools,
            Err(error) => {
                tracing::debug!(%error, "pools are not looked at now");
                return;
            }
        };
        // One that was just made is being filled by who made it.
        let settled = |pool: &Pool| pool.state.created_ms.saturating_add(60_000) < self.clock.now_ms();
        for pool in pools.iter().filter(|pool| settled(pool)) {
            if let Err(error) = self.keep_spares(&pool.name).await {
                tracing::warn!(pool = %pool.name, %error, "the pool could not be filled up");
            }
        }
    }

    pub(super) async fn do_scale_pool(self: Arc<Self>, name: String, size: u32, dry_run: bool) -> Result<Touched> {
        let pool: Pool = self.catalog.get(&Name::new(name)?).await?;
        check_sizes(size, pool.state.max.max(size), 0)?;
        let _alone = self.growing.of(&pool.name).await;
        let members = self.members(&pool.name).await?;
        let have = u32::try_from(members.len()).unwrap_or(u32::MAX);
        let names = if size >= have {
            let new = free_names(&pool, &members, size - have)?;
            self.order_clones(&pool, &new, dry_run).await?;
            new
        } else {
            self.shrink(&pool, &members, have - size, dry_run).await?
        };
        if !dry_run {
            let set = |entry: &mut PoolEntry| {
                entry.size = size;
                entry.max = entry.max.max(size);
                Ok(())
            };
            self.catalog.change(&pool.name, set).await?;
        }
        let (count, would) = (names.len(), if dry_run { "would be" } else { "are" });
        let notes = vec![match size >= have {
            true => format!("{count} more than {have} {would} made"),
            false => format!("{count} of {have} {would} deleted, free ones with the highest numbers"),
        }];
        Ok(Touched { dry_run, names: names.iter().map(Name::to_string).collect(), notes, ..Touched::default() })
    }

    /// Deletes free clones, the highest numbers first; none when there are not enough.
    async fn shrink(self: &Arc<Self>, pool: &Pool, members: &[Member], less: u32, dry_run: bool) -> Result<Vec<Name>> {
        let mut free: Vec<&Member> = members.iter().filter(|m| self.is_free(m)).collect();
        free.sort_by(|a, b| b.name.as_str().len().cmp(&a.name.as_str().len()).then_with(|| b.name.cmp(&a.name)));
        if free.len() < less as usize {
            return Err(Error::conflict(
                "pool-in-use",
                format!("{} of its clones are free, {less} would go", free.len()),
            )
            .on(pool.name.as_str())
            .hint("release clones first"));
        }
        free.truncate(less as usize);
        let names: Vec<Name> = free.iter().map(|m| m.name.clone()).collect();
        if !dry_run {
            let stay = u32::try_from(members.len()).unwrap_or(u32::MAX) - less;
            self.shrink_as_job(&pool.name, Some((names.clone(), stay))).await?;
        }
        Ok(names)
    }

    pub(super) async fn do_change_pool(self: Arc<Self>, name: String, change: ChangePool) -> Result<PoolView> {
        let name = Name::new(name)?;
        let rules = change.reset.as_ref().map(|rules| rules.checked()).transpose()?;
        let lifetime: Option<Lifetime> = change.lifetime.map(Into::into);
        let set = |entry: &mut PoolEntry| {
            let max = change.max.unwrap_or(entry.max);
            let spares = change.spares.unwrap_or(entry.spares);
            check_sizes(entry.size, max, spares)?;
            (entry.max, entry.spares) = (max, spares);
            entry.lifetime = lifetime.unwrap_or(entry.lifetime);
            entry.maintenance = change.maintenance.unwrap_or(entry.maintenance);
            if let Some(rules) = &rules {
                entry.reset = rules.clone();
            }
            Ok(())
        };
        let (pool, ()) = self.catalog.change(&name, set).await?;
        for member in self.members(&name).await? {
            let follow = |entry: &mut CloneEntry| {
                entry.lifetime = pool.state.lifetime;
                entry.reset = pool.state.reset.clone();
                Ok(())
            };
            self.catalog.change(&member.name, follow).await?;
        }
        self.keep_spares_later(&name);
        self.do_show_pool(name.to_string()).await
    }

    /// Deletes a pool with its clones; refused while machines or users have any.
    pub(super) async fn do_delete_pool(self: Arc<Self>, name: String, force: bool, dry_run: bool) -> Result<Touched> {
        let pool: Pool = self.catalog.get(&Name::new(name)?).await?;
        let members = self.members(&pool.name).await?;
        let mut touched = Touched { dry_run, names: vec![pool.name.to_string()], ..Touched::default() };
        touched.notes.push(format!("{} clones go with it", members.len()));
        let mut used = Vec::new();
        for member in &members {
            let id = member.state.record.id;
            touched.sessions += u32::try_from(self.open.attached(id).len()).unwrap_or(u32::MAX);
            touched.bytes += self.open.delta_bytes(id).unwrap_or(0);
            let given = member.state.assigned.is_some() && !force;
            if given || !self.open.attached(id).is_empty() || self.held(&member.state).is_some() {
                used.push(member.name.to_string());
            }
        }
        if dry_run {
            touched
                .notes
                .extend((!used.is_empty()).then(|| format!("it would be refused: {} are in use", used.join(", "))));
            return Ok(touched);
        }
        super::references::refuse_used(pool.name.as_str(), "clones that are in use", &used)?;
        self.shrink_as_job(&pool.name, None).await?;
        Ok(touched)
    }
}

pub(super) fn check_user(user: &str) -> Result<()> {
    if user.is_empty() || user.len() > USER_BYTES_MAX || user.chars().any(char::is_control) {
        return Err(Error::invalid("bad-user", format!("a name of {} bytes for a user", user.len()))
            .hint(format!("one line of 1 to {USER_BYTES_MAX} bytes")));
    }
    Ok(())
}

pub(super) fn in_maintenance(pool: &Name) -> Error {
    Error::unavailable("pool-maintenance", "the pool is in maintenance")
        .on(pool.as_str())
        .hint(format!("try again later; clonegate pool update {pool} --maintenance off ends it"))
}

pub(super) fn empty(pool: &Name, clones: usize) -> Error {
    Error::exhausted("pool-empty", format!("none of its {clones} clones is free"))
        .on(pool.as_str())
        .hint(format!("clonegate pool scale {pool} --size {}", clones + 1))
}

fn allocated(pool: &Pool, clone: &Member, user: String, again: bool) -> Allocated {
    let disk = format!("/v1/clones/{}/disk", clone.name);
    Allocated { pool: pool.name.to_string(), clone: clone.name.to_string(), user, again, disk }
}

pub(super) fn check_sizes(size: u32, max: u32, spares: u32) -> Result<()> {
    if max > CREATE_COUNT_MAX || size > max || spares > max {
        return Err(Error::invalid("bad-count", format!("a pool of {size}, at most {max}, with {spares} spares"))
            .hint(format!("size and spares are at most max, and max is at most {CREATE_COUNT_MAX}")));
    }
    Ok(())
}

/// Digits of the numbers of a pool that grows to `max`.
fn digits(max: u32) -> usize {
    max.to_string().len().max(3)
}

/// The lowest names of a pool that no member has.
fn free_names(pool: &Pool, members: &[Member], count: u32) -> Result<Vec<Name>> {
    let pattern = Pattern::parse(&pool.state.pattern, pool.state.max)?;
    let taken: HashSet<&str> = members.iter().map(|m| m.name.as_str()).collect();
    (1..)
        .map(|number| pattern.name(number))
        .filter(|name| !taken.contains(name.as_str()))
        .take(count as usize)
        .map(Name::new)
        .collect()
}
