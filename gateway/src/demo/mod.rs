//! A tiny bootable disk image, made in code.
//!
//! It is a disk of 16 MiB, nearly all zeroes, with a BIOS boot sector that reads parts from the beginning, the middle and the very end of the disk,
//! adds them up and prints `CLONEGATE DEMO OK checksum …` on the screen and on the first serial port, or `… BAD …` when one byte of
//! them is another. So a machine that boots it has proven the whole way from the store to its disk.

mod asm;
mod boot;

use boot::{CODE_BYTES, PART_SECTORS_MAX, Part, checksum, program};

/// Size of the image, bytes.
pub const SIZE_BYTES: u64 = 16 * 1024 * 1024;

const SECTOR: usize = 512;
const SECTORS: u32 = 32 * 1024;
/// First sector of the partition.
const PARTITION: u32 = 2048;

/// What the boot sector reads: right behind itself, across the border of a chunk, at odd places, and to the last sector.
const PARTS: [Part; 4] = [
    Part { sector: 1, count: 7 },
    Part { sector: PARTITION - 9, count: 32 },
    Part { sector: 20_001, count: 21 },
    Part { sector: SECTORS - 16, count: 16 },
];

/// The image.
pub fn image() -> Vec<u8> {
    let mut image = vec![0; SECTORS as usize * SECTOR];
    let mut all = Vec::new();
    for part in PARTS {
        debug_assert!(part.count <= PART_SECTORS_MAX, "the boot sector reads no more at once");
        let start = part.sector as usize * SECTOR;
        let bytes = &mut image[start..start + usize::from(part.count) * SECTOR];
        fill(part.sector, bytes);
        all.extend_from_slice(bytes);
    }
    let code = program(&PARTS, checksum(&all)).expect("a test builds it: it fits and every label is there");
    image[..code.len()].copy_from_slice(&code);
    image[CODE_BYTES..SECTOR].copy_from_slice(&partition_table());
    image
}

/// The line that the image prints when a machine boots it and everything is right.
pub fn expected_line() -> String {
    let image = image();
    let mut all = Vec::new();
    for part in PARTS {
        let start = part.sector as usize * SECTOR;
        all.extend_from_slice(&image[start..start + usize::from(part.count) * SECTOR]);
    }
    format!("{}{:08x}", String::from_utf8_lossy(boot::OK), checksum(&all))
}

/// Text that tells where it belongs, so that a part read from a wrong place adds up to another sum.
fn fill(first: u32, bytes: &mut [u8]) {
    for (number, sector) in (first..).zip(bytes.chunks_mut(SECTOR)) {
        for (line, part) in sector.chunks_mut(32).enumerate() {
            let text = format!("sector {number:>8} line {line:>2} {:>8x}\n", number.wrapping_mul(0x9e37_79b1));
            part.copy_from_slice(&text.as_bytes()[..part.len()]);
        }
    }
}

/// One active partition of a type that no system mounts, to the end of the disk, and the signature.
fn partition_table() -> [u8; 66] {
    let mut table = [0; 66];
    table[0] = 0x80;
    table[1..4].copy_from_slice(&[0xfe, 0xff, 0xff]); // use the sector numbers below instead
    table[4] = 0x7f;
    table[5..8].copy_from_slice(&[0xfe, 0xff, 0xff]);
    table[8..12].copy_from_slice(&PARTITION.to_le_bytes());
    table[12..16].copy_from_slice(&(SECTORS - PARTITION).to_le_bytes());
    table[64..].copy_from_slice(&[0x55, 0xaa]);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_has_a_boot_sector_and_one_partition() {
        let image = image();
        assert_eq!(image.len() as u64, SIZE_BYTES);
        assert_eq!(image[510..512], [0x55, 0xaa]);
        assert_eq!(image[446], 0x80);
        let word = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().unwrap());
        assert_eq!((word(454), word(454) + word(458)), (PARTITION, SECTORS));
        assert!(expected_line().starts_with("CLONEGATE DEMO OK checksum "));
    }

    #[test]
    fn nearly_all_of_it_is_zeroes_and_no_byte_of_the_rest_can_change_unseen() {
        let image = image();
        let used = image.chunks(SECTOR).filter(|sector| sector.iter().any(|byte| *byte != 0)).count();
        let parts: usize = PARTS.iter().map(|part| usize::from(part.count)).sum();
        assert_eq!(used, parts + 1);
        let part = vec![7; 4096];
        for at in 0..part.len() {
            let mut other = part.clone();
            other[at] ^= 0x10;
            assert_ne!(checksum(&part), checksum(&other));
        }
    }
}
