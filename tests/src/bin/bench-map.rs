//! Measures the delta map and what takes no time however large a delta is, for `tests/bench/map.sh`.
//!
//! Everything goes through the product's own code over a directory: deltas are written block by block, and opened as a gateway opens them.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clonegate::clock::Clock;
use clonegate::delta::load::{Listing, read_checkpoint};
use clonegate::delta::map::{BlockMap, Place};
use clonegate::delta::{DeltaSettings, Engine};
use clonegate::device::{Device, WriteOptions};
use clonegate::store::{Store, StoreConfig};
use clonegate::volume::{BaseProvider, BaseRead, Volume, VolumeSetup};
use clonegate_core::Error;
use clonegate_core::format::clone::{CloneRecord, Durability, VolumeKind};
use clonegate_core::ids::{BaseId, CloneId, GatewayId, Name};
use clonegate_core::units::ByteRange;
use futures::StreamExt;
use futures::future::BoxFuture;
use tokio::runtime::Handle;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
const IDLE: u64 = 1000;
/// Blocks that each idle clone has written.
const IDLE_BLOCKS: u64 = 16;
const TIB: u64 = 1 << 40;

/// There are no bases here: the volumes are all delta.
#[derive(Debug)]
struct NoBases;

impl BaseProvider for NoBases {
    fn base(&self, id: BaseId) -> BoxFuture<'_, clonegate_core::Result<Arc<dyn BaseRead>>> {
        Box::pin(async move { Err(Error::not_found("unknown-base", "no such base").on(id.to_string())) })
    }
}

/// A gateway over a directory.
struct Gateway {
    store: Store,
    engine: Arc<Engine>,
    clock: Clock,
}

impl Gateway {
    fn open(directory: &Path) -> Result<Self> {
        let clock = Clock::system();
        let store = Store::open(&StoreConfig::new(format!("file://{}", directory.display())), &clock)?;
        // Garbage goes soon, so that the disk holds little more than what is measured.
        let settings = DeltaSettings { grace: Duration::from_secs(5), ..DeltaSettings::default() };
        let id = GatewayId::from_bytes([7; 16]);
        Ok(Self { store, engine: Engine::open(settings, id, clock.clone(), Handle::current())?, clock })
    }

    async fn volume(&self, n: u64, size: u64) -> Result<Arc<Volume>> {
        let mut id = [5; 16];
        id[..8].copy_from_slice(&n.to_le_bytes());
        let record = CloneRecord {
            id: CloneId::from_bytes(id),
            nonce: self.clock.nonce(),
            name: Name::new(format!("clone-{n}"))?,
            kind: VolumeKind::FullClone,
            size,
            base: None,
            slot: 0,
            durability: Durability::Object,
            created_ms: 1,
        };
        let (store, engine) = (self.store.clone(), Arc::clone(&self.engine));
        Ok(Volume::open(VolumeSetup { store, record, bases: Arc::new(NoBases), engine }).await?)
    }
}

fn line(what: &str, figure: &str, goal: &str) {
    println!("| {what} | {figure} | {goal} |");
}

fn ms(begin: Instant) -> String {
    format!("{:.1} ms", begin.elapsed().as_secs_f64() * 1e3)
}

/// Blocks 0..2^bits, each once, in an order that has no neighbours.
fn scattered(bits: u32, n: u64) -> u64 {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15 | 1) & ((1 << bits) - 1)
}

fn bits_of(blocks: u64) -> u32 {
    (2 * blocks).next_power_of_two().ilog2()
}

/// A map of a delta of so many MiB in scattered blocks; lookups on this thread alone.
fn lookups(mib: u64) {
    let blocks = mib * MIB / BLOCK;
    let bits = bits_of(blocks);
    let mut map = BlockMap::new();
    for n in 0..blocks {
        let block = scattered(bits, n);
        let place =
            Place::Object { object: u32::try_from(n / 1024).unwrap_or(0), frame: u32::try_from(n % 1024).unwrap_or(0) };
        map.insert(block, block + 1, place);
    }
    let (begin, mut found, mut done, mut random) = (Instant::now(), 0u64, 0u64, 1u64);
    while begin.elapsed() < Duration::from_secs(2) {
        for _ in 0..10_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            found += u64::from(black_box(map.get((random >> 20) & ((1 << bits) - 1))).is_some());
        }
        done += 10_000;
    }
    let rate = done as f64 / begin.elapsed().as_secs_f64();
    let found = found * 100 / done.max(1);
    let what = format!("lookups of random blocks on one core, a delta of {mib} MiB ({blocks} blocks), {found} % found");
    line(&what, &format!("{:.1} million/s", rate / 1e6), "≥ 5 million/s");
    let each = map.memory() as f64 / map.data_blocks() as f64;
    line("memory of the map for a dirty block", &format!("{each:.1} bytes"), "≤ 16 bytes");
}

/// Writes so many scattered blocks; the bytes follow from the block.
async fn fill(volume: &Volume, blocks: u64) -> Result<()> {
    let bits = bits_of(blocks);
    for n in 0..blocks {
        let block = scattered(bits, n);
        let data: Bytes = block.to_le_bytes().repeat(512).into();
        match volume.try_write(block * BLOCK, data) {
            Ok(done) => done?,
            Err(data) => volume.write(block * BLOCK, data, WriteOptions::default()).await?,
        }
    }
    volume.flush().await?;
    Ok(())
}

async fn check(volume: &Volume, blocks: u64) -> Result<()> {
    let bits = bits_of(blocks);
    for n in (0..blocks).step_by(usize::try_from(blocks / 64 + 1)?) {
        let block = scattered(bits, n);
        let read = volume.read(ByteRange::new(block * BLOCK, (block + 1) * BLOCK)).await?.concat();
        if read != block.to_le_bytes().repeat(512) {
            bail!("block {block} is not what was written");
        }
    }
    Ok(())
}

/// A delta of so many bytes: how long it takes to open, and what takes no longer for it.
async fn delta(directory: &Path, n: u64, mib: u64) -> Result<()> {
    let blocks = mib * MIB / BLOCK;
    let size = (BLOCK << bits_of(blocks.max(1))).max(64 * MIB);
    let gateway = Gateway::open(directory)?;
    let volume = gateway.volume(n, size).await?;
    let begin = Instant::now();
    fill(&volume, blocks).await?;
    eprintln!("{mib} MiB written in {:.1} s", begin.elapsed().as_secs_f64());
    volume.close().await?;
    drop(volume);
    // Another process would know nothing of it either.
    let gateway = Gateway::open(directory)?;
    let begin = Instant::now();
    let volume = gateway.volume(n, size).await?;
    let opened = ms(begin);
    let begin = Instant::now();
    volume.claim().await?;
    let claimed = ms(begin);
    check(&volume, blocks).await?;
    let goal = if mib > 1024 { "< 300 ms" } else { "" };
    line(&format!("open a delta of {mib} MiB from a directory (then to own it: {claimed})"), &opened, goal);
    let mut figures = Vec::new();
    let begin = Instant::now();
    let requests = gateway.store.counts().requests();
    volume.snapshot(Name::new("before")?).await?;
    figures.push(format!("snapshot {}", ms(begin)));
    let begin = Instant::now();
    volume.reset(None).await?;
    figures.push(format!("reset {}", ms(begin)));
    let begin = Instant::now();
    volume.undo().await?;
    figures.push(format!("undo {}", ms(begin)));
    let begin = Instant::now();
    volume.reset(None).await?;
    figures.push(format!("reset {}", ms(begin)));
    let requests = gateway.store.counts().requests() - requests;
    let begin = Instant::now();
    let other = gateway.volume(1000 + n, size).await?;
    other.write(0, vec![1; 4096].into(), WriteOptions { fua: true, expect: None }).await?;
    figures.push(format!("a new volume beside it, opened and written {}", ms(begin)));
    let figures = figures.join(", ");
    line(&format!("at {mib} MiB ({requests} store requests for four operations)"), &figures, "the same at any size");
    other.close().await?;
    volume.close().await?;
    Ok(())
}

/// Where the time of opening goes, right after a close and when the disk has come to rest.
async fn opening(directory: &Path, mib: u64) -> Result<()> {
    let blocks = mib * MIB / BLOCK;
    let size = (BLOCK << bits_of(blocks.max(1))).max(64 * MIB);
    let id = {
        let gateway = Gateway::open(directory)?;
        let volume = gateway.volume(1, size).await?;
        let begin = Instant::now();
        fill(&volume, blocks).await?;
        eprintln!("{mib} MiB written in {:.1} s", begin.elapsed().as_secs_f64());
        let begin = Instant::now();
        volume.close().await?;
        eprintln!("closed in {}", ms(begin));
        let mut id = [5; 16];
        id[..8].copy_from_slice(&1u64.to_le_bytes());
        CloneId::from_bytes(id)
    };
    for n in 0..6 {
        let gateway = Gateway::open(directory)?;
        let begin = Instant::now();
        let listing = Listing::read(&gateway.store, id).await?;
        let listed = ms(begin);
        let newest = listing.checkpoints.last().copied();
        let behind: Vec<u64> =
            listing.logs.iter().filter(|(at, _)| newest.is_none_or(|(c, _)| *at > c)).map(|(_, size)| *size).collect();
        let begin = Instant::now();
        if let Some((at, size)) = newest {
            read_checkpoint(&gateway.store, id, at, Some(size)).await?;
        }
        let checkpoint = ms(begin);
        let begin = Instant::now();
        let volume = gateway.volume(1, size).await?;
        let opened = ms(begin);
        println!(
            "{n}: opened in {opened}; list of {} records, {} segments {listed}; checkpoint of {} MiB {checkpoint}; {} records of {} MiB behind it",
            listing.logs.len(),
            listing.segments.len(),
            newest.map_or(0, |(_, size)| size / MIB),
            behind.len(),
            behind.iter().sum::<u64>() / MIB,
        );
        if n == 3 {
            let begin = Instant::now();
            volume.claim().await?;
            println!("claimed in {}", ms(begin));
            tokio::time::sleep(Duration::from_secs(20)).await;
            volume.close().await?;
        }
    }
    Ok(())
}

async fn discard(directory: &Path) -> Result<()> {
    let gateway = Gateway::open(directory)?;
    let volume = gateway.volume(50, 2 * TIB).await?;
    fill(&volume, 1024).await?;
    let begin = Instant::now();
    volume.write_zeroes(ByteRange::new(0, 2 * TIB), true, false).await?;
    volume.flush().await?;
    line("discard of 2 TiB, durable in the store", &ms(begin), "< 100 ms");
    volume.close().await?;
    Ok(())
}

async fn each_idle<T>(gateway: &Gateway, act: impl AsyncFn(Arc<Volume>) -> Result<T>) -> Result<Vec<T>> {
    let act = &act;
    let open = (0..IDLE).map(|n| async move { act(gateway.volume(10_000 + n, 64 * MIB).await?).await });
    futures::stream::iter(open).buffer_unordered(32).collect::<Vec<_>>().await.into_iter().collect()
}

async fn make_idle(directory: &Path) -> Result<()> {
    let gateway = Gateway::open(directory)?;
    each_idle(&gateway, async |volume| {
        for block in 0..IDLE_BLOCKS {
            volume.write(block * 3 * BLOCK, vec![2; 4096].into(), WriteOptions::default()).await?;
        }
        volume.close().await?;
        Ok(())
    })
    .await?;
    Ok(())
}

fn resident_kib() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    Ok(line.split_whitespace().nth(1).context("no figure")?.parse()?)
}

/// In a process of its own, so that nothing that was freed before hides what they take.
async fn idle(directory: &Path) -> Result<()> {
    let gateway = Gateway::open(directory)?;
    let before = resident_kib()?;
    let open = each_idle(&gateway, async |volume| Ok(volume)).await?;
    let opened = resident_kib()?.saturating_sub(before);
    for volume in &open {
        volume.claim().await?;
    }
    let owned = resident_kib()?.saturating_sub(before);
    let figure = format!("{:.1} MiB; owned by this gateway {:.1} MiB", opened as f64 / 1024.0, owned as f64 / 1024.0);
    line(&format!("resident memory of {IDLE} idle open clones"), &figure, "≤ 64 MiB");
    for volume in open {
        volume.close().await?;
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (directory, rest) = match arguments.as_slice() {
        [directory, rest @ ..] => (Path::new(directory), rest),
        [] => {
            bail!(
                "usage: bench-map DIRECTORY [MIB | lookups | open MIB]   (MIB: the largest delta; 10240 unless said otherwise)"
            )
        }
    };
    if rest == ["lookups"] {
        println!("| what | measured | goal |\n|---|---|---|");
        [64, 256, 1024, 4096, 10240].into_iter().for_each(lookups);
        return Ok(());
    }
    if let [what, mib] = rest
        && what == "open"
    {
        return opening(directory, mib.parse()?).await;
    }
    if rest == ["idle"] {
        return idle(directory).await;
    }
    let mib: u64 = rest.first().map_or(Ok(10240), |mib| mib.parse()).context("MiB of the largest delta")?;
    println!("| what | measured | goal |\n|---|---|---|");
    let sizes = [64, 256, 1024, 4096, 10240, mib];
    let mut sizes: Vec<u64> = sizes.into_iter().filter(|size| *size <= mib).collect();
    sizes.dedup();
    sizes.into_iter().for_each(lookups);
    discard(&directory.join("discard")).await?;
    let place = directory.join("idle");
    make_idle(&place).await?;
    let mut child = tokio::process::Command::new(std::env::current_exe()?).arg(&place).arg("idle").spawn()?;
    if !child.wait().await?.success() {
        bail!("the process with idle clones failed");
    }
    std::fs::remove_dir_all(&place)?;
    for (n, mib) in [0, mib / 10, mib].into_iter().enumerate() {
        let place = directory.join(format!("delta-{mib}"));
        delta(&place, n as u64, mib).await?;
        std::fs::remove_dir_all(&place)?;
    }
    Ok(())
}
