//! Where the bytes of an image come from: files that are read in pieces by whoever works on them, and streams that come in order.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use clonegate_core::format::sparse::{Decoder, Event};
use clonegate_core::{Error, Result};
use futures::StreamExt;
use futures::stream::BoxStream;
use rustix::fs::SeekFrom;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;

use super::qcow2::Image;
use super::{Input, check_is_raw, check_size};

/// Bytes of one piece at most, and what pieces of a file are aligned to; a multiple of every size of chunk.
pub(super) const PIECE_BYTES: u64 = 1024 * 1024;
/// Pieces waiting to be worked on.
const QUEUE: usize = 4;
/// First bytes of a raw image that are looked at.
const HEAD_BYTES: u64 = 512;

/// Reads parts of an image that is in a file, from any thread.
pub(super) trait ReadAt: Send + Sync {
    /// Fills `into` with what is at `offset`.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<()>;
}

/// A part of an image.
pub(super) enum Piece {
    /// Bytes that came.
    Data(u64, Bytes),
    /// Bytes to be read from a file, whole aligned parts of the image.
    Stored(u64, usize, Arc<dyn ReadAt>),
    /// The end, with the size of the image. Without it the source died.
    End(u64),
}

/// An opened image: pieces in ascending order, what is between them is zeroes.
pub(super) struct Source {
    /// Size, bytes, when it is known beforehand.
    pub(super) size: Option<u64>,
    pub(super) pieces: mpsc::Receiver<Result<Piece>>,
    unchanged: Option<Unchanged>,
}

/// An open file and what it looked like.
struct Unchanged {
    file: File,
    looked: (u64, i64, i64),
}

impl Unchanged {
    fn of(file: &File) -> io::Result<Self> {
        let file = file.try_clone()?;
        let looked = Self::look(&file)?;
        Ok(Self { file, looked })
    }

    fn look(file: &File) -> io::Result<(u64, i64, i64)> {
        file.metadata().map(|meta| (meta.len(), meta.mtime(), meta.mtime_nsec()))
    }
}

impl Source {
    /// To be asked when everything was read.
    ///
    /// # Errors
    /// `Conflict` with code `image-changed` when the file was written meanwhile.
    pub(super) fn check_unchanged(&self) -> Result<()> {
        match &self.unchanged {
            Some(it) if Unchanged::look(&it.file).ok() != Some(it.looked) => Err(changed()),
            _ => Ok(()),
        }
    }
}

fn changed() -> Error {
    Error::conflict("image-changed", "the image was written while it was read")
        .hint("stop what uses it, and import it again")
}

/// Opens an image and begins to read it. No two pieces share a part of `align` bytes, unless the image comes in a stream;
/// [`PIECE_BYTES`] is a multiple of `align`.
pub(super) async fn open(input: Input, align: u64) -> Result<Source> {
    match input {
        Input::RawFile(path) => {
            in_background(move || open_raw(&path, align).map_err(|e| e.on(path.display().to_string()))).await
        }
        Input::Qcow2File(path) => {
            in_background(move || open_qcow2(&path, align).map_err(|e| e.on(path.display().to_string()))).await
        }
        Input::RawStream { reader, size } => {
            size.map_or(Ok(()), check_size)?;
            Ok(from_task(size, |sender| read_stream(reader, size, sender)))
        }
        Input::Frames(body) => open_frames(body).await,
    }
}

/// Runs what blocks, and what may panic on a hostile image, away from everything else.
pub(super) async fn in_background<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(died) if died.is_panic() => {
            Err(Error::invalid("bad-image", "reading the image failed in a way that it never should")
                .hint("report it; meanwhile make a plain image of it with qemu-img convert"))
        }
        Err(_) => Err(Error::unavailable("stopping", "the program is stopping")),
    }
}

fn open_file(path: &Path) -> Result<(File, u64)> {
    let file = File::open(path).map_err(not_opened)?;
    let meta = file.metadata().map_err(unreadable)?;
    if meta.file_type().is_block_device() {
        let size = rustix::fs::seek(&file, SeekFrom::End(0)).map_err(|e| unreadable(e.into()))?;
        return Ok((file, size));
    }
    if !meta.is_file() {
        return Err(Error::invalid("not-an-image", "it is no file").hint("to read a pipe, give - as the image"));
    }
    Ok((file, meta.len()))
}

/// Why an image file could not be opened, and what to do.
pub(crate) fn not_opened(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound => Error::not_found("no-image", "there is no such image").hint("check the path"),
        io::ErrorKind::PermissionDenied => Error::denied("unreadable-image", "the image may not be read")
            .because(error)
            .hint("let the user who runs clonegate read it and go through its directories, or run it as another user"),
        _ => unreadable(error).hint("check the file and the disk that it is on"),
    }
}

fn unreadable(error: io::Error) -> Error {
    Error::invalid("unreadable-image", "the image cannot be read").because(error)
}

struct RawFile(File);

impl ReadAt for RawFile {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        self.0.read_exact_at(into, offset).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => changed(),
            _ => unreadable(error),
        })
    }
}

fn open_raw(path: &Path, align: u64) -> Result<Source> {
    let (file, size) = open_file(path)?;
    let mut head = vec![0; usize::try_from(size.min(HEAD_BYTES)).unwrap_or(0)];
    file.read_exact_at(&mut head, 0).map_err(unreadable)?;
    check_is_raw(&head)?;
    check_size(size)?;
    let unchanged = Some(Unchanged::of(&file).map_err(unreadable)?);
    let source = from_thread(size, unchanged, move |sender| {
        let seeker = file.try_clone().map_err(unreadable)?;
        let reader: Arc<dyn ReadAt> = Arc::new(RawFile(file));
        let mut cutter = Cutter { sender, reader, size, align, reached: 0 };
        for_each_data_run(&seeker, size, |start, end| cutter.cut(start, end))?;
        cutter.end()
    });
    Ok(source)
}

/// The runs of a file that are not holes; all of it where the file system knows no holes.
fn for_each_data_run(file: &File, size: u64, mut found: impl FnMut(u64, u64) -> Result<()>) -> Result<()> {
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(_) => return found(at, size),
        };
        let end = match rustix::fs::seek(file, SeekFrom::Hole(start)) {
            Ok(end) if end > start => end.min(size),
            _ => size,
        };
        if start >= size {
            return Ok(());
        }
        found(start, end)?;
        at = end;
    }
    Ok(())
}

fn open_qcow2(path: &Path, align: u64) -> Result<Source> {
    let (file, file_bytes) = open_file(path)?;
    let unchanged = Some(Unchanged::of(&file).map_err(unreadable)?);
    let image = Arc::new(Image::open(file, file_bytes)?);
    Ok(from_thread(image.size(), unchanged, move |sender| {
        let reader: Arc<dyn ReadAt> = Arc::<Image>::clone(&image);
        let mut cutter = Cutter { sender, reader, size: image.size(), align, reached: 0 };
        image.for_each_run(|start, end| cutter.cut(start, end))?;
        cutter.end()
    }))
}

/// Cuts runs into pieces that never share a chunk.
struct Cutter {
    sender: mpsc::Sender<Result<Piece>>,
    reader: Arc<dyn ReadAt>,
    size: u64,
    align: u64,
    reached: u64,
}

impl Cutter {
    fn cut(&mut self, start: u64, end: u64) -> Result<()> {
        // Outwards to whole chunks: what is read beyond the run are zeroes of the same image.
        let end = end.next_multiple_of(self.align).min(self.size);
        let mut at = (start / self.align * self.align).max(self.reached);
        while at < end {
            let piece_end = ((at / PIECE_BYTES + 1) * PIECE_BYTES).min(end);
            let length = usize::try_from(piece_end - at).unwrap_or(0);
            self.send(Piece::Stored(at, length, Arc::clone(&self.reader)))?;
            at = piece_end;
        }
        self.reached = self.reached.max(end);
        Ok(())
    }

    fn end(self) -> Result<()> {
        let size = self.size;
        self.send(Piece::End(size))
    }

    fn send(&self, piece: Piece) -> Result<()> {
        self.sender.blocking_send(Ok(piece)).map_err(|_| given_up())
    }
}

/// Nobody wants the rest; never seen by a user.
fn given_up() -> Error {
    Error::unavailable("stopping", "the import was given up")
}

fn from_thread(
    size: u64,
    unchanged: Option<Unchanged>,
    work: impl FnOnce(mpsc::Sender<Result<Piece>>) -> Result<()> + Send + 'static,
) -> Source {
    let (sender, pieces) = mpsc::channel(QUEUE * 2);
    let failures = sender.clone();
    tokio::spawn(async move {
        if let Err(error) = in_background(move || work(sender)).await {
            let _ = failures.send(Err(error)).await;
        }
    });
    Source { size: Some(size), pieces, unchanged }
}

fn from_task<F>(size: Option<u64>, work: impl FnOnce(mpsc::Sender<Result<Piece>>) -> F) -> Source
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let (sender, pieces) = mpsc::channel(QUEUE);
    let failures = sender.clone();
    let work = work(sender);
    tokio::spawn(async move {
        if let Err(error) = work.await {
            let _ = failures.send(Err(error)).await;
        }
    });
    Source { size, pieces, unchanged: None }
}

async fn read_stream(
    mut reader: Box<dyn AsyncRead + Send + Unpin>,
    told: Option<u64>,
    sender: mpsc::Sender<Result<Piece>>,
) -> Result<()> {
    let piece = usize::try_from(PIECE_BYTES).unwrap_or(usize::MAX);
    let mut at = 0u64;
    loop {
        let mut buffer = BytesMut::with_capacity(piece);
        while buffer.len() < piece {
            let mut room = (&mut reader).take((piece - buffer.len()) as u64);
            if room.read_buf(&mut buffer).await.map_err(unreadable)? == 0 {
                break;
            }
        }
        if at == 0 {
            check_is_raw(&buffer)?;
        }
        let (length, ended) = (buffer.len() as u64, buffer.len() < piece);
        if length > 0 {
            sender.send(Ok(Piece::Data(at, buffer.freeze()))).await.map_err(|_| given_up())?;
        }
        at += length;
        if ended {
            break;
        }
    }
    check_size(at)?;
    if let Some(told) = told
        && told != at
    {
        let message = format!("{at} bytes came where {told} were told");
        return Err(Error::invalid("cut-upload", message).hint("nothing was imported: send it again"));
    }
    sender.send(Ok(Piece::End(at))).await.map_err(|_| given_up())
}

/// Reads the header of an upload, so that its size is known before anything is stored.
async fn open_frames(mut body: BoxStream<'static, Result<Bytes>>) -> Result<Source> {
    let (mut decoder, mut input) = (Decoder::default(), BytesMut::new());
    let size = loop {
        match decoder.next(&mut input)? {
            Some(Event::Start(size)) => break size,
            Some(_) => return Err(Error::internal("bad-sparse-stream", "an upload that does not begin")),
            None => match body.next().await {
                Some(part) => input.extend_from_slice(&part?),
                None => decoder.finish(&input)?,
            },
        }
    };
    size.map_or(Ok(()), check_size)?;
    Ok(from_task(size, move |sender| read_frames(decoder, input, body, sender)))
}

async fn read_frames(
    mut decoder: Decoder,
    mut input: BytesMut,
    mut body: BoxStream<'static, Result<Bytes>>,
    sender: mpsc::Sender<Result<Piece>>,
) -> Result<()> {
    let mut ended = None;
    loop {
        while let Some(event) = decoder.next(&mut input)? {
            match event {
                Event::Start(_) => {}
                Event::Data(0, data) => {
                    check_is_raw(&data)?;
                    sender.send(Ok(Piece::Data(0, data))).await.map_err(|_| given_up())?;
                }
                Event::Data(offset, data) => {
                    sender.send(Ok(Piece::Data(offset, data))).await.map_err(|_| given_up())?;
                }
                Event::End(size) => ended = Some(size),
            }
        }
        match body.next().await {
            Some(part) => input.extend_from_slice(&part?),
            None => break,
        }
    }
    decoder.finish(&input)?;
    let size = ended.ok_or_else(|| Error::internal("bad-sparse-stream", "an upload without an end"))?;
    check_size(size)?;
    sender.send(Ok(Piece::End(size))).await.map_err(|_| given_up())
}
