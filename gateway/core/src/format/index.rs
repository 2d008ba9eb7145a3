//! `indexes/<index>`: where each chunk of an image is, readable a page at a time.
//!
//! ```text
//! envelope   IndexRecord
//! pages×24   page table: PageRef of each page, little-endian; its crc32c is in the record
//! ```
//!
//! A page is the entries of [`PAGE_ENTRIES`] consecutive chunks (the last page has fewer), 48 bytes each. Pages are frames in packs
//! just as chunks are, so the writer of an index holds one page and the table, whatever the size of the image: 2 TiB at 64 KiB a chunk
//! is a table of 768 KiB. A page of zeroes is stored nowhere.
//!
//! ```text
//! entry: offset  bytes  field
//!             0     32  blake3 of the plain chunk
//!            32      4  pack, an index into the record's pack table
//!            36      4  offset of the frame in that pack
//!            40      4  crc32c of the frame as stored
//!            44      4  low 24 bits: length of the frame; high 8 bits: 0 zeroes (all 48 bytes are zero), 1 raw, 2 zstd
//! page ref: 0      4  zero
//!           4      4  entries of the page that are not zero
//!           8     16  pack, offset, crc32c, length and kind, as in an entry (24 zero bytes: a page of zeroes)
//! ```

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::envelope::{self, Kind, Record};
use crate::error::{Error, Result};
use crate::ids::{ChunkHash, IndexId, Nonce, PackId};
use crate::limits;

/// Entries in every page but the last.
pub const PAGE_ENTRIES: u32 = 1024;
/// Bytes of one entry.
pub const ENTRY_BYTES: usize = 48;
const ENTRY_BYTES_U32: u32 = 48;
/// Bytes of one page reference in the page table.
pub const PAGE_REF_BYTES: usize = 24;

/// The head of an index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexRecord {
    /// Its id, the same as in its key.
    pub id: IndexId,
    /// Tells our own put from another's.
    pub nonce: Nonce,
    /// Size of the image, bytes.
    pub size: u64,
    /// Bytes of plain data in every chunk but the last; a power of two.
    pub chunk_bytes: u32,
    /// Entries in every page but the last.
    pub page_entries: u32,
    /// CRC32C of the page table.
    pub page_table_crc: u32,
    /// Every pack that this index refers to, for its pages as well: what keeps a pack from being deleted.
    pub packs: Vec<PackId>,
    /// Bytes of frames that this import added; for reports.
    pub stored_bytes: u64,
    /// Chunks that are not zero; for reports.
    pub chunks_stored: u64,
}

impl Record for IndexRecord {
    const KIND: Kind = Kind::Index;
    const VERSION: u16 = 1;
}

/// How a frame is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// As it is.
    Raw,
    /// One zstd frame.
    Zstd,
}

/// Where one frame is and how it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FrameRef {
    /// Index into [`IndexRecord::packs`].
    pub pack: u32,
    /// First byte in the pack.
    pub offset: u32,
    /// Bytes as stored.
    pub length: u32,
    /// CRC32C of the bytes as stored, so that damage is told before they are unpacked.
    pub crc: u32,
    /// How it is stored.
    pub encoding: Encoding,
}

impl FrameRef {
    /// One past its last byte in the pack.
    pub fn end(&self) -> u64 {
        u64::from(self.offset) + u64::from(self.length)
    }

    fn put(&self, out: &mut impl BufMut) {
        let kind: u32 = match self.encoding {
            Encoding::Raw => 1,
            Encoding::Zstd => 2,
        };
        out.put_u32_le(self.pack);
        out.put_u32_le(self.offset);
        out.put_u32_le(self.crc);
        out.put_u32_le((kind << 24) | (self.length & 0x00ff_ffff));
    }

    /// `None` for the sixteen zero bytes.
    fn parse(bytes: &[u8; 16]) -> Result<Option<Self>> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let encoding = match word(12) >> 24 {
            0 if bytes == &[0; 16] => return Ok(None),
            1 => Encoding::Raw,
            2 => Encoding::Zstd,
            other => return Err(bad(format!("a frame of unknown kind {other}"))),
        };
        let frame = Self { pack: word(0), offset: word(4), crc: word(8), length: word(12) & 0x00ff_ffff, encoding };
        if frame.length == 0 || frame.end() > u64::from(limits::PACK_BYTES_MAX) {
            return Err(bad(format!("a frame of {} bytes at {} of a pack", frame.length, frame.offset)));
        }
        Ok(Some(frame))
    }
}

/// One chunk that is not zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Hash of its plain bytes.
    pub hash: ChunkHash,
    /// Where it is.
    pub frame: FrameRef,
}

impl Entry {
    /// Appends an entry, or 48 zero bytes for a chunk of zeroes.
    pub fn put(entry: Option<&Self>, out: &mut impl BufMut) {
        match entry {
            None => out.put_bytes(0, ENTRY_BYTES),
            Some(entry) => {
                out.put_slice(&entry.hash.0);
                entry.frame.put(out);
            }
        }
    }
}

/// Where one page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRef {
    /// Entries that are not zero; never 0, as such a page has no reference.
    pub used: u32,
    /// Where its bytes are.
    pub frame: FrameRef,
}

/// The plain bytes of a page, read in place.
#[derive(Debug, Clone)]
pub struct Page {
    bytes: Bytes,
}

impl Page {
    /// Takes the plain bytes of a page, verified already; every entry is checked once here, so that [`Page::entry`] only reads.
    ///
    /// # Errors
    /// `Corrupt` when the length is not that of `entries` entries, or one of them is no entry of this index.
    pub fn new(bytes: Bytes, entries: u32, record: &IndexRecord) -> Result<Self> {
        if bytes.len() != entries as usize * ENTRY_BYTES {
            return Err(bad(format!("a page of {} bytes where {entries} entries belong", bytes.len())));
        }
        let page = Self { bytes };
        for number in 0..entries {
            if let Some(entry) = page.entry(number)? {
                check_frame(&entry.frame, record, record.chunk_bytes)?;
            }
        }
        Ok(page)
    }

    /// The same bytes again, of which [`Page::new`] was satisfied before: what a cache gives back.
    pub fn trusted(bytes: Bytes) -> Self {
        Self { bytes }
    }

    /// Its bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Entry `number` of this page; `None` is a chunk of zeroes.
    ///
    /// # Errors
    /// `Corrupt` when there is no such entry or it does not parse.
    pub fn entry(&self, number: u32) -> Result<Option<Entry>> {
        let at = number as usize * ENTRY_BYTES;
        let bytes = self.bytes.get(at..at + ENTRY_BYTES).ok_or_else(|| bad(format!("no entry {number}")))?;
        let (Some(hash), Some(frame)) = (bytes.first_chunk::<32>(), bytes.last_chunk::<16>()) else {
            return Err(bad(format!("no entry {number}")));
        };
        match FrameRef::parse(frame)? {
            Some(frame) => Ok(Some(Entry { hash: ChunkHash(*hash), frame })),
            None if hash == &[0; 32] => Ok(None),
            None => Err(bad("a chunk of zeroes with a hash".to_owned())),
        }
    }
}

/// A decoded index: its record and page table.
#[derive(Debug, Clone)]
pub struct Index {
    /// The record.
    pub record: IndexRecord,
    pages: Vec<Option<PageRef>>,
}

impl Index {
    /// Reads a whole index object.
    ///
    /// # Errors
    /// `Corrupt` when anything in it contradicts itself.
    pub fn decode(object: &[u8]) -> Result<Self> {
        let decoded = envelope::decode_with::<IndexRecord>(object)?;
        let record = decoded.record;
        check_record(&record)?;
        let table = &object[decoded.sections_at..];
        let pages = page_count(&record);
        if table.len() as u64 != pages * PAGE_REF_BYTES as u64 {
            return Err(bad(format!("a page table of {} bytes for {pages} pages", table.len())));
        }
        let crc = crc32c::crc32c(table);
        if crc != record.page_table_crc {
            return Err(bad(format!("the page table has checksum {crc:08x}, stored {:08x}", record.page_table_crc)));
        }
        let mut parsed = Vec::with_capacity(table.len() / PAGE_REF_BYTES);
        let (refs, _) = table.as_chunks::<PAGE_REF_BYTES>();
        for (number, bytes) in refs.iter().enumerate() {
            parsed.push(parse_page_ref(bytes, number as u64, &record)?);
        }
        Ok(Self { record, pages: parsed })
    }

    /// The object, of a record whose `page_table_crc` need not be set yet.
    ///
    /// # Errors
    /// `Exhausted` when it refers to more packs than a record can hold; `Internal` when pages are missing.
    pub fn encode(mut record: IndexRecord, pages: &[Option<PageRef>]) -> Result<Bytes> {
        if pages.len() as u64 != page_count(&record) {
            return Err(Error::internal("index-incomplete", format!("{} pages of an index", pages.len())));
        }
        let mut table = BytesMut::with_capacity(pages.len() * PAGE_REF_BYTES);
        for page in pages {
            match page {
                None => table.put_bytes(0, PAGE_REF_BYTES),
                Some(page) => {
                    table.put_u32_le(0);
                    table.put_u32_le(page.used);
                    page.frame.put(&mut table);
                }
            }
        }
        record.page_table_crc = crc32c::crc32c(&table);
        envelope::encode_with(&record, &[&table])
    }

    /// Chunks of the image.
    pub fn chunks(&self) -> u64 {
        chunk_count(&self.record)
    }

    /// Pages of the index.
    pub fn pages(&self) -> u64 {
        self.pages.len() as u64
    }

    /// Where page `number` is; `None` when all its chunks are zeroes or there is no such page.
    pub fn page(&self, number: u64) -> Option<&PageRef> {
        self.pages.get(usize::try_from(number).ok()?)?.as_ref()
    }

    /// Entries of page `number`.
    pub fn page_entries(&self, number: u64) -> u32 {
        page_entries(&self.record, number)
    }

    /// Plain bytes of chunk `chunk`.
    pub fn chunk_len(&self, chunk: u64) -> usize {
        let bytes = u64::from(self.record.chunk_bytes);
        let left = self.record.size.saturating_sub(chunk.saturating_mul(bytes));
        usize::try_from(left.min(bytes)).unwrap_or(0)
    }

    /// The pack that a frame is in.
    pub fn pack(&self, frame: &FrameRef) -> Option<PackId> {
        self.record.packs.get(frame.pack as usize).copied()
    }
}

/// Entries of page `number` of an index.
pub fn page_entries(record: &IndexRecord, number: u64) -> u32 {
    let left = chunk_count(record).saturating_sub(number.saturating_mul(u64::from(record.page_entries)));
    u32::try_from(left).unwrap_or(u32::MAX).min(record.page_entries)
}

/// Whether an index may have chunks of this many bytes: a power of two from 4 KiB to 1 MiB.
pub const fn is_chunk_size(bytes: u32) -> bool {
    bytes.is_power_of_two() && bytes >= 4096 && bytes <= limits::CHUNK_BYTES_MAX
}

fn chunk_count(record: &IndexRecord) -> u64 {
    record.size.div_ceil(u64::from(record.chunk_bytes))
}

fn page_count(record: &IndexRecord) -> u64 {
    chunk_count(record).div_ceil(u64::from(record.page_entries))
}

fn check_record(record: &IndexRecord) -> Result<()> {
    if !is_chunk_size(record.chunk_bytes) {
        return Err(bad(format!("chunks of {} bytes", record.chunk_bytes)));
    }
    if record.page_entries != PAGE_ENTRIES {
        return Err(bad(format!("pages of {} entries", record.page_entries)));
    }
    if record.size == 0 || record.size > limits::VOLUME_BYTES_MAX {
        return Err(bad(format!("an image of {} bytes", record.size)));
    }
    Ok(())
}

fn check_frame(frame: &FrameRef, record: &IndexRecord, plain_max: u32) -> Result<()> {
    if frame.pack as usize >= record.packs.len() {
        return Err(bad(format!("a frame in pack {} of {}", frame.pack, record.packs.len())));
    }
    if frame.length > plain_max {
        return Err(bad(format!("a frame of {} bytes for {plain_max}", frame.length)));
    }
    Ok(())
}

fn parse_page_ref(bytes: &[u8; PAGE_REF_BYTES], number: u64, record: &IndexRecord) -> Result<Option<PageRef>> {
    let (Some(head), Some(frame)) = (bytes.first_chunk::<8>(), bytes.last_chunk::<16>()) else {
        return Err(bad(format!("no page {number}")));
    };
    let used = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
    let entries = page_entries(record, number);
    match FrameRef::parse(frame)? {
        None if head == &[0; 8] => Ok(None),
        Some(frame) if head[..4] == [0; 4] && (1..=entries).contains(&used) => {
            check_frame(&frame, record, entries * ENTRY_BYTES_U32)?;
            Ok(Some(PageRef { used, frame }))
        }
        _ => Err(bad(format!("page {number} has {used} entries of {entries}"))),
    }
}

fn bad(message: String) -> Error {
    Error::corrupt("bad-index", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(size: u64) -> IndexRecord {
        IndexRecord {
            id: IndexId::from_bytes([1; 16]),
            nonce: Nonce([2; 16]),
            size,
            chunk_bytes: 65536,
            page_entries: PAGE_ENTRIES,
            page_table_crc: 0,
            packs: vec![PackId::from_bytes([3; 16])],
            stored_bytes: 10,
            chunks_stored: 1,
        }
    }

    fn frame(length: u32) -> FrameRef {
        FrameRef { pack: 0, offset: 7, length, crc: 9, encoding: Encoding::Zstd }
    }

    fn sample() -> (Index, Bytes) {
        // Two pages: 1024 chunks and 1 chunk; the first is zeroes.
        let object =
            Index::encode(record(65536 * 1024 + 512), &[None, Some(PageRef { used: 1, frame: frame(40) })]).unwrap();
        (Index::decode(&object).unwrap(), object)
    }

    #[test]
    fn an_index_survives_its_bytes() {
        let (index, _) = sample();
        assert_eq!((index.chunks(), index.pages()), (1025, 2));
        assert!(index.page(0).is_none() && index.page(2).is_none());
        assert_eq!(index.page(1).unwrap().frame, frame(40));
        assert_eq!((index.page_entries(0), index.page_entries(1)), (1024, 1));
        assert_eq!((index.chunk_len(0), index.chunk_len(1024), index.chunk_len(1025)), (65536, 512, 0));
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_of_an_index_is_an_error() {
        let (_, object) = sample();
        for at in 0..object.len() {
            for bit in 0..8 {
                let mut bad = object.to_vec();
                bad[at] ^= 1 << bit;
                assert!(Index::decode(&bad).is_err(), "byte {at} bit {bit}");
            }
            assert!(Index::decode(&object[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_page_gives_back_its_entries_and_refuses_what_is_none() {
        let entry = Entry { hash: ChunkHash([5; 32]), frame: frame(100) };
        let mut bytes = BytesMut::new();
        Entry::put(None, &mut bytes);
        Entry::put(Some(&entry), &mut bytes);
        let bytes = bytes.freeze();
        let page = Page::new(bytes.clone(), 2, &record(131_072)).unwrap();
        assert_eq!(page.entry(0).unwrap(), None);
        assert_eq!(page.entry(1).unwrap(), Some(entry));
        assert!(page.entry(2).is_err());
        assert!(Page::new(bytes.clone(), 1, &record(131_072)).is_err());
        let mut wild = bytes.to_vec();
        wild[ENTRY_BYTES + 32] = 1; // a pack that the record does not name
        assert!(Page::new(wild.into(), 2, &record(131_072)).is_err());
        let mut hashed_zero = bytes.to_vec();
        hashed_zero[0] = 1;
        assert!(Page::new(hashed_zero.into(), 2, &record(131_072)).is_err());
    }

    #[test]
    fn hostile_numbers_are_refused() {
        for change in [
            (|r: &mut IndexRecord| r.size = u64::MAX) as fn(&mut IndexRecord),
            |r| r.size = 0,
            |r| r.chunk_bytes = 0,
            |r| r.chunk_bytes = 3,
            |r| r.page_entries = 0,
            |r| r.page_entries = u32::MAX,
        ] {
            let mut wild = record(512);
            wild.page_table_crc = crc32c::crc32c(&[0; PAGE_REF_BYTES]);
            change(&mut wild);
            let object = envelope::encode_with(&wild, &[&[0; PAGE_REF_BYTES]]).unwrap();
            assert_eq!(Index::decode(&object).unwrap_err().code(), "bad-index");
        }
    }
}
