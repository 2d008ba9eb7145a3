//! Who asks for what is done now, carried along with the request: for the audit log, for jobs, for `Idempotency-Key`.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// One request on its way through the gateway.
#[derive(Debug, Default)]
pub struct Request {
    /// Who asks: the name of a token, or the address of the peer.
    pub by: String,
    /// The `Idempotency-Key` that it came with.
    pub key: Option<String>,
    /// Whether what it did is in the audit log already.
    audited: AtomicBool,
    /// Whether the clones that it made are.
    created: AtomicBool,
}

impl Request {
    /// A request of `by`.
    pub fn new(by: impl Into<String>, key: Option<String>) -> Arc<Self> {
        Arc::new(Self { by: by.into(), key, audited: AtomicBool::new(false), created: AtomicBool::new(false) })
    }

    /// Notes that what it did is in the audit log.
    pub fn note_audited(&self) {
        self.audited.store(true, Ordering::Relaxed);
    }

    /// Notes that the clones that it made are in the audit log.
    pub fn note_created(&self) {
        self.created.store(true, Ordering::Relaxed);
    }

    /// Whether they are.
    pub fn has_created(&self) -> bool {
        self.created.load(Ordering::Relaxed)
    }

    /// Whether it is.
    pub fn is_audited(&self) -> bool {
        self.audited.load(Ordering::Relaxed)
    }
}

tokio::task_local! {
    static REQUEST: Arc<Request>;
}

/// Runs `work` as part of `request`.
pub async fn within<F: Future>(request: Arc<Request>, work: F) -> F::Output {
    REQUEST.scope(request, work).await
}

/// The request that this is part of; `None` for what the gateway does by itself.
pub fn current() -> Option<Arc<Request>> {
    REQUEST.try_with(Arc::clone).ok()
}

/// Who asks; `gateway` for what it does by itself.
pub fn by() -> String {
    current().map_or_else(|| "gateway".to_owned(), |request| request.by.clone())
}

/// `work` to be spawned as a task of its own, still part of this request.
pub(super) fn carry<F>(work: F) -> impl Future<Output = F::Output> + Send
where
    F: Future + Send,
{
    let request = current();
    async move {
        match request {
            Some(request) => REQUEST.scope(request, work).await,
            None => work.await,
        }
    }
}
