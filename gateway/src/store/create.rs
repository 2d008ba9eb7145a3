//! Put-if-absent, with the three meanings of "already exists" told apart.
//!
//! A store says "already exists" when somebody else was first, when our own earlier attempt arrived although its answer
//! was lost, and (S3's 409) when another write is only just under way. So the object is read: the same bytes are ours,
//! since every body holds a nonce; other bytes are somebody else's; nothing there means that it is tried again.

use bytes::Bytes;
use clonegate_core::{Error, ErrorKind, Result};
use object_store::{ObjectStore, PutMode, PutOptions, PutPayload};

use super::errors::{self, Failure};
use super::exclusive::Exclusive;
use super::keys::Key;
use super::{Inner, Store};

/// How a put-if-absent ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PutNew {
    /// The object is there and it is ours.
    Created,
    /// Somebody else's object is there; these are its bytes.
    Exists(Bytes),
}

impl PutNew {
    /// Whether the object is ours.
    pub const fn is_created(&self) -> bool {
        matches!(self, Self::Created)
    }
}

impl Store {
    /// Writes an object if there is none of that name. `body` must hold something that no other writer's has (a nonce),
    /// or be of such a kind that it does not matter whose it is.
    ///
    /// Once it returns `Created` the object is durable and visible to every reader.
    ///
    /// # Errors
    /// `Exhausted` with code `disk-full` or `store-full`; `Unavailable`, `Denied`. After `Unavailable` the object may be
    /// there nevertheless: to call again with the same body is safe and tells.
    ///
    /// # Cancel safety
    /// When dropped, the object may or may not be written; never a part of it.
    pub async fn put_new(&self, key: &Key, body: Bytes) -> Result<PutNew> {
        let name = self.name(key.as_str());
        let inner = &self.0;
        let _turn = match &inner.exclusive {
            Some(exclusive) => {
                exclusive.check(&inner.label)?;
                exclusive.turn(key).await
            }
            None => None,
        };
        self.on_ballast(|| {
            inner.patience.persist(&inner.clock, &name, || async {
                match inner.patience.within(&name, body.len() as u64, inner.try_create(key, &body)).await? {
                    Ok(()) => Ok(PutNew::Created),
                    Err(object_store::Error::AlreadyExists { .. }) => inner.whose(key, &body, &name).await,
                    Err(cause) => Err(errors::map(cause, &name)),
                }
            })
        })
        .await
    }
}

/// How one attempt to create ended, when nothing is read afterwards.
pub(super) enum Once {
    Created,
    /// Something is there, or (S3's 409) coming.
    Taken,
    /// The answer was lost.
    Unknown,
}

impl Store {
    /// One bare attempt, for the probe: what the store answers, not what we make of it.
    pub(super) async fn create_once(&self, key: &Key, body: Bytes) -> Result<Once> {
        let name = self.name(key.as_str());
        let inner = &self.0;
        let _turn = match &inner.exclusive {
            Some(exclusive) => exclusive.turn(key).await,
            None => None,
        };
        self.on_ballast(|| async {
            match inner.patience.within(&name, body.len() as u64, inner.try_create(key, &body)).await {
                Ok(Ok(())) => Ok(Once::Created),
                Ok(Err(object_store::Error::AlreadyExists { .. })) => Ok(Once::Taken),
                Ok(Err(cause)) => {
                    let failure = errors::map(cause, &name);
                    if failure.transient { Ok(Once::Unknown) } else { Err(failure.error) }
                }
                Err(_) => Ok(Once::Unknown),
            }
        })
        .await
    }
}

impl Inner {
    async fn try_create(&self, key: &Key, body: &Bytes) -> object_store::Result<()> {
        let mut mode = PutMode::Create;
        if self.exclusive.as_ref().is_some_and(Exclusive::emulates) {
            // We are the only gateway, and hold the turn for this key: to look first is as good.
            let head = object_store::GetOptions { head: true, ..Default::default() };
            match self.objects.get_opts(key.path(), head).await {
                Err(object_store::Error::NotFound { .. }) => mode = PutMode::Overwrite,
                Err(cause) => return Err(cause),
                Ok(_) => {
                    let (path, source) = (key.to_string(), "it was there before".into());
                    return Err(object_store::Error::AlreadyExists { path, source });
                }
            }
        }
        let options = PutOptions { mode, ..PutOptions::default() };
        self.objects.put_opts(key.path(), PutPayload::from_bytes(body.clone()), options).await.map(drop)
    }

    /// Reads what is there: ours, another's, or (not yet) anything.
    async fn whose(&self, key: &Key, body: &Bytes, name: &str) -> Result<PutNew, Failure> {
        match self.get_once(key, name).await {
            Ok(there) if there == *body => Ok(PutNew::Created),
            Ok(there) => Ok(PutNew::Exists(there)),
            Err(failure) if failure.error.kind() == ErrorKind::NotFound => Err(Failure::passing(
                Error::unavailable("create-undecided", "the store says that it exists and has nothing there").on(name),
            )),
            Err(failure) => Err(failure),
        }
    }
}
