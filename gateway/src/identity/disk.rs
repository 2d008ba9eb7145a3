//! An identity disk as a device: a few bytes in memory, read-only.

use bytes::Bytes;
use clonegate_core::limits::IDENTITY_DISK_BYTES;
use clonegate_core::units::ByteRange;
use clonegate_core::{Error, Result};
use futures::future::BoxFuture;

use super::facts::Identity;
use crate::device::{Device, DeviceInfo, Extent, Segments, Source, Version, WriteOptions, read_only, zeroes};

/// The disk of one identity.
#[derive(Debug)]
pub struct IdentityDisk {
    info: DeviceInfo,
    version: Version,
    /// What follows is zeroes.
    image: Bytes,
}

impl IdentityDisk {
    /// The disk of this identity, which was made then (milliseconds since 1970 UTC), under the name of an export.
    ///
    /// # Errors
    /// Those of rendering.
    pub fn new(identity: &Identity, export: &str, modified_ms: u64) -> Result<Self> {
        let image = identity.image()?;
        let hash = blake3::hash(&image);
        let mut life = [0; 8];
        life.copy_from_slice(&hash.as_bytes()[..8]);
        let info = DeviceInfo {
            name: export.to_owned(),
            size: IDENTITY_DISK_BYTES,
            read_only: true,
            description: format!("identity disk of {}", identity.name),
            modified_ms,
        };
        Ok(Self { info, version: Version { life: u64::from_le_bytes(life), change: 0 }, image })
    }

    fn check(&self, range: ByteRange) -> Result<()> {
        if range.end() > self.info.size {
            return Err(Error::invalid("beyond-end", format!("the disk has {} bytes", self.info.size))
                .on(self.info.name.clone()));
        }
        Ok(())
    }

    fn slice(&self, range: ByteRange) -> Segments {
        let mut segments = Segments::new();
        let end = range.end().min(self.image.len() as u64);
        if range.start() < end {
            let (start, end) =
                (usize::try_from(range.start()).unwrap_or(usize::MAX), usize::try_from(end).unwrap_or(usize::MAX));
            segments.push(self.image.slice(start..end));
        }
        zeroes(&mut segments, range.end() - end.max(range.start()));
        segments
    }
}

impl Device for IdentityDisk {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn version(&self) -> (Version, u64) {
        (self.version, self.info.modified_ms)
    }

    fn try_read(&self, range: ByteRange) -> Option<Segments> {
        self.check(range).ok().map(|()| self.slice(range))
    }

    fn read(&self, range: ByteRange) -> BoxFuture<'_, Result<Segments>> {
        Box::pin(async move { self.check(range).map(|()| self.slice(range)) })
    }

    fn write(&self, _offset: u64, _data: Bytes, _options: WriteOptions) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Err(read_only(&self.info.name)) })
    }

    fn write_zeroes(&self, _range: ByteRange, _discard: bool, _fua: bool) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Err(read_only(&self.info.name)) })
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    fn extents(&self, range: ByteRange) -> BoxFuture<'_, Result<Vec<Extent>>> {
        Box::pin(async move {
            self.check(range)?;
            let end = range.end().min(self.image.len() as u64).max(range.start());
            let runs = [(range.start(), end, Source::Base), (end, range.end(), Source::Zero)];
            let extent = |(start, end, source)| Extent { range: ByteRange::new(start, end), source };
            Ok(runs.into_iter().filter(|(start, end, _)| start < end).map(extent).collect())
        })
    }

    fn prefetch(&self, _range: ByteRange) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clonegate_core::ids::CloneId;

    #[test]
    fn reads_cross_the_end_of_what_is_kept_and_never_the_end_of_the_disk() {
        let identity = Identity::of(CloneId::from_bytes([1; 16]), "d", 1, None).unwrap();
        let disk = IdentityDisk::new(&identity, "d@identity", 7).unwrap();
        let kept = disk.image.len() as u64;
        let all = disk.try_read(ByteRange::new(0, IDENTITY_DISK_BYTES)).unwrap().concat();
        assert_eq!((all.len() as u64, &all[..disk.image.len()]), (IDENTITY_DISK_BYTES, &disk.image[..]));
        let across = disk.try_read(ByteRange::new(kept - 1, kept + 2)).unwrap().concat();
        assert_eq!(across, [disk.image[disk.image.len() - 1], 0, 0]);
        assert_eq!(disk.try_read(ByteRange::new(kept + 5, kept + 7)).unwrap().concat(), [0, 0]);
        assert!(disk.try_read(ByteRange::new(0, IDENTITY_DISK_BYTES + 1)).is_none());
    }
}
