//! Walks the tables of a qcow2 image: which clusters hold something, and whether every one of them lies within the file.
//!
//! The library that reads the data gives zeroes for what lies past the end of the file, which here would be zeroes in place of data that
//! should be there. So all tables are walked once before anything is imported, and whatever points outside the file, overlaps, or
//! could make a small file into endless work is refused.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use clonegate_core::{Error, Result};

use super::header::{Header, truncated};

/// Offset bits of a table entry.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Reserved bits of a level 1 entry; bit 63 says that the table is used once.
const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
/// Reserved bits of a level 2 entry of an uncompressed cluster: bit 0 says zeroes, bit 62 compressed, bit 63 used once.
const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;
const COMPRESSED: u64 = 1 << 62;
const ZEROES: u64 = 1;
/// Deflate makes at most so many bytes of one.
const DEFLATE_RATIO_MAX: u64 = 1032;
const SECTOR: u64 = 512;

/// One cluster that holds something.
enum Cluster {
    Plain(u64),
    Compressed { offset: u64, end: u64 },
}

/// Checks every entry of every table.
///
/// # Errors
/// `Invalid` with code `truncated-image` or `bad-qcow2-tables`.
pub(super) fn check(file: &File, header: &Header, file_bytes: u64) -> Result<()> {
    let cluster_bytes = header.cluster_bytes();
    let (mut tables, mut plain, mut compressed) = (0u64, 0u64, 0u64);
    for_each_table(file, header, |guest, l2_offset, l2| {
        if l2_offset.checked_add(cluster_bytes).is_none_or(|end| end > file_bytes) {
            return Err(truncated());
        }
        tables += 1;
        for (number, entry) in entries(l2).enumerate() {
            let at = guest + number as u64 * cluster_bytes;
            if at >= header.size {
                break;
            }
            match parse(entry, header)? {
                None => {}
                Some(Cluster::Plain(offset)) => {
                    plain += 1;
                    // The last cluster of the disk need not be there to its end.
                    let needed = cluster_bytes.min(header.size - at);
                    if offset < cluster_bytes || offset.checked_add(needed).is_none_or(|end| end > file_bytes) {
                        return Err(truncated());
                    }
                }
                Some(Cluster::Compressed { offset, end }) => {
                    compressed += 1;
                    if offset < cluster_bytes || offset >= file_bytes || end > file_bytes.next_multiple_of(SECTOR) {
                        return Err(truncated());
                    }
                }
            }
        }
        // Clusters that hold data are used once each, so there cannot be more than the file has room for: a table that points to
        // one cluster over and over would make a small file an endless image.
        let least =
            (tables + plain).saturating_mul(cluster_bytes) + compressed * (cluster_bytes / DEFLATE_RATIO_MAX).max(1);
        if least > file_bytes.next_multiple_of(cluster_bytes) {
            return Err(bad("more data than the file holds: its tables overlap"));
        }
        Ok(())
    })
}

/// Gives the runs of the disk that hold something, ascending, clipped to its size. `found` ends the walk by an error.
///
/// # Errors
/// Those of `found`; `Invalid` when a table cannot be read.
pub(super) fn for_each_run(file: &File, header: &Header, mut found: impl FnMut(u64, u64) -> Result<()>) -> Result<()> {
    let cluster_bytes = header.cluster_bytes();
    let mut run: Option<(u64, u64)> = None;
    for_each_table(file, header, |guest, _, l2| {
        for (number, entry) in entries(l2).enumerate() {
            let at = guest + number as u64 * cluster_bytes;
            if at >= header.size {
                break;
            }
            if parse(entry, header)?.is_none() {
                continue;
            }
            let end = (at + cluster_bytes).min(header.size);
            run = match run.take() {
                Some((start, reached)) if reached == at => Some((start, end)),
                Some((start, reached)) => {
                    found(start, reached)?;
                    Some((at, end))
                }
                None => Some((at, end)),
            };
        }
        // So that a walk over a large image hands out what it has, table by table.
        run.take().map_or(Ok(()), |(start, end)| found(start, end))
    })
}

fn for_each_table(file: &File, header: &Header, mut each: impl FnMut(u64, u64, &[u8]) -> Result<()>) -> Result<()> {
    let cluster = usize::try_from(header.cluster_bytes()).unwrap_or(usize::MAX);
    let mut l2 = vec![0; cluster];
    let mut l1 = vec![0; cluster];
    let per_read = header.cluster_bytes() / 8;
    for first in (0..header.l1_entries).step_by(cluster / 8) {
        let wanted = usize::try_from((header.l1_entries - first).min(per_read) * 8).unwrap_or(0);
        read(file, &mut l1[..wanted], header.l1_offset + first * 8)?;
        for (number, entry) in entries(&l1[..wanted]).enumerate() {
            let (offset, guest) = (entry & OFFSET, (first + number as u64) * header.l2_span_bytes());
            if entry & L1_RESERVED != 0 || !offset.is_multiple_of(header.cluster_bytes()) {
                return Err(bad("a level 1 entry is none"));
            }
            if offset == 0 {
                continue;
            }
            read(file, &mut l2, offset)?;
            each(guest, offset, &l2)?;
        }
    }
    Ok(())
}

fn entries(table: &[u8]) -> impl Iterator<Item = u64> {
    table.as_chunks::<8>().0.iter().map(|bytes| u64::from_be_bytes(*bytes))
}

fn parse(entry: u64, header: &Header) -> Result<Option<Cluster>> {
    if entry & COMPRESSED != 0 {
        // The low bits are the offset, those above it count further sectors.
        let offset_bits = 62 - (header.cluster_bits - 8);
        let offset = entry & ((1 << offset_bits) - 1);
        let sectors = (entry & !(3 << 62)) >> offset_bits;
        let end = (offset / SECTOR + sectors + 1).checked_mul(SECTOR).ok_or_else(|| bad("a level 2 entry is none"))?;
        return Ok(Some(Cluster::Compressed { offset, end }));
    }
    let offset = entry & OFFSET;
    let reads_zero = entry & ZEROES != 0;
    if entry & L2_RESERVED != 0 || !offset.is_multiple_of(header.cluster_bytes()) || (reads_zero && header.version < 3)
    {
        return Err(bad("a level 2 entry is none"));
    }
    Ok((offset != 0 && !reads_zero).then_some(Cluster::Plain(offset)))
}

fn read(file: &File, table: &mut [u8], offset: u64) -> Result<()> {
    file.read_exact_at(table, offset).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => truncated(),
        // An offset that is no offset of any file.
        io::ErrorKind::InvalidInput => truncated(),
        _ => Error::invalid("unreadable-image", "the image cannot be read").because(error),
    })
}

fn bad(what: &str) -> Error {
    Error::invalid("bad-qcow2-tables", format!("the image is damaged: {what}")).hint("try: qemu-img check IMAGE")
}
