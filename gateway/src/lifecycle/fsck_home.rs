//! The part of `fsck` that looks at the home: identities that nobody names or that are missing, and data disks of clones that are gone.

use std::collections::{HashMap, HashSet};

use clonegate_core::format::catalog::{CloneEntry, DiskEntry, IdentityDefaultEntry};
use clonegate_core::ids::{IdentityId, Name};
use clonegate_core::{ErrorKind, Result};

use super::gateway::Gateway;
use super::views::{Finding, FsckReport};
use crate::store::keys;

impl Gateway {
    /// Checks the home. What is younger than the grace time may be under way.
    pub(super) async fn check_home(&self, repair: bool, grace_ms: u64, report: &mut FsckReport) -> Result<()> {
        self.check_identities(repair, grace_ms, report).await?;
        self.check_disk_owners(repair, report).await
    }

    async fn check_identities(&self, repair: bool, grace_ms: u64, report: &mut FsckReport) -> Result<()> {
        // What is there first, then who names it: a record that is named later was not there.
        let there: HashSet<IdentityId> =
            self.home.list(&keys::identities()).await?.iter().filter_map(|listed| listed.key.parse().ok()).collect();
        let mut named: HashMap<IdentityId, Option<Name>> = HashMap::new();
        for clone in self.catalog.list::<CloneEntry>().await? {
            named.extend(clone.state.identity.map(|entry| (entry.record, Some(clone.name))));
        }
        for default in self.catalog.list::<IdentityDefaultEntry>().await? {
            named.insert(default.state.record, None);
        }
        report.objects += there.len() as u64;
        for id in there.iter().filter(|id| !named.contains_key(id)) {
            let key = keys::identity(*id);
            match self.home.head(&key).await {
                Ok(meta) if meta.modified_ms.saturating_add(grace_ms) <= self.clock.now_ms() => {}
                Ok(_) => continue,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            }
            if repair {
                self.home.delete(&key).await?;
            }
            report.findings.push(Finding {
                object: format!("home/{key}"),
                what: "an identity that no clone and no template has".to_owned(),
                repaired: repair,
            });
        }
        for (id, clone) in named.iter().filter(|(id, _)| !there.contains(id)) {
            // It may have been put since the list was made.
            let key = keys::identity(*id);
            match self.home.head(&key).await {
                Ok(_) => continue,
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            // Or replaced by another.
            if let Some(clone) = clone
                && self
                    .catalog
                    .find::<CloneEntry>(clone)
                    .await?
                    .is_none_or(|now| now.state.identity.map(|e| e.record) != Some(*id))
            {
                continue;
            }
            let of = clone.as_ref().map_or_else(|| "a template".to_owned(), |name| format!("clone {name}"));
            report.findings.push(Finding {
                object: format!("home/{key}"),
                what: format!("the identity of {of} is missing"),
                repaired: false,
            });
        }
        Ok(())
    }

    /// A crash in the middle of deleting a clone leaves its disks with a name that there is not.
    async fn check_disk_owners(&self, repair: bool, report: &mut FsckReport) -> Result<()> {
        for disk in self.catalog.list::<DiskEntry>().await? {
            let Some(clone) = &disk.state.attached_to else { continue };
            if self.catalog.find::<CloneEntry>(clone).await?.is_some() {
                continue;
            }
            if repair {
                self.orphan_disk(&disk, clone).await?;
            }
            report.findings.push(Finding {
                object: format!("disk/{}", disk.name),
                what: format!("it belongs to clone {clone}, which there is not"),
                repaired: repair,
            });
        }
        Ok(())
    }
}
