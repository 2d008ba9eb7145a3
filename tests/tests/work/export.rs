//! Exports: the bytes of a disk in a sparse file, as QEMU reads it, or no file at all.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clonegate_tests::gateway::{Gateway, command};
use clonegate_tests::need;
use clonegate_tests::raw_http::RawHttp;
use rustix::process::{Pid, Signal, kill_process};

const MIB: usize = 1 << 20;

/// Data at both ends and here and there, holes in between, a size that is no multiple of a cluster.
fn image(size: usize) -> Vec<u8> {
    let used = |at: usize| at < 3 * MIB || at >= size - 70_000 || (at / MIB) % 7 == 3;
    (0..size).map(|at| if used(at) { (at / 4096 * 11 + at % 251) as u8 } else { 0 }).collect()
}

fn gateway_with(image: &[u8]) -> Gateway {
    let gateway = Gateway::up(&["--clones", "0"]);
    let file = gateway.dir().join("t.raw");
    fs::write(&file, image).unwrap();
    gateway.cli_ok(&["template", "import", "t", file.to_str().unwrap()]);
    gateway.cli_ok(&["clone", "create", "c", "--template", "t"]);
    gateway
}

fn put(gateway: &Gateway, offset: usize, data: &[u8]) -> u16 {
    let range = format!("bytes {offset}-{}/*", offset + data.len() - 1);
    RawHttp::connect(gateway.http()).request_with("PUT", "/v1/clones/c/disk", &[("Content-Range", &range)], data).status
}

fn qemu_img(program: &Path, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "qemu-img {}: {said}", arguments.join(" "));
}

fn partial_files(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|name| name.contains("partial") || name.starts_with("out.")).collect()
}

#[test]
fn what_is_exported_is_what_the_clone_reads_as() {
    let mut bytes = image(40 * MIB + 1536);
    let gateway = gateway_with(&bytes);
    let written = vec![0xab; 200_000];
    assert_eq!(put(&gateway, 10 * MIB + 100, &written), 204);
    bytes[10 * MIB + 100..][..written.len()].copy_from_slice(&written);
    let path = |name: &str| gateway.dir().join(name).to_str().unwrap().to_owned();
    let dry = gateway.cli_ok(&["clone", "export", "c", &path("out.raw"), "--dry-run"]);
    assert!(dry.contains("would be") && partial_files(gateway.dir()).is_empty(), "{dry}");
    gateway.cli_ok(&["clone", "export", "c", &path("out.raw")]);
    assert!(fs::read(path("out.raw")).unwrap() == bytes, "the raw file differs");
    let on_disk = fs::metadata(path("out.raw")).unwrap().blocks() * 512;
    assert!(on_disk < bytes.len() as u64 * 3 / 4, "{on_disk} bytes on the disk: it is not sparse");
    gateway.cli_ok(&["template", "export", "t", &path("template.img")]);
    let original = fs::read(path("t.raw")).unwrap();
    assert!(fs::read(path("template.img")).unwrap() == original, "the template differs");
    gateway.cli_ok(&["template", "export", "t:1", &path("one.raw")]);
    assert!(fs::read(path("one.raw")).unwrap() == original, "the version differs");
    gateway.cli_ok(&["clone", "export", "c", &path("out.qcow2")]);
    if let Some(program) = need("qemu-img") {
        qemu_img(&program, &["check", "-f", "qcow2", &path("out.qcow2")]);
        qemu_img(&program, &["compare", "-f", "raw", "-F", "qcow2", &path("out.raw"), &path("out.qcow2")]);
    }
    // What we wrote we read again.
    gateway.cli_ok(&["template", "import", "u", &path("out.qcow2")]);
    gateway.cli_ok(&["template", "export", "u", &path("again.raw")]);
    assert!(fs::read(path("again.raw")).unwrap() == bytes, "the qcow2 file reads differently");
}

#[test]
fn a_file_that_is_there_and_a_disk_that_is_not_are_refused() {
    let gateway = gateway_with(&image(4 * MIB));
    let file = gateway.dir().join("out.raw");
    let path = file.to_str().unwrap();
    fs::write(&file, "precious").unwrap();
    let check = |arguments: &[&str], exit: i32, words: &str| {
        let output = gateway.cli(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(exit), "{said}");
        assert!(said.contains(words), "{said}");
    };
    check(&["clone", "export", "c", path], 4, "--force");
    assert_eq!(fs::read(&file).unwrap(), b"precious");
    check(&["clone", "export", "nobody", path, "--force"], 3, "there is no clone");
    check(&["template", "export", "t:9", path, "--force"], 3, "no base of this version");
    check(&["clone", "export", "c", gateway.dir().join("out").to_str().unwrap()], 2, "--format");
    check(&["clone", "export", "c", "/nowhere/out.raw"], 6, "/nowhere/out.raw");
    assert_eq!(fs::read(&file).unwrap(), b"precious");
    gateway.cli_ok(&["clone", "export", "c", path, "--force"]);
    assert_eq!(fs::read(&file).unwrap().len(), 4 * MIB);
}

#[test]
fn an_export_of_a_clone_that_is_written_meanwhile_makes_no_file() {
    let gateway = gateway_with(&image(64 * MIB));
    let stop = Arc::new(AtomicBool::new(false));
    let file = gateway.dir().join("out.raw");
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut turn = 0_u8;
            while !stop.load(Ordering::Relaxed) {
                turn = turn.wrapping_add(1);
                assert_eq!(put(&gateway, 0, &[turn; 512]), 204);
            }
        });
        // A busy disk may keep every write out of a short export, which then is one state of the clone.
        let mut mixed = false;
        let refused = (0..50).find_map(|_| {
            let output = gateway.cli(&["clone", "export", "c", file.to_str().unwrap(), "--force"]);
            if !output.status.success() {
                return Some(output);
            }
            let exported = fs::read(&file).unwrap_or_default();
            mixed |= exported.is_empty() || exported[..512].iter().any(|byte| *byte != exported[0]);
            let _ = fs::remove_file(&file);
            None
        });
        stop.store(true, Ordering::Relaxed);
        assert!(!mixed, "two states of a sector");
        let output = refused.expect("an export meets a write");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(4), "{said}");
        assert!(said.contains("written to while it was read"), "{said}");
        assert!(!file.exists());
    });
    assert!(partial_files(gateway.dir()).is_empty(), "{:?}", partial_files(gateway.dir()));
}

#[test]
fn an_interrupted_export_leaves_no_file_of_the_name() {
    let gateway = gateway_with(&(0..192 * MIB).map(|at| (at / 512 % 255 + 1) as u8).collect::<Vec<_>>());
    let file = gateway.dir().join("out.qcow2");
    for signal in [Signal::INT, Signal::KILL] {
        let mut export = command(["clone", "export", "c", file.to_str().unwrap()])
            .env("CLONEGATE_SERVER", gateway.url(""))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let begun = Instant::now();
        while !partial_files(gateway.dir()).iter().any(|name| name.ends_with(".partial")) {
            assert!(begun.elapsed() < Duration::from_secs(60), "it never began");
            assert!(export.try_wait().unwrap().is_none(), "it was over before it could be interrupted");
            thread::sleep(Duration::from_millis(5));
        }
        kill_process(Pid::from_child(&export), signal).unwrap();
        assert!(!export.wait().unwrap().success());
        assert!(!file.exists(), "{signal:?} left a file");
        if signal == Signal::INT {
            assert!(partial_files(gateway.dir()).is_empty(), "it did not clean up");
        }
    }
}
