//! The pipeline from a source to an index.

use std::sync::Arc;

use clonegate_core::format::index::{Entry, is_chunk_size};
use clonegate_core::ids::IndexId;
use clonegate_core::{Error, ErrorKind, Result};
use futures::{StreamExt, TryStreamExt};

use super::chunks::{Chunker, Done, Spare, Worked, work};
use super::dedup::{Known, Place, Shared};
use super::packs::{Kind, Packs};
use super::pages::Pages;
use super::source::{self, Piece, Source, in_background};
use super::{ImportOptions, ImportStats, Imported, Input, Progress, ProgressNow};
use crate::base::frame::Frames;
use crate::base::making::Making;
use crate::clock::Clock;
use crate::store::{PutNew, Store, keys};

/// Batches worked on at a time beyond one for each core, so that no core waits for its turn to hand over.
const BATCHES_AHEAD: usize = 2;

pub(super) async fn run(
    store: &Store,
    input: Input,
    options: ImportOptions,
    progress: &dyn Progress,
    clock: &Clock,
) -> Result<(Imported, Making)> {
    if !is_chunk_size(options.chunk_bytes) {
        return Err(Error::invalid("bad-chunk-size", format!("chunks of {} bytes", options.chunk_bytes))
            .hint("use a power of two from 4 KiB to 1 MiB"));
    }
    crate::base::frame::Packer::new(options.level)?;
    let mut source = source::open(input, u64::from(options.chunk_bytes)).await?;
    source.size.map_or(Ok(()), |size| check_fits(size, &options))?;
    let id: IndexId = clock.id();
    let making = Making::of_new(store, clock, options.maker, id).await?;
    let mut packs = Packs::new(store, clock, making.pack_ids());
    let imported = match import(store, &mut source, &options, progress, clock, &mut packs, id).await {
        Ok(imported) => making.check().await.map(|()| imported),
        failed => failed,
    };
    match imported {
        Ok(imported) => Ok((imported, making)),
        Err(error) => {
            let left = store.delete(&keys::index(id)).await;
            if packs.undo().await && left.is_ok() {
                making.end().await;
            } else {
                tracing::warn!(index = %id, "left over from an import that failed; the next start of the gateway removes it");
            }
            Err(error)
        }
    }
}

fn check_fits(size: u64, options: &ImportOptions) -> Result<()> {
    if size <= options.size_max {
        return Ok(());
    }
    Err(Error::invalid("image-too-large", format!("{size} bytes; at most {} are taken", options.size_max)))
}

async fn import(
    store: &Store,
    source: &mut Source,
    options: &ImportOptions,
    progress: &dyn Progress,
    clock: &Clock,
    packs: &mut Packs,
    id: IndexId,
) -> Result<Imported> {
    let known = Arc::new(Known::default());
    let shared = if options.dedup {
        Shared::learn(store, options.chunk_bytes, &known, |pack| packs.number_of(pack)).await?
    } else {
        Shared::default()
    };
    let (pages, stats, spare) = (Pages::new(), ImportStats::default(), Arc::new(Spare::default()));
    let mut sink = Sink { known: &known, packs, pages, stats, spare };
    let total_bytes = source.size;
    let size = drain(source, options, &known, &mut sink, &|sink, reached| {
        progress.report(ProgressNow { total_bytes, done_bytes: reached, stored_bytes: sink.packs.stored_bytes() });
    })
    .await?;
    check_fits(size, options)?;
    source.check_unchanged()?;
    let Sink { pages, packs, mut stats, .. } = sink;
    let (object, used) = pages.finish((id, clock.nonce()), size, options.chunk_bytes, packs).await?;
    stats.stored_bytes = packs.stored_bytes() + object.len() as u64;
    stats.packs = packs.written() as u64;
    if let PutNew::Exists(_) = store.put_new(&keys::index(id), object).await? {
        return Err(Error::internal("index-exists", "a fresh index is there already").on(keys::index(id).to_string()));
    }
    shared.check(store, &used).await?;
    progress.report(ProgressNow { total_bytes: Some(size), done_bytes: size, stored_bytes: stats.stored_bytes });
    Ok(Imported { index: id, size, stats })
}

/// Works off all batches on a few threads and takes their results in order. Gives the size of the image.
async fn drain(
    source: &mut Source,
    options: &ImportOptions,
    known: &Arc<Known>,
    sink: &mut Sink<'_>,
    report: &(dyn Fn(&Sink<'_>, u64) + Sync),
) -> Result<u64> {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let mut size = None;
    let (chunk_bytes, level, spare) = (options.chunk_bytes, options.level, Arc::clone(&sink.spare));
    let mut chunker = Chunker::new(chunk_bytes);
    let pieces = &mut source.pieces;
    {
        let size = &mut size;
        let batches = futures::stream::poll_fn(|context| pieces.poll_recv(context))
            .map_ok(move |piece| {
                if let Piece::End(told) = &piece {
                    *size = Some(*told);
                }
                futures::stream::iter(chunker.add(piece).into_iter().map(Ok))
            })
            .try_flatten();
        let mut worked = batches
            .map(|batch| {
                let (known, spare) = (Arc::clone(known), Arc::clone(&spare));
                async move {
                    let batch = batch?;
                    in_background(move || work(batch, chunk_bytes, level, &known, &spare)).await
                }
            })
            .buffered(cores + BATCHES_AHEAD);
        while let Some(batch) = worked.next().await {
            let batch = batch?;
            let reached = batch.reached;
            sink.take(batch).await?;
            report(sink, reached);
        }
    }
    size.ok_or_else(|| Error::internal("source-died", "the image ended without an end"))
}

/// Where worked batches go, in order.
struct Sink<'a> {
    known: &'a Known,
    packs: &'a mut Packs,
    pages: Pages,
    stats: ImportStats,
    spare: Arc<Spare>,
}

impl Sink<'_> {
    async fn take(&mut self, batch: Worked) -> Result<()> {
        self.stats.read_bytes += batch.read_bytes;
        for done in &batch.done {
            let entry = self.place(done, &batch.frames).await?;
            self.pages.add(done.chunk, entry, self.packs).await?;
        }
        self.spare.give(batch.frames);
        self.stats.chunks = self.pages.chunks();
        Ok(())
    }

    async fn place(&mut self, done: &Done, frames: &Frames) -> Result<Entry> {
        let hash = done.hash;
        if let Some(place) = self.known.get(&hash) {
            if place.shared {
                self.stats.chunks_shared += 1;
            } else {
                self.stats.chunks_repeated += 1;
            }
            return Ok(Entry { hash, frame: place.frame });
        }
        let Some((encoding, crc, at)) = &done.frame else {
            return Err(Error::new(ErrorKind::Internal, "chunk-forgotten", "a known chunk was forgotten"));
        };
        let frame = self.packs.add(Kind::Chunks, *encoding, *crc, frames.get(at.clone())).await?;
        self.known.add(&hash, Place { frame, shared: false });
        Ok(Entry { hash, frame })
    }
}
