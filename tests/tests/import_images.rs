//! Images as `qemu-img` makes them, imported and compared byte by byte; and the ones that are refused, mended as the error says.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clonegate::base::{Base, NoRawSources};
use clonegate::clock::Clock;
use clonegate::icache::ICache;
use clonegate::import::{ImportOptions, Imported, Input, NoProgress, run as import};
use clonegate::store::Store;
use clonegate_core::Result;
use clonegate_core::format::base::{BaseData, BaseRecord};
use clonegate_core::units::ByteRange;
use clonegate_tests::images::patterned;
use clonegate_tests::machine::run;
use clonegate_tests::need;
use object_store::memory::InMemory;
use tempfile::TempDir;
use tokio::runtime::Handle;

const SIZE: u64 = 24 << 20;

struct Images {
    dir: TempDir,
    raw: Vec<u8>,
}

impl Images {
    /// `None` when there is no `qemu-img`.
    fn new() -> Option<Self> {
        need("qemu-img")?;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.raw");
        patterned(&path, SIZE).unwrap();
        let raw = std::fs::read(&path).unwrap();
        Some(Self { dir, raw })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn convert(&self, options: &[&str]) -> PathBuf {
        let (from, to) = (self.text("disk.raw"), self.text("disk.qcow2"));
        run("qemu-img", &[&["convert", "-f", "raw", "-O", "qcow2"], options, &[&from, &to]].concat());
        PathBuf::from(to)
    }
}

async fn import_into(store: &Store, path: &Path) -> Result<Imported> {
    let input = Input::Qcow2File(path.to_owned());
    import(store, input, ImportOptions::default(), &NoProgress, &Clock::system()).await
}

async fn read_back(path: &Path) -> Result<Vec<u8>> {
    let clock = Clock::system();
    let store = Store::new(Arc::new(InMemory::new()), "memory", &clock);
    let imported = import_into(&store, path).await?;
    let record = BaseRecord {
        id: clock.id(),
        nonce: clock.nonce(),
        size: imported.size,
        template: "t".parse()?,
        version: 1,
        slots: 1,
        created_ms: 0,
        data: BaseData::Packed { index: imported.index },
    };
    let base = Base::open(store, record, &NoRawSources, ICache::new(64 << 20), Handle::current()).await?;
    Ok(base.read(ByteRange::new(0, base.size())).await?.concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_qcow2_that_is_taken_comes_out_byte_by_byte() {
    let Some(images) = Images::new() else { return };
    for options in [
        &["-o", "compat=0.10"][..],
        &["-o", "compat=1.1"],
        &["-c"],
        &["-c", "-o", "compat=0.10"],
        &["-c", "-o", "cluster_size=2M"],
        &["-o", "cluster_size=512"],
        &["-o", "cluster_size=2M"],
        &["-o", "preallocation=metadata"],
        &["-o", "preallocation=full"],
        &["-o", "lazy_refcounts=on"],
        &["-o", "refcount_bits=1"],
        &["-S", "0"],
    ] {
        let path = images.convert(options);
        assert!(read_back(&path).await.unwrap() == images.raw, "{options:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_a_machine_wrote_to_comes_out_byte_by_byte() {
    let Some(images) = Images::new() else { return };
    if need("qemu-io").is_none() {
        return;
    }
    let path = images.convert(&["-c"]);
    let image = path.display().to_string();
    run("qemu-img", &["snapshot", "-c", "before", &image]);
    let commands =
        ["write -P 7 100k 5k", "write -P 9 23M 512", "write -z 1M 300k", "discard 3M 1M", "write -P 3 4093k 9k"];
    let commands: Vec<&str> = commands.iter().flat_map(|command| ["-c", *command]).collect();
    run("qemu-io", &[&["-f", "qcow2"], &commands[..], &[&image]].concat());
    let flat = images.text("flat.raw");
    run("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", &image, &flat]);
    assert!(read_back(&path).await.unwrap() == std::fs::read(flat).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_image_that_was_hardly_written_is_not_taken_for_a_cut_one() {
    let Some(images) = Images::new() else { return };
    if need("qemu-io").is_none() {
        return;
    }
    for (options, size) in [("cluster_size=64k", "10M"), ("cluster_size=2M", "5000k"), ("compat=0.10", "70000k")] {
        let image = images.text("new.qcow2");
        run("qemu-img", &["create", "-q", "-f", "qcow2", "-o", options, &image, size]);
        for command in ["write -P 7 4096 512", "write -P 8 4999k 1k"] {
            run("qemu-io", &["-f", "qcow2", "-c", command, &image]);
            let flat = images.text("flat.raw");
            run("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", &image, &flat]);
            assert!(read_back(Path::new(&image)).await.unwrap() == std::fs::read(flat).unwrap(), "{options} {command}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_mended_by_the_command_that_the_error_names() {
    let Some(images) = Images::new() else { return };
    for (options, code) in [
        (&["-o", "extended_l2=on"][..], "qcow2-subclusters"),
        (&["-c", "-o", "compression_type=zstd"], "qcow2-compression"),
    ] {
        let path = images.convert(options);
        let error = read_back(&path).await.unwrap_err();
        assert_eq!(error.code(), code);
        mend_and_compare(&images, &path, error.what_to_do().unwrap()).await;
    }
    // Only the difference to another file.
    let (backing, overlay) = (images.text("disk.raw"), images.text("overlay.qcow2"));
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", &backing, "-F", "raw", &overlay]);
    let error = read_back(Path::new(&overlay)).await.unwrap_err();
    assert_eq!(error.code(), "backing-file");
    mend_and_compare(&images, Path::new(&overlay), error.what_to_do().unwrap()).await;
    // Data in another file.
    let (data, image) = (images.text("data.raw"), images.text("outside.qcow2"));
    let option = format!("data_file={data}");
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", "-o", &option, &backing, &image]);
    let error = read_back(Path::new(&image)).await.unwrap_err();
    assert_eq!(error.code(), "external-data-file");
    mend_and_compare(&images, Path::new(&image), error.what_to_do().unwrap()).await;
}

/// Runs the `qemu-img` command of a hint and imports what it made.
async fn mend_and_compare(images: &Images, image: &Path, hint: &str) {
    let command = &hint[hint.find("qemu-img ").expect("the hint names a command")..];
    let mended = images.text("mended.qcow2");
    let image = image.display().to_string();
    let words: Vec<&str> = command
        .split_whitespace()
        .skip(1)
        .map(|word| match word {
            "IMAGE" => image.as_str(),
            word if word.ends_with(".qcow2") => mended.as_str(),
            word => word,
        })
        .collect();
    run("qemu-img", &words);
    assert!(read_back(Path::new(&mended)).await.unwrap() == images.raw, "{command}");
    std::fs::remove_file(mended).unwrap();
}
