//! The partition table of a volume: GPT (UEFI 2.10 §5.3), else MBR, else the volume is one file system.
//!
//! Read here and not by a library because those found believe the number of entries that an image claims.

use clonegate_core::units::{ByteRange, SECTOR_BYTES};
use clonegate_core::{Error, Result};

use super::reader::Reader;

/// Entries that are looked at, in a GPT and in a chain of extended MBR partitions.
const ENTRIES_MAX: u32 = 128;

/// A partition, or the whole volume as number 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Partition {
    pub(super) number: u32,
    pub(super) range: ByteRange,
}

/// The partitions that lie within the volume, by number; others are left out.
pub(super) fn read(disk: &mut Reader) -> Result<Vec<Partition>> {
    let mut first = [0; 2 * 512];
    if disk.size() < first.len() as u64 {
        return Ok(vec![whole(disk)]);
    }
    sectors(disk, 0, &mut first)?;
    let (mbr, header) = first.split_at(512);
    if header.starts_with(b"EFI PART") {
        return gpt(disk, header);
    }
    if mbr[510..] != [0x55, 0xaa] || is_file_system(mbr) {
        return Ok(vec![whole(disk)]);
    }
    let found = master(disk, mbr)?;
    Ok(if found.is_empty() { vec![whole(disk)] } else { found })
}

fn whole(disk: &Reader) -> Partition {
    Partition { number: 0, range: ByteRange::new(0, disk.size()) }
}

/// The boot sector of a FAT file system also ends in 55 aa.
fn is_file_system(sector: &[u8]) -> bool {
    sector[54..].starts_with(b"FAT1") || sector[82..].starts_with(b"FAT32")
}

fn gpt(disk: &mut Reader, header: &[u8]) -> Result<Vec<Partition>> {
    let table = u64_at(header, 72);
    let (count, bytes) = (u32_at(header, 80).min(ENTRIES_MAX), u32_at(header, 84));
    if !(128..=4096).contains(&bytes) || !bytes.is_power_of_two() {
        return Err(Error::corrupt(
            "partition-table-damaged",
            "the GPT of the volume has entries of an impossible size",
        ));
    }
    let mut entries = vec![0; count as usize * bytes as usize];
    sectors(disk, table, &mut entries)?;
    let mut found = Vec::new();
    for (number, entry) in (1..).zip(entries.chunks_exact(bytes as usize)) {
        if entry[..16] != [0; 16] {
            found.extend(partition(disk, number, u64_at(entry, 32), u64_at(entry, 40).checked_add(1)));
        }
    }
    Ok(found)
}

/// The four primary partitions and, numbered from 5, those of an extended one.
fn master(disk: &mut Reader, mbr: &[u8]) -> Result<Vec<Partition>> {
    let mut found = Vec::new();
    let mut extended = None;
    for (number, entry) in (1..).zip(entries(mbr)) {
        match entry.kind {
            0 => {}
            0x05 | 0x0f | 0x85 => extended = extended.or(Some(u64::from(entry.start))),
            _ => found.extend(partition(disk, number, entry.start.into(), Some(entry.end()))),
        }
    }
    let Some(base) = extended else { return Ok(found) };
    let mut at = base;
    for number in 5..5 + ENTRIES_MAX {
        let mut sector = [0; 512];
        if sectors(disk, at, &mut sector).is_err() || sector[510..] != [0x55, 0xaa] {
            break;
        }
        let [logical, next, ..] = entries(&sector);
        if logical.kind != 0 {
            let start = at.saturating_add(logical.start.into());
            found.extend(partition(disk, number, start, start.checked_add(logical.sectors.into())));
        }
        if next.kind == 0 {
            break;
        }
        at = base.saturating_add(next.start.into());
    }
    Ok(found)
}

struct Entry {
    kind: u8,
    start: u32,
    sectors: u32,
}

impl Entry {
    fn end(&self) -> u64 {
        u64::from(self.start) + u64::from(self.sectors)
    }
}

fn entries(sector: &[u8]) -> [Entry; 4] {
    [446, 462, 478, 494].map(|at| Entry {
        kind: sector[at + 4],
        start: u32_at(sector, at + 8),
        sectors: u32_at(sector, at + 12),
    })
}

fn partition(disk: &Reader, number: u32, first: u64, end: Option<u64>) -> Option<Partition> {
    let start = first.checked_mul(SECTOR_BYTES)?;
    let end = end?.checked_mul(SECTOR_BYTES)?;
    (start < end && end <= disk.size()).then(|| Partition { number, range: ByteRange::new(start, end) })
}

fn sectors(disk: &mut Reader, first: u64, into: &mut [u8]) -> Result<()> {
    let offset = first.checked_mul(SECTOR_BYTES).filter(|offset| *offset < disk.size());
    let offset = offset.ok_or_else(|| {
        Error::corrupt("partition-table-damaged", "the partition table of the volume lies outside it")
    })?;
    disk.read_at(offset, into).map_err(super::read_failed)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|eight| eight.try_into().ok()).map_or(0, u64::from_le_bytes)
}
