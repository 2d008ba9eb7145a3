//! An NBD server over volumes in memory, whose behaviour a test chooses: slow, failing, watched.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use clonegate::device::{Device, DeviceInfo, Extent, Segments, Source, Version, WriteOptions, read_only, zeroes};
use clonegate::exports::{Attach, Attachment, Detach, ExportInfo, ExportName, Exports};
use clonegate::nbd::client::{Connection, Wish};
use clonegate::nbd::{NbdServer, NbdSettings, serve};
use clonegate_core::nbd::Style;
use clonegate_core::units::{BLOCK_BYTES, ByteRange};
use clonegate_core::{Error, Result};
use futures::future::{BoxFuture, FutureExt, ready};
use tokio::sync::Semaphore;

/// Bytes of a line of the base, as in the chunk cache.
const LINE_BYTES: u64 = 64 * 1024;

/// A volume in memory: a base of lines, and a delta of blocks over it.
#[derive(Debug)]
pub struct NbdVolume {
    info: DeviceInfo,
    /// The base; `None` is a hole.
    lines: Vec<Option<Bytes>>,
    /// Blocks written since; `None` is zero.
    delta: RwLock<HashMap<u64, Option<Bytes>>>,
    changes: AtomicU64,
    /// Nothing is answered at once: `try_read` and `try_write` decline.
    pub slow: AtomicBool,
    /// Writes wait for a permit each while this is set.
    pub hold_writes: AtomicBool,
    /// Permits for held writes.
    pub writes: Semaphore,
    /// Writes that have come as far as waiting for a permit.
    pub held: AtomicUsize,
    /// What the next requests fail with, in turn.
    pub failures: Mutex<Vec<Error>>,
    /// How long slow reads take, microseconds.
    pub read_delay_us: AtomicU64,
    /// Flushes done.
    pub flushes: AtomicUsize,
    /// Accepted writes were lost, and no machine has begun anew.
    pub torn: AtomicBool,
    /// Ranges that were prefetched.
    pub prefetched: Mutex<Vec<ByteRange>>,
}

impl NbdVolume {
    /// A writable volume of `size` bytes whose first `filled` bytes come from the base, each 8 bytes their own offset.
    pub fn new(name: &str, size: u64, filled: u64) -> Arc<Self> {
        Self::with(name, size, filled, false)
    }

    /// The same, read-only.
    pub fn sealed(name: &str, size: u64, filled: u64) -> Arc<Self> {
        Self::with(name, size, filled, true)
    }

    fn with(name: &str, size: u64, filled: u64, read_only: bool) -> Arc<Self> {
        let line = |number: u64| {
            let offsets = (number * LINE_BYTES..(number + 1) * LINE_BYTES).step_by(8);
            (number * LINE_BYTES < filled).then(|| offsets.flat_map(u64::to_be_bytes).collect::<Vec<u8>>().into())
        };
        let info = DeviceInfo {
            name: name.to_owned(),
            size,
            read_only,
            description: format!("{name}, in memory, for tests"),
            modified_ms: 0,
        };
        Arc::new(Self {
            info,
            lines: (0..size.div_ceil(LINE_BYTES)).map(line).collect(),
            delta: RwLock::default(),
            changes: AtomicU64::new(0),
            slow: AtomicBool::new(false),
            hold_writes: AtomicBool::new(false),
            writes: Semaphore::new(0),
            held: AtomicUsize::new(0),
            failures: Mutex::default(),
            read_delay_us: AtomicU64::new(0),
            flushes: AtomicUsize::new(0),
            torn: AtomicBool::new(false),
            prefetched: Mutex::default(),
        })
    }

    /// All bytes, read through the device.
    pub fn bytes(&self) -> Vec<u8> {
        self.slices(ByteRange::new(0, self.info.size)).iter().flat_map(|segment| segment.iter().copied()).collect()
    }

    fn slices(&self, range: ByteRange) -> Segments {
        let delta = self.delta.read().unwrap_or_else(PoisonError::into_inner);
        let mut segments = Segments::new();
        let mut at = range.start();
        while at < range.end() {
            let block = at / BLOCK_BYTES;
            // With nothing written a whole line is one slice, as the chunk cache gives it.
            let unit = if delta.is_empty() { LINE_BYTES } else { BLOCK_BYTES };
            let end = range.end().min((at / unit + 1) * unit);
            let slice = |bytes: &Bytes, unit: u64| bytes.slice(index(at % unit)..index(at % unit + end - at));
            match (delta.get(&block), &self.lines[index(at / LINE_BYTES)]) {
                (Some(Some(bytes)), _) => segments.push(slice(bytes, BLOCK_BYTES)),
                (None, Some(line)) => segments.push(slice(line, LINE_BYTES)),
                (Some(None), _) | (None, None) => zeroes(&mut segments, end - at),
            }
            at = end;
        }
        segments
    }

    fn failure(&self) -> Result<()> {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.is_empty() { Ok(()) } else { Err(failures.remove(0)) }
    }

    fn write_now(&self, offset: u64, data: &Bytes) -> Result<()> {
        self.failure()?;
        if self.info.read_only {
            return Err(read_only(&self.info.name));
        }
        let range = ByteRange::at(offset, data.len() as u64)?;
        range.check_within(self.info.size)?;
        let aligned = offset.is_multiple_of(BLOCK_BYTES) && range.len().is_multiple_of(BLOCK_BYTES);
        // A partial block is made whole from what is there now; the lock is not held, so tests that write parts of one
        // block do not do so at the same time.
        let (from, data) = if aligned {
            (offset, data.clone())
        } else {
            let from = offset / BLOCK_BYTES * BLOCK_BYTES;
            let to = range.end().next_multiple_of(BLOCK_BYTES);
            let here = self.slices(ByteRange::new(from, to.min(self.info.size)));
            let mut all: Vec<u8> = here.iter().flat_map(|segment| segment.iter().copied()).collect();
            all.resize(index(to - from), 0);
            all[index(offset - from)..index(range.end() - from)].copy_from_slice(data);
            (from, Bytes::from(all))
        };
        let mut delta = self.delta.write().unwrap_or_else(PoisonError::into_inner);
        for (number, start) in (from / BLOCK_BYTES..).zip((0..data.len()).step_by(index(BLOCK_BYTES))) {
            delta.insert(number, Some(data.slice(start..start + index(BLOCK_BYTES))));
        }
        self.changes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn source(&self, block: u64) -> Source {
        let delta = self.delta.read().unwrap_or_else(PoisonError::into_inner);
        match (delta.get(&block), &self.lines[index(block * BLOCK_BYTES / LINE_BYTES)]) {
            (Some(Some(_)), _) => Source::Delta,
            (None, Some(_)) => Source::Base,
            (Some(None), _) | (None, None) => Source::Zero,
        }
    }

    async fn hold(&self) {
        if !self.hold_writes.load(Ordering::SeqCst) {
            return;
        }
        self.held.fetch_add(1, Ordering::SeqCst);
        if let Ok(permit) = self.writes.acquire().await {
            permit.forget();
        }
    }
}

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

impl Device for NbdVolume {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn version(&self) -> (Version, u64) {
        (Version { life: 1, change: self.changes.load(Ordering::Relaxed) }, 0)
    }

    fn try_read(&self, range: ByteRange) -> Option<Segments> {
        (!self.slow.load(Ordering::Relaxed)).then(|| self.slices(range))
    }

    fn read(&self, range: ByteRange) -> BoxFuture<'_, Result<Segments>> {
        async move {
            let delay = self.read_delay_us.load(Ordering::Relaxed);
            if delay > 0 {
                tokio::time::sleep(Duration::from_micros(delay)).await;
            }
            self.failure()?;
            range.check_within(self.info.size)?;
            Ok(self.slices(range))
        }
        .boxed()
    }

    fn write(&self, offset: u64, data: Bytes, _: WriteOptions) -> BoxFuture<'_, Result<()>> {
        async move {
            self.hold().await;
            self.write_now(offset, &data)
        }
        .boxed()
    }

    fn try_write(&self, offset: u64, data: Bytes) -> Result<Result<()>, Bytes> {
        if self.slow.load(Ordering::Relaxed) || self.hold_writes.load(Ordering::SeqCst) {
            return Err(data);
        }
        Ok(self.write_now(offset, &data))
    }

    fn write_zeroes(&self, range: ByteRange, _: bool, _: bool) -> BoxFuture<'_, Result<()>> {
        async move {
            self.hold().await;
            let whole = ByteRange::new(
                range.start().next_multiple_of(BLOCK_BYTES),
                if range.end() == self.info.size { range.end() } else { range.end() / BLOCK_BYTES * BLOCK_BYTES },
            );
            for part in [
                ByteRange::new(range.start(), range.end().min(whole.start())),
                ByteRange::new(whole.end().max(range.start()), range.end()),
            ] {
                if !part.is_empty() {
                    self.write_now(part.start(), &Bytes::from(vec![0; index(part.len())]))?;
                }
            }
            self.failure()?;
            let mut delta = self.delta.write().unwrap_or_else(PoisonError::into_inner);
            for block in whole.start() / BLOCK_BYTES..whole.end().div_ceil(BLOCK_BYTES) {
                delta.insert(block, None);
            }
            self.changes.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
        .boxed()
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        ready(self.failure()).boxed()
    }

    fn extents(&self, range: ByteRange) -> BoxFuture<'_, Result<Vec<Extent>>> {
        let mut extents: Vec<Extent> = Vec::new();
        let mut at = range.start();
        while at < range.end() {
            let end = range.end().min((at / BLOCK_BYTES + 1) * BLOCK_BYTES);
            let source = self.source(at / BLOCK_BYTES);
            Extent { range: ByteRange::new(at, end), source }.append_to(&mut extents);
            at = end;
        }
        ready(self.failure().map(|()| extents)).boxed()
    }

    fn prefetch(&self, range: ByteRange) -> BoxFuture<'_, Result<()>> {
        self.prefetched.lock().unwrap_or_else(PoisonError::into_inner).push(range);
        ready(Ok(())).boxed()
    }

    fn is_torn(&self) -> bool {
        self.torn.load(Ordering::SeqCst)
    }

    fn begin_anew(&self) {
        self.torn.store(false, Ordering::SeqCst);
    }
}

/// A directory of volumes that remembers who came and went.
#[derive(Debug, Default)]
pub struct NbdHouse {
    volumes: RwLock<BTreeMap<String, Arc<NbdVolume>>>,
    /// What happened: `open NAME`, `attach NAME CLIENT`, `detach NAME Clean`, `list`.
    pub events: Arc<Mutex<Vec<String>>>,
    /// Every attach is refused with this.
    pub refuse: Mutex<Option<Error>>,
    /// Whoever attaches may not write, for this reason.
    pub refuse_writes: Mutex<Option<Error>>,
}

impl NbdHouse {
    /// A house of these volumes.
    pub fn of(volumes: &[&Arc<NbdVolume>]) -> Arc<Self> {
        let house = Self::default();
        for volume in volumes {
            let mut all = house.volumes.write().unwrap_or_else(PoisonError::into_inner);
            all.insert(volume.info.name.clone(), Arc::clone(volume));
        }
        Arc::new(house)
    }

    /// What happened so far.
    pub fn events(&self) -> Vec<String> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, event: String) {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }

    fn find(&self, name: &ExportName) -> Result<Arc<NbdVolume>> {
        let volumes = self.volumes.read().unwrap_or_else(PoisonError::into_inner);
        let found = volumes.get(&name.to_string()).cloned();
        found.ok_or_else(|| Error::not_found("no-such-export", "there is no such export").on(name.to_string()))
    }
}

#[derive(Debug)]
struct Held {
    device: Arc<dyn Device>,
    events: Arc<Mutex<Vec<String>>>,
    how: Detach,
    refuse_writes: Option<Error>,
}

impl Attachment for Held {
    fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    fn begin_write(&self) -> Result<()> {
        match self.refuse_writes.clone() {
            Some(error) => Err(error),
            None => {
                let event = format!("write {}", self.device.info().name);
                self.events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
                Ok(())
            }
        }
    }

    fn detach(mut self: Box<Self>, how: Detach) {
        self.how = how;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let event = format!("detach {} {:?}", self.device.info().name, self.how);
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }
}

impl Exports for NbdHouse {
    fn peek(&self, name: &str) -> Option<Arc<dyn Device>> {
        let volumes = self.volumes.read().unwrap_or_else(PoisonError::into_inner);
        volumes.get(name).map(|volume| Arc::clone(volume) as Arc<dyn Device>)
    }

    fn open(&self, name: ExportName) -> BoxFuture<'_, Result<Arc<dyn Device>>> {
        self.note(format!("open {name}"));
        ready(self.find(&name).map(|volume| volume as Arc<dyn Device>)).boxed()
    }

    fn attach(&self, name: ExportName, attach: Attach) -> BoxFuture<'_, Result<Box<dyn Attachment>>> {
        let refusal = self.refuse.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let attached = match refusal {
            Some(error) => Err(error),
            None => self.find(&name).map(|volume| {
                self.note(format!("attach {name} {}", attach.client));
                let refuse_writes = self.refuse_writes.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let held = Held { device: volume, events: Arc::clone(&self.events), how: Detach::Lost, refuse_writes };
                Box::new(held) as Box<dyn Attachment>
            }),
        };
        ready(attached).boxed()
    }

    fn ready(&self) -> BoxFuture<'_, Result<()>> {
        ready(Ok(())).boxed()
    }

    fn list(&self, limit: usize) -> BoxFuture<'_, Result<Vec<ExportInfo>>> {
        self.note("list".to_owned());
        let volumes = self.volumes.read().unwrap_or_else(PoisonError::into_inner);
        let info = |volume: &Arc<NbdVolume>| ExportInfo {
            name: volume.info.name.clone(),
            description: volume.info.description.clone(),
        };
        ready(Ok(volumes.values().take(limit).map(info).collect())).boxed()
    }
}

/// What a client asks for that wants headers and replies of this style, and nothing more.
pub fn wish(style: Style) -> Wish {
    Wish { style, ..Wish::default() }
}

/// Waits until `what` is so; a promise that something happens, not when.
///
/// # Panics
/// When it does not happen for long.
pub async fn until(mut what: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if what() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it did not happen");
}

/// A server in this process, with a runtime of its own, on a free port of the loopback.
#[derive(Debug)]
pub struct NbdHost {
    runtime: tokio::runtime::Runtime,
    server: Option<NbdServer>,
    /// What it serves.
    pub house: Arc<NbdHouse>,
}

impl NbdHost {
    /// Serves `house` with `change` made to settings fit for tests.
    ///
    /// # Panics
    /// When it cannot begin.
    pub fn start(house: &Arc<NbdHouse>, change: impl FnOnce(&mut NbdSettings)) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
        let mut settings =
            NbdSettings { listen: Some(([127, 0, 0, 1], 0).into()), threads: 1, ..NbdSettings::default() };
        change(&mut settings);
        let exports = Arc::clone(house) as Arc<dyn Exports>;
        let server = runtime.block_on(serve(settings, exports)).expect("the server begins");
        Self { runtime, server: Some(server), house: Arc::clone(house) }
    }

    /// Serves one volume.
    pub fn of(volume: &Arc<NbdVolume>) -> Self {
        Self::start(&NbdHouse::of(&[volume]), |_| {})
    }

    /// The server.
    ///
    /// # Panics
    /// After [`NbdHost::stop`].
    pub fn server(&self) -> &NbdServer {
        self.server.as_ref().expect("it runs")
    }

    /// The port on the loopback.
    ///
    /// # Panics
    /// When it does not listen on TCP.
    pub fn port(&self) -> u16 {
        self.server().local_addr().expect("TCP").port()
    }

    /// The address of an export.
    pub fn uri(&self, export: &str) -> String {
        format!("nbd://127.0.0.1:{}/{export}", self.port())
    }

    /// A connection with the export `disk`.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn open(&self, style: Style) -> Connection {
        let uri = self.uri("disk").parse().expect("an address");
        Connection::open(&uri, &wish(style)).await.expect("it is admitted")
    }

    /// Runs a future to its end on the runtime of the server.
    pub fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// Stops as an operator would, waiting for what is in flight.
    pub fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            self.runtime.block_on(server.shutdown());
        }
    }
}
