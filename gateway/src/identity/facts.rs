//! The facts of one machine: its spec with everything filled in that follows from the clone's id.

use clonegate_core::ids::CloneId;
use clonegate_core::limits::IDENTITY_BYTES_MAX;
use clonegate_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::spec::{HostKeys, IdentitySpec};
use super::ssh::HostKey;

/// What is stored of an identity: the spec, and what was made for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Body {
    /// What the operator said.
    pub spec: IdentitySpec,
    /// Secret half of the SSH host key, 64 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_key: Option<String>,
    /// Counts the MAC addresses that followed from the clone's id.
    #[serde(default)]
    pub mac_number: u32,
}

impl Body {
    /// The stored bytes.
    ///
    /// # Errors
    /// `Invalid` with code `bad-identity` when it is too large.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let bytes = serde_json::to_vec(self).map_err(|e| Error::internal("bad-identity", e.to_string()))?;
        if bytes.len() > IDENTITY_BYTES_MAX {
            return Err(Error::invalid("bad-identity", format!("an identity of {} bytes", bytes.len()))
                .hint(format!("at most {IDENTITY_BYTES_MAX}; larger user-data is fetched with #include")));
        }
        Ok(bytes)
    }

    /// Reads stored bytes.
    ///
    /// # Errors
    /// `Corrupt` with code `bad-record`.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes)
            .map_err(|e| Error::corrupt("bad-record", format!("the identity does not decode: {e}")))
    }
}

/// Everything about one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The clone.
    pub name: String,
    /// Its host name.
    pub hostname: String,
    /// Changes when, and only when, it is to be a new machine.
    pub instance_id: String,
    /// MAC address of its first card.
    pub mac: String,
    /// 32 hexadecimal digits.
    pub machine_id: String,
    /// The machine's SSH host key.
    pub host_key: Option<HostKey>,
    /// What it follows from.
    pub spec: IdentitySpec,
}

impl Identity {
    /// The identity of a clone. Without a body it follows from the clone's id and name alone, and the machine makes its own SSH host keys.
    ///
    /// # Errors
    /// `Corrupt` when a stored key cannot be one.
    pub fn of(id: CloneId, name: &str, generation: u32, body: Option<&Body>) -> Result<Self> {
        let instance_id = format!("{id}-{generation}");
        let spec = body.map_or_else(IdentitySpec::default, |body| body.spec.clone());
        let mac_number = body.map_or(0, |body| body.mac_number);
        let mac = spec.mac.as_ref().map_or_else(|| derived_mac(id, mac_number), |mac| mac.to_lowercase());
        let machine_id = spec.machine_id.clone().unwrap_or_else(|| {
            let hash = derived("clonegate 2026 machine-id", instance_id.as_bytes());
            hex(&hash[..16])
        });
        let hostname = spec.hostname.replace("{name}", name);
        let seed =
            body.filter(|body| body.spec.ssh_host_keys == HostKeys::Generate).and_then(|body| body.host_key.as_ref());
        let host_key = seed.map(|seed| HostKey::of_seed(seed, &hostname)).transpose()?;
        Ok(Self { name: name.to_owned(), hostname, instance_id, mac, machine_id, host_key, spec })
    }
}

/// A locally administered address of one card.
fn derived_mac(id: CloneId, number: u32) -> String {
    let mut input = id.bytes().to_vec();
    input.extend(number.to_le_bytes());
    let hash = derived("clonegate 2026 mac", &input);
    let bytes: Vec<String> = hash[..5].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("02:{}", bytes.join(":"))
}

fn derived(what: &str, input: &[u8]) -> [u8; 32] {
    blake3::derive_key(what, input)
}

/// Bytes as hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Hexadecimal digits as `N` bytes.
pub(super) fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|value| u8::try_from(value).ok());
    if text.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? * 16 + digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(byte: u8) -> CloneId {
        CloneId::from_bytes([byte; 16])
    }

    #[test]
    fn what_is_not_said_follows_from_the_id_and_stays_the_same() {
        let one = Identity::of(id(1), "desk-001", 1, None).unwrap();
        assert_eq!(one, Identity::of(id(1), "desk-001", 1, None).unwrap());
        assert_eq!((one.hostname.as_str(), one.host_key.is_none()), ("desk-001", true));
        assert_eq!(one.instance_id, format!("{}-1", id(1)));
        assert_eq!(
            (one.mac.as_str(), one.machine_id.as_str()),
            ("02:09:0f:fa:a7:94", "e3aed43b47d81097e2c368bf80cf07fd")
        );
        let other = Identity::of(id(2), "desk-001", 1, None).unwrap();
        assert!(one.mac != other.mac && one.machine_id != other.machine_id && one.instance_id != other.instance_id);
    }

    #[test]
    fn a_new_generation_is_a_new_machine_on_the_same_card() {
        let one = Identity::of(id(1), "d", 1, None).unwrap();
        let two = Identity::of(id(1), "d", 2, None).unwrap();
        assert!(one.instance_id != two.instance_id && one.machine_id != two.machine_id);
        assert_eq!(one.mac, two.mac);
        let body = Body { mac_number: 1, ..Body::default() };
        assert_ne!(Identity::of(id(1), "d", 2, Some(&body)).unwrap().mac, two.mac);
    }

    #[test]
    fn a_body_is_read_back_and_has_an_end() {
        let body = Body { host_key: Some(hex(&[7; 32])), mac_number: 3, ..Body::default() };
        assert_eq!(Body::decode(&body.encode().unwrap()).unwrap(), body);
        assert_eq!(Body::decode(b"{\"spec\":{},\"other\":1}").unwrap_err().code(), "bad-record");
        let spec = IdentitySpec { user_data: Some("x".repeat(IDENTITY_BYTES_MAX)), ..IdentitySpec::default() };
        assert_eq!(Body { spec, ..Body::default() }.encode().unwrap_err().code(), "bad-identity");
    }
}
