//! Files are read out of volumes as the machine that made them wrote them, and no damaged image stops the gateway.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clonegate::files::{self, Found, NameView, Place};
use clonegate_core::units::ByteRange;
use clonegate_core::{Error, ErrorKind};
use clonegate_tests::machine::run;
use clonegate_tests::memory::MemoryVolume;
use clonegate_tests::{cases, images};
use futures::StreamExt;
use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};

cases! {
    "apt-get", "busybox", "cpio", "depmod", "grub-mkimage", "mcopy", "mke2fs", "mkfs.vfat", "nbd-client", "python3", "sfdisk",
    "zstd" => the_files_of_a_real_linux_are_found_and_read;
    "mkfs.vfat", "mcopy" => a_volume_that_is_one_fat_file_system_has_its_files;
    "sfdisk", "mkfs.vfat", "mcopy" => every_partition_of_an_mbr_disk_is_found;
    "mke2fs" => links_are_followed_within_their_file_system_and_large_directories_are_cut;
    "mke2fs" => a_damaged_file_system_is_an_error_and_never_a_hang;
    => what_cannot_be_is_refused;
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(120), future).await.expect("it hangs") })
}

fn volume(bytes: Vec<u8>) -> Arc<MemoryVolume> {
    Arc::new(MemoryVolume::new(bytes))
}

async fn read(volume: &Arc<MemoryVolume>, place: &str, path: &str) -> Result<Vec<u8>, Error> {
    match files::open(Arc::<MemoryVolume>::clone(volume), place.parse()?, path).await? {
        Found::Directory(names) => panic!("{path} is a directory: {names:?}"),
        Found::File(file) => {
            let size = file.size;
            let mut bytes = Vec::new();
            let mut stream = Box::pin(file.stream(ByteRange::new(0, size)));
            while let Some(piece) = stream.next().await {
                bytes.extend_from_slice(&piece?);
            }
            Ok(bytes)
        }
    }
}

async fn names(volume: &Arc<MemoryVolume>, path: &str) -> Vec<NameView> {
    match files::open(Arc::<MemoryVolume>::clone(volume), Place::Any, path).await.unwrap() {
        Found::Directory(names) => names.items,
        Found::File(file) => panic!("{path} is a file: {file:?}"),
    }
}

fn the_files_of_a_real_linux_are_found_and_read() {
    let linux = images::linux();
    let volume = volume(std::fs::read(&linux.disk).unwrap());
    block_on(async {
        let parts = files::partitions(Arc::<MemoryVolume>::clone(&volume)).await.unwrap();
        let seen: Vec<_> = parts.iter().map(|p| (p.number, p.file_system.as_deref(), p.label.as_deref())).collect();
        assert_eq!(seen, [(1, None, None), (2, Some("fat"), Some("ESP")), (3, Some("ext"), Some("CLONEROOT"))]);
        let kernel = std::fs::read(&linux.kernel).unwrap();
        for place in ["-", "3", "CLONEROOT"] {
            assert!(read(&volume, place, "/boot/vmlinuz").await.unwrap() == kernel, "{place}: the kernel differs");
        }
        assert!(read(&volume, "-", "boot//initrd").await.unwrap() == std::fs::read(&linux.initrd).unwrap());
        assert!(read(&volume, "-", "/payload/sparse").await.unwrap().iter().all(|byte| *byte == 0));
        let loader = read(&volume, "ESP", "/efi/boot/bootx64.efi").await.unwrap();
        assert!(loader.starts_with(b"MZ"), "names on FAT compare without case");
        let listed = names(&volume, "/boot").await;
        let size = Some(kernel.len() as u64);
        assert!(listed.contains(&NameView { name: "vmlinuz".into(), kind: "file".into(), size }), "{listed:?}");

        // A part from the middle.
        let found = files::open(Arc::<MemoryVolume>::clone(&volume), Place::Any, "/boot/vmlinuz").await.unwrap();
        let Found::File(file) = found else { panic!("the kernel is a file") };
        let parts: Vec<_> = file.stream(ByteRange::new(1_000_001, 2_000_003)).collect().await;
        let bytes: Vec<u8> = parts.into_iter().flat_map(|part| part.unwrap().to_vec()).collect();
        assert!(bytes == kernel[1_000_001..2_000_003]);
    });
}

/// A FAT file system of `mib` MiB with one long name in a directory.
fn fat(dir: &Path, mib: u64) -> Vec<u8> {
    let image = dir.join("fat.img");
    std::fs::File::create(&image).unwrap().set_len(mib << 20).unwrap();
    std::fs::write(dir.join("file"), images::pattern(0, 300_000)).unwrap();
    let image_text = image.display().to_string();
    run("mkfs.vfat", &["-n", "STICK", &image_text]);
    run("mmd", &["-i", &image_text, "::/dir"]);
    run("mcopy", &["-i", &image_text, &dir.join("file").display().to_string(), "::/dir/A rather long name.bin"]);
    std::fs::read(image).unwrap()
}

fn a_volume_that_is_one_fat_file_system_has_its_files() {
    let dir = tempfile::tempdir().unwrap();
    for mib in [4, 40, 300] {
        let volume = volume(fat(dir.path(), mib));
        block_on(async {
            let bytes = read(&volume, "STICK", "/dir/a rather long name.BIN").await.unwrap();
            assert!(bytes == images::pattern(0, 300_000), "{mib} MiB");
            assert_eq!(names(&volume, "/dir").await[0].name, "A rather long name.bin");
        });
    }
}

fn every_partition_of_an_mbr_disk_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let part = fat(dir.path(), 4);
    let disk = dir.path().join("disk.raw");
    std::fs::File::create(&disk).unwrap().set_len(64 << 20).unwrap();
    let table = "label: dos\n2048,8192,c\n12288,8192,83\n32768,,E\n34816,8192,c\n45056,8192,c\n";
    std::fs::write(dir.path().join("table"), table).unwrap();
    let script = format!("/sbin/sfdisk -q '{}' < '{}'", disk.display(), dir.path().join("table").display());
    run("bash", &["-c", &script]);
    let mut bytes = std::fs::read(&disk).unwrap();
    for first in [2048, 34816, 45056] {
        bytes[first * 512..][..part.len()].copy_from_slice(&part);
    }
    bytes[12288 * 512..][..4].copy_from_slice(b"XFSB");
    let volume = volume(bytes);
    block_on(async {
        let parts = files::partitions(Arc::<MemoryVolume>::clone(&volume)).await.unwrap();
        let seen: Vec<_> = parts.iter().map(|p| (p.number, p.start / 512, p.file_system.as_deref())).collect();
        assert_eq!(
            seen,
            [(1, 2048, Some("fat")), (2, 12288, Some("xfs")), (5, 34816, Some("fat")), (6, 45056, Some("fat"))]
        );
        assert_eq!(read(&volume, "6", "/dir/A rather long name.bin").await.unwrap().len(), 300_000);
        // What is there and cannot be read is not missing.
        let error = read(&volume, "2", "/x").await.unwrap_err();
        assert_eq!(error.code(), "file-system-unsupported");
        assert!(error.message().contains("partition 2 has xfs"), "{error}");
        let error = read(&volume, "-", "/x").await.unwrap_err();
        assert_eq!(error.code(), "no-such-file");
        assert!(error.message().contains("not read: partition 2 (xfs)"), "{error}");
        assert_eq!(read(&volume, "3", "/x").await.unwrap_err().code(), "no-such-partition");
    });
}

fn links_are_followed_within_their_file_system_and_large_directories_are_cut() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    for name in ["boot", "links", "many"] {
        std::fs::create_dir_all(tree.join(name)).unwrap();
    }
    std::fs::write(tree.join("boot/vmlinuz"), images::pattern(0, 5000)).unwrap();
    let sparse = std::fs::File::create(tree.join("sparse")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"here", 5 << 30).unwrap();
    for (to, name) in [
        ("../boot/vmlinuz", "relative"),
        ("/boot/vmlinuz", "absolute"),
        ("../../../../boot/vmlinuz", "above"),
        ("/boot", "directory"),
        ("missing", "dangling"),
        ("b", "a"),
        ("a", "b"),
    ] {
        std::os::unix::fs::symlink(to, tree.join("links").join(name)).unwrap();
    }
    for number in 0..10_001 {
        std::fs::File::create(tree.join(format!("many/{number}"))).unwrap();
    }
    let image = dir.path().join("ext.img");
    std::fs::File::create(&image).unwrap().set_len(48 << 20).unwrap();
    let (tree, path) = (tree.display().to_string(), image.display().to_string());
    // As a newer mke2fs makes them by itself.
    let features = "metadata_csum,metadata_csum_seed,orphan_file";
    run("mke2fs", &["-q", "-F", "-t", "ext4", "-N", "12000", "-O", features, "-d", &tree, &path]);
    let volume = volume(std::fs::read(&image).unwrap());
    block_on(async {
        for name in ["relative", "absolute", "above", "directory/vmlinuz"] {
            let bytes = read(&volume, "-", &format!("/links/{name}")).await.unwrap();
            assert!(bytes == images::pattern(0, 5000), "{name}");
        }
        for name in ["dangling", "a"] {
            assert_eq!(
                read(&volume, "-", &format!("/links/{name}")).await.unwrap_err().code(),
                "no-such-file",
                "{name}"
            );
        }
        let Found::Directory(many) =
            files::open(Arc::<MemoryVolume>::clone(&volume), Place::Any, "/many").await.unwrap()
        else {
            panic!("it is a directory")
        };
        assert_eq!((many.items.len(), many.more), (10_000, true));
        let root = files::open(Arc::<MemoryVolume>::clone(&volume), Place::Any, "/").await.unwrap();
        assert!(matches!(&root, Found::Directory(names) if !names.more && names.items.len() == 5), "{root:?}");

        let found = files::open(Arc::<MemoryVolume>::clone(&volume), Place::Any, "/sparse").await.unwrap();
        let Found::File(file) = found else { panic!("it is a file") };
        let parts: Vec<_> = file.stream(ByteRange::new((5 << 30) - 2, (5 << 30) + 4)).collect().await;
        let bytes: Vec<u8> = parts.into_iter().flat_map(|part| part.unwrap().to_vec()).collect();
        assert_eq!(bytes, b"\0\0here");
    });
}

fn a_damaged_file_system_is_an_error_and_never_a_hang() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    std::fs::create_dir_all(tree.join("boot")).unwrap();
    for number in 0..40 {
        std::fs::write(tree.join(format!("boot/file-{number}")), images::pattern(number * 8, 20_000)).unwrap();
    }
    let image = dir.path().join("ext.img");
    std::fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
    run("mke2fs", &["-q", "-F", "-t", "ext4", "-d", &tree.display().to_string(), &image.display().to_string()]);
    let ext = std::fs::read(&image).unwrap();
    let mut kinds = vec![(ext, "/boot/file-7")];
    if clonegate_tests::programs::find("mkfs.vfat").is_some() && clonegate_tests::programs::find("mcopy").is_some() {
        kinds.push((fat(dir.path(), 4), "/dir/A rather long name.bin"));
    }
    let mut random = SmallRng::seed_from_u64(7);
    for (sound, path) in kinds {
        // Where the tables are: bytes that are not zero are worth changing.
        let worth: Vec<_> = (0..sound.len()).filter(|&at| sound[at] != 0 && at < 1 << 20).collect();
        for _ in 0..300 {
            let mut damaged = sound.clone();
            for _ in 0..random.random_range(1..6) {
                damaged[worth[random.random_range(0..worth.len())]] = (random.next_u32() & 0xff) as u8;
            }
            let volume = volume(damaged);
            block_on(async {
                drop(files::partitions(Arc::<MemoryVolume>::clone(&volume)).await);
                // FAT has no checksum, so other bytes are possible; a panic or a hang is not.
                drop(read(&volume, "-", path).await);
            });
        }
    }
}

fn what_cannot_be_is_refused() {
    let volume = volume(vec![0; 1 << 20]);
    block_on(async {
        let check = async |place: &str, path: &str, kind: ErrorKind, code: &str| {
            let error = read(&volume, place, path).await.unwrap_err();
            assert_eq!((error.kind(), error.code()), (kind, code), "{place} {path}");
        };
        check("-", "/boot/vmlinuz", ErrorKind::NotFound, "no-such-file").await;
        check("4", "/boot/vmlinuz", ErrorKind::NotFound, "no-such-partition").await;
        check("-", "/a/../b", ErrorKind::Invalid, "bad-path").await;
        check("-", &"x/".repeat(3000), ErrorKind::Invalid, "bad-path").await;
        check("9999", "/a", ErrorKind::NotFound, "no-such-partition").await;
        check("", "/a", ErrorKind::Invalid, "bad-partition").await;
    });
}
