//! Deadlines and retries around single requests.

use std::future::Future;
use std::time::Duration;

use clonegate_core::Error;
use tokio::sync::Semaphore;

use super::config::StoreConfig;
use super::errors::{self, Failure};
use crate::clock::Clock;

/// First wait before a request is sent again; doubles each time.
const WAIT_FIRST: Duration = Duration::from_millis(50);
/// Longest wait before a request is sent again.
const WAIT_MOST: Duration = Duration::from_secs(3);
/// A body of this many bytes adds a second to the time that a request may take.
const BYTES_PER_SECOND_LEAST: u64 = 1024 * 1024;

/// Requests that one store has under way at a time; more wait for their turn. It bounds connections and open files.
const REQUESTS_MAX: usize = 256;

/// How long to wait, how often to try, and how many requests at a time.
#[derive(Debug)]
pub(super) struct Patience {
    request_timeout: Duration,
    retry_for: Duration,
    turns: Semaphore,
}

impl Patience {
    pub(super) fn of(config: &StoreConfig) -> Self {
        Self {
            request_timeout: config.request_timeout,
            retry_for: config.retry_for,
            turns: Semaphore::new(REQUESTS_MAX),
        }
    }

    /// Waits for one step of a request, one that carries `bytes` of a body, as long as it may take.
    pub(super) async fn within<T>(
        &self,
        object: &str,
        bytes: u64,
        step: impl Future<Output = T>,
    ) -> Result<T, Failure> {
        let limit = self.request_timeout + Duration::from_secs(bytes / BYTES_PER_SECOND_LEAST);
        let in_time = tokio::time::timeout(limit, step).await;
        in_time.map_err(|_| Failure::passing(errors::timed_out().on(object)))
    }

    /// Sends requests by `send`, whose steps are each bounded, until one succeeds, fails for good, or the time is over; at
    /// least two when the first failure may pass.
    pub(super) async fn persist<T, F>(
        &self,
        clock: &Clock,
        object: &str,
        mut send: impl FnMut() -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let begun = clock.instant();
        let mut wait = WAIT_FIRST;
        let mut attempts = 0u32;
        loop {
            attempts += 1;
            let turn = self.turns.acquire().await;
            let failure = match send().await {
                Ok(done) => return Ok(done),
                Err(failure) => failure,
            };
            drop(turn);
            let waited = clock.instant().saturating_duration_since(begun);
            if !failure.transient || (attempts > 1 && waited + wait > self.retry_for) {
                return Err(failure.error);
            }
            tracing::debug!(object, attempts, error = %failure.error, "the store is asked again");
            clock.sleep(clock.jitter(wait)).await;
            wait = (wait * 2).min(WAIT_MOST);
        }
    }
}
