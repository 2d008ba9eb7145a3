//! Old versions of templates: how many that nothing needs are kept.

use std::sync::Arc;

use clonegate_core::format::catalog::{CloneEntry, TemplateEntry, VersionState};
use clonegate_core::ids::Name;
use clonegate_core::{Error, Result};

use super::gateway::Gateway;
use super::views::Touched;
use crate::catalog::Named;

impl Gateway {
    /// Clones that an undo could still bring back to what they held on this version.
    pub(super) fn may_go_back_to(&self, template: &Name, number: u32) -> usize {
        let window = u64::try_from(self.settings.delta.undo_window.as_millis()).unwrap_or(u64::MAX);
        let now = self.clock.now_ms();
        let back = |clone: &Named<CloneEntry>| {
            clone.state.moved_from.as_ref().is_some_and(|from| {
                from.template == *template && from.version == number && from.at_ms.saturating_add(window) > now
            })
        };
        self.catalog.remembered_all::<CloneEntry>().iter().filter(|clone| back(clone)).count()
    }

    /// Says how many versions that no clone needs are kept, besides the published one; none: all.
    pub(super) async fn do_retain_template(
        self: Arc<Self>,
        name: String,
        keep: Option<u32>,
        dry_run: bool,
    ) -> Result<Touched> {
        let name = Name::new(name)?;
        let found: Named<TemplateEntry> = self.catalog.get(&name).await?;
        let going = self.not_retained(&found, keep).await?;
        let version = |number: &u32| found.state.versions.iter().find(|v| v.number == *number);
        let touched = Touched {
            dry_run,
            names: going.iter().map(|number| format!("{name}:{number}")).collect(),
            bytes: going.iter().filter_map(version).map(|v| v.stored_bytes).sum(),
            ..Touched::default()
        };
        if dry_run {
            return Ok(touched);
        }
        let set = |template: &mut TemplateEntry| {
            template.keep_versions = keep;
            Ok(())
        };
        self.catalog.change(&name, set).await?;
        self.delete_versions(&name, &going).await;
        Ok(touched)
    }

    /// Deletes the versions that a template keeps no longer.
    pub(super) async fn retain_versions(self: &Arc<Self>, template: &Named<TemplateEntry>) {
        if template.state.keep_versions.is_none() {
            return;
        }
        match self.not_retained(template, template.state.keep_versions).await {
            Ok(going) => self.delete_versions(&template.name, &going).await,
            Err(error) => tracing::warn!(template = %template.name, %error, "its old versions stay for now"),
        }
    }

    async fn delete_versions(self: &Arc<Self>, name: &Name, numbers: &[u32]) {
        for number in numbers {
            match Arc::clone(self).do_delete_template(name.to_string(), Some(*number), false).await {
                Ok(_) => tracing::info!(template = %name, version = number, "deleted: newer ones are kept"),
                Err(error) => tracing::warn!(template = %name, version = number, %error, "it stays for now"),
            }
        }
    }

    /// The versions that go when so many are kept: neither published nor drafts, nor needed by a clone, now or to be taken
    /// back to, by a pool or by an update.
    pub(super) async fn not_retained(&self, template: &Named<TemplateEntry>, keep: Option<u32>) -> Result<Vec<u32>> {
        let Some(keep) = keep else { return Ok(Vec::new()) };
        if keep == 0 {
            return Err(
                Error::invalid("bad-count", "no version to roll back to would be left").hint("keep at least one")
            );
        }
        let referrers = self.referrers(&template.name, template.state.published).await?;
        let used = |number: u32| self.may_go_back_to(&template.name, number) > 0 || referrers.need_or_are_on(number);
        let free = template.state.versions.iter().rev().filter(|v| v.state == VersionState::Sealed);
        let free = free.map(|v| v.number).filter(|n| template.state.published != Some(*n) && !used(*n));
        // Those whose deletion was cut short are not kept, whatever they are numbered.
        let cut = template.state.versions.iter().filter(|v| v.state == VersionState::Deleting).map(|v| v.number);
        Ok(free.skip(keep as usize).chain(cut).collect())
    }

    /// Goes on with deletions of versions that a crash has cut. Done by two gateways at once it does no harm.
    pub(super) async fn finish_deletions(self: Arc<Self>) {
        let templates = match self.catalog.list::<TemplateEntry>().await {
            Ok(templates) => templates,
            Err(error) => {
                tracing::debug!(%error, "templates are not looked at now");
                return;
            }
        };
        for template in templates {
            let cut = template.state.versions.iter().filter(|v| v.state == VersionState::Deleting);
            let cut: Vec<u32> = cut.map(|v| v.number).collect();
            self.delete_versions(&template.name, &cut).await;
        }
    }
}
