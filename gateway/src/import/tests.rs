//! What goes in comes out: images imported, opened as bases and read.

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use clonegate_core::format::base::{BaseData, BaseRecord};
use clonegate_core::format::envelope;
use clonegate_core::units::ByteRange;
use futures::StreamExt;
use object_store::memory::InMemory;
use proptest::prelude::*;
use tokio::runtime::Handle;

use super::*;
use crate::base::{Base, NoRawSources};
use crate::device::Source;
use crate::icache::ICache;
use crate::store::keys;

const CHUNK: u64 = CHUNK_BYTES as u64;

pub(crate) fn memory() -> Store {
    Store::new(Arc::new(InMemory::new()), "memory", &Clock::system())
}

/// Bytes that do not compress, another for each seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// An image of text, noise, holes and repetition; its last chunk is short.
fn sample() -> Vec<u8> {
    let mut image = vec![0; usize::try_from(40 * CHUNK + 1536).unwrap()];
    let at = |chunk: u64| usize::try_from(chunk * CHUNK).unwrap();
    for (chunk, seed) in [(0, 1), (1, 2), (2, 2), (7, 3), (20, 1), (33, 4)] {
        image[at(chunk)..at(chunk + 1)].copy_from_slice(&noise(seed, at(1)));
    }
    let text = b"all work and no play ".repeat(20_000);
    image[at(10) + 5..at(10) + 5 + text.len()].copy_from_slice(&text);
    let end = image.len();
    image[end - 700..].copy_from_slice(&noise(5, 700));
    image
}

/// The image in a file, its zeroes as holes.
pub(crate) fn file_of(image: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(image.len() as u64).unwrap();
    for (number, part) in image.chunks(4096).enumerate() {
        if !chunks::is_zero(part) {
            file.as_file().write_all_at(part, number as u64 * 4096).unwrap();
        }
    }
    file
}

pub(crate) async fn import(store: &Store, input: Input) -> Result<Imported> {
    // On a task of its own, as the gateway does it.
    let store = store.clone();
    let task = async move { run(&store, input, ImportOptions::default(), &NoProgress, &Clock::system()).await };
    tokio::spawn(task).await.unwrap()
}

/// Writes the base record and opens it.
pub(crate) async fn open(store: &Store, imported: &Imported, cache: &Arc<ICache>) -> Result<Arc<Base>> {
    let record = record_of(imported);
    store.put_new(&keys::base(record.id), envelope::encode(&record)?).await?;
    Base::open(store.clone(), record, &NoRawSources, Arc::clone(cache), Handle::current()).await
}

fn record_of(imported: &Imported) -> BaseRecord {
    let clock = Clock::system();
    BaseRecord {
        id: clock.id(),
        nonce: clock.nonce(),
        size: imported.size,
        template: "t".parse().unwrap(),
        version: 1,
        slots: 128,
        created_ms: clock.now_ms(),
        data: BaseData::Packed { index: imported.index },
    }
}

pub(crate) async fn read(base: &Base, range: ByteRange) -> Result<Vec<u8>> {
    Ok(base.read(range).await?.concat())
}

async fn read_all(base: &Base) -> Result<Vec<u8>> {
    read(base, ByteRange::new(0, base.size())).await
}

async fn packs_in(store: &Store) -> usize {
    store.list(&keys::packs()).await.unwrap().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raw_image_comes_out_as_it_went_in_whichever_way_it_came() {
    let image = sample();
    let file = file_of(&image);
    for way in 0..4 {
        let store = memory();
        let input = match way {
            0 => Input::RawFile(file.path().to_owned()),
            1 => Input::RawStream { reader: Box::new(std::io::Cursor::new(image.clone())), size: None },
            2 => Input::RawStream {
                reader: Box::new(std::io::Cursor::new(image.clone())),
                size: Some(image.len() as u64),
            },
            _ => {
                let (size, body) = upload(Input::RawFile(file.path().to_owned()), NoProgress).await.unwrap();
                assert_eq!(size, Some(image.len() as u64));
                Input::Frames(body)
            }
        };
        let imported = import(&store, input).await.unwrap();
        assert_eq!(imported.size, image.len() as u64);
        let stats = imported.stats;
        assert_eq!((stats.chunks, stats.chunks_repeated, stats.chunks_shared, stats.packs), (14, 2, 0, 1), "way {way}");
        let base = open(&store, &imported, &ICache::new(64 << 20)).await.unwrap();
        assert!(base.try_read(ByteRange::new(0, 512)).is_none());
        assert!(read_all(&base).await.unwrap() == image, "way {way}");
        let again = base.try_read(ByteRange::new(0, base.size())).expect("all of it is in memory now");
        assert!(again.concat() == image);
        assert_eq!(base.read(ByteRange::new(0, base.size() + 1)).await.unwrap_err().code(), "beyond-end");
        assert!(base.try_read(ByteRange::new(0, base.size() + 1)).is_none());
    }
}

#[test]
fn any_range_is_read_right_cold_and_warm() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let image = sample();
    let (store, imported) = runtime.block_on(async {
        let store = memory();
        let imported = import(&store, Input::RawFile(file_of(&image).path().to_owned())).await.unwrap();
        (store, imported)
    });
    let size = image.len() as u64;
    proptest!(ProptestConfig::with_cases(64), |(ranges in proptest::collection::vec((0..=size, 0..=400_000u64), 1..12))| {
        runtime.block_on(async {
            // A small cache, so that lines are evicted between reads.
            let base = open(&store, &imported, &ICache::new(1 << 20)).await.unwrap();
            for (start, length) in ranges {
                let range = ByteRange::new(start, (start + length).min(size));
                let right = &image[usize::try_from(range.start()).unwrap()..usize::try_from(range.end()).unwrap()];
                if let Some(segments) = base.try_read(range) {
                    assert!(segments.concat() == right, "{range:?} from memory");
                }
                assert!(read(&base, range).await.unwrap() == right, "{range:?}");
            }
        });
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn zeroes_are_stored_nowhere() {
    let store = memory();
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 40).unwrap();
    let imported = import(&store, Input::RawFile(file.path().to_owned())).await.unwrap();
    assert_eq!((imported.stats.chunks, imported.stats.packs, imported.stats.read_bytes), (0, 0, 0));
    assert_eq!(packs_in(&store).await, 0);
    let base = open(&store, &imported, &ICache::new(1 << 20)).await.unwrap();
    let far = ByteRange::at((1 << 40) - 4096, 4096).unwrap();
    assert_eq!(base.try_read(far).unwrap().concat(), [0; 4096]);
    let extents = base.extents(ByteRange::new(0, 1 << 40)).await.unwrap();
    assert_eq!((extents.len(), extents[0].source), (1, Source::Zero));
}

#[tokio::test(flavor = "multi_thread")]
async fn extents_tell_what_is_stored() {
    let store = memory();
    let imported = import(&store, Input::RawFile(file_of(&sample()).path().to_owned())).await.unwrap();
    let base = open(&store, &imported, &ICache::new(64 << 20)).await.unwrap();
    let extents = base.extents(ByteRange::new(100, 9 * CHUNK)).await.unwrap();
    let told: Vec<_> = extents.iter().map(|e| (e.range.start(), e.range.end(), e.source)).collect();
    let expected = [
        (100, 3 * CHUNK, Source::Base),
        (3 * CHUNK, 7 * CHUNK, Source::Zero),
        (7 * CHUNK, 8 * CHUNK, Source::Base),
        (8 * CHUNK, 9 * CHUNK, Source::Zero),
    ];
    assert_eq!(told, expected);
    assert!(base.extents(ByteRange::new(5, 5)).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_version_stores_only_what_changed() {
    let store = memory();
    let cache = ICache::new(64 << 20);
    let mut image = noise(1, usize::try_from(64 * CHUNK).unwrap());
    let first = import(&store, Input::RawFile(file_of(&image).path().to_owned())).await.unwrap();
    let base = open(&store, &first, &cache).await.unwrap();
    read_all(&base).await.unwrap();
    let before = cache.stats();
    image[100] ^= 1;
    let second = import(&store, Input::RawFile(file_of(&image).path().to_owned())).await.unwrap();
    assert_eq!((second.stats.chunks, second.stats.chunks_shared), (64, 63));
    assert!(second.stats.stored_bytes < 2 * CHUNK, "{} bytes", second.stats.stored_bytes);
    // The cache is warm for the new version from the start.
    let next = open(&store, &second, &cache).await.unwrap();
    assert!(read_all(&next).await.unwrap() == image);
    assert!(cache.stats().store_bytes - before.store_bytes < 2 * CHUNK);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_shared_with_and_deleted_meanwhile_is_noticed() {
    let store = memory();
    let first = import(&store, Input::RawFile(file_of(&sample()).path().to_owned())).await.unwrap();
    open(&store, &first, &ICache::new(1 << 20)).await.unwrap();
    let clock = Clock::system();
    let making = Making::of_new(&store, &clock, None, clock.id()).await.unwrap();
    let (known, mut packs) = (dedup::Known::default(), packs::Packs::new(&store, &clock, making.pack_ids()));
    let shared = dedup::Shared::learn(&store, CHUNK_BYTES, &known, |pack| packs.number_of(pack)).await.unwrap();
    let used: Vec<_> = packs.id(0).into_iter().collect();
    shared.check(&store, &used).await.unwrap();
    store.delete(&keys::index(first.index)).await.unwrap();
    shared.check(&store, &[]).await.unwrap();
    assert_eq!(shared.check(&store, &used).await.unwrap_err().code(), "dedup-raced");
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_are_none_are_refused_and_nothing_is_left() {
    let store = memory();
    let raw = |bytes: &[u8]| {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    };
    for (bytes, code) in [
        (&b""[..], "empty-image"),
        (&[1; 1000][..], "bad-image-size"),
        (&b"QFI\xfb".iter().copied().chain([0; 508]).collect::<Vec<_>>(), "wrong-format"),
        (&b"KDMV".iter().copied().chain([0; 508]).collect::<Vec<_>>(), "wrong-format"),
    ] {
        let file = raw(bytes);
        let from_file = import(&store, Input::RawFile(file.path().to_owned())).await.unwrap_err();
        assert_eq!(from_file.code(), code);
        let reader = Box::new(std::io::Cursor::new(bytes.to_vec()));
        let from_stream = import(&store, Input::RawStream { reader, size: None }).await.unwrap_err();
        assert_eq!(from_stream.code(), code);
    }
    let directory = tempfile::tempdir().unwrap();
    for (path, code) in [(directory.path().to_owned(), "not-an-image"), (directory.path().join("no"), "no-image")] {
        assert_eq!(import(&store, Input::RawFile(path.clone())).await.unwrap_err().code(), code);
        assert_eq!(import(&store, Input::Qcow2File(path)).await.unwrap_err().code(), code);
    }
    let short = Input::RawStream { reader: Box::new(std::io::Cursor::new(vec![1; 512])), size: Some(1024) };
    assert_eq!(import(&store, short).await.unwrap_err().code(), "cut-upload");
    let file = raw(&noise(1, 8192));
    let options = ImportOptions { size_max: 4096, ..ImportOptions::default() };
    let input = Input::RawFile(file.path().to_owned());
    let large = run(&store, input, options, &NoProgress, &Clock::system()).await.unwrap_err();
    assert_eq!(large.code(), "image-too-large");
    let options = ImportOptions { chunk_bytes: 1000, ..ImportOptions::default() };
    let input = Input::RawFile(file.path().to_owned());
    let odd = run(&store, input, options, &NoProgress, &Clock::system()).await.unwrap_err();
    assert_eq!(odd.code(), "bad-chunk-size");
    assert!(store.list(&keys::all()).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_is_cut_leaves_nothing() {
    let store = memory();
    let image = noise(1, 80 << 20); // more than two packs
    let file = file_of(&image);
    let (_, body) = upload(Input::RawFile(file.path().to_owned()), NoProgress).await.unwrap();
    let cut = body.take(150).boxed();
    assert_eq!(import(&store, Input::Frames(cut)).await.unwrap_err().code(), "cut-upload");
    assert!(store.list(&keys::all()).await.unwrap().is_empty());
    let (_, body) = upload(Input::RawFile(file.path().to_owned()), NoProgress).await.unwrap();
    let broken = body
        .take(150)
        .chain(futures::stream::once(async { Err(Error::unavailable("connection-lost", "the client went away")) }));
    assert_eq!(import(&store, Input::Frames(broken.boxed())).await.unwrap_err().code(), "connection-lost");
    assert!(store.list(&keys::all()).await.unwrap().is_empty());
    let (_, body) = upload(Input::RawFile(file.path().to_owned()), NoProgress).await.unwrap();
    let imported = import(&store, Input::Frames(body)).await.unwrap();
    assert_eq!(imported.stats.packs, 6);
    let base = open(&store, &imported, &ICache::new(256 << 20)).await.unwrap();
    assert!(read_all(&base).await.unwrap() == image);
}

#[tokio::test(start_paused = true)]
async fn an_upload_of_an_image_that_comes_slowly_or_is_zeroes_is_never_silent_for_long() {
    use clonegate_core::format::sparse::{Decoder, Event};
    use tokio::io::AsyncWriteExt;
    const MIB: usize = 1 << 20;
    let image = [noise(1, MIB), vec![0; 100 * MIB], noise(2, MIB)].concat();
    let (mut writer, reader) = tokio::io::duplex(MIB);
    let slow = image.clone();
    tokio::spawn(async move {
        for (number, part) in slow.chunks(MIB).enumerate() {
            let pause = if number == 1 { 60 } else { 1 };
            tokio::time::sleep(std::time::Duration::from_secs(pause)).await;
            writer.write_all(part).await.unwrap();
        }
    });
    let (_, mut body) = upload(Input::RawStream { reader: Box::new(reader), size: None }, NoProgress).await.unwrap();
    let (mut decoder, mut input) = (Decoder::default(), bytes::BytesMut::new());
    let (mut came, mut sent) = (vec![0; image.len()], 0);
    while let Some(part) =
        tokio::time::timeout(std::time::Duration::from_secs(10), body.next()).await.expect("it is silent")
    {
        let part = part.unwrap();
        sent += part.len();
        input.extend_from_slice(&part);
        while let Some(event) = decoder.next(&mut input).unwrap() {
            if let Event::Data(offset, bytes) = event {
                let at = usize::try_from(offset).unwrap();
                came[at..at + bytes.len()].copy_from_slice(&bytes);
            }
        }
    }
    decoder.finish(&input).unwrap();
    assert!(came == image);
    assert!(sent < 2 * MIB + 4096, "{sent} bytes sent: zeroes are not left out");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_written_meanwhile_is_refused() {
    let store = memory();
    let file = file_of(&noise(1, 64 << 20));
    let path = file.path().to_owned();
    let imported = {
        let store = store.clone();
        tokio::spawn(async move { import(&store, Input::RawFile(path)).await })
    };
    while !imported.is_finished() {
        file.as_file().write_all_at(b"changed", 5).unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(imported.await.unwrap().unwrap_err().code(), "image-changed");
    assert!(store.list(&keys::all()).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_only_goes_forward_and_ends_at_the_end() {
    #[derive(Debug, Default)]
    struct Heard(parking_lot::Mutex<Vec<ProgressNow>>);
    impl Progress for Heard {
        fn report(&self, now: ProgressNow) {
            self.0.lock().push(now);
        }
    }
    let (store, heard, image) = (memory(), Heard::default(), sample());
    let file = file_of(&image);
    let input = Input::RawFile(file.path().to_owned());
    run(&store, input, ImportOptions::default(), &heard, &Clock::system()).await.unwrap();
    let heard = heard.0.into_inner();
    assert!(heard.is_sorted_by_key(|now| now.done_bytes) && heard.is_sorted_by_key(|now| now.stored_bytes));
    assert_eq!(heard.last().unwrap().done_bytes, image.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_of_every_size_are_read_back() {
    let image = sample();
    let file = file_of(&image);
    for chunk_bytes in [4096, 16384, 1 << 20] {
        let store = memory();
        let options = ImportOptions { chunk_bytes, ..ImportOptions::default() };
        let input = Input::RawFile(file.path().to_owned());
        let imported = run(&store, input, options, &NoProgress, &Clock::system()).await.unwrap();
        let base = open(&store, &imported, &ICache::new(64 << 20)).await.unwrap();
        assert!(read_all(&base).await.unwrap() == image, "{chunk_bytes}");
    }
}
