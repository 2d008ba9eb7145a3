//! Many small objects at once: on a directory with few syncs, elsewhere with many requests in flight.

use bytes::Bytes;
use clonegate_core::{Error, Result};
use futures::StreamExt;

use super::count::Operation;
use super::create::PutNew;
use super::keys::Key;
use super::{IN_FLIGHT_MAX, Store, directory};

impl Store {
    /// Writes many objects, each if there is none of its name; the results are in the order of `objects`. All that are
    /// `Created` are durable when it returns. Each is decided on its own: that one fails says nothing of the others.
    ///
    /// # Errors
    /// Each as [`Store::put_new`].
    ///
    /// # Cancel safety
    /// When dropped, each object may or may not be written; never a part of one.
    pub async fn put_new_batch(&self, objects: Vec<(Key, Bytes)>) -> Vec<Result<PutNew>> {
        if let (Some(root), true) = (self.directory(), objects.len() > 1) {
            return self.put_new_files(root.to_owned(), objects).await;
        }
        futures::stream::iter(objects)
            .map(|(key, body)| async move { self.put_new(&key, body).await })
            .buffered(IN_FLIGHT_MAX)
            .collect()
            .await
    }

    async fn put_new_files(&self, root: std::path::PathBuf, objects: Vec<(Key, Bytes)>) -> Vec<Result<PutNew>> {
        let (label, clock) = (self.label().to_owned(), self.clock().clone());
        let count = objects.len();
        let bytes = objects.iter().map(|(_, body)| body.len() as u64).sum();
        let begun = clock.instant();
        let work = tokio::task::spawn_blocking(move || directory::create_all(&root, &label, &clock, &objects));
        let results = work.await.unwrap_or_else(|_| {
            let stopping = || Error::unavailable("stopping", "the program is stopping").on(self.label());
            (0..count).map(|_| Err(stopping())).collect()
        });
        self.counts().add(Operation::Put, count as u64, bytes, begun.elapsed());
        results
    }
}
