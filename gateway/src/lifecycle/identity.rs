//! Identities of clones: shown, set, renewed, cleared, and served as disks and seeds.
//!
//! A change puts the new record, then changes the catalog entry that names it, then deletes the old record. A crash leaves at most a record that nobody
//! names, which `fsck` finds. A deleted clone's record goes with its name, and with it its secrets.

use std::collections::HashMap;
use std::sync::Arc;

use clonegate_core::format::catalog::{CloneEntry, IdentityDefaultEntry, IdentityEntry, TemplateEntry};
use clonegate_core::ids::{CloneId, IdentityId, Name};
use clonegate_core::{Error, ErrorKind, Result};

use super::gateway::Gateway;
use super::open::{Of, Open};
use super::placement::Claimed;
use super::views::{
    HostKeys, IdentitySpec, IdentityView, RenewIdentity, STORED, SetIdentity, TemplateIdentityView, Touched,
};
use crate::catalog::Named;
use crate::exports::CloneRef;
use crate::identity::{Body, HostKey, Identity, IdentityDisk, IdentityKeys};
use crate::store::{PutNew, keys};

/// How often a clone is looked up again whose identity is changed meanwhile.
const ATTEMPTS: u32 = 4;

/// An identity as it is now.
struct Kept {
    entry: Option<IdentityEntry>,
    body: Body,
    changed_ms: u64,
    sealed: bool,
}

impl Kept {
    fn generation(&self) -> u32 {
        self.entry.map_or(1, |entry| entry.generation)
    }

    /// As the spec of a clone that has none, its machine makes its own host keys.
    fn body(&self) -> Option<&Body> {
        self.entry.map(|_| &self.body)
    }
}

fn owner_of(id: CloneId) -> String {
    format!("clone {id}")
}

fn owner_of_template(template: &Name) -> String {
    format!("template {template}")
}

impl Gateway {
    /// The keys that identities are encrypted with; before anything is served.
    pub fn keep_identity_keys(&self, keys: IdentityKeys) {
        // The first to come stays: there is one caller, at the start.
        drop(self.identity_keys.set(keys));
    }

    fn identity_keys(&self) -> &IdentityKeys {
        self.identity_keys.get_or_init(IdentityKeys::default)
    }

    /// Puts a new record; gives its id.
    async fn put_identity(&self, owner: &str, body: &Body) -> Result<IdentityId> {
        let id: IdentityId = self.clock.id();
        let key = keys::identity(id);
        match self.home.put_new(&key, self.identity_keys().seal(owner, body, &self.clock)?).await? {
            PutNew::Created => Ok(id),
            PutNew::Exists(_) => {
                Err(Error::internal("id-taken", "a record with this random id is there already").on(key.as_str()))
            }
        }
    }

    async fn read_identity(&self, owner: &str, id: IdentityId) -> Result<(Body, u64, bool)> {
        let key = keys::identity(id);
        self.identity_keys().open(owner, &self.home.get(&key).await?).map_err(|e| e.on(key.as_str()))
    }

    /// Deletes a record that nobody names any more. One that stays is found by `fsck`.
    pub(super) async fn drop_identity(&self, id: IdentityId) {
        if let Err(error) = self.home.delete(&keys::identity(id)).await {
            tracing::warn!(%id, %error, "an old identity could not be deleted now");
        }
    }

    async fn kept_identity(&self, clone: &Named<CloneEntry>) -> Result<Kept> {
        let entry = clone.state.identity;
        let (body, changed_ms, sealed) = match entry {
            None => (Body::default(), clone.state.record.created_ms, false),
            Some(entry) => self.read_identity(&owner_of(clone.state.record.id), entry.record).await?,
        };
        Ok(Kept { entry, body, changed_ms, sealed })
    }

    /// A clone and its identity; looks again when it is changed in between.
    async fn find_identity(&self, clone: &CloneRef) -> Result<(Named<CloneEntry>, Kept)> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let found = self.find_clone(clone).await?;
            match self.kept_identity(&found).await {
                Err(error) if error.kind() == ErrorKind::NotFound && attempt < ATTEMPTS => {}
                kept => return Ok((found, kept?)),
            }
        }
    }

    /// The facts of a clone's machine, for those who render them.
    pub(super) async fn do_identity(self: Arc<Self>, clone: String) -> Result<Identity> {
        let (found, kept) = self.find_identity(&clone.parse()?).await?;
        Identity::of(found.state.record.id, found.name.as_str(), kept.generation(), kept.body())
    }

    /// The identity disk of a clone. It is made anew for each who opens it: that costs little, and a change is seen at once on all gateways.
    pub(super) async fn open_identity(&self, text: &str, clone: &CloneRef) -> Result<Arc<Open>> {
        let (found, kept) = self.find_identity(clone).await?;
        let id = found.state.record.id;
        let identity = Identity::of(id, found.name.as_str(), kept.generation(), kept.body())?;
        let disk = IdentityDisk::new(&identity, text, kept.changed_ms)?;
        Ok(Open::new(Of::Identity(id), Arc::new(disk), None))
    }

    pub(super) async fn do_show_identity(self: Arc<Self>, clone: String) -> Result<IdentityView> {
        let (found, kept) = self.find_identity(&clone.parse()?).await?;
        view(&found, &kept, false)
    }

    pub(super) async fn do_set_identity(
        self: Arc<Self>,
        clone: String,
        request: SetIdentity,
        dry_run: bool,
    ) -> Result<IdentityView> {
        let (found, before) = self.find_identity(&clone.parse()?).await?;
        let SetIdentity { mut spec, renew } = request;
        keep_hashes(&mut spec, Some(&before.body.spec))?;
        spec.check(found.name.as_str())?;
        let mut body = Body { spec, ..before.body.clone() };
        self.make_host_key(&mut body, renew);
        self.change_identity(&found, &before, body, renew, dry_run).await
    }

    pub(super) async fn do_renew_identity(
        self: Arc<Self>,
        clone: String,
        request: RenewIdentity,
        dry_run: bool,
    ) -> Result<IdentityView> {
        let (found, before) = self.find_identity(&clone.parse()?).await?;
        let mut body = before.body.clone();
        self.make_host_key(&mut body, !request.keep_host_keys);
        if request.new_mac {
            body.mac_number += 1;
        }
        self.change_identity(&found, &before, body, true, dry_run).await
    }

    /// Gives it a host key if it is to have one and has none, or is to have another.
    fn make_host_key(&self, body: &mut Body, anew: bool) {
        match body.spec.ssh_host_keys {
            HostKeys::None => body.host_key = None,
            HostKeys::Generate if body.host_key.is_none() || anew => {
                body.host_key = Some(HostKey::fresh_seed(&self.clock))
            }
            HostKeys::Generate => {}
        }
    }

    async fn change_identity(
        &self,
        found: &Named<CloneEntry>,
        before: &Kept,
        body: Body,
        renew: bool,
        dry_run: bool,
    ) -> Result<IdentityView> {
        let id = found.state.record.id;
        let generation = before.generation() + u32::from(renew);
        let seals = self.identity_keys().seals();
        if dry_run {
            body.encode()?;
            let entry = IdentityEntry { generation, record: IdentityId::from_bytes([0; 16]) };
            let after = Kept { entry: Some(entry), body, changed_ms: self.clock.now_ms(), sealed: seals };
            return view(found, &after, true);
        }
        let record = self.put_identity(&owner_of(id), &body).await?;
        let entry = IdentityEntry { generation, record };
        if let Err(error) = self.name_identity(found, before.entry, Some(entry)).await {
            // A change whose reply was lost names it: then it stays.
            if self
                .catalog
                .find::<CloneEntry>(&found.name)
                .await
                .is_ok_and(|now| now.is_none_or(|now| now.state.identity != Some(entry)))
            {
                self.drop_identity(record).await;
            }
            return Err(error);
        }
        if let Some(old) = before.entry {
            self.drop_identity(old.record).await;
        }
        if !seals {
            tracing::warn!(clone = %found.name, "its identity is stored plain: `identity.key_file` of the configuration encrypts it");
        }
        tracing::info!(clone = %found.name, generation, "identity changed");
        let (found, kept) = self.find_identity(&CloneRef::Id(id)).await?;
        view(&found, &kept, false)
    }

    /// Lets a clone's entry name another identity, if it still names the one before.
    async fn name_identity(
        &self,
        found: &Named<CloneEntry>,
        before: Option<IdentityEntry>,
        after: Option<IdentityEntry>,
    ) -> Result<()> {
        let id = found.state.record.id;
        let put = |entry: &mut CloneEntry| {
            if entry.record.id != id {
                return Err(crate::catalog::unknown::<CloneEntry>(found.name.as_str()));
            }
            if entry.identity != before {
                return Err(Error::conflict("identity-changed", "somebody else changed the identity in this moment")
                    .on(found.name.as_str())
                    .hint("look at it, and try again"));
            }
            entry.identity = after;
            Ok(())
        };
        self.catalog.change(&found.name, put).await.map(drop)
    }

    pub(super) async fn do_clear_identity(self: Arc<Self>, clone: String, dry_run: bool) -> Result<Touched> {
        let found = self.find_clone(&clone.parse()?).await?;
        if let Some(before) = found.state.identity.filter(|_| !dry_run) {
            self.name_identity(&found, Some(before), None).await?;
            self.drop_identity(before.record).await;
        }
        let notes = match found.state.identity {
            Some(entry) if entry.generation > 1 => {
                vec!["its instance-id is that of its first generation again".to_owned()]
            }
            Some(_) => Vec::new(),
            None => vec!["it had none of its own".to_owned()],
        };
        Ok(Touched { dry_run, names: vec![found.name.to_string()], notes, ..Touched::default() })
    }

    // Templates.

    async fn template_identity(&self, template: &Name) -> Result<Option<(IdentityDefaultEntry, Body, u64, bool)>> {
        let Some(found) = self.catalog.find::<IdentityDefaultEntry>(template).await? else { return Ok(None) };
        let (body, changed_ms, sealed) = self.read_identity(&owner_of_template(template), found.state.record).await?;
        Ok(Some((found.state, body, changed_ms, sealed)))
    }

    pub(super) async fn do_show_template_identity(self: Arc<Self>, template: String) -> Result<TemplateIdentityView> {
        let template: Named<TemplateEntry> = self.catalog.get(&Name::new(template)?).await?;
        let kept = self.template_identity(&template.name).await?;
        Ok(template_view(&template.name, kept.map(|(_, body, at, sealed)| (body, at, sealed)), false))
    }

    pub(super) async fn do_set_template_identity(
        self: Arc<Self>,
        template: String,
        mut spec: IdentitySpec,
        dry_run: bool,
    ) -> Result<TemplateIdentityView> {
        let template: Named<TemplateEntry> = self.catalog.get(&Name::new(template)?).await?;
        let name = template.name;
        let before = self.template_identity(&name).await?;
        keep_hashes(&mut spec, before.as_ref().map(|(_, body, ..)| &body.spec))?;
        // Each clone is checked with its own name when it is made.
        spec.check("clone-001")?;
        let body = Body { spec, ..Body::default() };
        body.encode()?;
        if !dry_run {
            let entry = IdentityDefaultEntry { record: self.put_identity(&owner_of_template(&name), &body).await? };
            let changed = match &before {
                None => self.catalog.create(&name, entry).await.map(drop),
                Some(_) => self
                    .catalog
                    .change(&name, |now: &mut IdentityDefaultEntry| {
                        *now = entry;
                        Ok(())
                    })
                    .await
                    .map(drop),
            };
            if let Err(error) = changed {
                if self
                    .catalog
                    .find::<IdentityDefaultEntry>(&name)
                    .await
                    .is_ok_and(|now| now.is_none_or(|now| now.state != entry))
                {
                    self.drop_identity(entry.record).await;
                }
                return Err(error);
            }
            if let Some((old, ..)) = before {
                self.drop_identity(old.record).await;
            }
        }
        Ok(template_view(&name, Some((body, self.clock.now_ms(), self.identity_keys().seals())), dry_run))
    }

    pub(super) async fn do_clear_template_identity(
        self: Arc<Self>,
        template: String,
        dry_run: bool,
    ) -> Result<Touched> {
        let name = Name::new(template)?;
        if !dry_run {
            self.forget_template_identity(&name).await?;
        }
        Ok(Touched {
            dry_run,
            names: vec![name.to_string()],
            notes: vec!["clones that are there keep theirs".to_owned()],
            ..Touched::default()
        })
    }

    /// What goes with a template.
    pub(super) async fn forget_template_identity(&self, template: &Name) -> Result<()> {
        match self.catalog.delete(template, |_: &IdentityDefaultEntry| Ok(())).await {
            Ok(gone) => self.drop_identity(gone.state.record).await,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    // New clones.

    /// The spec that new clones of a template get: the one that was asked for, or the template's. Checked for each of their names.
    pub(super) async fn spec_for_clones(
        &self,
        template: &Name,
        names: &[Name],
        asked: Option<IdentitySpec>,
    ) -> Result<Option<IdentitySpec>> {
        let spec = match asked {
            Some(mut spec) => {
                keep_hashes(&mut spec, None)?;
                Some(spec)
            }
            None => self.template_identity(template).await?.map(|(_, body, ..)| body.spec),
        };
        if let Some(spec) = &spec {
            names.iter().try_for_each(|name| spec.check(name.as_str()))?;
            Body { spec: spec.clone(), ..Body::default() }.encode()?;
        }
        Ok(spec)
    }

    /// Puts the identities of clones that are about to get their names; all, or none as far as the store can be reached.
    pub(super) async fn make_identities(
        &self,
        claimed: &[Claimed],
        spec: Option<&IdentitySpec>,
    ) -> Result<HashMap<CloneId, IdentityEntry>> {
        let Some(spec) = spec else { return Ok(HashMap::new()) };
        let mut made = HashMap::new();
        let mut puts = Vec::new();
        for record in claimed.iter().flat_map(|group| &group.records) {
            let mut body = Body { spec: spec.clone(), ..Body::default() };
            self.make_host_key(&mut body, true);
            let entry = IdentityEntry { generation: 1, record: self.clock.id() };
            puts.push((
                keys::identity(entry.record),
                self.identity_keys().seal(&owner_of(record.id), &body, &self.clock)?,
            ));
            made.insert(record.id, entry);
        }
        let mut failed = None;
        for outcome in self.home.put_new_batch(puts).await {
            match outcome {
                Ok(PutNew::Created) => {}
                Ok(PutNew::Exists(_)) => {
                    failed = Some(Error::internal("id-taken", "a record with this random id is there already"))
                }
                Err(error) => failed = Some(error),
            }
        }
        let Some(error) = failed else { return Ok(made) };
        self.drop_identities(&made).await;
        Err(error)
    }

    /// Takes back what [`Gateway::make_identities`] put.
    pub(super) async fn drop_identities(&self, made: &HashMap<CloneId, IdentityEntry>) {
        for entry in made.values() {
            self.drop_identity(entry.record).await;
        }
    }
}

/// Puts the hashes that are stored where a spec says `stored`.
fn keep_hashes(spec: &mut IdentitySpec, before: Option<&IdentitySpec>) -> Result<()> {
    for user in spec.users.iter_mut().filter(|user| user.password_hash.as_deref() == Some(STORED)) {
        let old = before.and_then(|spec| spec.users.iter().find(|old| old.name == user.name));
        user.password_hash = old.and_then(|old| old.password_hash.clone());
        if user.password_hash.is_none() {
            let shown: String = user.name.chars().take(40).collect();
            return Err(Error::invalid("bad-identity", format!("no password of {shown:?} is stored"))
                .on("users.password_hash")
                .hint("give the hash that `mkpasswd` prints, or leave it out"));
        }
    }
    Ok(())
}

/// A spec as it is shown.
fn shown(spec: &IdentitySpec) -> IdentitySpec {
    let mut spec = spec.clone();
    for user in spec.users.iter_mut().filter(|user| user.password_hash.is_some()) {
        user.password_hash = Some(STORED.to_owned());
    }
    spec
}

fn kept(sealed: bool) -> String {
    if sealed { "encrypted" } else { "plain" }.to_owned()
}

fn view(clone: &Named<CloneEntry>, now: &Kept, dry_run: bool) -> Result<IdentityView> {
    let identity = Identity::of(clone.state.record.id, clone.name.as_str(), now.generation(), now.body())?;
    let mut notes = Vec::new();
    if now.entry.is_some() && !now.sealed {
        notes.push(
            "stored plain: `identity.key_file` of the configuration encrypts what is set from then on".to_owned(),
        );
    }
    if identity.spec.windows.is_some() && identity.spec.users.iter().any(|user| user.password_hash.is_some()) {
        notes.push("a Windows takes no password hashes: its users get none".to_owned());
    }
    Ok(IdentityView {
        dry_run,
        clone: clone.name.to_string(),
        generation: now.generation(),
        ssh_host_key: identity.host_key.as_ref().map(HostKey::public_line),
        fingerprint: identity.host_key.as_ref().map(HostKey::fingerprint),
        kept: if now.entry.is_some() { kept(now.sealed) } else { "derived".to_owned() },
        spec: shown(&identity.spec),
        disk: format!("/v1/clones/{}/identity", clone.name),
        seed: format!("/seed/{}/", clone.name),
        changed_ms: now.changed_ms,
        notes,
        hostname: identity.hostname,
        instance_id: identity.instance_id,
        mac: identity.mac,
        machine_id: identity.machine_id,
    })
}

fn template_view(template: &Name, now: Option<(Body, u64, bool)>, dry_run: bool) -> TemplateIdentityView {
    let (spec, changed_ms, kept) = match now {
        Some((body, at, sealed)) => (shown(&body.spec), Some(at), kept(sealed)),
        None => (IdentitySpec { ssh_host_keys: HostKeys::None, ..IdentitySpec::default() }, None, "none".to_owned()),
    };
    TemplateIdentityView { dry_run, template: template.to_string(), kept, spec, changed_ms }
}
