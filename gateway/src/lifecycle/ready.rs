//! Whether the gateway can serve: its home answers. Whoever reaches the port may ask, so asking costs the home next to nothing.

use std::time::Duration;

use clonegate_core::{ErrorKind, Result};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::store::{Store, keys};

/// How long an answer is remembered.
const REMEMBERED: Duration = Duration::from_secs(1);

/// The last answer of the home, and when it came.
#[derive(Debug, Default)]
pub(super) struct Readiness(Mutex<Option<(Instant, Result<()>)>>);

impl Readiness {
    /// Whether `home` answers: one request for the facts of one object, at most one a second. Those who ask meanwhile share its answer.
    ///
    /// # Errors
    /// `Unavailable`, `Denied` from the store.
    pub(super) async fn ask(&self, home: &Store, clock: &Clock) -> Result<()> {
        let mut last = self.0.lock().await;
        if let Some((at, answer)) = &*last
            && clock.instant().saturating_duration_since(*at) < REMEMBERED
        {
            return answer.clone();
        }
        // Any name would do. That there is no such object is an answer, too.
        let answer = match home.head(&keys::exclusive()).await {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            Ok(_) | Err(_) => Ok(()),
        };
        *last = Some((clock.instant(), answer.clone()));
        answer
    }
}
