//! `template import --by-reference`: a raw image stays where it lies, and is never taken for another that took its place.

use clonegate_tests::curl::{curl, put, range};
use clonegate_tests::{Gateway, cases, images};

cases! {
    "curl" => a_raw_image_is_served_where_it_lies_and_clones_write_beside_it;
    "curl" => a_source_that_changes_is_an_error_on_every_read;
    "curl" => what_no_source_allows_is_refused;
}

const SIZE: u64 = (5 << 20) + 512;

/// An image in a directory that the gateway may refer to.
fn served() -> (tempfile::TempDir, Vec<u8>, Gateway, String) {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image.raw");
    images::patterned(&image, SIZE).unwrap();
    let bytes = std::fs::read(&image).unwrap();
    let source = format!("file://{}", dir.path().display());
    let gateway = Gateway::up(&["--clones", "1", "--source", &source]);
    let url = format!("{source}/image.raw");
    (dir, bytes, gateway, url)
}

/// Bytes in the files of a directory.
fn stored(dir: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries
        .map(|entry| match entry.file_type().unwrap().is_dir() {
            true => stored(&entry.path()),
            false => entry.metadata().unwrap().len(),
        })
        .sum()
}

fn a_raw_image_is_served_where_it_lies_and_clones_write_beside_it() {
    let (dir, bytes, mut gateway, url) = served();
    let before = stored(&gateway.data());
    gateway.cli_ok(&["template", "import", "big", &url, "--format", "raw", "--by-reference"]);
    gateway.cli_ok(&["clone", "create", "big-{n}", "--template", "big", "--count", "2"]);
    let grown = stored(&gateway.data()) - before;
    assert!(grown < 64 << 10, "nothing was copied, and yet the store grew by {grown} bytes");
    let (one, two) = (gateway.disk_url("big-1"), gateway.disk_url("big-2"));
    let whole = curl(&[&one]);
    assert_eq!(whole.status, 200, "{}", whole.text());
    assert!(whole.body == bytes, "the clone is the image");
    put(&one, 4096, &[0xaa; 4096], SIZE);
    gateway.kill();
    gateway.start();
    assert_eq!(range(&one, 4096, 4096), [0xaa; 4096], "what was written to the clone is there");
    assert!(curl(&[&two]).body == bytes, "its sibling is the image still");
    assert!(std::fs::read(dir.path().join("image.raw")).unwrap() == bytes, "the image was not touched");
}

fn a_source_that_changes_is_an_error_on_every_read() {
    let (dir, bytes, gateway, url) = served();
    gateway.cli_ok(&["template", "import", "big", &url, "--format", "raw", "--by-reference"]);
    gateway.cli_ok(&["clone", "create", "big", "--template", "big"]);
    let disk = gateway.disk_url("big");
    assert_eq!(range(&disk, 0, 512), bytes[..512]);
    let mut other = bytes.clone();
    other.iter_mut().for_each(|byte| *byte ^= 1);
    // Another file takes its place, as an upload to a bucket would.
    std::fs::write(dir.path().join("other"), &other).unwrap();
    std::fs::rename(dir.path().join("other"), dir.path().join("image.raw")).unwrap();
    gateway.cli_ok(&["cache", "drop"]);
    for from in [0, 1 << 20, SIZE - 512] {
        let reply = curl(&["--range", &format!("{from}-{}", from + 511), &disk]);
        assert!(reply.status >= 400, "a read of a changed source gave {}", reply.status);
        assert_eq!(reply.problem(), "source-changed");
    }
}

fn what_no_source_allows_is_refused() {
    let (_dir, _, gateway, url) = served();
    let outside = tempfile::tempdir().unwrap();
    images::patterned(&outside.path().join("x.raw"), 1 << 20).unwrap();
    let cases = [
        (format!("file://{}/x.raw", outside.path().display()), "sources"),
        (format!("{}/../x.raw", url.trim_end_matches("/image.raw")), ""),
        (url.replace("image.raw", "none.raw"), "none.raw"),
    ];
    for (url, said) in cases {
        let refused = gateway.cli(&["template", "import", "x", &url, "--format", "raw", "--by-reference"]);
        let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success(), "{url} was taken");
        assert!(errors.contains(said), "{url}: {errors}");
    }
    let qcow2 = gateway.cli(&["template", "import", "x", &url, "--format", "qcow2", "--by-reference"]);
    assert!(String::from_utf8_lossy(&qcow2.stderr).contains("qemu-img convert"), "it says what mends it");
    assert_eq!(curl(&[&gateway.url("/v1/templates/x")]).status, 404, "nothing is visible of any");
}
