//! Object stores that misbehave on purpose, to be put under a `Store`: lost replies, outages, truncation, delay, sudden death,
//! and stores whose put-if-absent is none.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::late::Late;

/// What goes wrong with one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is done; the answer is 503.
    Before,
    /// It is done; the answer is lost, and what comes is 503.
    After,
    /// A body that is read ends early, without an error.
    Truncated,
    /// It is done later.
    Delay(Duration),
    /// Nothing is done, and the answer never comes.
    Hang,
    /// The answer is 503 now; it is done whenever the test says so, see [`Faults::take_late`]. Nothing is done of a read.
    Late,
}

/// How often each fault happens, per thousand requests.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rates {
    /// [`Fault::Before`].
    pub before: u32,
    /// [`Fault::After`].
    pub after: u32,
    /// [`Fault::Truncated`].
    pub truncated: u32,
    /// [`Fault::Delay`] of up to two seconds.
    pub delay: u32,
    /// [`Fault::Hang`].
    pub hang: u32,
    /// [`Fault::Late`].
    pub late: u32,
}

impl Rates {
    /// A bad day: a tenth of all requests go wrong.
    pub const BAD_DAY: Self = Self { before: 30, after: 30, truncated: 10, delay: 25, hang: 5, late: 20 };
}

/// The plan of what goes wrong, shared between a [`FaultStore`] and the test.
#[derive(Debug)]
pub struct Faults(std::sync::Mutex<Plan>, tokio::sync::Notify);

#[derive(Debug)]
struct Plan {
    calls: u64,
    injected: u64,
    random: Option<(StdRng, Rates)>,
    at: Vec<(u64, Fault)>,
    dies_at: Option<(u64, bool)>,
    down: bool,
    full: bool,
    late: Vec<Late>,
}

impl Faults {
    fn with(random: Option<(StdRng, Rates)>) -> Arc<Self> {
        let (at, late) = (Vec::new(), Vec::new());
        let plan = Plan { calls: 0, injected: 0, random, at, dies_at: None, down: false, full: false, late };
        Arc::new(Self(std::sync::Mutex::new(plan), tokio::sync::Notify::new()))
    }

    /// Nothing goes wrong until it is told to.
    pub fn none() -> Arc<Self> {
        Self::with(None)
    }

    /// Faults at random; a seed gives the same faults for the same requests in the same order.
    pub fn random(seed: u64, rates: Rates) -> Arc<Self> {
        Self::with(Some((StdRng::seed_from_u64(seed), rates)))
    }

    /// `fault` befalls request number `call`, counted from 0 since the beginning.
    pub fn at(&self, call: u64, fault: Fault) {
        self.plan().at.push((call, fault));
    }

    /// `fault` befalls the next request.
    pub fn next(&self, fault: Fault) {
        let mut plan = self.plan();
        let call = plan.calls;
        plan.at.push((call, fault));
    }

    /// From request number `call` on every request fails, as for a process that died: with `applied`, that one request is
    /// still done.
    pub fn die_at(&self, call: u64, applied: bool) {
        self.plan().dies_at = Some((call, applied));
    }

    /// Whether the request of [`Faults::die_at`] has come.
    pub fn is_dead(&self) -> bool {
        let plan = self.plan();
        plan.dies_at.is_some_and(|(at, _)| plan.calls > at)
    }

    /// Waits for that. In one waiter only.
    pub async fn died(&self) {
        while !self.is_dead() {
            self.1.notified().await;
        }
    }

    /// Every request fails with 503 until [`Faults::heal`].
    pub fn outage(&self) {
        self.plan().down = true;
    }

    /// Nothing can be put any more, as in a store without room (507); everything else goes on. `false`: there is room again.
    pub fn fill(&self, full: bool) {
        self.plan().full = full;
    }

    fn is_full(&self) -> bool {
        let mut plan = self.plan();
        plan.injected += u64::from(plan.full);
        plan.full
    }

    /// From now on faults happen at random.
    pub fn turn(&self, seed: u64, rates: Rates) {
        self.plan().random = Some((StdRng::seed_from_u64(seed), rates));
    }

    /// Nothing goes wrong any more.
    pub fn heal(&self) {
        let mut plan = self.plan();
        plan.down = false;
        plan.full = false;
        plan.dies_at = None;
        plan.random = None;
        plan.at.clear();
    }

    /// The requests of [`Fault::Late`] since the last call, in the order in which they were sent.
    pub fn take_late(&self) -> Vec<Late> {
        std::mem::take(&mut self.plan().late)
    }

    fn send_later(&self, fault: Option<Fault>, request: impl FnOnce() -> Late) {
        if fault == Some(Fault::Late) {
            self.plan().late.push(request());
        }
    }

    /// Requests so far.
    pub fn calls(&self) -> u64 {
        self.plan().calls
    }

    /// Faults so far.
    pub fn injected(&self) -> u64 {
        self.plan().injected
    }

    fn plan(&self) -> std::sync::MutexGuard<'_, Plan> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn draw(&self) -> Option<Fault> {
        let mut plan = self.plan();
        let call = plan.calls;
        plan.calls += 1;
        let fault = plan.decide(call);
        plan.injected += u64::from(fault.is_some());
        if plan.dies_at.is_some_and(|(at, _)| call >= at) {
            self.1.notify_one();
        }
        fault
    }
}

impl Plan {
    fn decide(&mut self, call: u64) -> Option<Fault> {
        if let Some((at, applied)) = self.dies_at
            && call >= at
        {
            return Some(if call == at && applied { Fault::After } else { Fault::Before });
        }
        if self.down {
            return Some(Fault::Before);
        }
        if let Some((_, fault)) = self.at.iter().find(|(at, _)| *at == call) {
            return Some(*fault);
        }
        let (random, rates) = self.random.as_mut()?;
        let mut drawn = random.random_range(0..1000u32);
        let delay = Fault::Delay(Duration::from_millis(random.random_range(0..2000)));
        let table = [
            (rates.before, Fault::Before),
            (rates.after, Fault::After),
            (rates.truncated, Fault::Truncated),
            (rates.delay, delay),
            (rates.hang, Fault::Hang),
            (rates.late, Fault::Late),
        ];
        for (rate, fault) in table {
            if drawn < rate {
                return Some(fault);
            }
            drawn -= rate;
        }
        None
    }
}

/// The error that a service's 503 becomes.
pub(crate) fn busy() -> Error {
    let text = "Server returned non-2xx status code: 503 Service Unavailable: injected";
    Error::Generic { store: "fault", source: text.into() }
}

fn full() -> Error {
    let text = "Server returned non-2xx status code: 507 Insufficient Storage: injected";
    Error::Generic { store: "fault", source: text.into() }
}

/// An object store in whose way faults are put.
#[derive(Debug)]
pub struct FaultStore {
    inner: Arc<dyn ObjectStore>,
    faults: Arc<Faults>,
}

impl FaultStore {
    /// Puts `faults` in the way to `inner`.
    pub fn new(inner: Arc<dyn ObjectStore>, faults: Arc<Faults>) -> Self {
        Self { inner, faults }
    }

    async fn meet<T>(&self, request: impl Future<Output = Result<T>>) -> Result<T> {
        self.meet_as(self.faults.draw(), request).await
    }

    async fn meet_as<T>(&self, fault: Option<Fault>, request: impl Future<Output = Result<T>>) -> Result<T> {
        match fault {
            None | Some(Fault::Truncated) => request.await,
            Some(Fault::Before | Fault::Late) => Err(busy()),
            Some(Fault::After) => {
                drop(request.await);
                Err(busy())
            }
            Some(Fault::Delay(time)) => {
                tokio::time::sleep(time).await;
                request.await
            }
            Some(Fault::Hang) => std::future::pending().await,
        }
    }
}

impl fmt::Display for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "faulty {}", self.inner)
    }
}

#[async_trait]
impl ObjectStore for FaultStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let fault = self.faults.draw();
        if self.faults.is_full() && fault.is_none() {
            return Err(full());
        }
        self.faults.send_later(fault, || Late::Put(location.clone(), payload.clone(), options.clone()));
        self.meet_as(fault, self.inner.put_opts(location, payload, options)).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.meet(self.inner.put_multipart_opts(location, options)).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let (fault, head) = (self.faults.draw(), options.head);
        let mut got = self.meet_as(fault, self.inner.get_opts(location, options)).await?;
        if fault == Some(Fault::Truncated) && !head {
            let range = got.range.clone();
            let whole = GetResult { payload: got.payload, ..got_facts(&got.meta, range.clone()) }.bytes().await?;
            let cut = whole.slice(..whole.len() / 2);
            got = GetResult {
                payload: GetResultPayload::Stream(futures::stream::iter([Ok(cut)]).boxed()),
                ..got_facts(&got.meta, range)
            };
        }
        Ok(got)
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.meet(self.inner.get_ranges(location, ranges)).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (inner, faults) = (Arc::clone(&self.inner), Arc::clone(&self.faults));
        locations
            .then(move |location| {
                let store = Self { inner: Arc::clone(&inner), faults: Arc::clone(&faults) };
                async move {
                    let location = location?;
                    let fault = store.faults.draw();
                    store.faults.send_later(fault, || Late::Delete(location.clone()));
                    store.meet_as(fault, store.inner.delete(&location)).await?;
                    Ok(location)
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.faults.draw() {
            Some(Fault::Before | Fault::After | Fault::Hang | Fault::Late) => {
                futures::stream::iter([Err(busy())]).boxed()
            }
            // A list that breaks off says so; one that ends early without a word would be a broken store.
            Some(Fault::Truncated) => {
                self.inner.list(prefix).take(1).chain(futures::stream::iter([Err(busy())])).boxed()
            }
            Some(Fault::Delay(_)) | None => self.inner.list(prefix),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.meet(self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.meet(self.inner.copy_opts(from, to, options)).await
    }
}

fn got_facts(meta: &ObjectMeta, range: Range<u64>) -> GetResult {
    GetResult {
        payload: GetResultPayload::Stream(futures::stream::empty().boxed()),
        meta: meta.clone(),
        range,
        attributes: object_store::Attributes::default(),
        extensions: object_store::Extensions::default(),
    }
}

/// How a store gets put-if-absent wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sloppy {
    /// Answers "created" to everyone and keeps the last (Garage, rclone).
    Overwrites,
    /// Looks first and writes later, so that several who come at once win (s3s-fs).
    LooksThenWrites,
    /// Does not know the condition (501).
    Refuses,
}

/// An object store without a working put-if-absent.
#[derive(Debug)]
pub struct SloppyStore {
    inner: Arc<dyn ObjectStore>,
    how: Sloppy,
}

impl SloppyStore {
    /// Spoils the put-if-absent of `inner`.
    pub fn new(inner: Arc<dyn ObjectStore>, how: Sloppy) -> Self {
        Self { inner, how }
    }
}

impl fmt::Display for SloppyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sloppy {}", self.inner)
    }
}

#[async_trait]
impl ObjectStore for SloppyStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        if options.mode == PutMode::Create {
            match self.how {
                Sloppy::Overwrites => {}
                Sloppy::LooksThenWrites => {
                    if self.inner.head(location).await.is_ok() {
                        let source = "it was there".into();
                        return Err(Error::AlreadyExists { path: location.to_string(), source });
                    }
                    tokio::task::yield_now().await;
                }
                Sloppy::Refuses => {
                    let text = "Server returned non-2xx status code: 501 Not Implemented: <Code>NotImplemented</Code>";
                    return Err(Error::Generic { store: "sloppy", source: text.into() });
                }
            }
        }
        self.inner.put_opts(location, payload, PutOptions { mode: PutMode::Overwrite, ..options }).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
