//! The gateway as the edges see it: a directory of devices.

use std::sync::Arc;
use std::time::Duration;

use clonegate_core::Result;
use clonegate_core::format::catalog::{CloneEntry, DiskEntry};
use clonegate_core::format::clone::{CloneRecord, Durability};
use futures::future::BoxFuture;

use super::gateway::Gateway;
use super::machines::Before;
use super::open::{BEING_CHANGED, Of, Open};
use crate::catalog::Named;
use crate::device::{Device, Version};
use crate::exports::{Attach, Attachment, Detach, ExportInfo, ExportName, Exports};

/// How long a machine waits for a clone whose bytes are being replaced.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it looks whether that is done.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

impl Exports for Gateway {
    fn peek(&self, name: &str) -> Option<Arc<dyn Device>> {
        self.open.peek(name)
    }

    fn open(&self, name: ExportName) -> BoxFuture<'_, Result<Arc<dyn Device>>> {
        Box::pin(async move {
            let open = self.run(|gateway| gateway.open_export(name)).await?;
            Ok(Arc::clone(&open.device))
        })
    }

    fn attach(&self, name: ExportName, attach: Attach) -> BoxFuture<'_, Result<Box<dyn Attachment>>> {
        Box::pin(async move {
            let write = attach.write;
            let number = self.open.number();
            let begun = self.clock.instant();
            let open = loop {
                let name = name.clone();
                let open = self.run(move |gateway| gateway.open_for_machine(name, write)).await?;
                match open.enter(&attach, number) {
                    // A reset or a move under way takes a moment; the machine gets what it leads to.
                    Err(error) if error.code() == BEING_CHANGED && begun.elapsed() < PATIENCE => {
                        self.clock.sleep(LOOK_AGAIN).await;
                    }
                    entered => {
                        entered?;
                        break open;
                    }
                }
            };
            self.open.note_session(open.of);
            // A reader is no machine either.
            let before = match open.of {
                Of::Clone(id) if write => self.machines.attached(id),
                _ => Before::default(),
            };
            tracing::info!(export = %open.device.info().name, client = %attach.client, write = attach.write, "attached");
            let gateway = self.me.upgrade();
            let version = open.device.version().0;
            Ok(Box::new(Attached { gateway, open, number, before, version, how: Detach::Lost }) as Box<dyn Attachment>)
        })
    }

    fn ready(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.run(|gateway| async move { gateway.ready.ask(&gateway.home, &gateway.clock).await }))
    }

    fn list(&self, limit: usize) -> BoxFuture<'_, Result<Vec<ExportInfo>>> {
        Box::pin(async move {
            self.run(move |gateway| async move {
                let clones = gateway.catalog.list::<CloneEntry>().await?;
                let clone = |clone: Named<CloneEntry>| ExportInfo {
                    name: clone.name.to_string(),
                    description: format!(
                        "clone of {}:{}, durability {}",
                        clone.state.template,
                        clone.state.version,
                        mode(&clone.state.record)
                    ),
                };
                let disk = |disk: Named<DiskEntry>| {
                    let whose = disk.state.attached_to.as_ref().map(|clone| format!(" of {clone}")).unwrap_or_default();
                    ExportInfo {
                        name: format!("disk/{}", disk.name),
                        description: format!("data disk{whose}, durability {}", mode(&disk.state.record)),
                    }
                };
                let disks = gateway.catalog.list::<DiskEntry>().await?;
                let served = disks.into_iter().filter(|disk| disk.state.archived_ms.is_none());
                Ok(clones.into_iter().map(clone).chain(served.map(disk)).take(limit).collect())
            })
            .await
        })
    }
}

fn mode(record: &CloneRecord) -> &'static str {
    match record.durability {
        Durability::Ephemeral => "ephemeral",
        Durability::Local => "local",
        Durability::Object => "object",
    }
}

/// One machine that has a device open.
#[derive(Debug)]
struct Attached {
    gateway: Option<Arc<Gateway>>,
    open: Arc<Open>,
    number: u64,
    before: Before,
    /// Of the bytes when it came.
    version: Version,
    how: Detach,
}

impl Attachment for Attached {
    fn device(&self) -> &Arc<dyn Device> {
        &self.open.device
    }

    fn begin_write(&self) -> Result<()> {
        self.open.claim(self.number)
    }

    fn detach(mut self: Box<Self>, how: Detach) {
        self.how = how;
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let last = self.open.leave(self.number);
        tracing::info!(export = %self.open.device.info().name, how = ?self.how, last, "detached");
        let (Some(gateway), Of::Clone(id)) = (&self.gateway, self.open.of) else { return };
        // Only a clean good-bye of who wrote, that nobody follows, may count as a power-off; a lost connection never does, and
        // neither does a tool that has a look.
        let wrote = self.open.device.version().0 != self.version || gateway.reset_waits.lock().contains(&id);
        match self.how {
            Detach::Clean if last && wrote => gateway.clean_detach(&self.open),
            _ if self.open.is_attached() => {}
            Detach::Clean => gateway.machines.again(id, self.before),
            Detach::Lost => gateway.machines.lost(id),
        }
    }
}
