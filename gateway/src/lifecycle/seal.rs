//! Looks into an image for what would make all its clones the same machine.

use std::sync::Arc;

use clonegate_core::units::ByteRange;
use futures::TryStreamExt;

use crate::device::Device;
use crate::files::{self, Found, Place};

/// Most bytes read of a file that is looked at.
const LOOK_BYTES: u64 = 4096;

/// What is in the image that should not be in a template, one sentence each. What cannot be read is passed over: not every image has a file
/// system that is known here.
pub(super) async fn findings(device: Arc<dyn Device>) -> Vec<String> {
    let mut found = Vec::new();
    let Ok(partitions) = files::partitions(Arc::clone(&device)).await else { return found };
    for partition in partitions {
        if partition.file_system.is_none() {
            continue;
        }
        let number = partition.number;
        let place = || if number == 0 { Place::Any } else { Place::Number(number) };
        if let Some(id) = read(&device, place(), "/etc/machine-id").await {
            let id = id.trim();
            if !id.is_empty() && id != "uninitialized" {
                found.push(format!("partition {number}: /etc/machine-id is filled: clones would share a DHCP address"));
            }
        }
        for kind in ["rsa", "ecdsa", "ed25519"] {
            let path = format!("/etc/ssh/ssh_host_{kind}_key");
            if read(&device, place(), &path).await.is_some() {
                found.push(format!("partition {number}: {path} is there: clones would share a host key"));
            }
        }
        if read(&device, place(), "/var/lib/cloud/data/instance-id").await.is_some() {
            found.push(format!("partition {number}: cloud-init has run: clones would not be set up anew"));
        }
    }
    found
}

async fn read(device: &Arc<dyn Device>, place: Place, path: &str) -> Option<String> {
    let Ok(Found::File(file)) = files::open(Arc::clone(device), place, path).await else { return None };
    let end = file.size.min(LOOK_BYTES);
    let parts: Vec<bytes::Bytes> = file.stream(ByteRange::new(0, end)).try_collect().await.ok()?;
    Some(String::from_utf8_lossy(&parts.concat()).into_owned())
}
