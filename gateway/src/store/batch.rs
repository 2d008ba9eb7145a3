//! Many small objects at once.

use bytes::Bytes;
use clonegate_core::Result;
use futures::StreamExt;

use super::create::PutNew;
use super::keys::Key;
use super::{IN_FLIGHT_MAX, Store};

impl Store {
    /// Writes many objects, each if there is none of its name; the results are in the order of `objects`. All that are
    /// `Created` are durable when it returns. Each is decided on its own: that one fails says nothing of the others.
    ///
    /// # Errors
    /// Each as [`Store::put_new`].
    pub async fn put_new_batch(&self, objects: Vec<(Key, Bytes)>) -> Vec<Result<PutNew>> {
        futures::stream::iter(objects)
            .map(|(key, body)| async move { self.put_new(&key, body).await })
            .buffered(IN_FLIGHT_MAX)
            .collect()
            .await
    }
}
