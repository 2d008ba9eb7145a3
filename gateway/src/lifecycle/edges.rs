//! The gateway as the edges see it: a directory of devices.

use std::sync::Arc;

use clonegate_core::Result;
use clonegate_core::format::catalog::CloneEntry;
use futures::future::BoxFuture;

use super::gateway::Gateway;
use super::open::Open;
use crate::device::Device;
use crate::exports::{Attach, Attachment, Detach, ExportInfo, ExportName, Exports};

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
            let open = self.run(move |gateway| gateway.open_for_machine(name, write)).await?;
            let number = self.open.number();
            open.enter(&attach, number);
            self.open.note_session(open.of);
            tracing::info!(export = %open.device.info().name, client = %attach.client, write = attach.write, "attached");
            let gateway = self.me.upgrade();
            Ok(Box::new(Attached { gateway, open, number, how: Detach::Lost }) as Box<dyn Attachment>)
        })
    }

    fn list(&self, limit: usize) -> BoxFuture<'_, Result<Vec<ExportInfo>>> {
        Box::pin(async move {
            self.run(move |gateway| async move {
                let clones = gateway.catalog.list::<CloneEntry>().await?;
                let info = |clone: crate::catalog::Named<CloneEntry>| ExportInfo {
                    name: clone.name.to_string(),
                    description: format!("clone of {}:{}", clone.state.template, clone.state.version),
                };
                Ok(clones.into_iter().take(limit).map(info).collect())
            })
            .await
        })
    }
}

/// One machine that has a device open.
#[derive(Debug)]
struct Attached {
    gateway: Option<Arc<Gateway>>,
    open: Arc<Open>,
    number: u64,
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
        // Only a clean good-bye that nobody follows may count as a power-off; a lost connection never does.
        if let (Some(gateway), true, Detach::Clean) = (&self.gateway, last, self.how) {
            gateway.clean_detach(&self.open);
        }
    }
}
