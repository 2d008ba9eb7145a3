//! What a new template version would be: the dry runs of import, by reference, and of a clone made a template.

use std::sync::Arc;

use clonegate_core::Result;
use clonegate_core::format::catalog::TemplateEntry;
use clonegate_core::ids::Name;

use super::gateway::Gateway;
use super::templates::{check_room, check_text};
use super::views::{ImportTemplate, ReferenceTemplate, ToTemplate, Touched};
use crate::catalog::Named;

impl Gateway {
    pub(super) async fn do_plan_reference(self: Arc<Self>, request: ReferenceTemplate) -> Result<Touched> {
        let publish = request.publish;
        let (name, version) = self.referred_to(request).await?;
        let mut notes =
            vec![format!("{} is used where it lies; datastore {} keeps the base", version.origin, version.datastore)];
        notes.extend(version.findings.iter().cloned());
        self.plan_version(&name, publish, version.seal.seals(&version.findings), version.size, notes).await
    }

    pub(super) async fn do_plan_import(self: Arc<Self>, request: ImportTemplate) -> Result<Touched> {
        let name = Name::new(request.name.as_str())?;
        self.check_slots(request.slots)?;
        check_text(request.description.as_deref())?;
        check_text(request.origin.as_deref())?;
        let datastore = self.datastore_for_import(request.datastore.as_deref())?;
        let mut notes = vec![format!("its chunks go to datastore {}", datastore.name)];
        if !request.draft && !request.force {
            notes.push("it stays a draft if something of one machine is found in it".to_owned());
        }
        self.plan_version(&name, request.publish, !request.draft, 0, notes).await
    }

    pub(super) async fn do_plan_to_template(self: Arc<Self>, clone: String, request: ToTemplate) -> Result<Touched> {
        let name = Name::new(request.template.as_str())?;
        let clone = self.find_clone(&clone.parse()?).await?;
        let (open, findings) = self.to_be_template(&clone, request.force).await?;
        let mut notes = vec![format!(
            "its chunks go to datastore {}; those that are there already are not stored again",
            clone.state.datastore
        )];
        notes.extend(findings);
        self.plan_version(&name, request.publish.then_some(true), true, open.device.info().size, notes).await
    }

    /// What adding a version would touch.
    async fn plan_version(
        &self,
        name: &Name,
        publish: Option<bool>,
        sealed: bool,
        bytes: u64,
        mut notes: Vec<String>,
    ) -> Result<Touched> {
        let there: Option<Named<TemplateEntry>> = self.catalog.find(name).await?;
        let number = there.as_ref().map_or(1, |t| t.state.next_version);
        if let Some(there) = &there {
            check_room(there.state.versions.len(), name)?;
        } else {
            notes.insert(0, "the template is new".to_owned());
        }
        let first = there.is_none_or(|t| t.state.published.is_none());
        notes.push(
            match (sealed, publish.unwrap_or(first)) {
                (false, _) => "it is a draft until it is sealed",
                (true, true) => "new clones get it at once",
                (true, false) => "new clones get it when it is published",
            }
            .to_owned(),
        );
        Ok(Touched { dry_run: true, names: vec![format!("{name}:{number}")], bytes, notes, ..Touched::default() })
    }
}
