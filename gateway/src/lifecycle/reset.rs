//! Reset, snapshot and restore: what a clone has written, dropped, kept or brought back.

use std::sync::Arc;

use clonegate_core::format::catalog::CloneEntry;
use clonegate_core::ids::Name;
use clonegate_core::{Error, Result};

use super::gateway::Gateway;
use super::open::Open;
use super::views::{SnapshotView, Touched};
use crate::catalog::{Named, unknown};
use crate::exports::{CloneRef, ExportName};
use crate::volume::Volume;

impl Gateway {
    /// The open volume of a clone.
    pub(super) async fn volume(self: &Arc<Self>, clone: &Named<CloneEntry>) -> Result<(Arc<Open>, Arc<Volume>)> {
        let name = ExportName::Clone(CloneRef::Id(clone.state.record.id));
        let open = Arc::clone(self).open_export(name).await?;
        let volume = open.volume.clone().ok_or_else(|| unknown::<CloneEntry>(clone.name.as_str()))?;
        Ok((open, volume))
    }

    /// Fails while a machine has the clone open, or somebody holds it.
    pub(super) fn check_discard(&self, clone: &Named<CloneEntry>) -> Result<()> {
        let attached = self.open.attached(clone.state.record.id);
        if !attached.is_empty() {
            return Err(Error::conflict("attached", format!("{} has it open", attached.join(", ")))
                .on(clone.name.as_str())
                .hint("switch the machine off first"));
        }
        clone.state.hold.as_ref().map_or(Ok(()), |why| {
            Err(Error::conflict("held", format!("it is held: {why}")).on(clone.name.as_str()).hint("let it go first"))
        })
    }

    fn would_touch(&self, clone: &Named<CloneEntry>, volume: &Volume, dry_run: bool) -> Touched {
        let attached = self.open.attached(clone.state.record.id);
        Touched {
            dry_run,
            names: vec![clone.name.to_string()],
            sessions: u32::try_from(attached.len()).unwrap_or(u32::MAX),
            bytes: volume.status().delta_bytes,
            notes: Vec::new(),
        }
    }

    pub(super) async fn do_reset_clone(self: Arc<Self>, clone: String, dry_run: bool) -> Result<Touched> {
        let clone = self.find_clone(&clone.parse()?).await?;
        let (_open, volume) = self.volume(&clone).await?;
        let touched = self.would_touch(&clone, &volume, dry_run);
        if dry_run {
            return Ok(touched);
        }
        self.check_discard(&clone)?;
        volume.reset(None).await?;
        self.note_reset(&clone).await?;
        Ok(touched)
    }

    /// Remembers when the clone was reset.
    pub(super) async fn note_reset(&self, clone: &Named<CloneEntry>) -> Result<()> {
        let now = self.clock.now_ms();
        let note = |entry: &mut CloneEntry| {
            entry.last_reset_ms = Some(now);
            Ok(())
        };
        self.catalog.change(&clone.name, note).await.map(drop)
    }

    pub(super) async fn do_snapshot_clone(self: Arc<Self>, clone: String, snapshot: String) -> Result<SnapshotView> {
        let snapshot = Name::new(snapshot)?;
        let clone = self.find_clone(&clone.parse()?).await?;
        let (_open, volume) = self.volume(&clone).await?;
        if volume.status().snapshots.iter().any(|s| s.name == snapshot) {
            return Err(Error::exists("name-taken", "the clone has a snapshot of this name already")
                .on(format!("{}@{snapshot}", clone.name))
                .hint("choose another name"));
        }
        volume.snapshot(snapshot.clone()).await?;
        Ok(SnapshotView { clone: clone.name.to_string(), name: snapshot.to_string() })
    }

    pub(super) async fn do_restore_clone(
        self: Arc<Self>,
        clone: String,
        snapshot: String,
        dry_run: bool,
    ) -> Result<Touched> {
        let snapshot = Name::new(snapshot)?;
        let clone = self.find_clone(&clone.parse()?).await?;
        let (_open, volume) = self.volume(&clone).await?;
        let touched = self.would_touch(&clone, &volume, dry_run);
        if dry_run {
            return Ok(touched);
        }
        self.check_discard(&clone)?;
        volume.restore(snapshot).await?;
        Ok(touched)
    }
}
