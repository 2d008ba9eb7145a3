//! `fsck` with and without a gateway: clean is clean, and what is damaged, missing or left over is named.

use std::io::Cursor;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use clonegate::clock::Clock;
use clonegate::delta::DeltaSettings;
use clonegate::device::WriteOptions;
use clonegate::exports::Exports;
use clonegate::import::{Input, NoProgress};
use clonegate::lifecycle::advisor::BuiltIn;
use clonegate::lifecycle::verify::{NoWatch, check_datastore};
use clonegate::lifecycle::views::{CreateClones, DurabilityView, FsckReport, ImportTemplate};
use clonegate::lifecycle::{DatastoreSettings, Gateway, GatewaySettings};
use clonegate::store::{Store, StoreConfig};
use clonegate_core::ids::{GatewayId, Name};
use clonegate_tests::gateway::command;
use tokio::io::{AsyncRead, ReadBuf};

const FUA: WriteOptions = WriteOptions { fua: true, expect: None };

fn url(dir: &Path, part: &str) -> StoreConfig {
    StoreConfig::new(format!("file://{}/{part}", dir.display()))
}

async fn gateway(dir: &Path) -> Arc<Gateway> {
    let clock = Clock::system();
    let settings = GatewaySettings {
        home: url(dir, "home"),
        datastores: vec![DatastoreSettings::new(Name::new("local").unwrap(), url(dir, "store"))],
        sources: Vec::new(),
        gateway: GatewayId::from_bytes([1; 16]),
        host: "host-1".to_owned(),
        icache_bytes: 16 << 20,
        delta: DeltaSettings { journal: Some(dir.join("journal")), ..DeltaSettings::default() },
        idle_close: Duration::from_secs(300),
        power_off_grace: Duration::from_secs(30),
        slots_per_base: 128,
    };
    Gateway::start(settings, Arc::new(BuiltIn), clock).await.unwrap()
}

/// Records that a fence leaves as they are.
const FENCED: usize = 8;

/// A datastore with a template, a written clone and one that was never written.
async fn made(dir: &Path) -> Arc<Gateway> {
    let gateway = gateway(dir).await;
    let image: Vec<u8> = (0..1u32 << 18).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let size = Some(image.len() as u64);
    let request = ImportTemplate { name: "t".to_owned(), ..ImportTemplate::default() };
    let input = Input::RawStream { reader: Box::new(Cursor::new(image)), size };
    gateway.import_template(request, input, Arc::new(NoProgress)).await.unwrap();
    let order = CreateClones {
        name: "c".to_owned(),
        template: "t".to_owned(),
        count: Some(2),
        durability: Some(DurabilityView::Object),
        ..CreateClones::default()
    };
    gateway.create_clones(order, false).await.unwrap();
    let device = gateway.open("c-001".parse().unwrap()).await.unwrap();
    for n in 0..5u8 {
        device.write(u64::from(n) * 8192, Bytes::from(vec![n + 1; 4096]), FUA).await.unwrap();
    }
    gateway
}

async fn alone(dir: &Path) -> FsckReport {
    let store = Store::open(&url(dir, "store"), &Clock::system()).unwrap();
    check_datastore(&store, "store", true, &NoWatch).await.unwrap()
}

/// The files of the store whose path holds `part`.
fn below(dir: &Path, part: &str) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![dir.join("store")]);
    while let Some(folder) = folders.pop() {
        // One that is deleted meanwhile has nothing.
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_string_lossy().contains(part) && !path.to_string_lossy().contains('#') {
                // One that is still being written has another name in a moment.
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Flips a byte in the middle of a file; a second time mends it.
fn flip(path: &Path) {
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let at = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    byte[0] ^= 0x40;
    file.write_all_at(&byte, at).unwrap();
}

fn key(dir: &Path, path: &Path) -> String {
    path.strip_prefix(dir.join("store")).unwrap().display().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_datastore_is_checked_without_a_gateway_down_to_every_checksum() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = made(dir.path()).await;
    let report = gateway.fsck(false, Some(0), true).await.unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    gateway.stop().await;
    drop(gateway);
    let clean = alone(dir.path()).await;
    assert!(clean.findings.is_empty(), "{:?}", clean.findings);
    // 16 chunks of 64 KiB and 5 blocks.
    assert_eq!((clean.clones, clean.verified), (2, 21));
    let mut damaged = below(dir.path(), "/packs/");
    damaged.extend(below(dir.path(), "/log/").into_iter().filter(|path| path.metadata().unwrap().len() > 4096));
    assert!(damaged.len() >= 6, "{damaged:?}");
    for path in &damaged {
        flip(path);
        let report = alone(dir.path()).await;
        let key = key(dir.path(), path);
        assert!(!report.findings.is_empty(), "a flipped byte of {key} is not found");
        assert!(report.findings.iter().all(|finding| finding.object.ends_with(&key)), "{key}: {:?}", report.findings);
        flip(path);
    }
    for path in &damaged {
        let bytes = std::fs::read(path).unwrap();
        std::fs::remove_file(path).unwrap();
        let report = alone(dir.path()).await;
        assert!(!report.findings.is_empty(), "{} is gone, and nobody says so", key(dir.path(), path));
        std::fs::write(path, bytes).unwrap();
    }
    assert!(alone(dir.path()).await.findings.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_checks_a_store_by_itself_and_its_exit_code_tells() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = made(dir.path()).await;
    gateway.stop().await;
    drop(gateway);
    let url = format!("file://{}/store", dir.path().display());
    let fsck = || command(["fsck", "--deep", "--datastore", &url]).output().unwrap();
    let output = fsck();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("21 blocks and chunks verified: clean"), "{text}");
    let pack = &below(dir.path(), "/packs/")[0];
    flip(pack);
    let output = fsck();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!output.status.success());
    assert!(text.contains(&key(dir.path(), pack)) && text.contains("damaged"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fences_a_deleted_clone_is_in_the_grace_list_and_its_data_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = made(dir.path()).await;
    let device = gateway.open("c-001".parse().unwrap()).await.unwrap();
    for n in 0..60u64 {
        device.write(n * 4096, Bytes::from(vec![9; 4096]), FUA).await.unwrap();
    }
    drop(device);
    gateway.delete_clone("c-001", false).await.unwrap();
    let begun = std::time::Instant::now();
    let large = || below(dir.path(), "/log/").into_iter().filter(|path| path.metadata().is_ok_and(|m| m.len() > 4096));
    // The last that a stalled owner may still have on their way stand in its way as they are.
    while large().count() > FENCED {
        assert!(begun.elapsed() < Duration::from_secs(60), "its data stays");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let report = gateway.fsck(true, Some(0), true).await.unwrap();
    assert!(report.findings.is_empty() && report.grace > 0, "{report:?}");
    assert_eq!(below(dir.path(), "/deleted").len(), 1, "the fence stays, whatever the grace of the check");
}

/// An image of which the second half comes when it is told to.
struct Slow {
    image: Cursor<Vec<u8>>,
    half: u64,
    go_on: Option<tokio::sync::oneshot::Receiver<()>>,
}

impl AsyncRead for Slow {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let waits = self.image.position() >= self.half;
        if let Some(go_on) = self.go_on.as_mut().filter(|_| waits) {
            std::task::ready!(Pin::new(go_on).poll(context)).map_err(std::io::Error::other)?;
            self.go_on = None;
        }
        Pin::new(&mut self.image).poll_read(context, into)
    }
}

/// Makes files look as if they had been there for two hours.
fn make_old(paths: &[PathBuf]) {
    let then = std::time::UNIX_EPOCH + Duration::from_millis(Clock::system().now_ms()) - Duration::from_secs(7200);
    for path in paths {
        std::fs::File::options().write(true).open(path).unwrap().set_modified(then).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_packs_of_an_import_that_takes_hours_are_not_taken_for_left_over_while_it_goes_on() {
    for stalled in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let gateway = gateway(dir.path()).await;
        let image: Vec<u8> =
            (0..10u32 << 20).flat_map(|n| n.wrapping_mul(2_654_435_761).rotate_left(n % 31).to_le_bytes()).collect();
        let size = Some(image.len() as u64);
        let (go_on, told) = tokio::sync::oneshot::channel();
        let slow = Slow { half: 36 << 20, image: Cursor::new(image.clone()), go_on: Some(told) };
        let importing = {
            let gateway = Arc::clone(&gateway);
            let request = ImportTemplate { name: "t".to_owned(), ..ImportTemplate::default() };
            let input = Input::RawStream { reader: Box::new(slow), size };
            tokio::spawn(async move { gateway.import_template(request, input, Arc::new(NoProgress)).await })
        };
        let begun = std::time::Instant::now();
        while below(dir.path(), "/packs/").is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(120), "no pack is written");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // Two hours later.
        make_old(&below(dir.path(), "/packs/"));
        if stalled {
            make_old(&below(dir.path(), "/making/"));
        }
        let packs = below(dir.path(), "/packs/").len();
        let report = gateway.fsck(true, None, false).await.unwrap();
        assert_eq!(report.findings.is_empty(), !stalled, "{:?}", report.findings);
        assert!(stalled || below(dir.path(), "/packs/").len() >= packs, "a pack of a running import was removed");
        go_on.send(()).unwrap();
        let imported = importing.await.unwrap();
        if stalled {
            // It stood still for hours: then it fails, rather than be an image without its packs.
            assert_eq!(imported.unwrap_err().code(), "image-swept");
            assert_eq!(gateway.show_template("t").await.unwrap_err().kind(), clonegate_core::ErrorKind::NotFound);
        } else {
            imported.unwrap();
            let device = gateway.open("template/t".parse().unwrap()).await.unwrap();
            let range = clonegate_core::units::ByteRange::new(0, image.len() as u64);
            assert!(device.read(range).await.unwrap().concat() == image);
        }
        let report = gateway.fsck(false, Some(0), true).await.unwrap();
        assert!(report.findings.is_empty(), "{:?}", report.findings);
        assert!(below(dir.path(), "/making/").is_empty());
    }
}
