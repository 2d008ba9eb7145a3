//! What is fuzzed: each function takes any bytes, and panics when a reader breaks a promise.
//!
//! Stored bytes carry checksums, behind which a fuzzer would never come. So they are mended first: what is tried is a
//! hostile or broken writer, not only a broken disk. `cargo test -p clonegate-core` runs the same functions over damaged
//! golden files without libFuzzer.

use bytes::{Bytes, BytesMut};
use clonegate_core::format::base::{BaseRecord, RetiredRecord};
use clonegate_core::format::bootset::{self, BootSetRecord};
use clonegate_core::format::catalog::CatalogRecord;
use clonegate_core::format::checkpoint::{CheckpointRecord, decode_checkpoint, encode_checkpoint};
use clonegate_core::format::clone::CloneRecord;
use clonegate_core::format::envelope::{self, HEADER_BYTES, MAGIC, Record};
use clonegate_core::format::exclusive::ExclusiveOwner;
use clonegate_core::format::index::{Index, IndexRecord, Page};
use clonegate_core::format::journal::{
    JournalEntryRecord, JournalOwnerRecord, JournalSegmentRecord, decode_entry, encode_entry,
};
use clonegate_core::format::log::{CommitRecord, EpochRecord, Head, decode_head};
use clonegate_core::format::making::MakingRecord;
use clonegate_core::format::segment::{SegmentRecord, decode_segment};
use clonegate_core::format::sparse::{self, Decoder, Event};
use clonegate_core::http::content_range::{ContentRange, write_content_range};
use clonegate_core::http::precondition::{Conditions, Validators, if_range_holds};
use clonegate_core::http::range::{self, Selection};
use clonegate_core::limits::HTTP_RANGES_MAX;
use clonegate_core::nbd::meta::{Contexts, decode_status};
use clonegate_core::nbd::option::{OptionHeader, OptionReply, OptionRequest};
use clonegate_core::nbd::reply::decode_error;
use clonegate_core::nbd::{Reply, Request, Rules, Style};

/// The bytes as a record of this kind whose envelope is right.
fn mended<T: Record>(data: &[u8]) -> Vec<u8> {
    let mut object = data.to_vec();
    object.resize(object.len().max(HEADER_BYTES), 0);
    object[..8].copy_from_slice(&MAGIC);
    object[8..10].copy_from_slice(&(T::KIND as u16).to_le_bytes());
    let length = u32::from_le_bytes([object[12], object[13], object[14], object[15]]);
    let length = length.min(u32::try_from(object.len() - HEADER_BYTES).unwrap_or(u32::MAX));
    object[12..16].copy_from_slice(&length.to_le_bytes());
    object[20..24].fill(0);
    let end = HEADER_BYTES + length as usize;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&object[8..16]), &object[HEADER_BYTES..end]);
    object[16..20].copy_from_slice(&crc.to_le_bytes());
    object
}

/// A record that is read is written with the same bytes.
fn record<T: Record>(data: &[u8]) {
    drop(envelope::decode_with::<T>(data));
    let object = mended::<T>(data);
    let Ok(decoded) = envelope::decode_with::<T>(&object) else { return };
    let version = u16::from_le_bytes([object[10], object[11]]);
    if version == T::VERSION {
        let again = envelope::encode(&decoded.record).expect("what was read can be written");
        assert!(again == object[..decoded.sections_at], "read and written again, a {:?} record differs", T::KIND);
    }
}

/// Every kind of stored record.
pub fn records(data: &[u8]) {
    record::<BaseRecord>(data);
    record::<RetiredRecord>(data);
    record::<BootSetRecord>(data);
    record::<CatalogRecord>(data);
    record::<CheckpointRecord>(data);
    record::<CloneRecord>(data);
    record::<CommitRecord>(data);
    record::<EpochRecord>(data);
    record::<ExclusiveOwner>(data);
    record::<IndexRecord>(data);
    record::<JournalEntryRecord>(data);
    record::<JournalOwnerRecord>(data);
    record::<JournalSegmentRecord>(data);
    record::<MakingRecord>(data);
    drop(MakingRecord::decode(data));
    record::<SegmentRecord>(data);
}

/// The record of an object after `set` has put right what it says of its sections.
fn with_sections<T: Record>(data: &[u8], set: impl FnOnce(&mut T, &[u8])) -> Option<Vec<u8>> {
    let object = mended::<T>(data);
    let mut decoded = envelope::decode_with::<T>(&object).ok()?;
    let sections = &object[decoded.sections_at..];
    set(&mut decoded.record, sections);
    Some(envelope::encode_with(&decoded.record, &[sections]).ok()?.to_vec())
}

fn start(bytes: &[u8], length: usize) -> &[u8] {
    bytes.get(..length).unwrap_or(bytes)
}

/// Records with tables behind them: commits, segments, checkpoints, indexes, boot sets, journal entries.
pub fn tables(data: &[u8]) {
    let commit = with_sections::<CommitRecord>(data, |record, table| {
        record.extents = record.extents.min(u32::try_from(table.len() / 16).unwrap_or(u32::MAX));
        record.table_crc = crc32c::crc32c(start(table, record.extents as usize * 16));
    });
    for object in commit.iter().map(Vec::as_slice).chain([data]) {
        // As it is, and with the size that it would have if all its frames were there.
        for size in [object.len() as u64, object.len() as u64 + 4100, u64::MAX] {
            if let Ok(Head::Whole(head)) = decode_head(object, size) {
                assert_eq!(head.extents.len(), head.record.extents as usize);
            }
        }
    }
    if let Some(object) = with_sections::<SegmentRecord>(data, |_, _| {}) {
        drop(decode_segment(&object, object.len() as u64));
    }
    checkpoint(data);
    index(data);
    let bootset = with_sections::<BootSetRecord>(data, |record, list| {
        record.list_crc = crc32c::crc32c(list);
    });
    if let Some(object) = bootset {
        drop(bootset::decode(&object));
    }
    journal(data);
}

fn checkpoint(data: &[u8]) {
    let object = with_sections::<CheckpointRecord>(data, |record, tables| {
        record.objects = record.objects.min(u32::try_from(tables.len() / 48).unwrap_or(u32::MAX));
        let (objects, runs) = tables.split_at(record.objects as usize * 48);
        record.runs = u32::try_from(runs.len() / 16).unwrap_or(u32::MAX);
        record.objects_crc = crc32c::crc32c(objects);
        record.runs_crc = crc32c::crc32c(runs);
    });
    let Some(Ok((record, objects, runs))) = object.as_deref().map(decode_checkpoint) else { return };
    for pair in runs.windows(2) {
        assert!(pair[0].start.0 + u64::from(pair[0].blocks) <= pair[1].start.0, "runs overlap");
    }
    let again = encode_checkpoint(record, &objects, runs.iter().copied()).expect("what was read can be written");
    let (_, objects_again, runs_again) = decode_checkpoint(&again).expect("what was written can be read");
    assert!(objects == objects_again && runs == runs_again);
}

fn index(data: &[u8]) {
    let object = with_sections::<IndexRecord>(data, |record, table| {
        record.page_table_crc = crc32c::crc32c(table);
    });
    let Some(Ok(index)) = object.as_deref().map(Index::decode) else { return };
    for number in 0..index.pages().min(64) {
        if let Some(page) = index.page(number) {
            let _ = index.pack(&page.frame);
        }
        let entries = index.page_entries(number);
        if let Ok(page) = Page::new(Bytes::copy_from_slice(start(data, entries as usize * 48)), entries, &index.record)
        {
            for entry in 0..entries {
                drop(page.entry(entry));
            }
        }
    }
    let _ = index.chunk_len(index.chunks().saturating_sub(1));
}

fn journal(data: &[u8]) {
    let object = with_sections::<JournalEntryRecord>(data, |record, body| {
        let length =
            (record.extents as usize).saturating_mul(16).saturating_add((record.blocks as usize).saturating_mul(4096));
        record.body_crc = crc32c::crc32c(start(body, length));
    });
    for object in object.map(Bytes::from).into_iter().chain([Bytes::copy_from_slice(data)]) {
        let Ok(entry) = decode_entry(&object) else { continue };
        let again = encode_entry(entry.record.clone(), &entry.runs).expect("what was read can be written");
        let again = decode_entry(&again).expect("what was written can be read");
        assert_eq!(entry.runs.len(), again.runs.len());
    }
}

/// NBD negotiation, both ways.
pub fn options(data: &[u8]) {
    let Some((code, rest)) = data.split_first() else { return };
    if let Some(header) = rest.first_chunk() {
        let _ = OptionHeader::decode(header);
    }
    if let Some(header) = rest.first_chunk() {
        let _ = OptionReply::decode_header(header);
    }
    if let Ok(request) = OptionRequest::decode(u32::from(code % 16), rest) {
        let mut out = Vec::new();
        request.encode(&mut out);
        let (header, again) = out.split_first_chunk().expect("an option has a header");
        let header = OptionHeader::decode(header).expect("what was written can be read");
        assert_eq!(header.length as usize, again.len());
        assert_eq!(OptionRequest::decode(header.code, again), Ok(request));
    }
    let reply = match code >> 4 {
        0 => u32::from(code % 16),
        _ => 0x8000_0000 | u32::from(code % 16),
    };
    drop(OptionReply::decode(reply, rest));
}

/// NBD requests and replies, in every style.
pub fn requests(data: &[u8]) {
    let mut contexts = Contexts::default();
    for context in clonegate_core::nbd::meta::Context::ALL {
        contexts.insert(context);
    }
    for style in [Style::Simple, Style::Structured, Style::Extended] {
        // With the magic number that it needs to come any further.
        let mut right = data.to_vec();
        let magic: u32 = if style == Style::Extended { 0x21e4_1c71 } else { 0x2560_9513 };
        right.splice(..right.len().min(4), magic.to_be_bytes());
        for bytes in [data, &right] {
            let Ok(Some(request)) = Request::decode(style, bytes) else { continue };
            let mut out = Vec::new();
            request.encode(style, &mut out);
            assert!(out == bytes[..Request::header_bytes(style)], "read and written again, a request differs");
            for read_only in [false, true] {
                let rules = Rules { style, size: 1 << 40, read_only, contexts, payload_bytes_max: 32 << 20 };
                if rules.judge(&request) == clonegate_core::nbd::Verdict::Accept {
                    let _ = rules.judge_range(request.command, request.offset, request.length);
                }
            }
            let _ = request.payload(style);
        }
    }
    if let Some((_, chosen)) = contexts.choose(data) {
        assert!(chosen.iter().all(|context| contexts.contains(context)));
    }
    for extended in [false, true] {
        drop(decode_status(extended, data));
    }
    let _ = Reply::decode(data);
    drop(decode_error(data));
}

/// Range, Content-Range and preconditions.
pub fn http(data: &[u8]) {
    let Some((size, header)) = data.split_first_chunk() else { return };
    let size = u64::from_le_bytes(*size) >> 1;
    match range::select(header, size) {
        Selection::One(one) => assert!(!one.is_empty() && one.end() <= size),
        Selection::Many(many) => {
            assert!(many.len() > 1 && many.len() <= HTTP_RANGES_MAX);
            assert!(many.iter().all(|range| !range.is_empty() && range.end() <= size));
        }
        Selection::Whole | Selection::Refused(_) => {}
    }
    if let Ok(parsed) = ContentRange::parse(header) {
        let mut out = BytesMut::new();
        write_content_range(&mut out, parsed.range, parsed.size.unwrap_or(size));
        let again = ContentRange::parse(&out).expect("what was written can be read");
        assert_eq!(again.range, parsed.range);
    }
    let now = Validators { etag: b"\"7-1\"", modified_s: Some(size) };
    let conditions = Conditions {
        if_match: [header].into_iter().collect(),
        if_none_match: header.split(|byte| *byte == b'\n').collect(),
        ..Conditions::default()
    };
    let _ = (conditions.judge(now, true), conditions.judge(now, false), if_range_holds(header, None, now));
}

/// An upload whose checksums are right, whatever it says.
fn mended_upload(data: &[u8]) -> Vec<u8> {
    let mut stream = data.to_vec();
    if stream.len() < 20 {
        return stream;
    }
    stream[..8].copy_from_slice(b"CGSPARS1");
    let crc = crc32c::crc32c(&stream[..16]);
    stream[16..20].copy_from_slice(&crc.to_le_bytes());
    let mut at = 20;
    while let Some(head) = stream.get(at..at + 16) {
        let end = head[..8] == [0xff; 8];
        let length = u32::from_le_bytes([head[8], head[9], head[10], head[11]]) as usize;
        let Some(after) = (at + 16).checked_add(length).filter(|after| *after <= stream.len()) else { break };
        if end && length == 48 {
            let hash = *blake3::hash(&stream[..at]).as_bytes();
            stream[after - 32..after].copy_from_slice(&hash);
        }
        let crc = crc32c::crc32c_append(crc32c::crc32c(&stream[at..at + 12]), &stream[at + 16..after]);
        stream[at + 12..at + 16].copy_from_slice(&crc.to_le_bytes());
        at = after;
    }
    stream
}

fn events(stream: &[u8], piece: usize) -> (Vec<Event>, Option<&'static str>, bool) {
    let (mut decoder, mut input, mut events) = (Decoder::default(), BytesMut::new(), Vec::new());
    for part in stream.chunks(piece.max(1)) {
        input.extend_from_slice(part);
        loop {
            match decoder.next(&mut input) {
                Ok(Some(event)) => events.push(event),
                Ok(None) => break,
                Err(error) => return (events, Some(error.code()), false),
            }
        }
    }
    (events, None, decoder.finish(&input).is_ok())
}

/// The body of an import.
pub fn upload(data: &[u8]) {
    for stream in [data.to_vec(), mended_upload(data)] {
        let whole = events(&stream, stream.len());
        let bytes: usize =
            whole.0.iter().map(|event| if let Event::Data(_, data) = event { data.len() } else { 0 }).sum();
        assert!(bytes <= stream.len());
        // It does not matter in which pieces it comes.
        let pieces = events(&stream, 7);
        assert!(pieces.0 == whole.0 && pieces.2 == whole.2, "in pieces it says something else");
    }
    let _ = sparse::MAGIC;
}
