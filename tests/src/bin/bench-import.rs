//! Imports one image into a directory and prints what it took, for `tests/bench/import.sh`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clonegate::clock::Clock;
use clonegate::import::{ImportOptions, Input, NoProgress, run};
use clonegate::store::{Store, StoreConfig};

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [format, image, directory, rest @ ..] = arguments.as_slice() else {
        bail!("usage: bench-import raw|qcow2 IMAGE DIRECTORY [LEVEL [CHUNK_BYTES]]");
    };
    let input = match format.as_str() {
        "raw" => Input::RawFile(PathBuf::from(image)),
        "qcow2" => Input::Qcow2File(PathBuf::from(image)),
        other => bail!("no format {other}"),
    };
    let mut options = ImportOptions::default();
    if let Some(level) = rest.first() {
        options.level = level.parse().context("a level")?;
    }
    if let Some(bytes) = rest.get(1) {
        options.chunk_bytes = bytes.parse().context("bytes of a chunk")?;
    }
    let clock = Clock::system();
    let store = Store::open(&StoreConfig::new(format!("file://{directory}")), &clock)?;
    let begin = clock.instant();
    let imported = run(&store, input, options, &NoProgress, &clock).await?;
    let seconds = begin.elapsed().as_secs_f64();
    let stats = imported.stats;
    println!(
        "seconds={seconds:.3} size={} read={} stored={} chunks={} repeated={} packs={}",
        imported.size, stats.read_bytes, stats.stored_bytes, stats.chunks, stats.chunks_repeated, stats.packs
    );
    Ok(())
}
