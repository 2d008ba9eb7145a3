//! What a volume needs of the base under it.

use std::fmt;
use std::sync::Arc;

use clonegate_core::Result;
use clonegate_core::ids::BaseId;
use clonegate_core::units::ByteRange;
use futures::future::BoxFuture;

use crate::device::{Extent, Segments};

/// A base as a volume reads it. It never changes.
pub trait BaseRead: Send + Sync + fmt::Debug + 'static {
    /// Its id.
    fn id(&self) -> BaseId;

    /// Size, bytes. Behind it a volume reads zeroes.
    fn size(&self) -> u64;

    /// Reads without waiting when everything is in memory.
    fn try_read(&self, range: ByteRange) -> Option<Segments>;

    /// Reads a range within the size.
    fn read(&self, range: ByteRange) -> BoxFuture<'_, Result<Segments>>;

    /// What of a range is zero and what is not.
    fn extents(&self, range: ByteRange) -> BoxFuture<'_, Result<Vec<Extent>>>;

    /// Fetches a range into memory; a hint.
    fn prefetch(&self, range: ByteRange) -> BoxFuture<'_, Result<()>>;
}

/// Opens bases by their ids, out of the datastore of the volume.
pub trait BaseProvider: Send + Sync + fmt::Debug + 'static {
    /// The base.
    ///
    /// # Errors
    /// `NotFound`, and what reading its record gives.
    fn base(&self, id: BaseId) -> BoxFuture<'_, Result<Arc<dyn BaseRead>>>;
}

impl BaseRead for crate::base::Base {
    fn id(&self) -> BaseId {
        Self::id(self)
    }

    fn size(&self) -> u64 {
        Self::size(self)
    }

    fn try_read(&self, range: ByteRange) -> Option<Segments> {
        Self::try_read(self, range)
    }

    fn read(&self, range: ByteRange) -> BoxFuture<'_, Result<Segments>> {
        Box::pin(Self::read(self, range))
    }

    fn extents(&self, range: ByteRange) -> BoxFuture<'_, Result<Vec<Extent>>> {
        Box::pin(Self::extents(self, range))
    }

    fn prefetch(&self, range: ByteRange) -> BoxFuture<'_, Result<()>> {
        Box::pin(Self::prefetch(self, range))
    }
}
