//! `dry_run` of the changes that answer with what they made: what they would touch, refused as they would be. Nothing is done.

use std::sync::Arc;

use clonegate_core::advice::ResetEvent;
use clonegate_core::format::catalog::{CloneEntry, PoolEntry, RolloutEntry, RolloutState, TemplateEntry, VersionState};
use clonegate_core::format::clone::Durability;
use clonegate_core::ids::Name;
use clonegate_core::limits::SNAPSHOTS_MAX;
use clonegate_core::{Error, Result};

use super::gateway::Gateway;
use super::pending::goes_on_waiting;
use super::pools::check_sizes;
use super::power::check_why;
use super::rollouts::{next_state, no_update, word};
use super::seal::{findings, not_sealed};
use super::templates::{Seal, publishable, unknown_version};
use super::update::may_be_moved_back;
use super::views::{AddDatastore, ChangePool, PowerEvent, RolloutAction, ToTemplate, Touched, Would};
use crate::catalog::Named;
use crate::store::check_store_url;

impl Gateway {
    /// What a change would touch.
    pub(super) async fn do_would(self: Arc<Self>, change: Would) -> Result<Touched> {
        let touched = match change {
            Would::AddDatastore(request) => self.would_add_datastore(&request).await?,
            Would::Maintenance { datastore, on } => self.would_maintain(datastore, on).await?,
            Would::Import(request) => {
                let name = Name::new(request.name.as_str())?;
                self.check_slots(request.slots)?;
                let datastore = self.datastore_for_import(request.datastore.as_deref())?;
                let free = datastore.free().map_or_else(|| "an unknown number of bytes".to_owned(), size);
                let notes = vec![
                    self.next_version(&name, request.publish).await?,
                    format!("it is stored on datastore {}, which has {free} free", datastore.name),
                ];
                Touched { names: vec![name.to_string()], notes, ..Touched::default() }
            }
            Would::Reference(request) => {
                let name = Name::new(request.name.as_str())?;
                self.check_slots(request.slots)?;
                let datastore = self.datastore_for_import(request.datastore.as_deref())?;
                let bytes = self.inspect_reference(&request.url).await?.0.size;
                let notes = vec![
                    self.next_version(&name, request.publish).await?,
                    format!(
                        "the image of {} stays where it is; deltas go to datastore {}",
                        size(bytes),
                        datastore.name
                    ),
                ];
                Touched { names: vec![name.to_string()], notes, ..Touched::default() }
            }
            Would::Publish { template, version } => self.would_publish(template, version).await?,
            Would::RollBack { template } => self.would_roll_back(template).await?,
            Would::Seal { template, version, force } => self.would_seal(template, version, force).await?,
            Would::ToTemplate { clone, request } => self.would_become_template(&clone, &request).await?,
            Would::Snapshot { clone, snapshot } => self.would_snapshot(&clone, snapshot).await?,
            Would::DropSnapshot { clone, snapshot } => {
                let (snapshot, clone) = (Name::new(snapshot)?, self.find_clone(&clone.parse()?).await?);
                let (_open, volume) = self.volume(&clone).await?;
                if !volume.status().snapshots.iter().any(|kept| kept.name == snapshot) {
                    return Err(unknown_snapshot(&clone, &snapshot));
                }
                let names = vec![format!("{}@{snapshot}", clone.name)];
                Touched { names, notes: vec!["it cannot be had back".to_owned()], ..Touched::default() }
            }
            Would::Power { clone, event } => self.would_power(&clone, event).await?,
            Would::Hold { clone, why } => {
                check_why(why.as_deref())?;
                let clone = self.find_clone(&clone.parse()?).await?;
                let waits = clone.state.pending_version.filter(|_| why.is_none());
                let notes = match (self.held(&clone.state), waits) {
                    (Some(before), _) if why.is_some() => vec![format!("it is held already: {before}")],
                    (None, _) if why.is_none() => vec!["it is not held".to_owned()],
                    (_, Some(number)) => vec![format!("it moves to version {number} when its machine is off")],
                    _ => Vec::new(),
                };
                self.of_clone(&clone, notes)
            }
            Would::Lifetime { clone, lifetime, rules } => {
                let rules = rules.map(|rules| rules.checked()).transpose()?;
                let clone = self.find_clone(&clone.parse()?).await?;
                let mut now = clone.clone();
                now.state.lifetime = lifetime.unwrap_or(now.state.lifetime);
                now.state.reset = rules.unwrap_or(now.state.reset);
                let due = self.rule_due(&now).map(|rule| format!("it is reset once its machine is off: {rule}"));
                self.of_clone(&clone, due.into_iter().collect())
            }
            Would::ChangePool { pool, change } => self.would_change_pool(pool, &change).await?,
            Would::Allocate { pool, user } => self.would_allocate(pool, &user).await?,
            Would::Steer { template, action } => self.would_steer(template, action).await?,
        };
        Ok(Touched { dry_run: true, ..touched })
    }

    /// A clone with those who have it open and what it holds.
    fn of_clone(&self, clone: &Named<CloneEntry>, notes: Vec<String>) -> Touched {
        let id = clone.state.record.id;
        Touched {
            dry_run: true,
            names: vec![clone.name.to_string()],
            sessions: u32::try_from(self.open.attached(id).len()).unwrap_or(u32::MAX),
            bytes: self.open.delta_bytes(id).unwrap_or(0),
            notes,
        }
    }

    async fn would_add_datastore(&self, request: &AddDatastore) -> Result<Touched> {
        let name = Name::new(request.name.as_str())?;
        check_store_url(&request.url)?;
        self.check_datastore_free(&name, &request.url).await?;
        let notes = vec!["its store is probed when it is added, by some small objects that go again".to_owned()];
        Ok(Touched { names: vec![name.to_string()], notes, ..Touched::default() })
    }

    async fn would_maintain(&self, name: String, on: bool) -> Result<Touched> {
        let datastore = self.known_datastore(&Name::new(name)?).await?;
        let mut all = self.catalog.list::<CloneEntry>().await?;
        all.retain(|clone| clone.state.datastore == datastore.name);
        let sessions = all.iter().map(|clone| self.open.attached(clone.state.record.id).len()).sum::<usize>();
        let note = match (on, datastore.entry().maintenance) {
            (true, false) => format!("it takes no new clones; the {} that are there go on", all.len()),
            (false, true) => "it takes new clones again".to_owned(),
            _ => "nothing changes".to_owned(),
        };
        Ok(Touched {
            names: vec![datastore.name.to_string()],
            sessions: u32::try_from(sessions).unwrap_or(u32::MAX),
            notes: vec![note],
            ..Touched::default()
        })
    }

    /// What an import makes.
    async fn next_version(&self, name: &Name, publish: Option<bool>) -> Result<String> {
        let there: Option<Named<TemplateEntry>> = self.catalog.find(name).await?;
        let (number, first) = there.map_or((1, true), |t| (t.state.next_version, t.state.published.is_none()));
        let published =
            if publish.unwrap_or(first) { "published unless it has to be cleaned" } else { "not published" };
        Ok(format!("it becomes version {number}, {published}"))
    }

    async fn would_publish(self: &Arc<Self>, name: String, version: Option<u32>) -> Result<Touched> {
        let name = Name::new(name)?;
        let found: Named<TemplateEntry> = self.catalog.get(&name).await?;
        let number = publishable(&name, &found.state, version)?;
        let mut notes = vec![self.what_publishing_does(&found, number).await?];
        let mut then = found.clone();
        then.state.published = Some(number);
        let going = self.not_retained(&then, found.state.keep_versions).await?;
        if !going.is_empty() {
            let going: Vec<String> = going.iter().map(ToString::to_string).collect();
            notes.push(format!("versions {} are deleted: newer ones are kept", going.join(", ")));
        }
        Ok(Touched { names: vec![format!("{name}:{number}")], notes, ..Touched::default() })
    }

    async fn would_roll_back(&self, name: String) -> Result<Touched> {
        let name = Name::new(name)?;
        let found: Named<TemplateEntry> = self.catalog.get(&name).await?;
        let mut then = found.state.clone();
        let number = super::templates::roll_back(&name, &mut then)?;
        let notes = vec![self.what_publishing_does(&found, number).await?];
        Ok(Touched { names: vec![format!("{name}:{number}")], notes, ..Touched::default() })
    }

    async fn what_publishing_does(&self, template: &Named<TemplateEntry>, number: u32) -> Result<String> {
        let clones = self.catalog.list::<CloneEntry>().await?;
        let stay = clones.iter().filter(|c| c.state.template == template.name && c.state.version != number).count();
        Ok(match template.state.published {
            Some(now) if now == number => "it is published already".to_owned(),
            Some(now) => format!("new clones get it instead of version {now}; {stay} clones stay on other versions"),
            None => "new clones get it".to_owned(),
        })
    }

    async fn would_seal(&self, name: String, version: Option<u32>, force: bool) -> Result<Touched> {
        let name = Name::new(name)?;
        let found: Named<TemplateEntry> = self.catalog.get(&name).await?;
        let number = super::seal::draft(&name, &found.state, version)?;
        let of = found.state.version(number).ok_or_else(|| unknown_version(&name, number))?;
        let datastore = self.datastores.get(&of.datastore)?;
        let findings = self.look_into(&datastore, &name, of.size, &of.data, Seal::Check { force }).await?;
        let object = format!("{name}:{number}");
        if of.state == VersionState::Draft && !force && !findings.is_empty() {
            return Err(not_sealed(&object, &findings));
        }
        Ok(Touched { names: vec![object], notes: findings, ..Touched::default() })
    }

    async fn would_become_template(self: &Arc<Self>, clone: &str, request: &ToTemplate) -> Result<Touched> {
        let name = Name::new(request.template.as_str())?;
        let clone = self.find_clone(&clone.parse()?).await?;
        super::seal::check_unattached(&clone, &self.open.attached(clone.state.record.id))?;
        let (open, volume) = self.volume(&clone).await?;
        let found = findings(Arc::clone(&open.device)).await;
        if !found.is_empty() && !request.force {
            return Err(not_sealed(clone.name.as_str(), &found));
        }
        let status = volume.status();
        let bytes = status.delta_bytes.saturating_add(status.dirty_bytes);
        let mut notes = vec![
            self.next_version(&name, Some(request.publish)).await?,
            format!("datastore {} takes what changed of it, before compression", clone.state.datastore),
        ];
        notes.extend(found);
        Ok(Touched { names: vec![clone.name.to_string()], bytes, notes, ..Touched::default() })
    }

    async fn would_snapshot(self: &Arc<Self>, clone: &str, snapshot: String) -> Result<Touched> {
        let snapshot = Name::new(snapshot)?;
        let clone = self.find_clone(&clone.parse()?).await?;
        let (_open, volume) = self.volume(&clone).await?;
        let status = volume.status();
        super::reset::check_new_snapshot(&clone, &snapshot, &status.snapshots)?;
        let mut touched =
            self.of_clone(&clone, vec!["what it holds now is kept for as long as the snapshot".to_owned()]);
        touched.names = vec![format!("{}@{snapshot}", clone.name)];
        if status.durability == Durability::Ephemeral {
            touched.notes = vec!["it would be refused: an ephemeral volume keeps nothing".to_owned()];
        } else if status.snapshots.len() >= SNAPSHOTS_MAX {
            touched.notes = vec![format!("it would be refused: a clone has at most {SNAPSHOTS_MAX}")];
        }
        Ok(touched)
    }

    async fn would_power(self: &Arc<Self>, clone: &str, event: PowerEvent) -> Result<Touched> {
        let clone = self.find_clone(&clone.parse()?).await?;
        let (mut waits, mut notes) = (None, Vec::new());
        if let Some(number) = clone.state.pending_version.filter(|_| event != PowerEvent::Logoff) {
            let back = clone.state.moved_from.as_ref().is_some_and(|from| from.version == number);
            let (_open, volume) = self.volume(&clone).await?;
            match super::update::check_no_snapshots(&clone, &volume) {
                Err(why) if !back => notes.push(goes_on_waiting(number, why.message())),
                _ => waits = Some(format!("it moves to version {number}")),
            }
        }
        let rule = self.rule_due(&clone).map(|rule| format!("it is reset: {rule} (rule)"));
        let held = self.held(&clone.state).map(|why| format!("it is kept: it is held: {why}"));
        let judged = match event {
            PowerEvent::On => None,
            PowerEvent::Off => Some(ResetEvent::PowerOff),
            PowerEvent::Logoff => Some(ResetEvent::LogOff),
        };
        let what = match (held, waits, judged) {
            (Some(held), ..) => held,
            (None, Some(waits), _) => waits,
            (None, None, None) => "it is kept: nothing waits for it".to_owned(),
            (None, None, Some(_)) if event == PowerEvent::Off && rule.is_some() => rule.unwrap_or_default(),
            (None, None, Some(event)) => self.what_policy_says(&clone, event).await?,
        };
        notes.insert(0, what);
        Ok(self.of_clone(&clone, notes))
    }

    async fn would_change_pool(&self, name: String, change: &ChangePool) -> Result<Touched> {
        let pool: Named<PoolEntry> = self.catalog.get(&Name::new(name)?).await?;
        change.reset.as_ref().map(|rules| rules.checked()).transpose()?;
        let (entry, max) = (&pool.state, change.max.unwrap_or(pool.state.max));
        let spares = change.spares.unwrap_or(entry.spares);
        check_sizes(entry.size, max, spares)?;
        let members = self.members(&pool.name).await?;
        let mut notes = Vec::new();
        if change.lifetime.is_some() || change.reset.is_some() {
            notes.push(format!("its {} clones follow", members.len()));
        }
        let free = members.iter().filter(|member| self.is_free(member)).count();
        let room = (max as usize).saturating_sub(members.len());
        let more = (spares as usize).saturating_sub(free).min(room);
        if more > 0 && !change.maintenance.unwrap_or(entry.maintenance) {
            notes.push(format!("{more} clones are made, so that {spares} are free"));
        }
        if change.maintenance == Some(true) {
            notes.push("it gives no clones to new users".to_owned());
        }
        Ok(Touched { names: vec![pool.name.to_string()], notes, ..Touched::default() })
    }

    async fn would_allocate(&self, name: String, user: &str) -> Result<Touched> {
        let pool: Named<PoolEntry> = self.catalog.get(&Name::new(name)?).await?;
        super::pools::check_user(user)?;
        let members = self.members(&pool.name).await?;
        let free = members.iter().filter(|member| self.is_free(member)).count();
        let his = members.iter().find(|member| member.state.assigned.as_deref() == Some(user));
        let note = match his {
            Some(his) => return Ok(self.of_clone(his, vec![format!("{user} has it already")])),
            None if pool.state.maintenance => return Err(super::pools::in_maintenance(&pool.name)),
            None if free > 0 => format!("{user} gets one of {free} free clones"),
            None if members.len() < pool.state.max as usize => format!("a clone is made for {user}"),
            None => return Err(super::pools::empty(&pool.name, members.len())),
        };
        Ok(Touched { names: vec![pool.name.to_string()], notes: vec![note], ..Touched::default() })
    }

    async fn would_steer(&self, name: String, action: RolloutAction) -> Result<Touched> {
        let name = Name::new(name)?;
        let Some(rollout) = self.catalog.find::<RolloutEntry>(&name).await? else { return Err(no_update(&name)) };
        let rollout = rollout.state;
        let next = next_state(&name, action, rollout.state)?;
        let mut touched = Touched { notes: vec![format!("it is {} then", word(next))], ..Touched::default() };
        let moved = self.catalog.list::<CloneEntry>().await?;
        let moved = moved.into_iter().filter(|clone| clone.state.template == name);
        let concerned: Vec<Named<CloneEntry>> = match next {
            RolloutState::RollingBack => moved.filter(|clone| may_be_moved_back(clone, &rollout)).collect(),
            RolloutState::Running => {
                let going = self.clones_of(&name, &rollout).await?;
                going.into_iter().filter(|clone| clone.state.version != rollout.version).collect()
            }
            _ => Vec::new(),
        };
        let mut later = 0;
        for clone in &concerned {
            let id = clone.state.record.id;
            touched.names.push(clone.name.to_string());
            touched.sessions += u32::try_from(self.open.attached(id).len()).unwrap_or(u32::MAX);
            touched.bytes += self.open.delta_bytes(id).unwrap_or(0);
            later += u32::from(self.check_discard(clone).is_err());
        }
        if next == RolloutState::RollingBack {
            touched.notes.push("what was written since the update is dropped; they get back what they held".to_owned());
        }
        if later > 0 {
            touched.notes.push(format!("{later} of them move when their machines are off"));
        }
        if touched.names.is_empty() {
            touched.names.push(name.to_string());
        }
        Ok(touched)
    }
}

/// What a dry run says of a change that would be refused.
pub(super) fn refused(error: &Error) -> String {
    format!("it would be refused: {}", error.message())
}

/// Bytes for people.
pub(super) fn size(bytes: u64) -> String {
    bytesize::ByteSize::b(bytes).display().iec().to_string()
}

fn unknown_snapshot(clone: &Named<CloneEntry>, snapshot: &Name) -> Error {
    Error::not_found("unknown-snapshot", format!("there is no snapshot {snapshot}"))
        .on(clone.name.as_str())
        .hint(format!("clonegate clone snapshots {}", clone.name))
}
