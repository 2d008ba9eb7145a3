//! The stored bytes of bases, indexes and boot sets, and of an upload, are frozen: what one version wrote, every later one reads.
//!
//! `CLONEGATE_UPDATE_GOLDEN=1` writes the files anew; that is right only for a new kind or version of a record.

mod golden;

use bytes::BytesMut;
use clonegate_core::format::base::{BaseData, BaseRecord, RetiredRecord};
use clonegate_core::format::index::{Encoding, Entry, FrameRef, Index, IndexRecord, PAGE_ENTRIES, Page, PageRef};
use clonegate_core::format::making::{Maker, MakingRecord};
use clonegate_core::format::sparse::{Decoder, Encoder, Event};
use clonegate_core::format::{bootset, envelope};
use clonegate_core::ids::{BaseId, ChunkHash, GatewayId, IndexId, Nonce, PackId};
use clonegate_core::units::ChunkIndex;

use golden::check;

fn base(data: BaseData) -> BaseRecord {
    BaseRecord {
        id: BaseId::from_bytes([1; 16]),
        nonce: Nonce([2; 16]),
        size: 1 << 30,
        template: "debian-12".parse().unwrap(),
        version: 3,
        slots: 128,
        created_ms: 1_767_225_600_000,
        data,
    }
}

#[test]
fn base_records() {
    let packed = base(BaseData::Packed { index: IndexId::from_bytes([3; 16]) });
    let golden = check("base-1-packed", &envelope::encode(&packed).unwrap());
    assert_eq!(envelope::decode::<BaseRecord>(&golden).unwrap(), packed);
    let raw = base(BaseData::Raw { store: "s3://vdi".into(), key: "win11.raw".into(), etag: "\"5d41\"".into() });
    let golden = check("base-1-raw", &envelope::encode(&raw).unwrap());
    assert_eq!(envelope::decode::<BaseRecord>(&golden).unwrap(), raw);
    let retired = RetiredRecord { id: BaseId::from_bytes([1; 16]), retired_ms: 5, reason: "replaced".into() };
    let golden = check("retired-1", &envelope::encode(&retired).unwrap());
    assert_eq!(envelope::decode::<RetiredRecord>(&golden).unwrap(), retired);
}

fn frame(offset: u32, length: u32, encoding: Encoding) -> FrameRef {
    FrameRef { pack: 1, offset, length, crc: 0x0102_0304, encoding }
}

fn index_record() -> IndexRecord {
    IndexRecord {
        id: IndexId::from_bytes([3; 16]),
        nonce: Nonce([4; 16]),
        size: 65536 * 1024 + 1536,
        chunk_bytes: 65536,
        page_entries: PAGE_ENTRIES,
        page_table_crc: 0,
        packs: vec![PackId::from_bytes([5; 16]), PackId::from_bytes([6; 16])],
        stored_bytes: 1_234_567,
        chunks_stored: 2,
    }
}

#[test]
fn an_index_and_a_page() {
    let page = PageRef { used: 1, frame: frame(0x1000, 48, Encoding::Raw) };
    let golden = check("index-1", &Index::encode(index_record(), &[None, Some(page)]).unwrap());
    let index = Index::decode(&golden).unwrap();
    assert_eq!((index.chunks(), index.page(0), index.page(1)), (1025, None, Some(&page)));
    let entries = [
        Some(Entry { hash: ChunkHash([7; 32]), frame: frame(0, 65536, Encoding::Raw) }),
        None,
        Some(Entry { hash: ChunkHash([8; 32]), frame: frame(65536, 1000, Encoding::Zstd) }),
    ];
    let mut bytes = BytesMut::new();
    for entry in &entries {
        Entry::put(entry.as_ref(), &mut bytes);
    }
    let golden = check("index-page-1", &bytes);
    let page = Page::new(golden.into(), 3, &index_record()).unwrap();
    for (number, entry) in (0..).zip(entries) {
        assert_eq!(page.entry(number).unwrap(), entry);
    }
}

#[test]
fn a_boot_set() {
    let chunks = [ChunkIndex(0), ChunkIndex(77), ChunkIndex(1 << 33)];
    let object = bootset::encode(BaseId::from_bytes([1; 16]), Nonce([2; 16]), 1_767_225_600_000, &chunks).unwrap();
    let (record, read) = bootset::decode(&check("bootset-1", &object)).unwrap();
    assert_eq!((record.count, read.as_slice()), (3, chunks.as_slice()));
}

#[test]
fn an_upload() {
    let (mut encoder, header) = Encoder::new(Some(1024));
    let mut stream = header.to_vec();
    stream.extend_from_slice(&encoder.frame(512, b"boot").unwrap());
    stream.extend_from_slice(b"boot");
    stream.extend_from_slice(&encoder.end(1024));
    let mut input = BytesMut::from(&check("sparse-1", &stream)[..]);
    let mut decoder = Decoder::default();
    assert_eq!(decoder.next(&mut input).unwrap(), Some(Event::Start(Some(1024))));
    assert_eq!(decoder.next(&mut input).unwrap(), Some(Event::Data(512, b"boot".as_slice().into())));
    assert_eq!(decoder.next(&mut input).unwrap(), Some(Event::End(1024)));
    decoder.finish(&input).unwrap();
}

#[test]
fn the_note_of_an_image_being_made() {
    let making = |maker, removing| MakingRecord {
        index: IndexId::from_bytes([1; 16]),
        nonce: Nonce([2; 16]),
        maker,
        removing,
        packs: vec![PackId::from_bytes([3; 16]), PackId::from_bytes([4; 16])],
    };
    let maker = Maker { gateway: GatewayId::from_bytes([5; 16]), run: Nonce([6; 16]) };
    for (name, note) in [("making-1", making(Some(maker), false)), ("making-1-removing", making(None, true))] {
        let golden = check(name, &envelope::encode(&note).unwrap());
        assert_eq!(MakingRecord::decode(&golden).unwrap(), Some(note));
    }
    // What was written before there was a record.
    assert_eq!(MakingRecord::decode(&[7; 16]).unwrap(), None);
    assert!(MakingRecord::decode(&[7; 17]).is_err());
}
