//! An object store at whose door every request waits until a test lets it in: in any order, with any answer, or long after
//! the sender has given up.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use tokio::sync::oneshot;

use crate::faults::busy;
use crate::late::Late;

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is done and answered.
    Do,
    /// It is done; the answer is lost, and what comes is 503.
    Lose,
    /// It is not done now; the answer is 503. A change may still arrive later.
    Refuse,
}

/// What a request would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Creates an object.
    Put,
    /// Reads one, or a part of it.
    Get,
    /// Lists.
    List,
    /// Deletes an object.
    Delete,
}

/// A request at the door.
#[derive(Debug)]
pub struct Waiting {
    /// Who sent it.
    pub actor: u8,
    /// What it would do.
    pub kind: Kind,
    /// To which object, or below which name.
    pub path: String,
    late: Option<Late>,
    go: oneshot::Sender<Verdict>,
}

impl Waiting {
    /// Whether the sender has given it up, because its time was over or it died.
    pub fn is_given_up(&self) -> bool {
        self.go.is_closed()
    }

    /// Lets it in. Gives back what may still arrive later.
    pub fn decide(self, verdict: Verdict) -> Option<Late> {
        let given_up = self.go.send(verdict).is_err();
        self.late.filter(|_| given_up || verdict == Verdict::Refuse)
    }
}

/// The door that several senders share.
#[derive(Debug, Default)]
pub struct Gates {
    waiting: Mutex<VecDeque<Waiting>>,
    open: std::sync::atomic::AtomicBool,
}

impl Gates {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What each of those who wait is: sender, kind.
    pub fn look(&self) -> Vec<(u8, Kind)> {
        self.lock().iter().map(|waiting| (waiting.actor, waiting.kind)).collect()
    }

    /// Takes one of those who wait, counted from the one who came first.
    pub fn take(&self, index: usize) -> Option<Waiting> {
        self.lock().remove(index)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn pass(&self, actor: u8, kind: Kind, path: &Path, late: Option<Late>) -> Verdict {
        if self.open.load(std::sync::atomic::Ordering::Acquire) {
            return Verdict::Do;
        }
        let (go, gone) = oneshot::channel();
        self.lock().push_back(Waiting { actor, kind, path: path.to_string(), late, go });
        gone.await.unwrap_or(Verdict::Refuse)
    }

    /// From now on everybody passes. Gives back the changes that were waiting and may still arrive.
    pub fn open(&self) -> Vec<Late> {
        self.open.store(true, std::sync::atomic::Ordering::Release);
        let waiting = std::mem::take(&mut *self.lock());
        waiting.into_iter().filter_map(|waiting| waiting.decide(Verdict::Refuse)).collect()
    }
}

/// The store as one sender sees it.
#[derive(Debug)]
pub struct GateStore {
    inner: Arc<dyn ObjectStore>,
    gates: Arc<Gates>,
    actor: u8,
}

impl GateStore {
    /// Puts the door in front of `inner`, for `actor`.
    pub fn new(inner: Arc<dyn ObjectStore>, gates: &Arc<Gates>, actor: u8) -> Self {
        Self { inner, gates: Arc::clone(gates), actor }
    }

    async fn meet<T>(
        &self,
        kind: Kind,
        path: &Path,
        late: Option<Late>,
        request: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        match self.gates.pass(self.actor, kind, path, late).await {
            Verdict::Do => request.await,
            Verdict::Lose => {
                drop(request.await);
                Err(busy())
            }
            Verdict::Refuse => Err(busy()),
        }
    }
}

impl fmt::Display for GateStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} behind a door, for {}", self.inner, self.actor)
    }
}

#[async_trait]
impl ObjectStore for GateStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let late = Late::Put(location.clone(), payload.clone(), options.clone());
        self.meet(Kind::Put, location, Some(late), self.inner.put_opts(location, payload, options)).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.meet(Kind::Put, location, None, self.inner.put_multipart_opts(location, options)).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.meet(Kind::Get, location, None, self.inner.get_opts(location, options)).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (inner, gates, actor) = (Arc::clone(&self.inner), Arc::clone(&self.gates), self.actor);
        locations
            .then(move |location| {
                let store = Self::new(Arc::clone(&inner), &gates, actor);
                async move {
                    let location = location?;
                    let late = Late::Delete(location.clone());
                    store.meet(Kind::Delete, &location, Some(late), store.inner.delete(&location)).await?;
                    Ok(location)
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (inner, gates, actor) = (Arc::clone(&self.inner), Arc::clone(&self.gates), self.actor);
        let prefix = prefix.cloned();
        // The list is that of the moment in which it is let in.
        futures::stream::once(async move {
            let here = prefix.clone().unwrap_or_default();
            match gates.pass(actor, Kind::List, &here, None).await {
                Verdict::Do => inner.list(prefix.as_ref()).collect::<Vec<_>>().await,
                Verdict::Lose | Verdict::Refuse => vec![Err(busy())],
            }
        })
        .flat_map(futures::stream::iter)
        .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let here = prefix.cloned().unwrap_or_default();
        self.meet(Kind::List, &here, None, self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.meet(Kind::Put, to, None, self.inner.copy_opts(from, to, options)).await
    }
}
