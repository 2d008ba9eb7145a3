//! Reset, undo, snapshot and restore: what a clone has written, dropped, kept or brought back.

use std::sync::Arc;
use std::time::Duration;

use clonegate_core::format::catalog::{CloneEntry, MovedFrom};
use clonegate_core::ids::Name;
use clonegate_core::{Error, ErrorKind, Result};

use super::audit::{Act, Why};
use super::gateway::Gateway;
use super::open::{BEING_CHANGED, Barred, Open, attached};
use super::update::{Change, Stuck};
use super::views::{SnapshotView, Touched};
use super::would::refused;
use crate::catalog::{Named, unknown};
use crate::exports::{CloneRef, ExportName};
use crate::volume::{SnapshotStatus, Volume};

/// How long a change waits for another one of the same clone.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it looks whether that is done.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

impl Gateway {
    /// The open volume of a clone.
    pub(super) async fn volume(self: &Arc<Self>, clone: &Named<CloneEntry>) -> Result<(Arc<Open>, Arc<Volume>)> {
        let name = ExportName::Clone(CloneRef::Id(clone.state.record.id));
        let open = Arc::clone(self).open_export(name).await?;
        let volume = open.volume.clone().ok_or_else(|| unknown::<CloneEntry>(clone.name.as_str()))?;
        Ok((open, volume))
    }

    /// The open volume of a clone that no machine has attached, and what keeps machines out until it is dropped.
    ///
    /// # Errors
    /// `Conflict` with code `attached`.
    pub(super) async fn quiet(self: &Arc<Self>, clone: &Named<CloneEntry>) -> Result<(Barred, Arc<Volume>)> {
        let begun = self.clock.instant();
        loop {
            let (open, volume) = self.volume(clone).await?;
            match open.bar() {
                Ok(barred) => return Ok((barred, volume)),
                Err(error) if error.code() == BEING_CHANGED && begun.elapsed() < PATIENCE => {}
                Err(error) => return Err(error),
            }
            drop((open, volume));
            self.clock.sleep(LOOK_AGAIN).await;
        }
    }

    /// Why a clone is held, when it is.
    pub(super) fn held<'a>(&self, entry: &'a CloneEntry) -> Option<&'a str> {
        let over = entry.hold_until_ms.is_some_and(|until| until <= self.clock.now_ms());
        entry.hold.as_deref().filter(|_| !over)
    }

    /// Fails while somebody holds the clone.
    fn check_held(&self, clone: &Named<CloneEntry>) -> Result<()> {
        self.held(&clone.state).map_or(Ok(()), |why| {
            Err(Error::conflict("held", format!("it is held: {why}"))
                .on(clone.name.as_str())
                .hint(format!("`clonegate clone release {}` lets it go", clone.name)))
        })
    }

    /// Fails while somebody holds the clone, or its machine may run. What an operator orders does not need the second.
    pub(super) fn check_discard(&self, clone: &Named<CloneEntry>) -> Result<()> {
        if let Some(why) = self.may_run(clone) {
            return Err(Error::conflict("attached", why)
                .on(clone.name.as_str())
                .hint(format!("switch it off, or say that it is: clonegate clone power off {}", clone.name)));
        }
        self.check_held(clone)
    }

    /// Fails while a machine has the clone open, or somebody holds it.
    pub(super) fn check_ordered(&self, clone: &Named<CloneEntry>) -> Result<()> {
        let clients = self.open.attached(clone.state.record.id);
        if !clients.is_empty() {
            return Err(attached(clone.name.as_str(), &clients));
        }
        self.check_held(clone)
    }

    fn would_touch(&self, clone: &Named<CloneEntry>, volume: &Volume, dry_run: bool) -> Touched {
        let attached = self.open.attached(clone.state.record.id);
        let status = volume.status();
        let mut notes = Vec::new();
        if dry_run {
            notes.extend(self.check_ordered(clone).err().iter().map(refused));
        }
        notes.push(self.what_becomes_of_it(&clone.state));
        Touched {
            dry_run,
            names: vec![clone.name.to_string()],
            sessions: u32::try_from(attached.len()).unwrap_or(u32::MAX),
            bytes: status.delta_bytes.saturating_add(status.dirty_bytes),
            notes,
        }
    }

    /// One sentence: what becomes of a delta that is dropped.
    pub(super) fn what_becomes_of_it(&self, clone: &CloneEntry) -> String {
        let window = self.settings.delta.undo_window;
        if clone.record.durability == clonegate_core::format::clone::Durability::Ephemeral || window.is_zero() {
            return "what it wrote is gone for good".to_owned();
        }
        format!("what it wrote can be had back for {} h with clone undo", window.as_secs().div_ceil(3600))
    }

    /// Fails for a clone that has no base to go back to: a reset would leave nothing of it.
    pub(super) fn check_base(clone: &Named<CloneEntry>) -> Result<()> {
        if clone.state.record.base.is_some() {
            return Ok(());
        }
        Err(Error::conflict("full-clone", "it is a full clone: it has no base to go back to")
            .on(clone.name.as_str())
            .hint("restore a snapshot, or delete it and make another"))
    }

    /// Drops what a quiet clone has written.
    pub(super) async fn drop_delta(self: &Arc<Self>, clone: &Named<CloneEntry>) -> Result<()> {
        Self::check_base(clone)?;
        let (_barred, volume) = self.quiet(clone).await?;
        self.for_room(&clone.state.datastore, &volume, volume.reset(None)).await?;
        self.note_reset(clone).await
    }

    pub(super) async fn do_reset_clone(self: Arc<Self>, clone: String, dry_run: bool) -> Result<Touched> {
        let clone = self.find_clone(&clone.parse()?).await?;
        Self::check_base(&clone)?;
        let touched = {
            let (_open, volume) = self.volume(&clone).await?;
            self.would_touch(&clone, &volume, dry_run)
        };
        if dry_run {
            return Ok(touched);
        }
        self.check_ordered(&clone)?;
        let reset = self.drop_delta(&clone).await;
        let act =
            Act { action: "clone reset", object: clone.name.as_str(), reason: "an operator asked for it", policy: "" };
        self.note(act, &reset).await;
        reset?;
        Ok(touched)
    }

    /// Takes the last reset, restore or update back, with what the clone held then.
    pub(super) async fn do_undo_clone(self: Arc<Self>, clone: String, dry_run: bool) -> Result<Touched> {
        let clone = self.find_clone(&clone.parse()?).await?;
        let touched = {
            let (_open, volume) = self.volume(&clone).await?;
            let status = volume.status();
            let now = self.clock.now_ms();
            if status.undo_until_ms.is_none_or(|until| until <= now) {
                return Err(Error::conflict("nothing-to-undo", "there is no reset, restore or update to take back")
                    .on(clone.name.as_str()));
            }
            let notes = vec!["what was written since then is gone for good".to_owned()];
            Touched { notes, ..self.would_touch(&clone, &volume, dry_run) }
        };
        if dry_run {
            return Ok(touched);
        }
        self.check_ordered(&clone)?;
        self.take_back(&clone, &Why::of("taken back, with what it held")).await.map_err(Stuck::into_error)?;
        Ok(touched)
    }

    /// Takes the last reset, restore or update of a quiet clone back.
    pub(super) async fn take_back(
        self: &Arc<Self>,
        clone: &Named<CloneEntry>,
        why: &Why,
    ) -> std::result::Result<(), Stuck> {
        let (barred, volume) = self.quiet(clone).await?;
        let base = volume.status().undo_base;
        self.change_over(clone, barred, volume, base, Change::Undo, why).await
    }

    /// Takes the move of an update back, with what the clone held before it; `false` when that cannot be had back.
    pub(super) async fn take_move_back(
        self: &Arc<Self>,
        clone: &Named<CloneEntry>,
        from: &MovedFrom,
        why: &Why,
    ) -> std::result::Result<bool, Stuck> {
        let undo = {
            let (_open, volume) = self.volume(clone).await?;
            volume.status().undo_base
        };
        let Some(base) = undo else { return Ok(false) };
        let of = match self.datastores.get(&clone.state.datastore)?.table.record(base).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            of => of?,
        };
        // It was reset since then: what would come back is what was dropped on purpose.
        if (&of.template, of.version) != (&from.template, from.version) {
            return Ok(false);
        }
        match self.take_back(clone, why).await {
            Ok(()) => Ok(true),
            Err(stuck) if matches!(stuck.error().code(), "nothing-to-undo" | "base-gone") => Ok(false),
            Err(stuck) => Err(stuck),
        }
    }

    /// Remembers when the clone was reset.
    pub(super) async fn note_reset(&self, clone: &Named<CloneEntry>) -> Result<()> {
        let now = self.clock.now_ms();
        let note = |entry: &mut CloneEntry| {
            entry.last_reset_ms = Some(now);
            entry.left_running = false;
            Ok(())
        };
        self.catalog.change(&clone.name, note).await.map(drop)
    }

    pub(super) async fn do_snapshot_clone(self: Arc<Self>, clone: String, snapshot: String) -> Result<SnapshotView> {
        let snapshot = Name::new(snapshot)?;
        let clone = self.find_clone(&clone.parse()?).await?;
        let (_open, volume) = self.volume(&clone).await?;
        check_new_snapshot(&clone, &snapshot, &volume.status().snapshots)?;
        self.for_room(&clone.state.datastore, &volume, volume.snapshot(snapshot.clone())).await?;
        Ok(SnapshotView { clone: clone.name.to_string(), name: snapshot.to_string() })
    }

    pub(super) async fn do_drop_snapshot(self: Arc<Self>, clone: String, snapshot: String) -> Result<SnapshotView> {
        let snapshot = Name::new(snapshot)?;
        let clone = self.find_clone(&clone.parse()?).await?;
        let (_open, volume) = self.volume(&clone).await?;
        self.for_room(&clone.state.datastore, &volume, volume.drop_snapshot(snapshot.clone())).await?;
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
        let touched = {
            let (_open, volume) = self.volume(&clone).await?;
            self.would_touch(&clone, &volume, dry_run)
        };
        if dry_run {
            return Ok(touched);
        }
        self.check_ordered(&clone)?;
        let (barred, volume) = self.quiet(&clone).await?;
        let kept = volume.status().snapshots.into_iter().find(|s| s.name == snapshot);
        // One that there is not is refused by the volume itself.
        let base = kept.map_or(clone.state.record.base, |kept| kept.base);
        let why = Why::of(format!("restored to snapshot {snapshot}"));
        let restored = self.change_over(&clone, barred, volume, base, Change::Restore(snapshot), &why).await;
        restored.map_err(Stuck::into_error)?;
        Ok(touched)
    }
}

/// Refuses the name of a snapshot that is there.
pub(super) fn check_new_snapshot(clone: &Named<CloneEntry>, name: &Name, there: &[SnapshotStatus]) -> Result<()> {
    if there.iter().any(|snapshot| snapshot.name == *name) {
        return Err(Error::exists("name-taken", "the clone has a snapshot of this name already")
            .on(format!("{}@{name}", clone.name))
            .hint("choose another name"));
    }
    Ok(())
}
