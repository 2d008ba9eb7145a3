//! What `gateway/fuzz` fuzzes, without libFuzzer: small qcow2 images and configurations, damaged at random from a fixed seed.
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

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Three images by qemu-img: of both versions, and one with compressed clusters.
fn images() -> Vec<Vec<u8>> {
    let mut files: Vec<_> = std::fs::read_dir(root().join("fuzz/seeds")).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    let image = |file: &PathBuf| -> Vec<u8> {
        let text = std::fs::read_to_string(file).unwrap();
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    };
    files.iter().map(image).collect()
}

fn run(name: &str, target: fn(&[u8]), inputs: u64, mut damaged: impl FnMut(&mut StdRng) -> Vec<u8>) {
    let long = std::env::var("CLONEGATE_LONG").ok().and_then(|n| n.parse().ok()).unwrap_or(1u64).max(1);
    let mut random = StdRng::seed_from_u64(12);
    for _ in 0..inputs * long {
        let data = damaged(&mut random);
        if std::panic::catch_unwind(|| target(&data)).is_err() {
            panic!("{name}: {:?}", String::from_utf8_lossy(&data));
        }
    }
    println!("damaged input, {name}: {} inputs; 0 panics", inputs * long);
}

#[test]
fn no_damage_to_a_qcow2_image_makes_its_reader_panic() {
    let images = images();
    assert_eq!(images.len(), 3);
    images.iter().for_each(|image| targets::qcow2(image));
    run("qcow2", targets::qcow2, 20_000, |random| {
        let mut image = images[random.random_range(0..images.len())].clone();
        for _ in 0..random.random_range(1..4u32) {
            let at = match random.random_range(0..3u32) {
                // Fields of the header.
                0 => random.random_range(0..112usize),
                // Entries of tables, wherever they are: numbers that are not zero.
                1 => {
                    let first = random.random_range(0..image.len() / 8) * 8;
                    let entry = (first..image.len() - 7).step_by(8).find(|at| image[*at..*at + 8] != [0; 8]);
                    entry.unwrap_or(first)
                }
                _ => random.random_range(0..image.len()),
            };
            let word = random.random_range(0..u64::MAX) >> random.random_range(0..64u32);
            let end = (at + [1, 4, 8][random.random_range(0..3usize)]).min(image.len());
            match random.random_range(0..6u32) {
                0 => image[at] ^= 1 << random.random_range(0..8u32),
                1 => image[at..end].copy_from_slice(&word.to_be_bytes()[8 - (end - at)..]),
                2 => image[at..end].fill(0xff),
                3 => {
                    // One entry is that of another.
                    let from = random.random_range(0..image.len() / 8) * 8;
                    let to = at / 8 * 8;
                    if to + 8 <= image.len() {
                        image.copy_within(from..from + 8, to);
                    }
                }
                4 => image[at..end].fill(0),
                _ if random.random_range(0..8u32) == 0 => image.truncate(at.max(8)),
                _ => image[at] = image[at].wrapping_add(1),
            }
            if image.len() < 128 {
                break;
            }
        }
        image
    });
}

#[test]
fn no_damage_to_a_configuration_makes_its_reader_panic() {
    let example = std::fs::read_to_string(root().join("../examples/clonegate.toml")).unwrap();
    // Uncommented, every key of it is said.
    let whole: String = example.lines().map(|line| line.trim_start_matches("# ").trim_start_matches('#')).fold(
        String::new(),
        |mut text, line| {
            text.push_str(line);
            text.push('\n');
            text
        },
    );
    let lines: Vec<&str> = whole.lines().filter(|line| line.contains('=') || line.starts_with('[')).collect();
    assert!(lines.len() > 30, "the example names every key");
    targets::config(example.as_bytes());
    let tokens = [
        "'18446744073709551615 EiB'",
        "'0.3KiB'",
        "'999999999999 years'",
        "'1ns'",
        "-1",
        "1e400",
        "nan",
        "0x7fffffffffffffff",
        "[]",
        "{}",
        "\"\\u0000\"",
        "'s3://a@b/../c?d#e'",
        "'file://'",
        "'memory:'",
        "[[datastore]]",
        "[home]",
        "''",
        "true",
        "'ä'",
        "=",
        "\"",
        "'''",
        "{ url = 'memory:' }",
        "1979-05-27",
    ];
    run("config", targets::config, 20_000, |random| {
        let mut text: Vec<String> = Vec::new();
        let count = random.random_range(1..12usize);
        for _ in 0..count {
            // A few lines that belong together, as often as not with the table that they are in.
            let from = random.random_range(0..lines.len());
            let until = (from + random.random_range(1..6usize)).min(lines.len());
            text.extend(lines[from..until].iter().map(|line| (*line).to_owned()));
        }
        for _ in 0..random.random_range(0..4u32) {
            let at = random.random_range(0..text.len());
            let token = tokens[random.random_range(0..tokens.len())];
            let line = &mut text[at];
            match (random.random_range(0..3u32), line.split_once('=').map(|(key, _)| key.to_owned())) {
                (0, _) => *line = token.to_owned(),
                (_, Some(key)) => *line = format!("{key}= {token}"),
                _ => *line = line.chars().take(line.len() / 2).collect(),
            }
        }
        let mut bytes = text.join("\n").into_bytes();
        if random.random_range(0..4u32) == 0 && !bytes.is_empty() {
            let at = random.random_range(0..bytes.len());
            bytes[at] = random.random_range(0..128u8);
        }
        bytes
    });
}
