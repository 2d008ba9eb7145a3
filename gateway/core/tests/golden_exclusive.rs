//! The stored bytes of the owner record of an exclusive datastore are frozen.
//!
//! `CLONEGATE_UPDATE_GOLDEN=1` writes the file anew; that is right only for a new version of the record.

use std::fmt::Write as _;

use clonegate_core::format::envelope;
use clonegate_core::format::exclusive::ExclusiveOwner;
use clonegate_core::ids::{GatewayId, Nonce};

#[test]
fn the_owner_of_an_exclusive_store_is_written_and_read_as_ever() {
    let owner = ExclusiveOwner {
        gateway: GatewayId::from_bytes([1; 16]),
        nonce: Nonce([2; 16]),
        host: "alpha".to_owned(),
        claimed_ms: 1_767_225_600_000,
    };
    let bytes = envelope::encode(&owner).unwrap();
    let mut text = String::new();
    for line in bytes.chunks(16) {
        for byte in line {
            write!(text, "{byte:02x}").unwrap();
        }
        text.push('\n');
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/exclusive-1.hex");
    if std::env::var_os("CLONEGATE_UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(path).unwrap());
    assert_eq!(envelope::decode::<ExclusiveOwner>(&bytes).unwrap(), owner);
}
