//! What the edges may open, by the names that users type: the same words in URLs and NBD export names.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use clonegate_core::ids::{BaseId, CloneId, Name};
use clonegate_core::{Error, Result};
use futures::future::BoxFuture;

use crate::device::Device;

/// A clone by its name or its id.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum CloneRef {
    /// By name.
    Name(Name),
    /// By id.
    Id(CloneId),
}

impl FromStr for CloneRef {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        if text.contains('_') { text.parse().map(Self::Id) } else { text.parse().map(Self::Name) }
    }
}

impl fmt::Display for CloneRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Id(id) => id.fmt(f),
        }
    }
}

/// An export: `CLONE`, `CLONE@identity`, `CLONE@SNAPSHOT`, `disk/NAME`, `base/ID`, `template/NAME`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ExportName {
    /// The clone's volume.
    Clone(CloneRef),
    /// The clone's identity disk, read-only.
    Identity(CloneRef),
    /// A snapshot of the clone, read-only.
    Snapshot(CloneRef, Name),
    /// A data disk.
    Disk(CloneRef),
    /// A base, read-only.
    Base(BaseId),
    /// The published version of a template, read-only.
    Template(Name),
}

impl FromStr for ExportName {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        if let Some(name) = text.strip_prefix("disk/") {
            return name.parse().map(Self::Disk);
        }
        if let Some(id) = text.strip_prefix("base/") {
            return id.parse().map(Self::Base);
        }
        if let Some(name) = text.strip_prefix("template/") {
            return name.parse().map(Self::Template);
        }
        match text.split_once('@') {
            None => text.parse().map(Self::Clone),
            Some((clone, "identity")) => clone.parse().map(Self::Identity),
            Some((clone, snapshot)) => Ok(Self::Snapshot(clone.parse()?, snapshot.parse()?)),
        }
    }
}

impl fmt::Display for ExportName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clone(clone) => clone.fmt(f),
            Self::Identity(clone) => write!(f, "{clone}@identity"),
            Self::Snapshot(clone, snapshot) => write!(f, "{clone}@{snapshot}"),
            Self::Disk(disk) => write!(f, "disk/{disk}"),
            Self::Base(base) => write!(f, "base/{base}"),
            Self::Template(name) => write!(f, "template/{name}"),
        }
    }
}

/// Who attaches and how.
#[derive(Debug, Clone)]
pub struct Attach {
    /// The machine, as far as it is known: its address without the port, or `unix`.
    pub client: String,
    /// Whether it comes to stay, as a machine does that may write: what waits for the power-on is done.
    pub write: bool,
}

/// How an attachment ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detach {
    /// The client said good-bye (`NBD_CMD_DISC`).
    Clean,
    /// The connection was lost. Never a power-off.
    Lost,
}

/// An open attachment: keeps the device open, and tells the control layer when it ends.
pub trait Attachment: Send + Sync + fmt::Debug {
    /// The device.
    fn device(&self) -> &Arc<dyn Device>;
    /// Makes it the machine that writes; asked before the first write. It stays so until it is detached.
    ///
    /// # Errors
    /// `Denied` with code `attached-elsewhere` when another machine is.
    fn begin_write(&self) -> Result<()>;
    /// Says how it ended; dropping it without this is [`Detach::Lost`].
    fn detach(self: Box<Self>, how: Detach);
}

/// What an export list tells of one export.
#[derive(Debug, Clone)]
pub struct ExportInfo {
    /// Its name.
    pub name: String,
    /// One line for people.
    pub description: String,
}

/// The control layer as the edges see it: a directory of devices.
pub trait Exports: Send + Sync + fmt::Debug + 'static {
    /// The device of an export that is open already, without waiting: the hot path of HTTP. `name` is the text of an
    /// [`ExportName`].
    fn peek(&self, name: &str) -> Option<Arc<dyn Device>>;

    /// Opens an export for reading and stateless writes (HTTP); it stays open for a while and then closes by itself.
    fn open(&self, name: ExportName) -> BoxFuture<'_, Result<Arc<dyn Device>>>;

    /// Opens an export for a connection that stays (NBD): counts as power-on of the clone. It may read, and write after
    /// [`Attachment::begin_write`].
    fn attach(&self, name: ExportName, attach: Attach) -> BoxFuture<'_, Result<Box<dyn Attachment>>>;

    /// Whether exports can be opened: what they are found in answers. Cheap, however often it is asked.
    ///
    /// # Errors
    /// Why not.
    fn ready(&self) -> BoxFuture<'_, Result<()>>;

    /// The exports, for lists; at most `limit`.
    fn list(&self, limit: usize) -> BoxFuture<'_, Result<Vec<ExportInfo>>>;
}
