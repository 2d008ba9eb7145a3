//! An SSH host key: made from 32 random bytes, written as OpenSSH writes it (PROTOCOL.key of OpenSSH).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clonegate_core::{Error, Result};
use ring::signature::{Ed25519KeyPair, KeyPair as _};

use super::facts::{hex, unhex};
use crate::clock::Clock;

const KIND: &str = "ssh-ed25519";
/// Characters of a line of a key file.
const LINE: usize = 70;

/// An Ed25519 host key.
#[derive(Clone, PartialEq, Eq)]
pub struct HostKey {
    seed: [u8; 32],
    public: [u8; 32],
    comment: String,
}

impl std::fmt::Debug for HostKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostKey").field("public", &self.public_line()).finish_non_exhaustive()
    }
}

impl HostKey {
    /// A fresh seed, as it is stored.
    pub(crate) fn fresh_seed(clock: &Clock) -> String {
        let mut seed = [0; 32];
        clock.fill(&mut seed);
        hex(&seed)
    }

    /// The key of a stored seed.
    ///
    /// # Errors
    /// `Corrupt` with code `bad-record`.
    pub(super) fn of_seed(seed: &str, host: &str) -> Result<Self> {
        let wrong = || Error::corrupt("bad-record", "the SSH host key of the identity is none");
        let seed: [u8; 32] = unhex(seed).ok_or_else(wrong)?;
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| wrong())?;
        let public = pair.public_key().as_ref().try_into().map_err(|_| wrong())?;
        Ok(Self { seed, public, comment: format!("root@{host}") })
    }

    /// The line of a `.pub` file.
    pub fn public_line(&self) -> String {
        format!("{KIND} {} {}", STANDARD.encode(self.public_blob()), self.comment)
    }

    /// The fingerprint, as `ssh-keygen -l` shows it.
    pub fn fingerprint(&self) -> String {
        let hash = ring::digest::digest(&ring::digest::SHA256, &self.public_blob());
        format!("SHA256:{}", STANDARD.encode(hash).trim_end_matches('='))
    }

    /// The private key, as OpenSSH keeps it in a file.
    pub(super) fn private_file(&self) -> String {
        // Two equal numbers by which a wrong passphrase is found out. There is none, so they may follow from the key.
        let check = &blake3::derive_key("clonegate 2026 ssh check", &self.seed)[..4];
        let mut private = [check, check].concat();
        string(&mut private, KIND.as_bytes());
        string(&mut private, &self.public);
        string(&mut private, &[self.seed, self.public].concat());
        string(&mut private, self.comment.as_bytes());
        private.extend((1..=8u8).take((8 - private.len() % 8) % 8));
        let mut all = b"openssh-key-v1\0".to_vec();
        string(&mut all, b"none");
        string(&mut all, b"none");
        string(&mut all, b"");
        all.extend(1u32.to_be_bytes());
        string(&mut all, &self.public_blob());
        string(&mut all, &private);
        let text = STANDARD.encode(all);
        let mut file = "-----BEGIN OPENSSH PRIVATE KEY-----\n".to_owned();
        for line in text.as_bytes().chunks(LINE) {
            file.push_str(std::str::from_utf8(line).unwrap_or_default());
            file.push('\n');
        }
        file.push_str("-----END OPENSSH PRIVATE KEY-----\n");
        file
    }

    fn public_blob(&self) -> Vec<u8> {
        let mut blob = Vec::new();
        string(&mut blob, KIND.as_bytes());
        string(&mut blob, &self.public);
        blob
    }
}

/// Appends a string of RFC 4251: its length and its bytes.
fn string(to: &mut Vec<u8>, bytes: &[u8]) {
    to.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    to.extend(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_key_and_it_is_not_shown() {
        let seed = HostKey::fresh_seed(&Clock::simulated(1));
        let key = HostKey::of_seed(&seed, "desk-001").unwrap();
        assert_eq!(key, HostKey::of_seed(&seed, "desk-001").unwrap());
        assert!(
            key.public_line().starts_with("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5")
                && key.public_line().ends_with(" root@desk-001")
        );
        assert!(!format!("{key:?}").contains(&seed));
        assert_eq!(HostKey::of_seed("12", "d").unwrap_err().code(), "bad-record");
    }

    /// RFC 8032, 7.1, test 1.
    #[test]
    fn the_public_half_is_that_of_the_rfc() {
        let key = HostKey::of_seed("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60", "d").unwrap();
        assert_eq!(hex(&key.public), "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a");
    }
}
