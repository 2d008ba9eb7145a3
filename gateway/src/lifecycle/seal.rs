//! Sealing: looks into an image for what would make all its clones the same machine; and templates made of clones.

use std::sync::Arc;

use clonegate_core::format::base::{BaseData, BaseRecord};
use clonegate_core::format::catalog::{CloneEntry, TemplateEntry, TemplateVersion, VersionState};
use clonegate_core::ids::Name;
use clonegate_core::limits::{CHUNK_BYTES, READ_WINDOW_BYTES};
use clonegate_core::units::ByteRange;
use clonegate_core::{Error, Result};
use futures::TryStreamExt;
use tokio::io::AsyncWriteExt;

use super::datastores::Datastore;
use super::gateway::Gateway;
use super::templates::{NewVersion, Seal, unknown_version};
use super::views::{TemplateView, ToTemplate};
use crate::base::{Base, BaseDevice};
use crate::catalog::Named;
use crate::device::Device;
use crate::files::{self, Found, Place};
use crate::import::{self, ImportOptions, Imported, Input, NoProgress};

/// Most bytes read of a file that is looked at.
const LOOK_BYTES: u64 = 4096;

/// Files that belong to one machine, and what clones with the same one suffer.
const OF_ONE_MACHINE: [(&str, &str); 8] = [
    ("/etc/ssh/ssh_host_rsa_key", "clones would share a host key"),
    ("/etc/ssh/ssh_host_ecdsa_key", "clones would share a host key"),
    ("/etc/ssh/ssh_host_ed25519_key", "clones would share a host key"),
    ("/var/lib/cloud/data/instance-id", "cloud-init has run: clones would not be set up anew"),
    ("/var/lib/systemd/random-seed", "clones would begin with the same randomness"),
    ("/loader/random-seed", "clones would begin with the same randomness"),
    ("/etc/udev/rules.d/70-persistent-net.rules", "clones have other network cards than it names"),
    ("/var/lib/dhcp/dhclient.leases", "clones would ask for the same address"),
];

/// What is in the image that should not be in a template, one sentence each. What cannot be read is passed over: not every image has a file
/// system that is known here.
pub(super) async fn findings(device: Arc<dyn Device>) -> Vec<String> {
    let mut found = Vec::new();
    let Ok(partitions) = files::partitions(Arc::clone(&device)).await else { return found };
    for partition in partitions {
        if partition.file_system.is_none() {
            continue;
        }
        let number = partition.number;
        let place = || if number == 0 { Place::Any } else { Place::Number(number) };
        let at = if number == 0 { String::new() } else { format!("partition {number}: ") };
        if let Some(id) = read(&device, place(), "/etc/machine-id").await {
            let id = id.trim();
            if !id.is_empty() && id != "uninitialized" {
                found.push(format!("{at}/etc/machine-id is filled: clones would get the same DHCP address"));
            }
        }
        for (path, harm) in OF_ONE_MACHINE {
            if read(&device, place(), path).await.is_some_and(|text| !text.is_empty()) {
                found.push(format!("{at}{path} is there: {harm}"));
            }
        }
    }
    found
}

async fn read(device: &Arc<dyn Device>, place: Place, path: &str) -> Option<String> {
    let Ok(Found::File(file)) = files::open(Arc::clone(device), place, path).await else { return None };
    let end = file.size.min(LOOK_BYTES);
    let parts: Vec<bytes::Bytes> = file.stream(ByteRange::new(0, end)).try_collect().await.ok()?;
    Some(String::from_utf8_lossy(&parts.concat()).into_owned())
}

/// The refusal to seal what has findings.
pub(super) fn not_sealed(object: &str, findings: &[String]) -> Error {
    Error::conflict("not-sealed", findings.join("; "))
        .on(object)
        .hint("clean that in the machine, as cloud-init clean --logs --machine-id does, or say --force")
}

/// The draft that is meant, the newest when nobody says.
pub(super) fn draft(name: &Name, template: &TemplateEntry, version: Option<u32>) -> Result<u32> {
    let newest = template.versions.iter().rfind(|v| v.state == VersionState::Draft).map(|v| v.number);
    version.or(newest).ok_or_else(|| {
        Error::conflict("no-draft", "it has no draft").on(name.as_str()).hint(format!("clonegate template show {name}"))
    })
}

/// A template is made of a clone that no machine has open.
pub(super) fn check_unattached(clone: &Named<CloneEntry>, attached: &[String]) -> Result<()> {
    if attached.is_empty() {
        return Ok(());
    }
    Err(Error::conflict("attached", format!("{} has it open", attached.join(", ")))
        .on(clone.name.as_str())
        .hint("shut the machine down first, so that its file systems are whole"))
}

impl Gateway {
    /// What is found in an image that no template has yet; nothing when it is not to be looked into.
    pub(super) async fn look_into(
        &self,
        datastore: &Arc<Datastore>,
        template: &Name,
        size: u64,
        data: &BaseData,
        seal: Seal,
    ) -> Result<Vec<String>> {
        if !matches!(seal, Seal::Check { .. }) {
            return Ok(Vec::new());
        }
        // Read as a base that is never made.
        let record = BaseRecord {
            id: self.clock.id(),
            nonce: self.clock.nonce(),
            size,
            template: template.clone(),
            version: 0,
            slots: 1,
            created_ms: self.clock.now_ms(),
            data: data.clone(),
        };
        let (store, cache, runtime) = (datastore.store.clone(), Arc::clone(&self.icache), self.handle.clone());
        let base = Base::open(store, record, &*self.sources, cache, runtime).await?;
        Ok(findings(Arc::new(BaseDevice::new(base, template.as_str()))).await)
    }

    /// Checks a draft and seals it; with `force` whatever is found.
    pub(super) async fn do_seal_template(
        self: Arc<Self>,
        name: String,
        version: Option<u32>,
        force: bool,
    ) -> Result<TemplateView> {
        let name = Name::new(name)?;
        let found: Named<TemplateEntry> = self.catalog.get(&name).await?;
        let number = draft(&name, &found.state, version)?;
        let of = found.state.version(number).ok_or_else(|| unknown_version(&name, number))?.clone();
        let sealed = self.seal(&name, &of, force).await?;
        let draft = sealed.state.version(number).filter(|v| v.state == VersionState::Draft);
        match draft {
            Some(draft) => Err(not_sealed(&format!("{name}:{number}"), &draft.findings)),
            None => self.template_view(&sealed).await,
        }
    }

    /// Looks into a version, writes down what is found, and seals it when that is nothing or `force` says so.
    async fn seal(&self, name: &Name, version: &TemplateVersion, force: bool) -> Result<Named<TemplateEntry>> {
        let datastore = self.datastores.get(&version.datastore)?;
        let base = {
            let _making = datastore.making.lock().await;
            datastore.table.load().await?;
            let there = datastore.table.bases().into_iter().find(|base| Self::holds(base, name, version));
            match there {
                Some(base) => base.record.id,
                None => self.make_base(&datastore, name, version).await?.id,
            }
        };
        let base = self.bases_on(&datastore).open(base).await?;
        let findings = findings(Arc::new(BaseDevice::new(base, name.as_str()))).await;
        let number = version.number;
        let write = |template: &mut TemplateEntry| {
            let version = template.versions.iter_mut().find(|v| v.number == number);
            let version = version.ok_or_else(|| unknown_version(name, number))?;
            version.findings.clone_from(&findings);
            if version.state == VersionState::Draft && (force || findings.is_empty()) {
                version.state = VersionState::Sealed;
            }
            Ok(())
        };
        let (sealed, ()) = self.catalog.change(name, write).await?;
        for finding in &findings {
            tracing::warn!(template = %name, version = number, finding, "found in the image");
        }
        Ok(sealed)
    }

    /// Makes a template version of what a clone reads as now. Only what changed is stored: its chunks are deduplicated.
    pub(super) async fn do_to_template(self: Arc<Self>, clone: String, request: ToTemplate) -> Result<TemplateView> {
        let name = Name::new(request.template.as_str())?;
        let clone = self.find_clone(&clone.parse()?).await?;
        check_unattached(&clone, &self.open.attached(clone.state.record.id))?;
        let (open, volume) = self.volume(&clone).await?;
        let findings = findings(Arc::clone(&open.device)).await;
        if !findings.is_empty() && !request.force {
            return Err(not_sealed(clone.name.as_str(), &findings));
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
        let options = ImportOptions { maker: Some(self.maker()), ..ImportOptions::default() };
        let imported = import::make(&datastore.store, input, options, &NoProgress, &self.clock).await;
        let copied = copying.await.map_err(|e| Error::internal("copy-died", e.to_string()));
        let (imported, making) = match (imported, copied.and_then(|copied| copied)) {
            (Ok(made), Ok(())) => made,
            (Ok((_, making)), Err(error)) => return self.settle_image(&datastore, making, Err(error)).await,
            (Err(error), copied) => return Err(copied.err().unwrap_or(error)),
        };
        let named = async {
            if volume.version().0 != before {
                return Err(Error::conflict("changed-meanwhile", "it was written while it was read")
                    .on(clone.name.as_str())
                    .hint("shut the machine down first"));
            }
            self.name_image_of_clone(&clone, name, &request, imported, findings).await
        };
        self.settle_image(&datastore, making, named.await).await
    }

    /// Makes what was imported of a clone the next version of a template.
    async fn name_image_of_clone(
        &self,
        clone: &Named<CloneEntry>,
        name: Name,
        request: &ToTemplate,
        imported: Imported,
        findings: Vec<String>,
    ) -> Result<TemplateView> {
        let parent: Option<Named<TemplateEntry>> = self.catalog.find(&name).await?;
        let slots = parent.as_ref().and_then(|t| t.state.versions.last().map(|v| v.slots));
        let version = NewVersion {
            size: imported.size,
            data: BaseData::Packed { index: imported.index },
            datastore: clone.state.datastore.clone(),
            origin: format!("clone {}", clone.name),
            stored_bytes: imported.stats.stored_bytes,
            used_bytes: (imported.stats.chunks * u64::from(CHUNK_BYTES)).min(imported.size),
            parent: (clone.state.template == name).then_some(clone.state.version),
            findings,
            slots: slots.unwrap_or(self.settings.slots_per_base),
            seal: Seal::Checked,
        };
        self.add_version(&name, None, request.publish.then_some(true), version).await
    }
}
