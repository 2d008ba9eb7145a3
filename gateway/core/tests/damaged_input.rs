//! What `gateway/core/fuzz` fuzzes, without libFuzzer: golden files and headers, damaged at random from a fixed seed.
//!
//! `CLONEGATE_LONG=N` makes N times as many inputs.

#[path = "../fuzz/src/lib.rs"]
#[expect(
    unreachable_pub,
    clippy::expect_used,
    reason = "it is the library of a crate of its own, and its expectations are what is tested"
)]
mod targets;

use std::path::PathBuf;

/// The golden files, and what the protocols begin with.
fn seeds() -> Vec<Vec<u8>> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut seeds: Vec<Vec<u8>> = files
        .iter()
        .map(|file| {
            let text = std::fs::read_to_string(file).unwrap();
            let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
            digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
        })
        .collect();
    for bytes in [
        b"\0\x10\0\0\0\0\0\0bytes=0-1,5-, -7".as_slice(),
        b"\0\x10\0\0\0\0\0\0bytes 0-511/1048576".as_slice(),
        b"\0\x10\0\0\0\0\0\0\"7-1\", W/\"x\"".as_slice(),
        b"\x07\0\0\0\x04disk\0\x02\0\x01\0\x03".as_slice(),
        b"\x0a\0\0\0\x04disk\0\0\0\x01\0\0\0\x0fbase:allocation".as_slice(),
        b"\x25\x60\x95\x13\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\x10\0\0\0\x02\0".as_slice(),
        b"\x21\xe4\x1c\x71\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0".as_slice(),
    ] {
        seeds.push(bytes.to_vec());
    }
    assert!(seeds.len() > 25, "only {} seeds", seeds.len());
    seeds
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        // xorshift64
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound.max(1) as u64).unwrap()
    }

    fn damaged(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut data = seeds[self.below(seeds.len())].clone();
        // Most of a golden file with blocks is blocks: damage to its beginning tells more.
        let near = if self.below(3) == 0 { data.len() } else { data.len().min(300) };
        for _ in 0..=self.below(4) {
            let at = self.below(near.min(data.len()));
            match self.below(7) {
                0 if !data.is_empty() => data[at] ^= 1 << self.below(8),
                1 if !data.is_empty() => data[at] = [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
                2 => data.truncate(at),
                3 => {
                    let end = (at + 1 + self.below(16)).min(data.len());
                    drop(data.drain(at.min(end)..end));
                }
                4 => {
                    let more = self.below(40);
                    let byte = u8::try_from(self.below(256)).unwrap();
                    drop(data.splice(at..at, std::iter::repeat_n(byte, more)).collect::<Vec<_>>());
                }
                5 => {
                    let other = &seeds[self.below(seeds.len())];
                    let from = self.below(other.len());
                    let part = other[from..(from + 24).min(other.len())].to_vec();
                    drop(data.splice(at..at, part).collect::<Vec<_>>());
                }
                _ => {
                    for byte in data.iter_mut().skip(at).take(8) {
                        *byte = u8::try_from(self.below(256)).unwrap();
                    }
                }
            }
        }
        data
    }
}

fn run(name: &str, target: fn(&[u8]), inputs: u64) {
    let long = std::env::var("CLONEGATE_LONG").ok().and_then(|n| n.parse().ok()).unwrap_or(1u64).max(1);
    let (seeds, mut random) = (seeds(), Random(0x9e37_79b9_7f4a_7c15));
    seeds.iter().for_each(|seed| target(seed));
    for _ in 0..inputs * long {
        let data = random.damaged(&seeds);
        if std::panic::catch_unwind(|| target(&data)).is_err() {
            panic!("{name}: {data:02x?}");
        }
    }
    println!("damaged input, {name}: {} inputs; 0 panics", inputs * long + seeds.len() as u64);
}

#[test]
fn no_damage_to_a_record_makes_its_reader_panic_or_disagree_with_its_writer() {
    run("records", targets::records, 20_000);
}

#[test]
fn no_damage_to_a_table_makes_its_reader_panic_or_disagree_with_its_writer() {
    run("tables", targets::tables, 10_000);
}

#[test]
fn no_bytes_in_an_nbd_negotiation_make_its_reader_panic() {
    run("options", targets::options, 100_000);
}

#[test]
fn no_bytes_in_an_nbd_session_make_its_reader_panic() {
    run("requests", targets::requests, 100_000);
}

#[test]
fn no_bytes_in_a_range_header_make_its_reader_panic() {
    run("http", targets::http, 100_000);
}

#[test]
fn no_damage_to_an_upload_makes_its_reader_panic_or_depend_on_pieces() {
    run("upload", targets::upload, 10_000);
}
