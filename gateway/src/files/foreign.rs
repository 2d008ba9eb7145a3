//! What is on a partition whose files are not read here, by its signature: so that a user is told that it is XFS, and not that it is missing.

use super::reader::Reader;

/// Where a signature is, bytes from the start of the partition, and whose it is.
const SIGNATURES: &[(u64, &[u8], &str)] = &[
    (0, b"XFSB", "xfs"),
    (0, b"LUKS\xba\xbe", "luks"),
    (0, b"hsqs", "squashfs"),
    (3, b"NTFS    ", "ntfs"),
    (3, b"EXFAT   ", "exfat"),
    (3, b"-FVE-FS-", "bitlocker"),
    (512, b"LABELONE", "lvm"),
    (1024, b"\x10\x20\xf5\xf2", "f2fs"),
    (4086, b"SWAPSPACE2", "swap"),
    (0x8001, b"CD001", "iso9660"),
    (0x1_0040, b"_BHRfS_M", "btrfs"),
];

/// The name of what is recognised.
pub(super) fn name(reader: &mut Reader) -> Option<&'static str> {
    SIGNATURES.iter().find_map(|(offset, signature, name)| {
        let mut there = vec![0; signature.len()];
        let right = reader.size() >= offset + signature.len() as u64
            && reader.read_at(*offset, &mut there).is_ok()
            && there == *signature;
        right.then_some(*name)
    })
}
