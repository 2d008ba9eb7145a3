//! A volume in memory and a directory of such volumes: what the edges are tested against.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use clonegate::device::{self, Device, DeviceInfo, Extent, Segments, Source, Version, WriteOptions};
use clonegate::exports::{Attach, Attachment, Detach, ExportInfo, ExportName, Exports};
use clonegate_core::units::ByteRange;
use clonegate_core::{Error, Result};
use futures::future::BoxFuture;

/// Bytes of a line: what a read gives as one segment.
const LINE: u64 = 64 * 1024;

/// A volume whose unwritten bytes are zero, so that it can be as large as any.
#[derive(Debug)]
pub struct MemoryDevice {
    info: DeviceInfo,
    lines: RwLock<HashMap<u64, Bytes>>,
    change: AtomicU64,
    /// Nothing is in memory: every read must wait.
    pub cold: AtomicBool,
    /// Every read finds that somebody has written.
    pub restless: AtomicBool,
    /// Reads that waited.
    pub waited: AtomicU64,
    /// Every write waits for as long as this is set.
    pub stuck: AtomicBool,
    /// Writes that wait now.
    pub writing: AtomicU64,
}

impl MemoryDevice {
    /// An empty volume.
    pub fn new(name: &str, size: u64, read_only: bool) -> Arc<Self> {
        let description = "a volume in memory".to_owned();
        Arc::new(Self {
            info: DeviceInfo { name: name.to_owned(), size, read_only, description, modified_ms: 1_700_000_000_000 },
            lines: RwLock::default(),
            change: AtomicU64::new(1),
            cold: AtomicBool::new(false),
            restless: AtomicBool::new(false),
            waited: AtomicU64::new(0),
            stuck: AtomicBool::new(false),
            writing: AtomicU64::new(0),
        })
    }

    /// A volume with these bytes.
    pub fn holding(name: &str, bytes: &[u8], read_only: bool) -> Arc<Self> {
        let device = Self::new(name, bytes.len() as u64, read_only);
        device.store(0, bytes);
        device
    }

    /// Puts bytes there without a change of version.
    pub fn store(&self, offset: u64, bytes: &[u8]) {
        let mut lines = self.lines.write().unwrap();
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let within = usize::try_from(at % LINE).unwrap();
            let part = (bytes.len() - done).min(usize::try_from(LINE).unwrap() - within);
            let line = lines.entry(at / LINE).or_insert_with(|| Bytes::from_static(&[0; LINE as usize]));
            let mut new = BytesMut::from(&line[..]);
            new[within..within + part].copy_from_slice(&bytes[done..done + part]);
            *line = new.freeze();
            done += part;
        }
    }

    /// Somebody writes.
    pub fn touch(&self) {
        self.change.fetch_add(1, SeqCst);
    }

    fn slices(&self, range: ByteRange) -> Segments {
        let lines = self.lines.read().unwrap();
        let mut segments = Segments::new();
        let mut at = range.start();
        while at < range.end() {
            let end = range.end().min((at / LINE + 1) * LINE);
            match lines.get(&(at / LINE)) {
                Some(line) => {
                    let first = usize::try_from(at % LINE).unwrap();
                    segments.push(line.slice(first..first + usize::try_from(end - at).unwrap()));
                }
                None => device::zeroes(&mut segments, end - at),
            }
            at = end;
        }
        segments
    }
}

impl Device for MemoryDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn version(&self) -> (Version, u64) {
        let change = self.change.load(SeqCst);
        (Version { life: 7, change }, self.info.modified_ms + (change - 1) * 1000)
    }

    fn try_read(&self, range: ByteRange) -> Option<Segments> {
        if self.cold.load(SeqCst) {
            return None;
        }
        if self.restless.load(SeqCst) {
            self.touch();
        }
        Some(self.slices(range))
    }

    fn read(&self, range: ByteRange) -> BoxFuture<'_, Result<Segments>> {
        Box::pin(async move {
            range.check_within(self.info.size)?;
            self.waited.fetch_add(1, SeqCst);
            tokio::task::yield_now().await;
            if self.restless.load(SeqCst) {
                self.touch();
            }
            Ok(self.slices(range))
        })
    }

    fn write(&self, offset: u64, data: Bytes, options: WriteOptions) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            ByteRange::at(offset, data.len() as u64)?.check_within(self.info.size)?;
            if options.expect.is_some_and(|expected| expected != self.version().0) {
                return Err(Error::conflict("version-changed", "the volume has changed").on(&self.info.name));
            }
            self.writing.fetch_add(1, SeqCst);
            while self.stuck.load(SeqCst) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            self.writing.fetch_sub(1, SeqCst);
            self.store(offset, &data);
            self.touch();
            Ok(())
        })
    }

    fn write_zeroes(&self, range: ByteRange, _discard: bool, _fua: bool) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            range.check_within(self.info.size)?;
            self.store(range.start(), &vec![0; usize::try_from(range.len()).unwrap()]);
            self.touch();
            Ok(())
        })
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    fn extents(&self, range: ByteRange) -> BoxFuture<'_, Result<Vec<Extent>>> {
        Box::pin(async move {
            range.check_within(self.info.size)?;
            let lines = self.lines.read().unwrap();
            let mut extents = Vec::new();
            let mut at = range.start();
            while at < range.end() {
                let end = range.end().min((at / LINE + 1) * LINE);
                let source = if lines.contains_key(&(at / LINE)) { Source::Delta } else { Source::Zero };
                extents.push(Extent { range: ByteRange::new(at, end), source });
                at = end;
            }
            Ok(extents)
        })
    }

    fn prefetch(&self, _range: ByteRange) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

/// A directory of volumes in memory.
#[derive(Debug, Default)]
pub struct MemoryExports {
    devices: RwLock<HashMap<String, Arc<MemoryDevice>>>,
    /// Nothing is open yet: `peek` finds nothing.
    pub closed: AtomicBool,
}

impl MemoryExports {
    /// These devices under these export names.
    pub fn of(devices: &[(&str, &Arc<MemoryDevice>)]) -> Arc<Self> {
        let named = devices.iter().map(|(name, device)| ((*name).to_owned(), Arc::clone(device)));
        Arc::new(Self { devices: RwLock::new(named.collect()), closed: AtomicBool::new(false) })
    }

    fn find(&self, name: &str) -> Option<Arc<dyn Device>> {
        let device = self.devices.read().unwrap().get(name).cloned()?;
        Some(device)
    }
}

impl Exports for MemoryExports {
    fn peek(&self, name: &str) -> Option<Arc<dyn Device>> {
        if self.closed.load(SeqCst) { None } else { self.find(name) }
    }

    fn open(&self, name: ExportName) -> BoxFuture<'_, Result<Arc<dyn Device>>> {
        Box::pin(async move {
            let name = name.to_string();
            self.find(&name).ok_or_else(|| Error::not_found("no-such-export", "there is no such disk").on(name))
        })
    }

    fn attach(&self, name: ExportName, _attach: Attach) -> BoxFuture<'_, Result<Box<dyn Attachment>>> {
        Box::pin(async move {
            let device = self.open(name).await?;
            Ok(Box::new(MemoryAttachment(device)) as Box<dyn Attachment>)
        })
    }

    fn ready(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    fn list(&self, limit: usize) -> BoxFuture<'_, Result<Vec<ExportInfo>>> {
        Box::pin(async move {
            let mut names: Vec<String> = self.devices.read().unwrap().keys().cloned().collect();
            names.sort();
            names.truncate(limit);
            Ok(names.into_iter().map(|name| ExportInfo { name, description: String::new() }).collect())
        })
    }
}

#[derive(Debug)]
struct MemoryAttachment(Arc<dyn Device>);

impl Attachment for MemoryAttachment {
    fn device(&self) -> &Arc<dyn Device> {
        &self.0
    }

    fn begin_write(&self) -> Result<()> {
        Ok(())
    }

    fn detach(self: Box<Self>, _how: Detach) {}
}
