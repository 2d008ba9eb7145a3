//! Templates and their versions: import, by reference, publish, roll back, delete.
//!
//! An import writes packs, then the index, looks into the image, then writes the template's record, and only then makes a base: nothing is
//! visible before the record, and a version without a base gets one with its first clone.

use std::collections::BTreeMap;
use std::sync::Arc;

use clonegate_core::format::base::BaseData;
use clonegate_core::format::catalog::{TemplateEntry, TemplateVersion, VersionState};
use clonegate_core::ids::Name;
use clonegate_core::limits::{CHUNK_BYTES, SLOTS_PER_BASE_MAX};
use clonegate_core::{Error, ErrorKind, Result};

use super::datastores::Datastore;
use super::gateway::Gateway;
use super::references::refuse_used;
use super::views::{ImportTemplate, ListQuery, Page, ReferenceTemplate, TemplateView, Touched, VersionView, page};
use crate::base::{self, RawSources};
use crate::catalog::Named;
use crate::import::{self, ImportOptions, Imported, Input, Progress};
use crate::store::{Key, making_room, split_object_url};

/// Most versions that a template keeps.
const VERSIONS_MAX: usize = 256;
/// Longest description and origin, bytes.
const TEXT_BYTES_MAX: usize = 512;

/// Whether a new version is looked into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seal {
    /// It was already.
    Checked,
    /// It is, and sealed when nothing is found, or in any case.
    Check {
        /// In any case.
        force: bool,
    },
    /// Somebody seals it later.
    Draft,
}

impl Seal {
    fn asked(draft: bool, force: bool) -> Self {
        if draft { Self::Draft } else { Self::Check { force } }
    }
}

/// A version about to be added.
pub(super) struct NewVersion {
    pub(super) size: u64,
    pub(super) data: BaseData,
    pub(super) datastore: Name,
    pub(super) origin: String,
    pub(super) stored_bytes: u64,
    pub(super) used_bytes: u64,
    pub(super) parent: Option<u32>,
    pub(super) findings: Vec<String>,
    pub(super) slots: u32,
    pub(super) seal: Seal,
}

impl Gateway {
    pub(super) async fn do_import_template(
        self: Arc<Self>,
        request: ImportTemplate,
        input: Input,
        progress: Arc<dyn Progress>,
    ) -> Result<TemplateView> {
        let name = Name::new(request.name.as_str())?;
        self.check_slots(request.slots)?;
        check_text(request.description.as_deref())?;
        check_text(request.origin.as_deref())?;
        let datastore = self.datastore_for_import(request.datastore.as_deref())?;
        let options = ImportOptions { maker: Some(self.maker()), ..ImportOptions::default() };
        let (imported, making) = import::make(&datastore.store, input, options, &*progress, &self.clock).await?;
        let named = self.name_image(&datastore, name, request, imported).await;
        self.settle_image(&datastore, making, named).await
    }

    /// Makes an imported image the next version of a template.
    async fn name_image(
        &self,
        datastore: &Arc<Datastore>,
        name: Name,
        request: ImportTemplate,
        imported: Imported,
    ) -> Result<TemplateView> {
        let slots = self.check_slots(request.slots)?;
        let stats = imported.stats;
        let data = BaseData::Packed { index: imported.index };
        let seal = Seal::asked(request.draft, request.force);
        let findings = self.look_into(datastore, &name, imported.size, &data, seal).await?;
        let version = NewVersion {
            size: imported.size,
            data,
            datastore: datastore.name.clone(),
            origin: request.origin.unwrap_or_else(|| "upload".to_owned()),
            stored_bytes: stats.stored_bytes,
            used_bytes: (stats.chunks * u64::from(CHUNK_BYTES)).min(imported.size),
            parent: None,
            findings,
            slots,
            seal,
        };
        self.add_version(&name, request.description, request.publish, version).await
    }

    pub(super) async fn do_reference_template(self: Arc<Self>, request: ReferenceTemplate) -> Result<TemplateView> {
        let name = Name::new(request.name.as_str())?;
        let slots = self.check_slots(request.slots)?;
        check_text(request.description.as_deref())?;
        let datastore = self.datastore_for_import(request.datastore.as_deref())?;
        let (image, store_url, key) = self.inspect_reference(&request.url).await?;
        let data = BaseData::Raw { store: store_url, key: key.to_string(), etag: image.etag };
        let seal = Seal::asked(request.draft, request.force);
        let findings = self.look_into(&datastore, &name, image.size, &data, seal).await?;
        let version = NewVersion {
            size: image.size,
            data,
            datastore: datastore.name.clone(),
            origin: request.url,
            stored_bytes: 0,
            used_bytes: image.size,
            parent: None,
            findings,
            slots,
            seal,
        };
        self.add_version(&name, request.description, request.publish, version).await
    }

    /// The image that a URL refers to, when that is permitted.
    pub(super) async fn inspect_reference(&self, url: &str) -> Result<(base::RawImage, String, Key)> {
        let (store_url, key) = split_object_url(url)?;
        let source = self.sources.open(&store_url)?;
        let image = base::inspect(&source, &key).await;
        let image = image.map_err(|e| if e.object().is_some() { e } else { e.on(url) })?;
        Ok((image, store_url, key))
    }

    pub(super) fn check_slots(&self, slots: Option<u32>) -> Result<u32> {
        let slots = slots.unwrap_or(self.settings.slots_per_base);
        if (1..=SLOTS_PER_BASE_MAX).contains(&slots) {
            return Ok(slots);
        }
        Err(Error::invalid("bad-slots", format!("a base with {slots} slots"))
            .hint(format!("a base takes 1 to {SLOTS_PER_BASE_MAX} deltas")))
    }

    /// The datastore that was asked for, or the first that can take an image.
    pub(super) fn datastore_for_import(&self, name: Option<&str>) -> Result<Arc<Datastore>> {
        if let Some(name) = name {
            let datastore = self.datastores.get(&Name::new(name)?)?;
            datastore.check_online()?;
            return Ok(datastore);
        }
        let all = self.datastores.all();
        let mut good = all.iter().filter(|d| d.health() == clonegate_core::advice::Health::Online);
        good.next().cloned().ok_or_else(|| {
            let error = Error::unavailable("no-datastore", "no datastore can take the image");
            match all.first() {
                None => error.hint("add one: clonegate datastore add NAME URL"),
                Some(_) => error.hint("none is online: clonegate datastore list"),
            }
        })
    }

    /// Adds a version to a template, new or not, and makes its first base.
    pub(super) async fn add_version(
        &self,
        name: &Name,
        description: Option<String>,
        publish: Option<bool>,
        version: NewVersion,
    ) -> Result<TemplateView> {
        let now_ms = self.clock.now_ms();
        let sealed = match version.seal {
            Seal::Checked => true,
            Seal::Check { force } => force || version.findings.is_empty(),
            Seal::Draft => false,
        };
        let stored = |number: u32| TemplateVersion {
            number,
            state: if sealed { VersionState::Sealed } else { VersionState::Draft },
            size: version.size,
            data: version.data.clone(),
            slots: version.slots,
            datastore: version.datastore.clone(),
            parent: version.parent,
            origin: version.origin.clone(),
            stored_bytes: version.stored_bytes,
            used_bytes: version.used_bytes,
            created_ms: now_ms,
            findings: version.findings.clone(),
        };
        let add = |template: &mut TemplateEntry| {
            if template.versions.len() >= VERSIONS_MAX {
                return Err(Error::exhausted("too-many-versions", format!("it has {VERSIONS_MAX} versions"))
                    .on(name.as_str())
                    .hint("delete those that nobody needs"));
            }
            let number = template.next_version;
            template.next_version += 1;
            template.versions.push(stored(number));
            if let Some(text) = &description {
                template.description.clone_from(text);
            }
            if sealed && publish.unwrap_or(template.published.is_none()) {
                publish_version(template, number);
            }
            Ok(number)
        };
        let number = loop {
            match self.catalog.change(name, add).await {
                Ok((_, number)) => break number,
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    let mut template = TemplateEntry {
                        description: description.clone().unwrap_or_default(),
                        versions: Vec::new(),
                        published: None,
                        history: Vec::new(),
                        next_version: 1,
                        keep_versions: None,
                        created_ms: now_ms,
                    };
                    let number = add(&mut template)?;
                    match self.catalog.create(name, template).await {
                        Ok(_) => break number,
                        // Another import made the template in this moment: this becomes a version of it.
                        Err(error) if error.kind() == ErrorKind::Exists => {}
                        Err(error) => return Err(error),
                    }
                }
                Err(error) => return Err(error),
            }
        };
        let datastore = self.datastores.get(&version.datastore)?;
        {
            let _making = datastore.making.lock().await;
            self.make_base(&datastore, name, &stored(number)).await?;
        }
        for finding in &version.findings {
            tracing::warn!(template = %name, version = number, finding, "found in the image");
        }
        self.template_view(&self.catalog.get(name).await?).await
    }

    /// The version that new clones get, or the one that was asked for.
    pub(super) async fn version_for_clones(&self, template: &Name, number: Option<u32>) -> Result<TemplateVersion> {
        let found: Named<TemplateEntry> = self.catalog.get(template).await?;
        let number = number.or(found.state.published).ok_or_else(|| {
            Error::conflict("not-published", "no version of it is published")
                .on(template.as_str())
                .hint(format!("clonegate template publish {template}"))
        })?;
        let version = found.state.version(number).ok_or_else(|| unknown_version(template, number))?;
        if version.state == VersionState::Draft {
            return Err(Error::conflict("not-sealed", format!("version {number} is a draft"))
                .on(template.as_str())
                .hint(format!("clonegate template seal {template}:{number}, then publish it")));
        }
        Ok(version.clone())
    }

    pub(super) async fn do_list_templates(self: Arc<Self>, query: ListQuery) -> Result<Page<TemplateView>> {
        let all = self.catalog.list::<TemplateEntry>().await?;
        let counts = self.count_bases().await;
        Ok(page(all, &query, |t| t.name.as_str()).map(|t| view(&t, &counts)))
    }

    pub(super) async fn do_show_template(self: Arc<Self>, name: String) -> Result<TemplateView> {
        let found = self.catalog.get(&Name::new(name)?).await?;
        self.template_view(&found).await
    }

    pub(super) async fn template_view(&self, template: &Named<TemplateEntry>) -> Result<TemplateView> {
        Ok(view(template, &self.count_bases().await))
    }

    /// Bases, and clones on them, by template and version.
    async fn count_bases(&self) -> Counts {
        let mut counts = Counts::new();
        for datastore in self.datastores.all() {
            if datastore.check_online().is_ok()
                && let Err(error) = datastore.table.refresh().await
            {
                tracing::warn!(datastore = %datastore.name, %error, "its bases cannot be listed");
            }
            for base in datastore.table.bases() {
                let count = counts.entry((base.record.template.clone(), base.record.version)).or_default();
                count.0 += 1;
                count.1 += base.count();
            }
        }
        counts
    }

    pub(super) async fn do_publish_template(
        self: Arc<Self>,
        name: String,
        version: Option<u32>,
    ) -> Result<TemplateView> {
        let name = Name::new(name)?;
        let (changed, _) = self
            .catalog
            .change(&name, |template: &mut TemplateEntry| {
                let number = publishable(&name, template, version)?;
                publish_version(template, number);
                Ok(())
            })
            .await?;
        self.open.forget_text(&format!("template/{name}"));
        self.retain_versions(&changed).await;
        self.template_view(&changed).await
    }

    pub(super) async fn do_rollback_template(self: Arc<Self>, name: String) -> Result<TemplateView> {
        let name = Name::new(name)?;
        let (changed, _) =
            self.catalog.change(&name, |template: &mut TemplateEntry| roll_back(&name, template)).await?;
        self.open.forget_text(&format!("template/{name}"));
        self.template_view(&changed).await
    }

    /// Deletes a template, or a version of it, also where there is no room for a record of it.
    pub(super) async fn do_delete_template(
        self: Arc<Self>,
        name: String,
        version: Option<u32>,
        dry_run: bool,
    ) -> Result<Touched> {
        making_room(self.delete_template_now(name, version, dry_run)).await
    }

    async fn delete_template_now(
        self: Arc<Self>,
        name: String,
        version: Option<u32>,
        dry_run: bool,
    ) -> Result<Touched> {
        let name = Name::new(name)?;
        let found: Named<TemplateEntry> = self.catalog.get(&name).await?;
        if let Some(number) = version
            && !found.state.versions.iter().any(|v| v.number == number)
        {
            return Err(unknown_version(&name, number));
        }
        let going = |number: u32| version.is_none_or(|only| only == number);
        let numbers: Vec<u32> = found.state.versions.iter().map(|v| v.number).filter(|n| going(*n)).collect();
        self.check_unused(&name, &found.state, &numbers, version.is_none()).await?;
        let bytes = found.state.versions.iter().filter(|v| going(v.number)).map(|v| v.stored_bytes).sum();
        let names = match version {
            Some(number) => vec![format!("{name}:{number}")],
            None => vec![name.to_string()],
        };
        let back = numbers.iter().map(|number| self.may_go_back_to(&name, *number)).sum::<usize>();
        let notes =
            (back > 0).then(|| format!("{back} clones can then no longer be taken back to what they held on it"));
        let touched = Touched { dry_run, names, sessions: 0, bytes, notes: notes.into_iter().collect() };
        if dry_run {
            return Ok(touched);
        }
        // From here on no gateway makes a base of these versions, and no base of them takes a clone.
        let mark = |template: &mut TemplateEntry| {
            let before = template.clone();
            if template.published.is_some_and(going) {
                template.published = None;
            }
            template.history.retain(|n| !going(*n));
            template.versions.iter_mut().filter(|v| going(v.number)).for_each(|v| v.state = VersionState::Deleting);
            Ok(before)
        };
        let (marked, before) = self.catalog.change(&name, mark).await?;
        self.open.forget_text(&format!("template/{name}"));
        let removed = async {
            self.referrers(&name, before.published).await?.refuse(&numbers, version.is_none(), &[])?;
            self.remove_versions(&name, &marked.state, &numbers).await
        };
        match removed.await {
            // Something came to need them before the mark: nothing was removed yet.
            Err(error) if error.code() == "referenced" => {
                self.unmark(&name, &before, &marked.state).await?;
                return Err(error);
            }
            removed => removed?,
        }
        if version.is_none() {
            // A version that was imported meanwhile keeps the template.
            let none_left = |t: &TemplateEntry| {
                if t.versions.iter().all(|v| v.state == VersionState::Deleting) {
                    return Ok(());
                }
                Err(Error::conflict("busy", "a version was added meanwhile").on(name.as_str()).hint("try again"))
            };
            self.catalog.delete(&name, none_left).await?;
            self.forget_template_identity(&name).await?;
        } else {
            let drop_gone = |t: &mut TemplateEntry| {
                t.versions.retain(|v| !(going(v.number) && v.state == VersionState::Deleting));
                Ok(())
            };
            self.catalog.change(&name, drop_gone).await?;
        }
        Ok(touched)
    }

    /// Makes versions again what they were before they were marked as going.
    async fn unmark(&self, name: &Name, before: &TemplateEntry, marked: &TemplateEntry) -> Result<()> {
        let unmark = |t: &mut TemplateEntry| {
            for version in t.versions.iter_mut().filter(|v| v.state == VersionState::Deleting) {
                let old = before.versions.iter().find(|v| v.number == version.number);
                version.state = old.map_or(version.state, |old| old.state);
            }
            // Unless somebody has published another one meanwhile.
            if (t.published, &t.history) == (marked.published, &marked.history) {
                t.published = before.published;
                t.history.clone_from(&before.history);
            }
            Ok(())
        };
        self.catalog.change(name, unmark).await.map(drop)
    }

    /// The bases of these versions, wherever they are.
    pub(super) async fn bases_of(
        &self,
        name: &Name,
        template: &TemplateEntry,
        numbers: &[u32],
    ) -> Result<Vec<(Arc<Datastore>, clonegate_core::ids::BaseId)>> {
        let mut found = Vec::new();
        for datastore in self.datastores.all() {
            datastore.check_online()?;
            datastore.table.refresh().await?;
            for base in datastore.table.bases() {
                let of = template.versions.iter().filter(|v| numbers.contains(&v.number));
                if of.into_iter().any(|version| Self::holds(&base, name, version)) {
                    found.push((Arc::clone(&datastore), base.record.id));
                }
            }
        }
        Ok(found)
    }

    /// Removes the bases of versions that are marked as going. Clones that slipped in before the mark stop it.
    async fn remove_versions(&self, name: &Name, template: &TemplateEntry, numbers: &[u32]) -> Result<()> {
        let bases = self.bases_of(name, template, numbers).await?;
        for (datastore, base) in &bases {
            datastore.table.retire(*base, "its template version is deleted").await?;
        }
        let mut users = Vec::new();
        for (datastore, base) in &bases {
            users.extend(datastore.table.slots(*base).await?.into_iter().map(|record| record.name.to_string()));
        }
        refuse_used(name.as_str(), "clones", &users)?;
        for (datastore, base) in &bases {
            self.open.forget_base(*base);
            self.remove_base(datastore, *base).await?;
        }
        for version in template.versions.iter().filter(|v| numbers.contains(&v.number)) {
            if let BaseData::Packed { index } = version.data {
                for datastore in self.datastores.all() {
                    self.drop_image(&datastore, index).await?;
                }
            }
        }
        Ok(())
    }
}

/// The version that is to be published, the newest when nobody says.
pub(super) fn publishable(name: &Name, template: &TemplateEntry, version: Option<u32>) -> Result<u32> {
    let newest = template.versions.iter().rfind(|v| v.state != VersionState::Deleting).map(|v| v.number);
    let number = version.or(newest).ok_or_else(|| unknown_version(name, 0))?;
    let found = template.version(number).ok_or_else(|| unknown_version(name, number))?;
    if found.state == VersionState::Draft {
        return Err(Error::conflict("not-sealed", format!("version {number} is not sealed"))
            .on(name.as_str())
            .hint(format!("clonegate template seal {name}:{number}")));
    }
    Ok(number)
}

/// Makes the version that was published before the one that new clones get; tells which.
pub(super) fn roll_back(name: &Name, template: &mut TemplateEntry) -> Result<u32> {
    while let Some(before) = template.history.pop() {
        if template.version(before).is_some() && template.published != Some(before) {
            template.published = Some(before);
            return Ok(before);
        }
    }
    Err(Error::conflict("nothing-to-roll-back-to", "no other version of it was published before")
        .on(name.as_str())
        .hint(format!("clonegate template publish {name}:VERSION")))
}

/// Makes `number` the version that new clones get.
pub(super) fn publish_version(template: &mut TemplateEntry, number: u32) {
    if template.published == Some(number) {
        return;
    }
    if let Some(before) = template.published {
        template.history.retain(|n| *n != before);
        template.history.push(before);
    }
    template.published = Some(number);
}

pub(super) fn unknown_version(template: &Name, number: u32) -> Error {
    Error::not_found("unknown-version-of-template", format!("there is no version {number} of it"))
        .on(template.as_str())
        .hint(format!("`clonegate template show {template}` shows its versions"))
}

fn check_text(text: Option<&str>) -> Result<()> {
    match text {
        Some(text) if text.len() > TEXT_BYTES_MAX || text.chars().any(char::is_control) => {
            Err(Error::invalid("bad-text", format!("a text of {} bytes", text.len()))
                .hint(format!("one line of at most {TEXT_BYTES_MAX} bytes")))
        }
        _ => Ok(()),
    }
}

type Counts = BTreeMap<(Name, u32), (u32, u32)>;

fn view(template: &Named<TemplateEntry>, counts: &Counts) -> TemplateView {
    let state = &template.state;
    let versions = state.versions.iter().map(|version| {
        let (bases, clones) = counts.get(&(template.name.clone(), version.number)).copied().unwrap_or_default();
        VersionView {
            number: version.number,
            state: match version.state {
                VersionState::Draft => "draft",
                VersionState::Deleting => "deleting",
                VersionState::Sealed if state.published == Some(version.number) => "published",
                VersionState::Sealed => "sealed",
            }
            .to_owned(),
            size: version.size,
            kind: kind(&version.data).to_owned(),
            datastore: version.datastore.to_string(),
            parent: version.parent,
            origin: version.origin.clone(),
            stored_bytes: version.stored_bytes,
            used_bytes: version.used_bytes,
            bases,
            clones,
            findings: version.findings.clone(),
            created_ms: version.created_ms,
        }
    });
    TemplateView {
        name: template.name.to_string(),
        description: state.description.clone(),
        published: state.published,
        versions: versions.collect(),
        created_ms: state.created_ms,
    }
}

/// `packed` or `raw`.
pub(super) fn kind(data: &BaseData) -> &'static str {
    match data {
        BaseData::Packed { .. } => "packed",
        BaseData::Raw { .. } => "raw",
    }
}
