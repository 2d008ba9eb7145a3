//! Images made by hand, good and hostile. Real ones by qemu-img are tested in `tests/tests/images.rs`.

use std::io::Write;

use super::*;
use crate::import::Input;
use crate::import::source::{self, Piece};

const CLUSTER: usize = 4096;
const BITS: u32 = 12;

/// What a cluster of the disk is.
#[derive(Clone)]
enum Is {
    Plain(Vec<u8>),
    Compressed(Vec<u8>),
    ZeroFlag,
}

/// Builds an image: header, refcount table (unread), level 1 table, level 2 tables, data.
struct Builder {
    version: u32,
    size: u64,
    clusters: Vec<(u64, Is)>,
}

/// Where things are in a built image, for tests that break them.
struct Built {
    bytes: Vec<u8>,
    l1: usize,
    l2: usize,
}

impl Builder {
    fn new(version: u32, size: u64) -> Self {
        Self { version, size, clusters: Vec::new() }
    }

    fn with(mut self, cluster: u64, is: Is) -> Self {
        self.clusters.push((cluster, is));
        self
    }

    fn build(&self) -> Built {
        let per_l2 = (CLUSTER / 8) as u64;
        let l1_entries = self.size.div_ceil(per_l2 * CLUSTER as u64);
        let l1 = 2 * CLUSTER;
        let l2 = l1 + (usize::try_from(l1_entries).unwrap() * 8).next_multiple_of(CLUSTER);
        let mut bytes = vec![0; l2];
        let mut header = b"QFI\xfb".to_vec();
        header.write_all(&self.version.to_be_bytes()).unwrap();
        header.extend([0; 12]); // no backing file
        header.extend(BITS.to_be_bytes());
        header.extend(self.size.to_be_bytes());
        header.extend([0; 4]); // not encrypted
        header.extend(u32::try_from(l1_entries).unwrap().to_be_bytes());
        header.extend((l1 as u64).to_be_bytes());
        header.extend((CLUSTER as u64).to_be_bytes()); // refcount table
        header.extend(1u32.to_be_bytes());
        header.extend([0; 12]); // no snapshots
        if self.version == 3 {
            header.extend([0; 24]); // no features
            header.extend(4u32.to_be_bytes()); // refcounts of 16 bits
            header.extend(104u32.to_be_bytes());
            header.extend([0; 8]); // end of extensions
        }
        bytes[..header.len()].copy_from_slice(&header);
        let mut tables: Vec<u64> = self.clusters.iter().map(|(cluster, _)| cluster / per_l2).collect();
        tables.sort_unstable();
        tables.dedup();
        for (number, table) in tables.iter().enumerate() {
            let offset = (l2 + number * CLUSTER) as u64;
            put(&mut bytes, l1 + usize::try_from(*table).unwrap() * 8, offset | (1 << 63));
        }
        bytes.resize(l2 + tables.len() * CLUSTER, 0);
        for (cluster, is) in &self.clusters {
            let table = tables.iter().position(|table| *table == cluster / per_l2).unwrap();
            let at = l2 + table * CLUSTER + usize::try_from(cluster % per_l2).unwrap() * 8;
            let offset = bytes.len() as u64;
            let entry = match is {
                Is::ZeroFlag => 1,
                Is::Plain(data) => {
                    bytes.extend(data);
                    offset | (1 << 63)
                }
                Is::Compressed(data) => {
                    // A stored block is valid deflate, and needs no compressor here.
                    let length = u16::try_from(data.len()).unwrap();
                    bytes.push(1);
                    bytes.extend(length.to_le_bytes());
                    bytes.extend((!length).to_le_bytes());
                    bytes.extend(data);
                    let sectors = (bytes.len() as u64 - 1) / 512 - offset / 512;
                    (1 << 62) | (sectors << (62 - (BITS - 8))) | offset
                }
            };
            put(&mut bytes, at, entry);
            bytes.resize(bytes.len().next_multiple_of(CLUSTER), 0);
        }
        Built { bytes, l1, l2 }
    }
}

fn put(bytes: &mut [u8], at: usize, entry: u64) {
    bytes[at..at + 8].copy_from_slice(&entry.to_be_bytes());
}

fn filled(seed: u8) -> Vec<u8> {
    (0..CLUSTER).map(|n| u8::try_from(n % 253).unwrap() ^ seed).collect()
}

fn sample(version: u32) -> (Built, Vec<u8>) {
    let size = 4 << 20;
    let mut builder = Builder::new(version, size)
        .with(0, Is::Plain(filled(1)))
        .with(1, Is::Plain(filled(2)))
        .with(7, Is::Compressed(filled(3)))
        .with(700, Is::Plain(filled(4)))
        .with(1023, Is::Compressed(filled(5)));
    let mut disk = vec![0; usize::try_from(size).unwrap()];
    for (cluster, is) in &builder.clusters {
        if let Is::Plain(data) | Is::Compressed(data) = is {
            let at = usize::try_from(*cluster).unwrap() * CLUSTER;
            disk[at..at + CLUSTER].copy_from_slice(data);
        }
    }
    if version == 3 {
        builder = builder.with(9, Is::ZeroFlag);
    }
    (builder.build(), disk)
}

async fn read(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    let mut source = source::open(Input::Qcow2File(file.path().to_owned()), 4096).await?;
    let mut disk = Vec::new();
    while let Some(piece) = source.pieces.recv().await {
        match piece? {
            Piece::Stored(offset, length, reader) => {
                let offset_here = usize::try_from(offset).unwrap();
                assert!(disk.len() <= offset_here, "pieces go back");
                disk.resize(offset_here + length, 0);
                tokio::task::block_in_place(|| reader.read_at(offset, &mut disk[offset_here..]))?;
            }
            Piece::Data(..) => panic!("a file is read, not sent"),
            Piece::End(size) => {
                disk.resize(usize::try_from(size).unwrap(), 0);
                return Ok(disk);
            }
        }
    }
    panic!("the image ended without an end");
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_both_versions_are_read_byte_by_byte() {
    for version in [2, 3] {
        let (built, disk) = sample(version);
        assert!(read(&built.bytes).await.unwrap() == disk, "version {version}");
    }
}

/// The code with which an image is refused after `change`.
async fn refused(version: u32, change: impl Fn(&mut Built)) -> &'static str {
    let (mut built, disk) = sample(version);
    change(&mut built);
    match read(&built.bytes).await {
        Ok(read) => panic!("accepted; its bytes are {}", if read == disk { "right" } else { "wrong" }),
        Err(error) => error.code(),
    }
}

fn word(at: usize, value: u32) -> impl Fn(&mut Built) {
    move |built| built.bytes[at..at + 4].copy_from_slice(&value.to_be_bytes())
}

fn long(at: usize, value: u64) -> impl Fn(&mut Built) {
    move |built| put(&mut built.bytes, at, value)
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_images_are_refused_each_with_its_reason() {
    let name_backing = |built: &mut Built| {
        let name = b"/etc/passwd";
        built.bytes[512..512 + name.len()].copy_from_slice(name);
        put(&mut built.bytes, 8, 512);
        built.bytes[16..20].copy_from_slice(&11u32.to_be_bytes());
    };
    let name_data_file = |built: &mut Built| {
        put(&mut built.bytes, 72, 4);
        let extension = b"\x44\x41\x54\x41\0\0\0\x0b/etc/passwd\0\0\0\0\0\0\0\0\0\0\0\0\0";
        built.bytes[104..104 + extension.len()].copy_from_slice(extension);
    };
    assert_eq!(refused(2, name_backing).await, "backing-file");
    assert_eq!(refused(3, name_backing).await, "backing-file");
    assert_eq!(refused(3, long(8, u64::MAX)).await, "backing-file");
    assert_eq!(refused(3, name_data_file).await, "external-data-file");
    assert_eq!(refused(3, word(32, 1)).await, "encrypted-image");
    assert_eq!(refused(2, word(32, 2)).await, "encrypted-image");
    assert_eq!(refused(3, long(72, 1)).await, "dirty-image");
    assert_eq!(refused(3, long(72, 2)).await, "corrupt-image");
    assert_eq!(refused(3, long(72, 8)).await, "qcow2-compression");
    assert_eq!(refused(3, long(72, 16)).await, "qcow2-subclusters");
    assert_eq!(refused(3, long(72, 1 << 40)).await, "qcow2-feature");
    assert_eq!(refused(3, word(4, 1)).await, "qcow2-version");
    assert_eq!(refused(3, word(4, 4)).await, "qcow2-version");
    for bits in [0, 8, 22, 31, 63, 64, u32::MAX] {
        assert_eq!(refused(3, word(20, bits)).await, "bad-qcow2-header", "2^{bits}");
    }
    assert_eq!(refused(3, long(24, 0)).await, "empty-image");
    assert_eq!(refused(3, long(24, u64::MAX)).await, "bad-image-size");
    assert_eq!(refused(3, long(24, u64::MAX - 511)).await, "image-too-large");
    assert_eq!(refused(3, long(24, 1 << 40)).await, "bad-qcow2-header"); // more than its level 1 table maps
    assert_eq!(refused(3, word(36, u32::MAX)).await, "bad-qcow2-header");
    assert_eq!(refused(3, word(36, 1)).await, "bad-qcow2-header");
    assert_eq!(refused(3, word(36, 4 << 20)).await, "truncated-image");
    assert_eq!(refused(3, long(40, 1)).await, "bad-qcow2-header");
    assert_eq!(refused(3, long(40, 0)).await, "bad-qcow2-header");
    assert_eq!(refused(3, long(40, !4095)).await, "truncated-image");
    assert_eq!(refused(3, long(48, 3)).await, "bad-qcow2-header");
    assert_eq!(refused(3, word(56, u32::MAX)).await, "bad-qcow2-header");
    assert_eq!(refused(3, word(60, u32::MAX)).await, "bad-qcow2-header");
    assert_eq!(refused(3, word(96, 7)).await, "bad-qcow2-header");
    assert_eq!(refused(3, word(100, 0)).await, "bad-qcow2-header");
    assert_eq!(refused(3, word(100, 1 << 30)).await, "bad-qcow2-header");
    assert_eq!(refused(3, |built| built.bytes[0] = b'q').await, "not-qcow2");
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_lie_are_refused() {
    let l1 = |value: u64| move |built: &mut Built| put(&mut built.bytes, built.l1, value);
    let l2 = |value: u64| move |built: &mut Built| put(&mut built.bytes, built.l2, value);
    // Past the end of the file, past the end of all offsets, within a cluster, with reserved bits.
    assert_eq!(refused(3, l1(1 << 40)).await, "truncated-image");
    assert_eq!(refused(3, l1(0x00ff_ffff_ffff_f000)).await, "truncated-image");
    assert_eq!(refused(3, l1(0x200)).await, "bad-qcow2-tables");
    assert_eq!(refused(3, l1(0x1001)).await, "bad-qcow2-tables");
    assert_eq!(refused(3, l2(1 << 40)).await, "truncated-image");
    assert_eq!(refused(3, l2(0x200)).await, "bad-qcow2-tables");
    assert_eq!(refused(3, l2(0x1002)).await, "bad-qcow2-tables");
    assert_eq!(refused(2, l2(0x1001)).await, "bad-qcow2-tables");
    assert_eq!(refused(3, l2((1 << 62) | (1 << 40))).await, "truncated-image");
    assert_eq!(refused(3, l2(1 << 62)).await, "truncated-image"); // compressed data in the header
    let past_end = |built: &mut Built| {
        let last_sector = built.bytes.len() as u64 - 512;
        put(&mut built.bytes, built.l2, (1 << 62) | (1 << 58) | last_sector);
    };
    assert_eq!(refused(3, past_end).await, "truncated-image");
    // One table, and one cluster, used over and over: a small file that would be an endless image.
    let loops = |built: &mut Built| {
        let entry = u64::from_be_bytes(built.bytes[built.l2..built.l2 + 8].try_into().unwrap());
        for slot in 0..CLUSTER / 8 {
            put(&mut built.bytes, built.l2 + slot * 8, entry);
        }
    };
    assert_eq!(refused(3, loops).await, "bad-qcow2-tables");
    let itself = |built: &mut Built| {
        let own = built.l2 as u64;
        for slot in 0..CLUSTER / 8 {
            put(&mut built.bytes, built.l2 + slot * 8, own);
        }
    };
    assert_eq!(refused(3, itself).await, "bad-qcow2-tables");
    let squeezed = |built: &mut Built| {
        for slot in 0..CLUSTER / 8 {
            put(&mut built.bytes, built.l2 + slot * 8, (1 << 62) | 0x5000);
        }
    };
    assert!(
        read(&{
            let (mut built, _) = sample(3);
            squeezed(&mut built);
            built.bytes
        })
        .await
        .is_err()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_cut_anywhere_is_refused_or_whole() {
    let (built, disk) = sample(3);
    // The padding behind the last compressed cluster is no part of the image.
    for length in (0..built.bytes.len()).step_by(61) {
        match read(&built.bytes[..length]).await {
            Ok(read) => assert!(read == disk, "wrong bytes of an image cut at {length}"),
            Err(error) => assert!(
                ["truncated-image", "not-qcow2", "empty-image", "bad-qcow2-tables"].contains(&error.code()),
                "{error:?} at {length}"
            ),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_an_image_names_is_opened() {
    // A pipe without a writer: whoever opens it would wait for ever, and whoever reads it would show.
    let directory = tempfile::tempdir().unwrap();
    let canary = directory.path().join("canary");
    std::fs::write(&canary, filled(99)).unwrap();
    let before = std::fs::metadata(&canary).unwrap();
    // An access time older than the modification makes the next read move it, also under relatime.
    let long_ago = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
    let times = std::fs::FileTimes::new().set_accessed(long_ago);
    std::fs::File::options().write(true).open(&canary).unwrap().set_times(times).unwrap();
    let name = canary.to_str().unwrap().as_bytes().to_vec();
    for named in 0..2 {
        let (mut built, _) = sample(3);
        built.bytes[2048..2048 + name.len()].copy_from_slice(&name);
        if named == 0 {
            put(&mut built.bytes, 8, 2048);
            built.bytes[16..20].copy_from_slice(&u32::try_from(name.len()).unwrap().to_be_bytes());
        } else {
            // The extension names a data file, and the feature bit that would make a reader use it is not set.
            let mut extension = b"\x44\x41\x54\x41".to_vec();
            extension.extend(u32::try_from(name.len()).unwrap().to_be_bytes());
            extension.extend(&name);
            built.bytes[104..104 + extension.len()].copy_from_slice(&extension);
        }
        let _ = read(&built.bytes).await;
    }
    let after = std::fs::metadata(&canary).unwrap();
    assert_eq!(after.accessed().unwrap(), long_ago, "the canary was read");
    assert_eq!(after.len(), before.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn flipped_bits_never_panic() {
    let (built, _) = sample(3);
    for at in (0..112).chain(built.l1..built.l1 + 16).chain(built.l2..built.l2 + 64) {
        for bit in [0, 3, 7] {
            let mut bad = built.bytes.clone();
            bad[at] ^= 1 << bit;
            // Tables of an image carry no checksum, so other bytes are possible; a panic is not.
            if let Err(error) = read(&bad).await {
                assert_ne!(error.code(), "bad-image", "byte {at} bit {bit}: {error:?}");
            }
        }
    }
}
