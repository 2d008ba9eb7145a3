//! Snapshots as exports, and an operator's yes: to what a lost journal held, and to that a gateway is gone.

use std::sync::Arc;

use clonegate_core::Result;
use clonegate_core::format::catalog::CloneEntry;
use clonegate_core::ids::Name;

use super::gateway::Gateway;
use super::open::{Of, Open};
use super::views::{KeptSnapshot, Touched};
use crate::exports::CloneRef;

impl Gateway {
    /// The device of a snapshot, opened if need be.
    pub(super) async fn open_snapshot(
        self: &Arc<Self>,
        text: &str,
        clone: &CloneRef,
        name: &Name,
    ) -> Result<Arc<Open>> {
        let found = self.find_clone(clone).await?;
        let id = found.state.record.id;
        let (_open, volume) = self.volume(&found).await?;
        let device = volume.open_snapshot(name).await?;
        let of = Of::Snapshot(id, device.version().0);
        let _lock = self.open.lock(of).await;
        let texts = [text.to_owned(), format!("{}@{name}", found.name), format!("{id}@{name}")];
        let open = self.open.of(of).unwrap_or_else(|| Open::new(of, device, None));
        self.open.insert(&texts, &open);
        Ok(open)
    }

    pub(super) async fn do_list_snapshots(self: Arc<Self>, clone: String) -> Result<Vec<KeptSnapshot>> {
        let found = self.find_clone(&clone.parse()?).await?;
        let (_open, volume) = self.volume(&found).await?;
        let view = |snapshot: crate::volume::SnapshotStatus| KeptSnapshot {
            export: format!("{}@{}", found.name, snapshot.name),
            disk: format!("/v1/clones/{}@{}/disk", found.name, snapshot.name),
            name: snapshot.name.to_string(),
            made_ms: snapshot.time_ms,
            base: snapshot.base.map(|base| base.to_string()),
        };
        Ok(volume.status().snapshots.into_iter().map(view).collect())
    }

    /// An operator's yes: flushed writes that only a lost journal held are given up, and the clone is marked.
    pub(super) async fn do_accept_loss(self: Arc<Self>, clone: String, dry_run: bool) -> Result<Touched> {
        let found = self.find_clone(&clone.parse()?).await?;
        let (_open, volume) = self.volume(&found).await?;
        let mut touched = Touched { dry_run, ..Touched::default() };
        match volume.lost_tail().await? {
            None => touched.notes.push("nothing is missing: there is nothing to accept".to_owned()),
            Some(missing) => {
                touched.names.push(found.name.to_string());
                touched.notes.push(missing.message().to_owned());
                if !dry_run {
                    volume.accept_lost_tail();
                    volume.claim().await?;
                    tracing::warn!(clone = %found.name, what = missing.message(), "an operator gave writes up");
                }
            }
        }
        Ok(touched)
    }

    /// An operator's word that the gateway which has a clone open is gone, or does nothing with it: this one takes it over. Everything that was
    /// acknowledged is there; the other one, if it lives, can write nothing more.
    pub(super) async fn do_take_over(self: Arc<Self>, clone: String, dry_run: bool) -> Result<Touched> {
        let found = self.find_clone(&clone.parse()?).await?;
        let (_open, volume) = self.volume(&found).await?;
        let mut touched = Touched { dry_run, ..Touched::default() };
        match volume.owner_elsewhere().await? {
            None => touched.notes.push("no other gateway has it open: there is nothing to take over".to_owned()),
            Some(gateway) => {
                touched.names.push(found.name.to_string());
                touched.notes.push(format!("the gateway {gateway} can write nothing more to it"));
                if !dry_run {
                    volume.claim().await?;
                    tracing::info!(clone = %found.name, from = %gateway, "taken over");
                }
            }
        }
        Ok(touched)
    }

    /// Whether flushed writes of a clone may be missing, when it is open here.
    pub(super) fn has_lost_tail(&self, clone: &CloneEntry) -> bool {
        let open = self.open.of(Of::Clone(clone.record.id));
        open.and_then(|open| open.volume.as_ref().map(|volume| volume.status().lost_tail)).unwrap_or(false)
    }
}
