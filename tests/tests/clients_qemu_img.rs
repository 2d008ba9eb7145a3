//! QEMU's image tools read clones through QEMU's own HTTP driver, and see the image that was imported.

use std::path::{Path, PathBuf};

use clonegate_tests::curl::curl;
use clonegate_tests::machine::run;
use clonegate_tests::{Gateway, cases, images};

cases! {
    "curl", "qemu-img", "/usr/lib/x86_64-linux-gnu/qemu/block-curl.so" => a_raw_image_is_read_back_through_qemus_curl_driver;
    "curl", "qemu-img", "/usr/lib/x86_64-linux-gnu/qemu/block-curl.so" => every_kind_of_qcow2_is_read_back_as_its_raw_original;
    "curl", "qemu-img" => a_qcow2_that_names_another_file_is_refused;
    "apt-get", "busybox", "cpio", "curl", "depmod", "grub-mkimage", "mcopy", "mke2fs", "mkfs.vfat", "nbd-client", "python3", "qemu-img",
    "sfdisk", "zstd" => a_real_linux_image_imported_as_qcow2_is_read_back_byte_by_byte;
}

/// A clone as QEMU names it.
fn json(url: &str) -> String {
    format!(r#"json:{{"driver":"raw","file.driver":"http","file.url":"{url}","file.timeout":60}}"#)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are plain")
}

/// Imports `image` and makes a clone of it; both get `name`.
fn import(gateway: &Gateway, name: &str, image: &Path, format: &str) -> String {
    gateway.cli_ok(&["template", "import", name, text(image), "--format", format]);
    gateway.cli_ok(&["clone", "create", name, "--template", name]);
    gateway.disk_url(name)
}

fn same_as(original: &Path, url: &str) {
    let said = run("qemu-img", &["compare", "-f", "raw", "-F", "raw", text(original), &json(url)]);
    assert!(said.contains("Images are identical"), "{said}");
}

fn a_raw_image_is_read_back_through_qemus_curl_driver() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image.raw");
    let size = 33 * (1 << 20) + 1536;
    images::patterned(&image, size).unwrap();
    let gateway = Gateway::up(&["--clones", "1"]);
    let url = import(&gateway, "patterned", &image, "raw");
    let info = run("qemu-img", &["info", "--output=json", &json(&url)]);
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["virtual-size"].as_u64(), Some(size));
    same_as(&image, &url);
}

fn every_kind_of_qcow2_is_read_back_as_its_raw_original() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image.raw");
    images::patterned(&image, 21 * (1 << 20)).unwrap();
    let gateway = Gateway::up(&["--clones", "1"]);
    let kinds: [(&str, &[&str]); 5] = [
        ("v2", &["-o", "compat=0.10"]),
        ("v3", &["-o", "compat=1.1"]),
        ("compressed", &["-c"]),
        ("small-clusters", &["-o", "cluster_size=4096"]),
        ("preallocated", &["-o", "preallocation=metadata"]),
    ];
    for (kind, options) in kinds {
        let qcow2 = dir.path().join(format!("{kind}.qcow2"));
        run("qemu-img", &[&["convert", "-f", "raw", "-O", "qcow2"], options, &[text(&image), text(&qcow2)]].concat());
        let url = import(&gateway, kind, &qcow2, "qcow2");
        same_as(&image, &url);
    }
}

fn a_qcow2_that_names_another_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret.raw");
    images::patterned(&secret, 1 << 20).unwrap();
    let overlay = dir.path().join("overlay.qcow2");
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", text(&secret), text(&overlay)]);
    let gateway = Gateway::up(&["--clones", "1"]);
    let refused = gateway.cli(&["template", "import", "overlay", text(&overlay), "--format", "qcow2"]);
    let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success(), "an image with a backing file was imported");
    assert!(errors.contains("qemu-img convert"), "it says what mends it: {errors}");
    assert_eq!(curl(&[&gateway.url("/v1/templates/overlay")]).status, 404, "nothing is visible of it");
}

fn a_real_linux_image_imported_as_qcow2_is_read_back_byte_by_byte() {
    let linux = images::linux();
    let dir = tempfile::tempdir().unwrap();
    let original = std::fs::read(&linux.disk).unwrap();
    let gateway = Gateway::up(&["--clones", "1"]);
    let convert = |name: &str, options: &[&str]| -> PathBuf {
        let path = dir.path().join(name);
        let raw = text(&linux.disk);
        run("qemu-img", &[&["convert", "-f", "raw", "-O", "qcow2"], options, &[raw, text(&path)]].concat());
        path
    };
    for (name, options) in [("plain", &[][..]), ("compressed", &["-c"][..])] {
        let url = import(&gateway, name, &convert(name, options), "qcow2");
        let reply = curl(&[&url]);
        assert_eq!(reply.status, 200);
        assert!(reply.body == original, "{name}: the volume differs from the image");
    }
}
