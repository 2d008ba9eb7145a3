//! Writes the index while chunks come: holds one page and the page table.

use std::collections::HashMap;

use bytes::BytesMut;
use clonegate_core::format::index::{Encoding, Entry, FrameRef, Index, IndexRecord, PAGE_ENTRIES, PageRef};
use clonegate_core::ids::{IndexId, Nonce, PackId};
use clonegate_core::{Error, Result};

use super::packs::{Kind, Packs};

/// Builds one index. Chunks come in ascending order; those that do not come are zeroes.
pub(super) struct Pages {
    /// The open page and the entries in it.
    open: Option<Open>,
    written: Vec<Option<PageRef>>,
    chunks: u64,
    /// From the numbers of the import to those of the index, which names only packs that it uses.
    numbers: HashMap<u32, u32>,
    used: Vec<u32>,
}

struct Open {
    number: u64,
    slots: u32,
    used: u32,
    bytes: BytesMut,
}

impl Open {
    fn skip_to(&mut self, slot: u32) {
        while self.slots < slot {
            Entry::put(None, &mut self.bytes);
            self.slots += 1;
        }
    }
}

impl Pages {
    pub(super) fn new() -> Self {
        Self { open: None, written: Vec::new(), chunks: 0, numbers: HashMap::new(), used: Vec::new() }
    }

    /// Chunks that are not zeroes so far.
    pub(super) fn chunks(&self) -> u64 {
        self.chunks
    }

    /// Takes the entry of the next chunk that is not zeroes.
    pub(super) async fn add(&mut self, chunk: u64, mut entry: Entry, packs: &mut Packs) -> Result<()> {
        let (number, slot) = (chunk / u64::from(PAGE_ENTRIES), u32::try_from(chunk % u64::from(PAGE_ENTRIES)));
        let slot = slot.map_err(|_| Error::internal("bad-slot", "no slot of a page"))?;
        if self.open.as_ref().is_some_and(|open| open.number != number) {
            self.close(PAGE_ENTRIES, packs).await?;
        }
        entry.frame.pack = self.number(entry.frame.pack);
        let open = self.open.get_or_insert_with(|| Open { number, slots: 0, used: 0, bytes: BytesMut::new() });
        if slot < open.slots {
            return Err(Error::internal("chunks-disordered", format!("chunk {chunk} comes too late")));
        }
        open.skip_to(slot);
        Entry::put(Some(&entry), &mut open.bytes);
        open.slots += 1;
        open.used += 1;
        self.chunks += 1;
        Ok(())
    }

    fn number(&mut self, of_import: u32) -> u32 {
        *self.numbers.entry(of_import).or_insert_with(|| {
            self.used.push(of_import);
            u32::try_from(self.used.len() - 1).unwrap_or(u32::MAX)
        })
    }

    async fn close(&mut self, entries: u32, packs: &mut Packs) -> Result<()> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        open.skip_to(entries);
        let (encoding, stored) = pack_page(&open.bytes)?;
        let frame = packs.add(Kind::Pages, encoding, crc32c::crc32c(&stored), &stored).await?;
        let at = usize::try_from(open.number).unwrap_or(usize::MAX);
        self.written.resize(at, None);
        self.written.push(Some(PageRef { used: open.used, frame }));
        Ok(())
    }

    /// Writes what is left and gives the index object of an image of `size` bytes, and the packs that it names.
    pub(super) async fn finish(
        mut self,
        (id, nonce): (IndexId, Nonce),
        size: u64,
        chunk_bytes: u32,
        packs: &mut Packs,
    ) -> Result<(bytes::Bytes, Vec<PackId>)> {
        let chunks = size.div_ceil(u64::from(chunk_bytes));
        let pages = chunks.div_ceil(u64::from(PAGE_ENTRIES));
        let last = self.open.as_ref().map_or(0, |open| chunks - open.number * u64::from(PAGE_ENTRIES));
        self.close(u32::try_from(last).unwrap_or(PAGE_ENTRIES).min(PAGE_ENTRIES), packs).await?;
        let mut refs = std::mem::take(&mut self.written);
        refs.resize(usize::try_from(pages).unwrap_or(usize::MAX), None);
        packs.finish(&mut refs).await?;
        for page in refs.iter_mut().flatten() {
            page.frame = FrameRef { pack: self.number(page.frame.pack), ..page.frame };
        }
        let ids: Option<Vec<PackId>> = self.used.iter().map(|number| packs.id(*number)).collect();
        let ids = ids.ok_or_else(|| Error::internal("no-such-pack", "a frame is in no pack"))?;
        let record = IndexRecord {
            id,
            nonce,
            size,
            chunk_bytes,
            page_entries: PAGE_ENTRIES,
            page_table_crc: 0,
            packs: ids.clone(),
            stored_bytes: packs.stored_bytes(),
            chunks_stored: self.chunks,
        };
        Ok((Index::encode(record, &refs)?, ids))
    }
}

/// Hashes do not compress, but the zero entries of a sparse page do.
fn pack_page(plain: &[u8]) -> Result<(Encoding, Vec<u8>)> {
    Ok(crate::base::frame::Packer::new(1)?.pack(plain))
}
