//! A qcow2 image, version 3, as QEMU's `docs/interop/qcow2.txt` says: written once from front to back, but for the header and the tables at its head.
//!
//! ```text
//! cluster 0        header
//! cluster 1…       L1 table
//! …                data clusters, and behind those of 512 MiB of the disk their L2 table
//! …                refcount blocks, refcount table
//! ```
//!
//! Clusters of zeroes are not there. Every cluster of the file is used once.

use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::FileExt;

use super::Writer;

const CLUSTER_BITS: u32 = 16;
const CLUSTER: usize = 1 << CLUSTER_BITS;
/// Entries of an L2 table, which is one cluster.
const L2_ENTRIES: u64 = CLUSTER as u64 / 8;
/// Clusters that a refcount block counts, 16 bits each.
const REFCOUNTS: u64 = CLUSTER as u64 / 2;
/// Refcount of exactly one: the cluster may be written in place.
const COPIED: u64 = 1 << 63;
const HEADER_BYTES: u32 = 104;

/// Writes a qcow2 image.
pub(super) struct Qcow2 {
    file: File,
    size: u64,
    l1: Vec<u64>,
    /// The next free cluster of the file.
    next: u64,
    /// The L2 table that is being filled: its index in the L1 table, and its entries.
    l2: Option<(u64, Vec<u64>)>,
    /// The guest cluster that is being filled.
    open: Option<(u64, Vec<u8>)>,
}

impl Qcow2 {
    pub(super) fn new(file: File, size: u64) -> Result<Self> {
        let entries = size.div_ceil(CLUSTER as u64).div_ceil(L2_ENTRIES).max(1);
        let l1 = vec![0; usize::try_from(entries).map_err(|_| too_large())?];
        let next = 1 + entries.div_ceil(L2_ENTRIES);
        Ok(Self { file, size, l1, next, l2: None, open: None })
    }

    /// Appends clusters; says where they begin in the file.
    fn append(&mut self, bytes: &[u8]) -> Result<u64> {
        let offset = self.next << CLUSTER_BITS;
        self.file.write_all_at(bytes, offset)?;
        self.next += (bytes.len() as u64).div_ceil(CLUSTER as u64);
        Ok(offset)
    }

    fn close_cluster(&mut self) -> Result<()> {
        let Some((guest, bytes)) = self.open.take() else { return Ok(()) };
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        let table = guest / L2_ENTRIES;
        if self.l2.as_ref().is_none_or(|(index, _)| *index != table) {
            self.close_table()?;
            self.l2 = Some((table, vec![0; CLUSTER / 8]));
        }
        let offset = self.append(&bytes)?;
        if let Some((_, entries)) = &mut self.l2 {
            let index = usize::try_from(guest % L2_ENTRIES).map_err(|_| too_large())?;
            entries[index] = offset | COPIED;
        }
        Ok(())
    }

    fn close_table(&mut self) -> Result<()> {
        let Some((index, entries)) = self.l2.take() else { return Ok(()) };
        let offset = self.append(&big_endian(&entries))?;
        let index = usize::try_from(index).map_err(|_| too_large())?;
        *self.l1.get_mut(index).ok_or_else(too_large)? = offset | COPIED;
        Ok(())
    }

    /// Refcount blocks and their table; says where the table is and how many clusters it has.
    fn refcounts(&mut self) -> Result<(u64, u32)> {
        let used = self.next;
        let (mut blocks, mut table) = (1, 1);
        loop {
            let total: u64 = used + blocks + table;
            let (more, longer) = (total.div_ceil(REFCOUNTS), total.div_ceil(REFCOUNTS).div_ceil(L2_ENTRIES));
            if more == blocks && longer == table {
                break;
            }
            (blocks, table) = (more.max(blocks), longer.max(table));
        }
        let total = used + blocks + table;
        let mut entries = Vec::new();
        for block in 0..blocks {
            let counted = total.saturating_sub(block * REFCOUNTS).min(REFCOUNTS);
            let mut bytes = vec![0; CLUSTER];
            for count in bytes.chunks_exact_mut(2).take(usize::try_from(counted).map_err(|_| too_large())?) {
                count.copy_from_slice(&1u16.to_be_bytes());
            }
            entries.push(self.append(&bytes)?);
        }
        let mut bytes = big_endian(&entries);
        bytes.resize(usize::try_from(table).map_err(|_| too_large())? * CLUSTER, 0);
        let offset = self.append(&bytes)?;
        Ok((offset, u32::try_from(table).map_err(|_| too_large())?))
    }

    fn header(&self, refcount_table: u64, refcount_clusters: u32) -> Result<Vec<u8>> {
        let mut header = Vec::with_capacity(HEADER_BYTES as usize + 8);
        header.extend(b"QFI\xfb");
        header.extend(3u32.to_be_bytes());
        // No backing file.
        header.extend(0u64.to_be_bytes());
        header.extend(0u32.to_be_bytes());
        header.extend(CLUSTER_BITS.to_be_bytes());
        header.extend(self.size.to_be_bytes());
        // Not encrypted.
        header.extend(0u32.to_be_bytes());
        header.extend(u32::try_from(self.l1.len()).map_err(|_| too_large())?.to_be_bytes());
        header.extend((CLUSTER as u64).to_be_bytes());
        header.extend(refcount_table.to_be_bytes());
        header.extend(refcount_clusters.to_be_bytes());
        // No snapshots.
        header.extend(0u32.to_be_bytes());
        header.extend(0u64.to_be_bytes());
        // No incompatible, compatible or autoclear features.
        header.extend([0; 24]);
        // Refcounts of 1 << 4 bits.
        header.extend(4u32.to_be_bytes());
        header.extend(HEADER_BYTES.to_be_bytes());
        // End of header extensions.
        header.extend([0; 8]);
        Ok(header)
    }
}

impl Writer for Qcow2 {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut at = 0;
        while at < bytes.len() {
            let position = offset + at as u64;
            let guest = position >> CLUSTER_BITS;
            if self.open.as_ref().is_none_or(|(open, _)| *open != guest) {
                if self.open.as_ref().is_some_and(|(open, _)| *open > guest) {
                    return Err(Error::new(ErrorKind::InvalidInput, "written out of order"));
                }
                self.close_cluster()?;
                self.open = Some((guest, vec![0; CLUSTER]));
            }
            let inside = usize::try_from(position % CLUSTER as u64).map_err(|_| too_large())?;
            let length = (CLUSTER - inside).min(bytes.len() - at);
            if let Some((_, cluster)) = &mut self.open {
                cluster[inside..inside + length].copy_from_slice(&bytes[at..at + length]);
            }
            at += length;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        self.close_cluster()?;
        self.close_table()?;
        let (table, clusters) = self.refcounts()?;
        let mut l1 = big_endian(&self.l1);
        l1.resize(l1.len().next_multiple_of(CLUSTER), 0);
        self.file.write_all_at(&l1, CLUSTER as u64)?;
        let header = self.header(table, clusters)?;
        self.file.write_all_at(&header, 0)?;
        self.file.sync_all()
    }
}

fn big_endian(entries: &[u64]) -> Vec<u8> {
    entries.iter().flat_map(|entry| entry.to_be_bytes()).collect()
}

fn too_large() -> Error {
    Error::new(ErrorKind::FileTooLarge, "a disk of this size does not fit a qcow2 image")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::Input;
    use tokio::io::AsyncReadExt;

    /// What our own reader of qcow2 makes of an image with these writes.
    async fn check(size: u64, writes: &[(u64, Vec<u8>)]) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut writer = Box::new(Qcow2::new(file.reopen().unwrap(), size).unwrap());
        for (offset, bytes) in writes {
            writer.write(*offset, bytes).unwrap();
        }
        writer.finish().unwrap();
        let (_, stream) =
            crate::import::upload(Input::Qcow2File(file.path().to_owned()), crate::import::NoProgress).await.unwrap();
        let mut got = Vec::new();
        let parts: Vec<bytes::Bytes> = futures::TryStreamExt::try_collect(stream).await.unwrap();
        parts.concat().as_slice().read_to_end(&mut got).await.unwrap();
        for (offset, bytes) in writes.iter().filter(|(_, bytes)| bytes.iter().any(|byte| *byte != 0)) {
            let found = got.windows(8).any(|window| window == &bytes[..8]);
            assert!(found, "the bytes at {offset} are not there");
        }
    }

    #[tokio::test]
    async fn what_is_written_is_read_again() {
        let pattern = |n: u8| (0..70_000_u32).map(|i| (i % 251) as u8 ^ n).collect::<Vec<u8>>();
        check(10 << 20, &[(0, pattern(1)), (1 << 20, pattern(2)), ((10 << 20) - 70_000, pattern(3))]).await;
        check(3 << 30, &[(512 << 20, pattern(4)), ((2 << 30) + 4096, pattern(5))]).await;
        check(512, &[]).await;
    }

    #[test]
    fn bytes_that_come_out_of_order_are_refused() {
        let mut writer = Qcow2::new(tempfile::tempfile().unwrap(), 1 << 20).unwrap();
        writer.write(1 << 17, &[1]).unwrap();
        assert!(writer.write(0, &[1]).is_err());
    }
}
