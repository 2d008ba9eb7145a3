//! What a machine says of itself when it boots, and which clone is its own.

use std::collections::HashMap;
use std::sync::Arc;

use clonegate_core::limits::CREATE_COUNT_MAX;
use clonegate_core::{ErrorKind, Result};
use serde::Deserialize;
use tokio::sync::Mutex;
use utoipa::IntoParams;

use super::settings::Unknown;
use crate::clock::Clock;
use crate::lifecycle::Gateway;
use crate::lifecycle::boot_labels::{MAC, Mac, SERIAL, UUID, machine_key as key};
use crate::lifecycle::views::{CloneView, CreateClones, Labels, ListQuery};

/// How old the directory of machines may be, milliseconds: a storm of boots reads the catalog once.
const DIRECTORY_AGE_MS: u64 = 1000;

/// What the chain entry is told: any of it may be missing or empty.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct Facts {
    /// MAC address of the card that it boots from.
    #[serde(default)]
    pub(super) mac: Option<String>,
    /// UUID of SMBIOS.
    #[serde(default)]
    pub(super) uuid: Option<String>,
    /// Serial number of SMBIOS.
    #[serde(default)]
    pub(super) serial: Option<String>,
}

impl Facts {
    /// Whether nothing is known: the request comes from the first, unparameterised chain.
    pub(super) fn are_missing(&self) -> bool {
        self.mac.is_none() && self.uuid.is_none() && self.serial.is_none()
    }

    pub(super) fn mac(&self) -> Result<Option<Mac>> {
        self.mac.as_deref().filter(|text| !text.is_empty()).map(str::parse).transpose()
    }

    /// What it said of itself, as labels of a clone that is to be its own.
    pub(super) fn labels(&self) -> Vec<String> {
        // It goes onto the screen of who said it, by a script in which some characters are commands.
        let plain = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || " ._:+/-".contains(c));
        let told = [(MAC, &self.mac), (UUID, &self.uuid), (SERIAL, &self.serial)];
        let told = told.into_iter().filter_map(|(label, text)| Some((label, text.as_deref()?.trim())));
        told.filter(|(_, text)| !text.is_empty() && text.len() <= 64 && plain(text))
            .map(|(label, text)| key(label, text))
            .collect()
    }

    /// Directory keys, the most particular first.
    fn keys(&self) -> Result<Vec<String>> {
        let mac = self.mac()?.map(|mac| key(MAC, &mac.to_string()));
        let given = |name: &str, text: &Option<String>| {
            text.as_deref().map(str::trim).filter(|text| !text.is_empty()).map(|text| key(name, text))
        };
        Ok([mac, given(UUID, &self.uuid), given(SERIAL, &self.serial)].into_iter().flatten().collect())
    }
}

type Machines = HashMap<String, CloneView>;

/// Which clone each machine boots: the labels `boot.mac`, `boot.uuid` and `boot.serial` of the clones.
#[derive(Debug)]
pub(super) struct Directory {
    gateway: Arc<Gateway>,
    clock: Clock,
    known: Mutex<Option<(u64, Arc<Machines>)>>,
    /// Held while a machine is given a clone of a pool: however many ask with one MAC address, they get one.
    giving: Mutex<()>,
}

impl Directory {
    pub(super) fn new(gateway: Arc<Gateway>, clock: Clock) -> Self {
        Self { gateway, clock, known: Mutex::new(None), giving: Mutex::new(()) }
    }

    pub(super) fn gateway(&self) -> &Gateway {
        &self.gateway
    }

    async fn machines(&self, anew: bool) -> Result<Arc<Machines>> {
        let mut known = self.known.lock().await;
        let now = self.clock.now_ms();
        if let Some((at, machines)) = &*known
            && !anew
            && now.saturating_sub(*at) <= DIRECTORY_AGE_MS
        {
            return Ok(Arc::clone(machines));
        }
        let mut machines = Machines::new();
        let mut query = ListQuery { limit: usize::try_from(CREATE_COUNT_MAX).ok(), cursor: None };
        loop {
            let page = self.gateway.list_clones(query.clone()).await?;
            for clone in page.items {
                for label in [MAC, UUID, SERIAL] {
                    if let Some(value) = clone.labels.get(label) {
                        machines.entry(key(label, value)).or_insert_with(|| clone.clone());
                    }
                }
            }
            match page.next {
                Some(next) => query.cursor = Some(next),
                None => break,
            }
        }
        let machines = Arc::new(machines);
        *known = Some((now, Arc::clone(&machines)));
        Ok(machines)
    }

    /// The clone of a machine.
    ///
    /// # Errors
    /// `Invalid` for a malformed MAC; whatever the catalog gives.
    pub(super) async fn find(&self, facts: &Facts) -> Result<Option<CloneView>> {
        let keys = facts.keys()?;
        let machines = self.machines(false).await?;
        Ok(keys.iter().find_map(|key| machines.get(key)).cloned())
    }

    /// The clone that a machine gets which has none: made for it, or out of a pool. However many ask with one MAC, they get one clone.
    ///
    /// # Errors
    /// Those of creating a clone, or of a pool.
    pub(super) async fn assign(&self, facts: &Facts, unknown: &Unknown) -> Result<Option<CloneView>> {
        let Some(mac) = facts.mac()? else { return Ok(None) };
        let template = match unknown {
            Unknown::Create(template) => template,
            Unknown::Pool(pool) => {
                let _giving = self.giving.lock().await;
                let given = self.gateway.allocate(pool, mac.to_string()).await?;
                return self.gateway.show_clone(&given.clone).await.map(Some);
            }
            Unknown::Refuse | Unknown::Menu => return Ok(None),
        };
        let request = CreateClones {
            name: format!("{template}-{}", mac.digits()),
            template: template.clone(),
            labels: Labels::from([(MAC.to_owned(), mac.to_string())]),
            ..CreateClones::default()
        };
        let name = request.name.clone();
        match self.gateway.create_clones(request, false).await {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Exists => {}
            Err(error) => return Err(error),
        }
        self.machines(true).await?;
        self.gateway.show_clone(&name).await.map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_looked_up_by_mac_then_uuid_then_serial() {
        let facts =
            Facts { mac: Some("52-54-00-12-34-56".into()), uuid: Some("ABC".into()), serial: Some(" 7 ".into()) };
        assert_eq!(facts.keys().unwrap(), ["boot.mac=52:54:00:12:34:56", "boot.uuid=abc", "boot.serial=7"]);
        let empty = Facts { mac: Some(String::new()), uuid: None, serial: None };
        assert!(empty.keys().unwrap().is_empty());
    }
}
