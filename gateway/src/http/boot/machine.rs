//! What a machine says of itself when it boots, and which clone is its own.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use clonegate_core::limits::CREATE_COUNT_MAX;
use clonegate_core::{Error, ErrorKind, Result};
use serde::Deserialize;
use tokio::sync::Mutex;
use utoipa::IntoParams;

use super::settings::Unknown;
use crate::clock::Clock;
use crate::lifecycle::Gateway;
use crate::lifecycle::views::{CloneView, CreateClones, Labels, ListQuery};

/// Labels by which a clone belongs to a machine.
pub(super) const MAC: &str = "boot.mac";
const UUID: &str = "boot.uuid";
const SERIAL: &str = "boot.serial";

/// How old the directory of machines may be, milliseconds: a storm of boots reads the catalog once.
const DIRECTORY_AGE_MS: u64 = 1000;

/// A network card's address: 52:54:00:12:34:56.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Mac([u8; 6]);

impl FromStr for Mac {
    type Err = Error;

    /// Six bytes in hexadecimal, with `:`, `-`, `.` or nothing between.
    fn from_str(text: &str) -> Result<Self> {
        let digits: Vec<u8> = text.bytes().filter(|byte| !b":-.".contains(byte)).collect();
        let mut bytes = [0; 6];
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|value| u8::try_from(value).ok());
        let right = digits.len() == 12 && text.len() <= 17;
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            match (digit(pair[0]), digit(pair[1])) {
                (Some(high), Some(low)) if right => *byte = high * 16 + low,
                _ => return Err(bad_mac(text)),
            }
        }
        if right { Ok(Self(bytes)) } else { Err(bad_mac(text)) }
    }
}

fn bad_mac(text: &str) -> Error {
    let shown: String = text.chars().take(32).collect();
    Error::invalid("bad-mac", format!("{shown:?} is no MAC address")).hint("write it as 52-54-00-12-34-56")
}

impl Mac {
    /// As in names: `525400123456`.
    fn digits(self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

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

    /// Directory keys, the most particular first.
    fn keys(&self) -> Result<Vec<String>> {
        let mac = self.mac()?.map(|mac| key(MAC, &mac.to_string()));
        let given = |name: &str, text: &Option<String>| {
            text.as_deref().map(str::trim).filter(|text| !text.is_empty()).map(|text| key(name, text))
        };
        Ok([mac, given(UUID, &self.uuid), given(SERIAL, &self.serial)].into_iter().flatten().collect())
    }
}

fn key(label: &str, value: &str) -> String {
    let value = match value.parse::<Mac>() {
        Ok(mac) if label == MAC => mac.to_string(),
        _ => value.trim().to_lowercase(),
    };
    format!("{label}={value}")
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
    fn a_mac_is_read_however_it_is_written() {
        for text in ["52:54:00:12:34:Ab", "52-54-00-12-34-ab", "5254.0012.34ab", "5254001234ab"] {
            assert_eq!(text.parse::<Mac>().unwrap().to_string(), "52:54:00:12:34:ab", "{text}");
        }
        for text in
            ["", "52:54:00:12:34", "52:54:00:12:34:5g", "52:54:00:12:34:56:78", "é2:54:00:12:34:5", "-:-:-:-:-:-"]
        {
            assert_eq!(text.parse::<Mac>().unwrap_err().code(), "bad-mac", "{text}");
        }
    }

    #[test]
    fn a_machine_is_looked_up_by_mac_then_uuid_then_serial() {
        let facts =
            Facts { mac: Some("52-54-00-12-34-56".into()), uuid: Some("ABC".into()), serial: Some(" 7 ".into()) };
        assert_eq!(facts.keys().unwrap(), ["boot.mac=52:54:00:12:34:56", "boot.uuid=abc", "boot.serial=7"]);
        let empty = Facts { mac: Some(String::new()), uuid: None, serial: None };
        assert!(empty.keys().unwrap().is_empty());
    }
}
