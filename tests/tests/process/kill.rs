//! `kill -9` at random moments under load, by NBD and HTTP, in the modes `local` and `object`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clonegate_tests::serve::Serve;
use clonegate_tests::stamped::{BLOCK, Client, block, version};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const BLOCKS: u32 = 96;
const SIZE: u64 = BLOCKS as u64 * BLOCK;
const PATIENCE: Duration = Duration::from_secs(60);

/// What one client knows of its volume.
struct Known {
    clone: &'static str,
    nbd: bool,
    id: u32,
    /// Of each block: the version that is durable, the newest that was accepted, the newest that was sent.
    blocks: Vec<(u64, u64, u64)>,
    next: u64,
    random: StdRng,
    writes: u64,
    durable: u64,
    reads: u64,
}

/// What the base has at a block.
fn base(number: u32) -> Vec<u8> {
    let at = |n: u64| (n / 512 % 251) as u8 ^ 0x5a;
    (u64::from(number) * BLOCK..u64::from(number + 1) * BLOCK).map(at).collect()
}

impl Known {
    fn new(clone: &'static str, nbd: bool, id: u32) -> Self {
        let random = StdRng::seed_from_u64(u64::from(id) + 99);
        let blocks = vec![(0, 0, 0); BLOCKS as usize];
        Self { clone, nbd, id, blocks, next: 1, random, writes: 0, durable: 0, reads: 0 }
    }

    fn connect(&self, gateway: &Serve) -> std::io::Result<Client> {
        if self.nbd {
            Client::nbd(gateway.nbd(), self.clone, PATIENCE)
        } else {
            Client::http(gateway.http(), self.clone, SIZE, PATIENCE)
        }
    }

    /// After a restart: every block is whole, no older than what was durable, no newer than what was sent. What is found
    /// stays, so it is durable now.
    fn look(&mut self, gateway: &Serve) {
        let mut client = self.connect(gateway).expect("it is up again");
        for number in 0..BLOCKS {
            let (durable, accepted, sent) = &mut self.blocks[number as usize];
            let found = version(self.id, number, &client.read(number).expect("a read"), &base(number));
            assert!(
                *durable <= found && found <= *sent,
                "{}, block {number}: version {found} after a restart, but {durable} was durable and {sent} the last sent",
                self.clone
            );
            (*durable, *accepted, *sent) = (found, found, found);
            self.reads += 1;
        }
    }

    /// Writes, flushes and reads until the server is gone.
    fn load(&mut self, gateway: &Serve, stop: &AtomicBool) {
        let Ok(mut client) = self.connect(gateway) else { return };
        while !stop.load(Ordering::Relaxed) {
            if self.step(&mut client).is_err() {
                return;
            }
        }
    }

    fn step(&mut self, client: &mut Client) -> std::io::Result<()> {
        let number = self.random.random_range(0..BLOCKS);
        match self.random.random_range(0..10u32) {
            0..6 => {
                let fua = self.random.random_range(0..4u32) == 0;
                let version = self.next;
                self.next += 1;
                self.blocks[number as usize].2 = version;
                let durable = client.write(number, &block(self.id, number, version), fua)?;
                self.writes += 1;
                self.blocks[number as usize].1 = version;
                if durable {
                    self.durable += 1;
                    self.blocks[number as usize].0 = version;
                }
            }
            6..8 => {
                client.flush()?;
                for (durable, accepted, _) in &mut self.blocks {
                    self.durable += u64::from(*accepted > *durable);
                    *durable = *accepted;
                }
            }
            _ => {
                let found = version(self.id, number, &client.read(number)?, &base(number));
                let (_, accepted, _) = self.blocks[number as usize];
                assert_eq!(found, accepted, "{}, block {number}: not what was written last", self.clone);
                self.reads += 1;
            }
        }
        Ok(())
    }
}

#[test]
fn what_was_flushed_is_there_after_every_kill_9_under_load() {
    let kills = 8 * super::long();
    let dir = tempfile::tempdir().expect("a directory");
    let image = dir.path().join("image.raw");
    std::fs::write(&image, (0..BLOCKS).flat_map(base).collect::<Vec<u8>>()).expect("a file");
    let config = format!(
        "home = \"file://{0}/home\"\n[[datastore]]\nname = \"here\"\nurl = \"file://{0}/store\"\n[log]\nlevel = \"warn\"\n",
        dir.path().display()
    );
    let mut gateway = Serve::start(&dir.path().join("gateway"), &config, &[]);
    gateway.cli_ok(&["template", "import", "image", image.to_str().expect("UTF-8"), "--format", "raw"]);
    let mut clients = Vec::new();
    let clones = [
        ("n-local", true, "local"),
        ("n-object", true, "object"),
        ("h-local", false, "local"),
        ("h-object", false, "object"),
    ];
    for (id, (clone, nbd, durability)) in (1..).zip(clones) {
        gateway.cli_ok(&["clone", "create", clone, "--template", "image", "--durability", durability]);
        clients.push(Known::new(clone, nbd, id));
    }
    gateway.cli_ok(&["clone", "create", "untouched", "--template", "image"]);
    let mut random = StdRng::seed_from_u64(kills);
    let mut slowest = Duration::ZERO;
    for kill in 0..kills {
        let stop = AtomicBool::new(false);
        // Short ones meet the first writes, long ones uploads, checkpoints and folds.
        let until = Duration::from_millis(random.random_range(10..if kill % 4 == 0 { 2500 } else { 500 }));
        std::thread::scope(|scope| {
            let running: Vec<_> = clients.iter_mut().map(|known| scope.spawn(|| known.load(&gateway, &stop))).collect();
            std::thread::sleep(until);
            let pid = gateway.pid().expect("it runs");
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("our own child");
            stop.store(true, Ordering::Relaxed);
            for client in running {
                client.join().expect("what a client read was right");
            }
        });
        gateway.kill();
        let begin = Instant::now();
        gateway.restart();
        for known in &mut clients {
            known.look(&gateway);
        }
        slowest = slowest.max(begin.elapsed());
        let checked = gateway.cli_ok(&["fsck"]);
        assert!(checked.contains("clean"), "after kill {kill}: {checked}");
    }
    let mut untouched = Client::http(gateway.http(), "untouched", SIZE, PATIENCE).expect("it is up");
    for number in 0..BLOCKS {
        assert!(untouched.read(number).expect("a read") == base(number), "a sibling changed");
    }
    assert!(gateway.terminate(), "it ends well");
    gateway.restart();
    clients.iter_mut().for_each(|known| known.look(&gateway));
    let checked = gateway.cli_ok(&["fsck", "--grace", "0s"]);
    assert!(checked.contains("clean"), "at the end: {checked}");
    let sum = |of: fn(&Known) -> u64| clients.iter().map(of).sum::<u64>();
    println!(
        "kill -9: {kills} kills, {} writes accepted, {} of them acknowledged as durable, {} blocks read and judged, slowest \
         restart and look {slowest:?}; 0 lost, 0 wrong bytes, 0 findings of fsck",
        sum(|k| k.writes),
        sum(|k| k.durable),
        sum(|k| k.reads),
    );
    assert!(sum(|k| k.durable) > kills, "hardly anything was written");
}
