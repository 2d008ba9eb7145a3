//! Encrypts identities at rest, with keys from the gateways' configuration.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use clonegate_core::format::envelope;
use clonegate_core::format::identity::{IdentityRecord, Sealed};
use clonegate_core::{Error, Result};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

use super::facts::{Body, unhex};
use crate::clock::Clock;

/// Most keys in a file.
const KEYS_MAX: usize = 16;

/// The keys of a gateway. The first encrypts; all decrypt, so that a key can be changed.
#[derive(Default)]
pub struct IdentityKeys {
    keys: Vec<([u8; 8], LessSafeKey)>,
}

impl std::fmt::Debug for IdentityKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IdentityKeys").field("keys", &self.keys.len()).finish()
    }
}

impl IdentityKeys {
    /// Reads a key file: each line 32 bytes as 64 hexadecimal digits or as base64; empty lines and those that begin with `#` are passed over.
    ///
    /// # Errors
    /// `Invalid` with code `bad-config`; what is in the file is never shown.
    pub fn load(file: &Path) -> Result<Self> {
        let wrong = |why: String| {
            Error::invalid("bad-config", why)
                .on(file.display().to_string())
                .hint("make one with `openssl rand -hex 32`, for your eyes only")
        };
        let text = std::fs::read_to_string(file).map_err(|e| wrong(format!("the key file cannot be read: {e}")))?;
        let keys = Self::parse(&text).map_err(|e| wrong(e.message().to_owned()))?;
        if readable_by_others(file) {
            tracing::warn!(file = %file.display(), "the key of the identities can be read by others: chmod 600 it");
        }
        Ok(keys)
    }

    fn parse(text: &str) -> Result<Self> {
        let mut keys = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let bytes: Option<[u8; 32]> = unhex(line).or_else(|| STANDARD.decode(line).ok()?.try_into().ok());
            let wrong = || Error::invalid("bad-config", format!("line {} is no key of 32 bytes", number + 1));
            let bytes = bytes.ok_or_else(wrong)?;
            let hash = blake3::derive_key("clonegate 2026 identity key id", &bytes);
            let mut id = [0; 8];
            id.copy_from_slice(&hash[..8]);
            keys.push((id, LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &bytes).map_err(|_| wrong())?)));
        }
        if keys.is_empty() || keys.len() > KEYS_MAX {
            return Err(Error::invalid("bad-config", format!("{} keys: 1 to {KEYS_MAX} are wanted", keys.len())));
        }
        Ok(Self { keys })
    }

    /// Whether what is stored is encrypted.
    pub fn seals(&self) -> bool {
        !self.keys.is_empty()
    }

    /// The stored bytes of a body; plain when there is no key.
    ///
    /// # Errors
    /// Those of encoding.
    pub(crate) fn seal(&self, owner: &str, body: &Body, clock: &Clock) -> Result<Bytes> {
        let mut bytes = body.encode()?;
        let sealed = match self.keys.first() {
            None => None,
            Some((id, key)) => {
                let mut nonce = [0; 12];
                clock.fill(&mut nonce);
                let aad = Aad::from(owner.as_bytes());
                key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut bytes)
                    .map_err(|_| Error::internal("no-seal", "the identity cannot be encrypted"))?;
                Some(Sealed { key: *id, nonce })
            }
        };
        envelope::encode(&IdentityRecord { owner: owner.to_owned(), written_ms: clock.now_ms(), sealed, body: bytes })
    }

    /// Reads stored bytes; tells when they were written and whether they were encrypted.
    ///
    /// # Errors
    /// `Denied` with code `no-identity-key` when this gateway does not have the key; `Corrupt` for what was changed or belongs to another.
    pub(crate) fn open(&self, owner: &str, stored: &[u8]) -> Result<(Body, u64, bool)> {
        let IdentityRecord { owner: said, written_ms, sealed, mut body } = envelope::decode(stored)?;
        if said != owner {
            return Err(Error::corrupt("bad-record", format!("it is the identity of {said}, not of {owner}")));
        }
        let Some(Sealed { key, nonce }) = sealed else { return Ok((Body::decode(&body)?, written_ms, false)) };
        let (_, key) = self.keys.iter().find(|(id, _)| *id == key).ok_or_else(|| {
            Error::denied("no-identity-key", "it is encrypted with a key that this gateway does not have")
                .hint("put the key into the file that `identity.key_file` of the configuration names")
        })?;
        let plain = key
            .open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(owner.as_bytes()), &mut body)
            .map_err(|_| Error::corrupt("bad-record", "the encrypted identity was changed"))?;
        Ok((Body::decode(plain)?, written_ms, true))
    }
}

fn readable_by_others(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(file).is_ok_and(|meta| meta.permissions().mode() & 0o077 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str) -> IdentityKeys {
        IdentityKeys::parse(text).unwrap()
    }

    fn body() -> Body {
        Body { host_key: Some("a".repeat(64)), ..Body::default() }
    }

    #[test]
    fn what_is_sealed_is_read_by_those_who_have_the_key_and_by_nobody_else() {
        let (old, new) = ("07".repeat(32), "08".repeat(32));
        let clock = Clock::simulated(1);
        let stored = keys(&old).seal("clone x", &body(), &clock).unwrap();
        assert!(!String::from_utf8_lossy(&stored).contains("host_key"));
        for ring in [&old, &format!("# new\n{new}\n\n{old}\n")] {
            let (read, _, sealed) = keys(ring).open("clone x", &stored).unwrap();
            assert!(sealed && read == body());
        }
        assert_eq!(keys(&new).open("clone x", &stored).unwrap_err().code(), "no-identity-key");
        assert_eq!(IdentityKeys::default().open("clone x", &stored).unwrap_err().code(), "no-identity-key");
        assert_eq!(keys(&old).open("clone y", &stored).unwrap_err().code(), "bad-record");
        assert_ne!(stored, keys(&old).seal("clone x", &body(), &clock).unwrap(), "no nonce is used twice");
    }

    #[test]
    fn another_owner_cannot_be_written_over_what_is_sealed() {
        let ring = keys(&"07".repeat(32));
        let stored = ring.seal("clone x", &body(), &Clock::simulated(1)).unwrap();
        let mut record: IdentityRecord = envelope::decode(&stored).unwrap();
        record.owner = "clone y".to_owned();
        let forged = envelope::encode(&record).unwrap();
        assert_eq!(ring.open("clone y", &forged).unwrap_err().code(), "bad-record");
        record.owner = "clone x".to_owned();
        record.body[3] ^= 1;
        assert_eq!(ring.open("clone x", &envelope::encode(&record).unwrap()).unwrap_err().code(), "bad-record");
    }

    #[test]
    fn without_a_key_it_is_plain_and_says_so() {
        let ring = IdentityKeys::default();
        let stored = ring.seal("clone x", &body(), &Clock::simulated(1)).unwrap();
        assert!(String::from_utf8_lossy(&stored).contains("host_key"));
        let (read, _, sealed) = ring.open("clone x", &stored).unwrap();
        assert!(!sealed && !ring.seals() && read == body());
    }

    #[test]
    fn a_key_file_is_hexadecimal_or_base64() {
        let base64 = STANDARD.encode([7; 32]);
        assert_eq!(keys(&base64).keys[0].0, keys(&"07".repeat(32)).keys[0].0);
        for wrong in ["", "# none", "secret", &"07".repeat(31), &"0g".repeat(32)] {
            let error = IdentityKeys::parse(wrong).unwrap_err();
            assert!(error.code() == "bad-config" && !error.message().contains("secret"), "{wrong}");
        }
    }
}
