//! Deadlines and retries around single requests.

use std::future::Future;
use std::time::Duration;

use clonegate_core::Error;

use super::config::StoreConfig;
use super::errors::{self, Failure};
use crate::clock::Clock;

/// First wait before a request is sent again; doubles each time.
const WAIT_FIRST: Duration = Duration::from_millis(50);
/// Longest wait before a request is sent again.
const WAIT_MOST: Duration = Duration::from_secs(3);
/// A body of this many bytes adds a second to the time that a request may take.
const BYTES_PER_SECOND_LEAST: u64 = 1024 * 1024;

/// How long to wait and how often to try.
#[derive(Debug, Clone)]
pub(super) struct Patience {
    request_timeout: Duration,
    retry_for: Duration,
}

impl Patience {
    pub(super) fn of(config: &StoreConfig) -> Self {
        Self { request_timeout: config.request_timeout, retry_for: config.retry_for }
    }

    /// Waits for one request as long as a single one may take.
    pub(super) async fn once<T>(&self, object: &str, bytes: u64, request: impl Future<Output = T>) -> Result<T, Error> {
        let limit = self.limit(bytes);
        tokio::time::timeout(limit, request).await.map_err(|_| errors::timed_out().on(object))
    }

    fn limit(&self, bytes: u64) -> Duration {
        self.request_timeout + Duration::from_secs(bytes / BYTES_PER_SECOND_LEAST)
    }

    /// Sends requests by `send` until one succeeds, fails for good, or the time is over. `bytes` is the size of the body.
    pub(super) async fn persist<T, F>(
        &self,
        clock: &Clock,
        object: &str,
        bytes: u64,
        mut send: impl FnMut() -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let begun = clock.instant();
        let limit = self.limit(bytes);
        let mut wait = WAIT_FIRST;
        let mut attempts = 0u32;
        loop {
            attempts += 1;
            let failure = match tokio::time::timeout(limit, send()).await {
                Ok(Ok(done)) => return Ok(done),
                Ok(Err(failure)) => failure,
                Err(_) => Failure::passing(errors::timed_out().on(object)),
            };
            let waited = clock.instant().saturating_duration_since(begun);
            if !failure.transient || waited + wait > self.retry_for.max(limit) {
                return Err(failure.error);
            }
            tracing::debug!(object, attempts, error = %failure.error, "the store is asked again");
            clock.sleep(clock.jitter(wait)).await;
            wait = (wait * 2).min(WAIT_MOST);
        }
    }
}
