//! Counts what is asked of a store: requests, failures, bytes and time per operation.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use tokio::time::Instant;

/// What is counted apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// An object is written.
    Put,
    /// An object or a range of it is read.
    Get,
    /// The facts of an object are asked.
    Head,
    /// Names are listed.
    List,
    /// An object is removed.
    Delete,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Put, Self::Get, Self::Head, Self::List, Self::Delete];

    /// The word for it in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Head => "head",
            Self::List => "list",
            Self::Delete => "delete",
        }
    }
}

/// What was counted of one operation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Requests, each retry counted.
    pub requests: u64,
    /// Requests that failed; "not found" and "exists" are answers and do not count.
    pub failures: u64,
    /// Bytes of bodies, sent or received.
    pub bytes: u64,
    /// Time until the answer began, summed.
    pub time: Duration,
}

#[derive(Debug, Default)]
struct Cell {
    requests: AtomicU64,
    failures: AtomicU64,
    bytes: AtomicU64,
    nanos: AtomicU64,
}

/// Counters of one store, shared by all who use it.
#[derive(Debug, Default)]
pub struct Counts([Cell; 5]);

impl Counts {
    /// What was counted of `operation` so far.
    pub fn of(&self, operation: Operation) -> Count {
        let cell = self.cell(operation);
        Count {
            requests: cell.requests.load(Relaxed),
            failures: cell.failures.load(Relaxed),
            bytes: cell.bytes.load(Relaxed),
            time: Duration::from_nanos(cell.nanos.load(Relaxed)),
        }
    }

    /// Requests of every kind so far.
    pub fn requests(&self) -> u64 {
        self.0.iter().map(|cell| cell.requests.load(Relaxed)).sum()
    }

    fn cell(&self, operation: Operation) -> &Cell {
        &self.0[operation as usize]
    }

    pub(super) fn add(&self, operation: Operation, requests: u64, bytes: u64, time: Duration) {
        let cell = self.cell(operation);
        cell.requests.fetch_add(requests, Relaxed);
        cell.bytes.fetch_add(bytes, Relaxed);
        cell.nanos.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    fn finish<T>(&self, operation: Operation, begun: Instant, bytes: u64, result: &Result<T>) {
        self.add(operation, 1, bytes, begun.elapsed());
        self.fail(operation, result.as_ref().err());
    }

    fn fail(&self, operation: Operation, error: Option<&object_store::Error>) {
        use object_store::Error::{AlreadyExists, NotFound};
        if error.is_some_and(|error| !matches!(error, NotFound { .. } | AlreadyExists { .. })) {
            self.cell(operation).failures.fetch_add(1, Relaxed);
        }
    }
}

/// An object store that counts what another does.
#[derive(Debug)]
pub struct CountStore<S> {
    inner: S,
    counts: Arc<Counts>,
}

impl<S> CountStore<S> {
    /// Counts what is asked of `inner` in `counts`.
    pub const fn new(inner: S, counts: Arc<Counts>) -> Self {
        Self { inner, counts }
    }
}

impl<S: fmt::Display> fmt::Display for CountStore<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl<S: ObjectStore> ObjectStore for CountStore<S> {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let begun = Instant::now();
        let bytes = payload.content_length() as u64;
        let result = self.inner.put_opts(location, payload, options).await;
        self.counts.finish(Operation::Put, begun, bytes, &result);
        result
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let begun = Instant::now();
        let result = self.inner.put_multipart_opts(location, options).await;
        self.counts.finish(Operation::Put, begun, 0, &result);
        result
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let begun = Instant::now();
        let operation = if options.head { Operation::Head } else { Operation::Get };
        let result = self.inner.get_opts(location, options).await;
        let mut file_bytes = 0;
        if let Ok(GetResult { payload: GetResultPayload::File(..), range, .. }) = &result
            && operation == Operation::Get
        {
            file_bytes = range.end - range.start;
        }
        self.counts.finish(operation, begun, file_bytes, &result);
        let counts = Arc::clone(&self.counts);
        result.map(|mut got| {
            if let GetResultPayload::Stream(stream) = got.payload {
                let counted = stream.inspect(move |part| match part {
                    Ok(bytes) => counts.add(operation, 0, bytes.len() as u64, Duration::ZERO),
                    Err(error) => counts.fail(operation, Some(error)),
                });
                got.payload = GetResultPayload::Stream(counted.boxed());
            }
            got
        })
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let begun = Instant::now();
        let result = self.inner.get_ranges(location, ranges).await;
        let bytes = result.as_ref().map_or(0, |parts| parts.iter().map(|part| part.len() as u64).sum());
        self.counts.finish(Operation::Get, begun, bytes, &result);
        result
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let counts = Arc::clone(&self.counts);
        self.inner
            .delete_stream(locations)
            .inspect(move |result| {
                counts.add(Operation::Delete, 1, 0, Duration::ZERO);
                counts.fail(Operation::Delete, result.as_ref().err());
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.count_list(self.inner.list(prefix))
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.count_list(self.inner.list_with_offset(prefix, offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let begun = Instant::now();
        let result = self.inner.list_with_delimiter(prefix).await;
        self.counts.finish(Operation::List, begun, 0, &result);
        result
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let begun = Instant::now();
        let result = self.inner.copy_opts(from, to, options).await;
        self.counts.finish(Operation::Put, begun, 0, &result);
        result
    }
}

impl<S> CountStore<S> {
    /// A listing counts as one request for each thousand names, which is how services page.
    fn count_list(&self, stream: BoxStream<'static, Result<ObjectMeta>>) -> BoxStream<'static, Result<ObjectMeta>> {
        const PAGE: u64 = 1000;
        let counts = Arc::clone(&self.counts);
        counts.add(Operation::List, 1, 0, Duration::ZERO);
        let mut names = 0u64;
        stream
            .inspect(move |item| {
                names += 1;
                if names.is_multiple_of(PAGE) {
                    counts.add(Operation::List, 1, 0, Duration::ZERO);
                }
                counts.fail(Operation::List, item.as_ref().err());
            })
            .boxed()
    }
}
