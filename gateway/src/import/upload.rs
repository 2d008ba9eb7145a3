//! An image as the stream that [`clonegate_core::format::sparse`] describes: what the command line sends to a gateway.

use std::time::Duration;

use bytes::Bytes;
use clonegate_core::format::sparse::{Encoder, FRAME_BYTES_MAX};
use clonegate_core::limits::CHUNK_BYTES;
use clonegate_core::{Error, Result};
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::chunks::is_zero;
use super::source::{self, Piece, Source, in_background};
use super::{Input, Progress, ProgressNow};

/// Parts of the stream that wait to be sent.
const QUEUE: usize = 8;
/// How long nothing is sent before a pause is. A gateway gives up a body that stands still for 30 seconds, at the least.
const QUIET: Duration = Duration::from_secs(5);

/// Opens an image and gives it as a stream, with its size when that is known beforehand. Holes and zeroes are left out. An error in the stream
/// means that the image cannot be read on: the upload must then be cut, which the gateway notices.
///
/// # Errors
/// As [`super::run`], for images that are refused before anything is sent.
pub async fn upload(
    input: Input,
    progress: impl Progress + 'static,
) -> Result<(Option<u64>, BoxStream<'static, Result<Bytes>>)> {
    let source = source::open(input, u64::from(CHUNK_BYTES)).await?;
    let size = source.size;
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        if let Err(error) = send(source, &progress, &sender).await {
            let _ = sender.send(Err(error)).await;
        }
    });
    let stream =
        futures::stream::unfold(
            receiver,
            |mut receiver| async move { receiver.recv().await.map(|part| (part, receiver)) },
        );
    Ok((size, stream.boxed()))
}

async fn send(mut source: Source, progress: &dyn Progress, sender: &mpsc::Sender<Result<Bytes>>) -> Result<()> {
    let total_bytes = source.size;
    let (mut encoder, header) = Encoder::new(total_bytes);
    let mut sent = header.len() as u64;
    let mut line = Line { sender, spoke: Instant::now() };
    line.deliver(header).await?;
    loop {
        let piece = match timeout_at(line.spoke + QUIET, source.pieces.recv()).await {
            Ok(Some(piece)) => piece?,
            Ok(None) => return Err(Error::internal("source-died", "the image ended without an end")),
            Err(_) => {
                line.deliver(encoder.pause()).await?;
                continue;
            }
        };
        let (offset, bytes) = match piece {
            Piece::Data(offset, bytes) => (offset, bytes),
            Piece::Stored(offset, length, reader) => {
                let read = in_background(move || {
                    let mut bytes = vec![0; length];
                    reader.read_at(offset, &mut bytes)?;
                    Ok(Bytes::from(bytes))
                });
                (offset, read.await?)
            }
            Piece::End(size) => {
                source.check_unchanged()?;
                line.deliver(encoder.end(size)).await?;
                progress.report(ProgressNow { total_bytes: Some(size), done_bytes: size, stored_bytes: sent });
                return Ok(());
            }
        };
        let end = offset + bytes.len() as u64;
        for (at, data) in runs(offset, &bytes) {
            line.deliver(encoder.frame(at, &data)?).await?;
            sent += data.len() as u64;
            line.deliver(data).await?;
        }
        // Zeroes come without a wait, and nothing is sent of them.
        if line.spoke.elapsed() >= QUIET {
            line.deliver(encoder.pause()).await?;
        }
        progress.report(ProgressNow { total_bytes, done_bytes: end, stored_bytes: sent });
    }
}

/// Where the stream goes, and when something last went there.
struct Line<'a> {
    sender: &'a mpsc::Sender<Result<Bytes>>,
    spoke: Instant,
}

impl Line<'_> {
    async fn deliver(&mut self, part: Bytes) -> Result<()> {
        let delivered = self.sender.send(Ok(part)).await;
        self.spoke = Instant::now();
        delivered.map_err(|_| Error::unavailable("stopping", "the upload was given up"))
    }
}

/// The runs of `bytes` that are not zeroes, in steps of a chunk, each short enough for a frame.
fn runs(offset: u64, bytes: &Bytes) -> Vec<(u64, Bytes)> {
    let step = CHUNK_BYTES as usize;
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (number, part) in bytes.chunks(step).enumerate() {
        if is_zero(part) {
            continue;
        }
        let (start, end) = (number * step, number * step + part.len());
        match runs.last_mut() {
            Some((from, to)) if *to == start && end - *from <= FRAME_BYTES_MAX => *to = end,
            _ => runs.push((start, end)),
        }
    }
    runs.into_iter().map(|(start, end)| (offset + start as u64, bytes.slice(start..end))).collect()
}
