//! Files inside a volume, read-only: boot loaders fetch a kernel out of the clone it belongs to.
//!
//! Partition table (GPT or MBR, or none), then ext2/3/4 or FAT. What an image says about itself is not believed: a query
//! has a budget of bytes that it may read, so that tables which lead in circles end in an error, and the libraries that take
//! file systems apart run on a thread of their own, where a panic of theirs is an error of ours.

mod ext4;
mod fat;
mod foreign;
mod partitions;
mod reader;

use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use clonegate_core::limits::{FILE_NAMES_MAX, FILE_PATH_BYTES_MAX, FILE_READERS_MAX};
use clonegate_core::units::ByteRange;
use clonegate_core::{Error, Result};
use futures::Stream;
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, oneshot};
use utoipa::ToSchema;

use crate::device::{Device, Version};
use partitions::Partition;
use reader::{Budget, Reader};

/// Readers at work at once; more wait.
static READERS: Semaphore = Semaphore::const_new(FILE_READERS_MAX);

/// Bytes handed to a file-system library before a file is found; a query that wants more is refused (`file-system-damaged`).
const SEARCH_BYTES_MAX: u64 = 128 << 20;
/// Bytes of one piece of a streamed file.
const PIECE_BYTES: usize = 256 * 1024;

/// Where in a volume to look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The first file system that has the path.
    Any,
    /// A partition by its number, from 1.
    Number(u32),
    /// A file system by its label.
    Label(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("-"),
            Self::Number(number) => number.fmt(f),
            Self::Label(label) => f.write_str(label),
        }
    }
}

impl FromStr for Place {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "-" => Ok(Self::Any),
            text if text.chars().all(|c| c.is_ascii_digit()) && text.len() <= 3 => {
                text.parse().map(Self::Number).map_err(|_| bad_place(text))
            }
            text if !text.is_empty() && text.len() <= 36 => Ok(Self::Label(text.to_owned())),
            _ => Err(bad_place(text)),
        }
    }
}

fn bad_place(text: &str) -> Error {
    Error::invalid("bad-partition", format!("{:?} names no partition", text.chars().take(40).collect::<String>()))
        .hint("use a partition's number, a file system's label, or - for the first that has the file")
}

/// A partition and what is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct PartitionView {
    /// Its number, from 1; 0 when the volume has no partition table and is one file system.
    pub number: u32,
    /// First byte.
    pub start: u64,
    /// Size, bytes.
    pub size: u64,
    /// `ext` or `fat`, whose files are read; the name of another that was recognised, as `xfs`, `ntfs` or `lvm`; or absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_system: Option<String>,
    /// Label of the file system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct NameView {
    /// The name.
    pub name: String,
    /// `file`, `directory`, `link` or `other`.
    pub kind: String,
    /// Size of a file, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}

/// The names in a directory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Names {
    /// At most [`FILE_NAMES_MAX`].
    pub items: Vec<NameView>,
    /// Whether there are more than are listed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
}

impl Names {
    /// Adds a name; `false` when there is no room for it.
    fn add(&mut self, name: NameView) -> bool {
        self.more = self.items.len() >= FILE_NAMES_MAX;
        if !self.more {
            self.items.push(name);
        }
        !self.more
    }
}

/// What lies at a path.
#[derive(Debug)]
pub enum Found {
    /// A directory.
    Directory(Names),
    /// A regular file.
    File(OpenFile),
}

/// A file that was found; it is read when it is streamed.
#[derive(Debug)]
pub struct OpenFile {
    /// Size, bytes.
    pub size: u64,
    /// The version of the volume in which it was found.
    pub version: Version,
    wanted: oneshot::Sender<ByteRange>,
    pieces: mpsc::Receiver<Result<Bytes>>,
}

impl OpenFile {
    /// The bytes of `range`, which must be within the size. The last item is an error when the volume has changed meanwhile:
    /// what was read may be of two versions.
    pub fn stream(self, range: ByteRange) -> impl Stream<Item = Result<Bytes>> + Send + 'static {
        // Nobody takes it only when the reading thread has died; then the stream is empty and the answer too short.
        let _ = self.wanted.send(range);
        futures::stream::unfold(self.pieces, |mut pieces| async { pieces.recv().await.map(|piece| (piece, pieces)) })
    }
}

/// The partitions of a volume and the file systems on them.
///
/// # Errors
/// `Corrupt` when a partition table contradicts itself; whatever reading gives.
pub async fn partitions(device: Arc<dyn Device>) -> Result<Vec<PartitionView>> {
    let permit = READERS.acquire().await.map_err(|_| damaged())?;
    let handle = Handle::current();
    let task = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        let disk = Disk { device, handle };
        let mut views = Vec::new();
        for part in disk.partitions()? {
            let found = disk.file_system(part.range).ok().flatten();
            let kind = match &found {
                Some((system, _)) => Some(system.kind()),
                None => disk.foreign(part.range),
            };
            views.push(PartitionView {
                number: part.number,
                start: part.range.start(),
                size: part.range.len(),
                file_system: kind.map(str::to_owned),
                label: found.as_ref().and_then(|(system, _)| system.label()),
            });
        }
        Ok(views)
    });
    task.await.unwrap_or_else(|_| Err(damaged()))
}

/// Looks up `path`, absolute with `/` between names; links are followed within their file system.
///
/// # Errors
/// `NotFound` with code `no-such-file` or `no-such-partition`; `Invalid` for a path that cannot be; `Corrupt` when the
/// file system contradicts itself; whatever reading gives.
pub async fn open(device: Arc<dyn Device>, place: Place, path: &str) -> Result<Found> {
    let path = checked(path)?;
    let permit = READERS.acquire().await.map_err(|_| damaged())?;
    let (tell, told) = oneshot::channel();
    let (wanted, want) = oneshot::channel();
    let (sender, pieces) = mpsc::channel(4);
    let disk = Disk { device, handle: Handle::current() };
    tokio::task::spawn_blocking(move || {
        let _permit = permit;
        disk.serve(&place, &path, Conversation { tell, want, pieces: sender });
    });
    match told.await.unwrap_or_else(|_| Err(damaged()))? {
        Seen::Directory(names) => Ok(Found::Directory(names)),
        Seen::File { size, version } => Ok(Found::File(OpenFile { size, version, wanted, pieces })),
    }
}

/// What the reading thread tells of a path.
enum Seen {
    Directory(Names),
    File { size: u64, version: Version },
}

/// How the reading thread talks with who asked. The libraries borrow a file from its file system, so that one thread finds it,
/// waits until it is known which bytes are wanted, and sends them.
struct Conversation {
    tell: oneshot::Sender<Result<Seen>>,
    want: oneshot::Receiver<ByteRange>,
    pieces: mpsc::Sender<Result<Bytes>>,
}

/// A volume on the reading thread.
struct Disk {
    device: Arc<dyn Device>,
    handle: Handle,
}

impl Disk {
    fn reader(&self, range: ByteRange, budget: u64) -> Reader {
        Reader::new(Arc::clone(&self.device), self.handle.clone(), range, budget)
    }

    fn partitions(&self) -> Result<Vec<Partition>> {
        let whole = ByteRange::new(0, self.device.info().size);
        partitions::read(&mut self.reader(whole, SEARCH_BYTES_MAX))
    }

    /// The file system on `range`, if it is one that is understood, and the budget of its reader.
    fn file_system(&self, range: ByteRange) -> Result<Option<(FileSystem, Budget)>> {
        let mut probe = self.reader(range, SEARCH_BYTES_MAX);
        if ext4::is_one(&mut probe)? {
            let reader = self.reader(range, SEARCH_BYTES_MAX);
            let budget = reader.budget();
            return Ok(Some((FileSystem::Ext(ext4::Ext::open(reader)?), budget)));
        }
        if fat::is_one(&mut probe)? {
            let reader = self.reader(range, SEARCH_BYTES_MAX);
            let budget = reader.budget();
            return Ok(Some((FileSystem::Fat(fat::Fat::open(reader)?), budget)));
        }
        Ok(None)
    }

    /// What a partition holds that is not read here, if it is known.
    fn foreign(&self, range: ByteRange) -> Option<&'static str> {
        foreign::name(&mut self.reader(range, SEARCH_BYTES_MAX))
    }

    fn serve(&self, place: &Place, path: &str, with: Conversation) {
        let version = self.device.version().0;
        let parts = match self.partitions() {
            Ok(parts) => parts,
            Err(error) => return drop(with.tell.send(Err(error))),
        };
        let mut failure = match place {
            Place::Any => None,
            _ => Some(Error::not_found("no-such-partition", format!("the volume has no partition {place}"))),
        };
        let mut unread = Vec::new();
        for part in parts {
            if matches!(place, Place::Number(number) if *number != part.number) {
                continue;
            }
            let (system, budget) = match self.file_system(part.range) {
                Ok(Some(found)) => found,
                Ok(None) => {
                    unread.push((part.number, self.foreign(part.range)));
                    continue;
                }
                Err(error) => {
                    failure = Some(error);
                    continue;
                }
            };
            if matches!(place, Place::Label(label) if system.label().as_ref() != Some(label)) {
                continue;
            }
            match system.look(path) {
                Ok(None) => failure = None,
                Ok(Some(Thing::Directory(names))) => return drop(with.tell.send(Ok(Seen::Directory(names)))),
                Ok(Some(Thing::File(file))) => return self.send(file, &budget, version, with),
                Err(error) => failure = Some(error),
            }
        }
        let error = match (place, unread.as_slice()) {
            (Place::Number(_), [(number, holds)]) => not_read(*number, *holds),
            _ => failure.unwrap_or_else(|| no_such_file(path, &unread)),
        };
        drop(with.tell.send(Err(error)));
    }

    fn send(&self, mut file: Box<dyn FileRead + '_>, budget: &Budget, version: Version, with: Conversation) {
        let size = file.size();
        if with.tell.send(Ok(Seen::File { size, version })).is_err() {
            return;
        }
        let Ok(range) = with.want.blocking_recv() else { return };
        // Twice: tables lie between the bytes of a file.
        budget.raise(range.len().saturating_mul(2));
        let mut at = range.start();
        while at < range.end() {
            let length = usize::try_from(range.end() - at).map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES));
            let piece = file.read_at(at, length).and_then(|bytes| {
                if self.device.version().0 != version {
                    return Err(Error::conflict("version-changed", "the volume was written while a file was read"));
                }
                if bytes.is_empty() { Err(damaged()) } else { Ok(bytes) }
            });
            let failed = piece.is_err();
            at += piece.as_ref().map_or(0, |bytes| bytes.len() as u64);
            if with.pieces.blocking_send(piece).is_err() || failed {
                return;
            }
        }
    }
}

/// A file system that was recognised.
#[expect(clippy::large_enum_variant, reason = "one for each request, never in a collection")]
enum FileSystem {
    Ext(ext4::Ext),
    Fat(fat::Fat),
}

/// What a file system has at a path.
enum Thing<'a> {
    Directory(Names),
    File(Box<dyn FileRead + 'a>),
}

/// A file while its file system is open.
trait FileRead {
    /// Size, bytes.
    fn size(&self) -> u64;
    /// At most `length` bytes at `offset`; nothing only at the end.
    fn read_at(&mut self, offset: u64, length: usize) -> Result<Bytes>;
}

impl FileSystem {
    fn kind(&self) -> &'static str {
        match self {
            Self::Ext(_) => "ext",
            Self::Fat(_) => "fat",
        }
    }

    fn label(&self) -> Option<String> {
        match self {
            Self::Ext(system) => system.label(),
            Self::Fat(system) => system.label(),
        }
    }

    fn look(&self, path: &str) -> Result<Option<Thing<'_>>> {
        match self {
            Self::Ext(system) => system.look(path),
            Self::Fat(system) => system.look(path),
        }
    }
}

fn checked(path: &str) -> Result<String> {
    let names: Vec<_> = path.split('/').filter(|name| !name.is_empty() && *name != ".").collect();
    let wrong = path.len() > FILE_PATH_BYTES_MAX
        || path.contains('\0')
        || names.contains(&"..")
        || names.len() > FILE_PATH_BYTES_MAX / 8;
    if wrong {
        return Err(Error::invalid("bad-path", "this is not a path inside a volume")
            .hint("give an absolute path without .., like /boot/vmlinuz"));
    }
    Ok(format!("/{}", names.join("/")))
}

/// A partition that was asked for by its number and holds nothing that is read here.
fn not_read(number: u32, holds: Option<&'static str>) -> Error {
    let what =
        holds.map_or("no file system that is known here".to_owned(), |name| format!("{name}, which is not read here"));
    Error::unsupported("file-system-unsupported", format!("partition {number} has {what}"))
        .hint("files are read out of ext2/3/4 and FAT: put what a boot loader needs on a partition of these, as /boot often is")
}

/// No file system that is read here has the path; `unread` are the partitions that may have it all the same.
fn no_such_file(path: &str, unread: &[(u32, Option<&'static str>)]) -> Error {
    let known: Vec<_> =
        unread.iter().filter_map(|(number, holds)| holds.map(|name| format!("{number} ({name})"))).take(8).collect();
    if known.is_empty() {
        return Error::not_found("no-such-file", "no such file in the volume").on(path);
    }
    let known = known.join(", ");
    Error::not_found("no-such-file", format!("no such file where files can be read; not read: partition {known}"))
        .on(path)
        .hint("files are read out of ext2/3/4 and FAT")
}

/// An error of the volume as it was, one of a file system as [`damaged`].
fn read_failed(error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(cause) => cause,
        Err(other) => damaged().because(other),
    }
}

/// What a file system that contradicts itself gives, whichever way.
fn damaged() -> Error {
    Error::corrupt("file-system-damaged", "the file system in the volume cannot be read")
        .hint("check it in a machine that uses this clone (fsck)")
}
