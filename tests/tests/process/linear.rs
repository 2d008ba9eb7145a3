//! One order of reads and writes of each block, over NBD and HTTP together.

use std::time::{Duration, Instant};

use clonegate_tests::serve::Serve;
use clonegate_tests::stamped::{BLOCK, Client, block, version};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::order::{Operation, check};

const BLOCKS: u32 = 12;
const SIZE: u64 = 64 * BLOCK;
const PATIENCE: Duration = Duration::from_secs(60);

/// Reads and writes; gives back what it did to which block.
fn client(mut client: Client, id: u64, requests: u64, begun: Instant) -> Vec<(u32, Operation)> {
    let mut random = StdRng::seed_from_u64(id);
    let now = || u64::try_from(begun.elapsed().as_nanos()).expect("a short test") + 1;
    let mut done = Vec::new();
    for n in 0..requests {
        let number = random.random_range(0..BLOCKS);
        let begin = now();
        let write = random.random_range(0..2u32) == 0;
        let value = if write {
            let value = id << 32 | (n + 1);
            client.write(number, &block(1, number, value), random.random_range(0..4u32) == 0).expect("a write");
            value
        } else {
            version(1, number, &client.read(number).expect("a read"), &[0; 4096])
        };
        done.push((number, Operation { begin, end: now(), value, write }));
        if random.random_range(0..50u32) == 0 {
            client.flush().expect("a flush");
        }
    }
    done
}

#[test]
fn reads_and_writes_of_a_block_by_nbd_and_http_have_one_order() {
    let requests = 400 * super::long().min(50);
    let dir = tempfile::tempdir().expect("a directory");
    let image = dir.path().join("image.raw");
    std::fs::write(&image, vec![0; usize::try_from(SIZE).expect("small")]).expect("a file");
    let config = format!(
        "home = \"file://{0}/home\"\n[[datastore]]\nname = \"here\"\nurl = \"file://{0}/store\"\n[log]\nlevel = \"warn\"\n",
        dir.path().display()
    );
    let mut gateway = Serve::start(&dir.path().join("gateway"), &config, &[]);
    gateway.cli_ok(&["template", "import", "image", image.to_str().expect("UTF-8"), "--format", "raw"]);
    let mut histories = 0;
    for durability in ["local", "object", "ephemeral"] {
        let clone = format!("disk-{durability}");
        gateway.cli_ok(&["clone", "create", &clone, "--template", "image", "--durability", durability]);
        let begun = Instant::now();
        let all: Vec<(u32, Operation)> = std::thread::scope(|scope| {
            let clients: Vec<_> = (1..=6u64)
                .map(|id| {
                    let connected = if id % 2 == 0 {
                        Client::http(gateway.http(), &clone, SIZE, PATIENCE)
                    } else {
                        Client::nbd(gateway.nbd(), &clone, PATIENCE)
                    };
                    let connected = connected.expect("it is up");
                    scope.spawn(move || client(connected, id, requests, begun))
                })
                .collect();
            clients.into_iter().flat_map(|client| client.join().expect("a client")).collect()
        });
        for number in 0..BLOCKS {
            let history: Vec<_> = all.iter().filter(|(at, _)| *at == number).map(|(_, done)| *done).collect();
            histories += 1;
            if let Err(wrong) = check(&history) {
                panic!("{durability}, block {number}, {} requests: {wrong}", history.len());
            }
        }
    }
    println!("one order: {histories} histories of {} requests by NBD and HTTP; all linearizable", requests * 18);
    assert!(gateway.terminate(), "it ends well");
}
