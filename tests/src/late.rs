//! Requests that were given up by those who sent them and reach the store afterwards: after a retry, after a takeover, after
//! the death of the process.

use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutOptions, PutPayload};

/// A change of the store that is still on its way.
#[derive(Debug, Clone)]
pub enum Late {
    /// A PUT.
    Put(Path, PutPayload, PutOptions),
    /// A DELETE.
    Delete(Path),
}

impl Late {
    /// It reaches the store. Nobody hears the answer.
    pub async fn arrive(self, objects: &dyn ObjectStore) {
        match self {
            Self::Put(at, payload, options) => drop(objects.put_opts(&at, payload, options).await),
            Self::Delete(at) => drop(objects.delete(&at).await),
        }
    }
}
