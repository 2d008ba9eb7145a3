//! Moves clones to another version of their template, and makes a version of what a clone has become.
//!
//! A move is metadata only: a slot on a base of the new version, one commit in the clone's log that drops the delta onto it (it can be undone
//! for a while), the clone's record, and the old slot given back. The commit decides: a crash around it leaves a second slot, and opening
//! the clone finishes what the log says.

use std::sync::Arc;

use clonegate_core::format::catalog::{CloneEntry, TemplateEntry, TemplateVersion};
use clonegate_core::format::clone::CloneRecord;
use clonegate_core::ids::{BaseId, Name};
use clonegate_core::limits::READ_WINDOW_BYTES;
use clonegate_core::units::ByteRange;
use clonegate_core::{Error, Result};
use futures::StreamExt;
use tokio::io::AsyncWriteExt;

use super::gateway::Gateway;
use super::placement::Order;
use super::templates::NewVersion;
use super::views::{TemplateView, ToTemplate, UpdateClones, UpdatedClones};
use crate::catalog::Named;
use crate::device::Device;
use crate::import::{self, ImportOptions, Input, NoProgress};
use crate::volume::Volume;

/// Clones moved at once when nobody says.
const AT_ONCE: u32 = 16;

enum Moved {
    Now,
    Later,
    Already,
}

impl Gateway {
    /// Moves clones to a version. The first `canary` go alone; then at most `max_unavailable` at once; the first failure stops it. Run
    /// again, it goes on where it stopped: those that are there already are passed over.
    pub(super) async fn do_update_clones(
        self: Arc<Self>,
        request: UpdateClones,
        dry_run: bool,
    ) -> Result<UpdatedClones> {
        let template = Name::new(request.template.as_str())?;
        let version = self.version_for_clones(&template, request.version).await?;
        let mut clones: Vec<Named<CloneEntry>> = Vec::new();
        if request.clones.is_empty() {
            let all = self.catalog.list::<CloneEntry>().await?;
            clones.extend(all.into_iter().filter(|c| c.state.template == template));
        } else {
            for clone in &request.clones {
                clones.push(self.find_clone(&clone.parse()?).await?);
            }
        }
        if let Some(pool) = &request.pool {
            clones.retain(|c| c.state.pool.as_ref().is_some_and(|p| p.as_str() == pool));
        }
        clones.retain(|c| c.state.record.base.is_some());
        for clone in &clones {
            check_size(clone, &version)?;
        }
        let mut done = UpdatedClones { dry_run, version: version.number, ..UpdatedClones::default() };
        clones.retain(|c| c.state.version != version.number || c.state.template != template);
        for clone in &clones {
            let id = clone.state.record.id;
            done.sessions += u32::try_from(self.open.attached(id).len()).unwrap_or(u32::MAX);
            done.delta_bytes += self.open.delta_bytes(id).unwrap_or(0);
        }
        if dry_run {
            done.updated = clones.iter().map(|c| c.name.to_string()).collect();
            return Ok(done);
        }
        let canary = usize::try_from(request.canary.unwrap_or(0)).unwrap_or(0).min(clones.len());
        let rest = clones.split_off(canary);
        let at_once = request.max_unavailable.unwrap_or(AT_ONCE).clamp(1, 256) as usize;
        for (wave, at_once) in [(clones, 1), (rest, at_once)] {
            let mut moving = futures::stream::iter(wave)
                .map(|clone| {
                    let (gateway, template, version) = (Arc::clone(&self), template.clone(), version.clone());
                    let later = request.at_next_power_on;
                    async move {
                        let moved = gateway.move_clone(&clone, &template, &version, later).await;
                        (clone.name, moved)
                    }
                })
                .buffer_unordered(at_once);
            while let Some((name, moved)) = moving.next().await {
                match moved {
                    Ok(Moved::Now) => done.updated.push(name.to_string()),
                    Ok(Moved::Later) => done.later.push(name.to_string()),
                    Ok(Moved::Already) => {}
                    Err(error) => {
                        // Those under way finish or fail by themselves; no further one begins.
                        done.failed = Some(format!("{name}: {error}"));
                        break;
                    }
                }
            }
            if done.failed.is_some() {
                break;
            }
        }
        done.updated.sort();
        done.later.sort();
        Ok(done)
    }

    /// Moves one clone, or notes it for its next power-on when a machine has it open.
    async fn move_clone(
        self: Arc<Self>,
        clone: &Named<CloneEntry>,
        template: &Name,
        version: &TemplateVersion,
        later: bool,
    ) -> Result<Moved> {
        if clone.state.version == version.number && clone.state.template == *template {
            return Ok(Moved::Already);
        }
        let attached = self.open.attached(clone.state.record.id);
        if later || !attached.is_empty() {
            if *template != clone.state.template {
                self.check_discard(clone)?;
            }
            let number = version.number;
            let note = |entry: &mut CloneEntry| {
                entry.pending_version = Some(number);
                Ok(())
            };
            self.catalog.change(&clone.name, note).await?;
            return Ok(Moved::Later);
        }
        self.check_discard(clone)?;
        self.rebase(clone, template, version).await?;
        Ok(Moved::Now)
    }

    /// Drops the delta of an idle clone onto a base of this version.
    pub(super) async fn rebase(
        self: &Arc<Self>,
        clone: &Named<CloneEntry>,
        template: &Name,
        version: &TemplateVersion,
    ) -> Result<()> {
        check_size(clone, version)?;
        let datastore = self.datastores.get(&clone.state.datastore)?;
        datastore.check_online()?;
        datastore.table.load().await?;
        let old = clone.state.record.clone();
        let order = Order {
            template: template.clone(),
            version: version.clone(),
            pool: clone.state.pool.clone(),
            lifetime: clone.state.lifetime,
            expected_delta: 0,
            labels: clone.state.labels.clone(),
        };
        let make = |name: &Name, base: BaseId, slot: u32| CloneRecord {
            name: name.clone(),
            nonce: self.clock.nonce(),
            base: Some(base),
            slot,
            size: old.size.max(version.size),
            ..old.clone()
        };
        let (base, record) = loop {
            let (base, _) = self.base_with_room(&datastore, &order).await?;
            let (mut claimed, _) = datastore.table.claim(base, vec![clone.name.clone()], &make).await?;
            if let Some(record) = claimed.pop() {
                break (base, record);
            }
        };
        let moved = async {
            let (_open, volume) = self.volume(clone).await?;
            volume.reset(Some(base)).await
        };
        if let Err(error) = moved.await {
            datastore.table.give_back(std::slice::from_ref(&record), base).await;
            return Err(error);
        }
        self.adopt(clone, template, version.number, record).await?;
        // It is opened anew with its new record.
        self.open.close_of(super::open::Of::Clone(old.id), &self.clock).await;
        Ok(())
    }

    /// Writes down where a clone is after its log has moved, and gives its old slot back.
    async fn adopt(&self, clone: &Named<CloneEntry>, template: &Name, version: u32, record: CloneRecord) -> Result<()> {
        let now = self.clock.now_ms();
        let old = clone.state.record.clone();
        let write = |entry: &mut CloneEntry| {
            entry.record = record.clone();
            entry.template = template.clone();
            entry.version = version;
            entry.pending_version = None;
            entry.last_reset_ms = Some(now);
            Ok(())
        };
        self.catalog.change(&clone.name, write).await?;
        let datastore = self.datastores.get(&clone.state.datastore)?;
        if let Some(base) = old.base {
            datastore.table.give_back_if_ours(&old, base).await?;
        }
        Ok(())
    }

    /// Finishes a move that a crash has cut: the log says another base than the record.
    pub(super) async fn settle_base(&self, clone: &Named<CloneEntry>, volume: &Volume) -> Result<()> {
        let (there, said) = (volume.status().base, clone.state.record.base);
        let (Some(base), true) = (there, there != said) else { return Ok(()) };
        let datastore = self.datastores.get(&clone.state.datastore)?;
        let id = clone.state.record.id;
        let slots = datastore.table.slots(base).await?;
        let Some(record) = slots.into_iter().find(|record| record.id == id) else {
            tracing::error!(clone = %clone.name, %base, "the clone is on a base that it has no slot of");
            return Ok(());
        };
        let of = datastore.table.record(base).await?;
        tracing::info!(clone = %clone.name, %base, "a move that was cut short is finished");
        self.adopt(clone, &of.template, of.version, record).await
    }

    /// Makes a template version of what a clone reads as now. Only what changed is stored: its chunks are deduplicated.
    pub(super) async fn do_to_template(self: Arc<Self>, clone: String, request: ToTemplate) -> Result<TemplateView> {
        let name = Name::new(request.template.as_str())?;
        let clone = self.find_clone(&clone.parse()?).await?;
        let attached = self.open.attached(clone.state.record.id);
        if !attached.is_empty() {
            return Err(Error::conflict("attached", format!("{} has it open", attached.join(", ")))
                .on(clone.name.as_str())
                .hint("shut the machine down first, so that its file systems are whole"));
        }
        let (open, volume) = self.volume(&clone).await?;
        let findings = super::seal::findings(Arc::clone(&open.device)).await;
        if !findings.is_empty() && !request.force {
            return Err(Error::conflict("not-sealed", findings.join("; "))
                .on(clone.name.as_str())
                .hint("clean that in the machine, as cloud-init clean --machine-id does, or say --force"));
        }
        volume.flush().await?;
        let datastore = self.datastores.get(&clone.state.datastore)?;
        let before = volume.version().0;
        let size = open.device.info().size;
        let (mut writer, reader) = tokio::io::duplex(4 << 20);
        let device = Arc::clone(&open.device);
        let copying = self.handle.spawn(async move {
            let mut at = 0;
            while at < size {
                let range = ByteRange::new(at, size.min(at + READ_WINDOW_BYTES));
                for segment in device.read(range).await? {
                    if writer.write_all(&segment).await.is_err() {
                        return Ok(());
                    }
                }
                at = range.end();
            }
            Ok::<(), Error>(())
        });
        let input = Input::RawStream { reader: Box::new(reader), size: Some(size) };
        let imported = import::run(&datastore.store, input, ImportOptions::default(), &NoProgress, &self.clock).await;
        copying.await.map_err(|e| Error::internal("copy-died", e.to_string()))??;
        let imported = imported?;
        if volume.version().0 != before {
            return Err(Error::conflict("changed-meanwhile", "it was written while it was read")
                .on(clone.name.as_str())
                .hint("shut the machine down first"));
        }
        let parent: Option<Named<TemplateEntry>> = self.catalog.find(&name).await?;
        let chunk = u64::from(clonegate_core::limits::CHUNK_BYTES);
        let slots = parent.as_ref().and_then(|t| t.state.versions.last().map(|v| v.slots));
        let version = NewVersion {
            size: imported.size,
            data: clonegate_core::format::base::BaseData::Packed { index: imported.index },
            datastore: datastore.name.clone(),
            origin: format!("clone {}", clone.name),
            stored_bytes: imported.stats.stored_bytes,
            used_bytes: (imported.stats.chunks * chunk).min(imported.size),
            parent: (clone.state.template == name).then_some(clone.state.version),
            findings,
            slots: slots.unwrap_or(self.settings.slots_per_base),
        };
        self.add_version(&name, None, request.publish.then_some(true), version).await
    }
}

/// A clone may grow with its template and never shrinks: what lies behind the end would be lost.
fn check_size(clone: &Named<CloneEntry>, version: &TemplateVersion) -> Result<()> {
    let size = clone.state.record.size;
    if version.size >= size {
        return Ok(());
    }
    Err(Error::conflict(
        "image-smaller",
        format!("it has {size} bytes and version {} only {}", version.number, version.size),
    )
    .on(clone.name.as_str())
    .hint("a disk cannot shrink under its machine: make a new clone"))
}
