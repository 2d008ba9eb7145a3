//! The demo image boots, and tells when a byte of it is wrong.

use std::time::Duration;

use clonegate_tests::machine::{Firmware, Machine};
use clonegate_tests::need;

const PATIENCE: Duration = Duration::from_secs(60);

fn boot(image: &[u8], marker: &str) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), image).unwrap();
    let drive = format!("file={},format=raw,if=ide,snapshot=on", file.path().display());
    Machine::new(Firmware::Bios).with(&["-drive", &drive]).boot(marker, PATIENCE).text
}

#[test]
fn the_demo_boots_and_finds_every_byte_right() {
    if need("qemu-system-x86_64").is_none() {
        return;
    }
    let line = clonegate::demo::expected_line();
    boot(&clonegate::demo::image(), &line);
}

#[test]
fn the_demo_says_bad_when_a_byte_of_its_last_sector_is_wrong() {
    if need("qemu-system-x86_64").is_none() {
        return;
    }
    let mut image = clonegate::demo::image();
    let last = image.len() - 1;
    image[last] ^= 1;
    let text = boot(&image, "CLONEGATE DEMO BAD checksum ");
    assert!(!text.contains("DEMO OK"), "{text}");
}

#[test]
fn the_demo_says_so_when_it_cannot_read() {
    if need("qemu-system-x86_64").is_none() {
        return;
    }
    let image = clonegate::demo::image();
    // The disk ends before the last part.
    boot(&image[..image.len() / 2], "CLONEGATE DEMO READ ERROR");
}
