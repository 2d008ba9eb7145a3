//! The header of a qcow2 image, read with suspicion: everything that would make a reader open another file, decrypt, guess or allocate
//! without bound is refused here, with the command that mends it.
//!
//! After the QEMU project's specification of the format (docs/interop/qcow2.rst).

use clonegate_core::limits::VOLUME_BYTES_MAX;
use clonegate_core::{Error, Result};

use crate::import::check_size;

/// First bytes of every qcow2 image.
pub(super) const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Bytes of the header of version 2.
const V2_BYTES: usize = 72;
/// Bytes of the header of version 3 that every image has.
const V3_BYTES: usize = 104;
/// Bytes to read for [`Header::parse`]; a shorter image is cut.
pub(super) const HEAD_BYTES: usize = 112;
/// Most bytes of the level 1 table, the same as QEMU's bound.
const L1_BYTES_MAX: u64 = 32 << 20;
/// Most bytes of the refcount table, the same as QEMU's bound.
const REFCOUNT_TABLE_BYTES_MAX: u64 = 8 << 20;
/// Most internal snapshots, the same as QEMU's bound.
const SNAPSHOTS_MAX: u32 = 65536;

const CONVERT: &str = "make a plain image of it: qemu-img convert -f qcow2 -O qcow2 IMAGE plain.qcow2";

/// What is needed to walk the tables of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// 2 or 3.
    pub(super) version: u32,
    /// log2 of the bytes in a cluster.
    pub(super) cluster_bits: u32,
    /// Size of the disk, bytes.
    pub(super) size: u64,
    /// Offset of the level 1 table.
    pub(super) l1_offset: u64,
    /// Entries of the level 1 table that the disk needs.
    pub(super) l1_entries: u64,
}

impl Header {
    /// Bytes in a cluster.
    pub(super) const fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes of the disk that one level 2 table maps: as many clusters as eight-byte entries fit a cluster.
    pub(super) const fn l2_span_bytes(&self) -> u64 {
        1 << (2 * self.cluster_bits - 3)
    }

    /// Checks the first bytes of a file of `file_bytes` bytes.
    ///
    /// # Errors
    /// `Invalid` or `Unsupported` with a code of its own for each reason.
    pub(super) fn parse(head: &[u8], file_bytes: u64) -> Result<Self> {
        if !head.starts_with(&MAGIC) {
            return Err(Error::invalid("not-qcow2", "it was said to be qcow2, and does not begin as one")
                .hint("if it is a raw image, say --format raw"));
        }
        let Some(fields) = Fields::read(head) else { return Err(truncated()) };
        fields.refuse_unreadable()?;
        fields.refuse_references()?;
        fields.refuse_features()?;
        fields.refuse_absurd(file_bytes)?;
        check_size(fields.size)?;
        Ok(Self {
            version: fields.version,
            cluster_bits: fields.cluster_bits,
            size: fields.size,
            l1_offset: fields.l1_offset,
            l1_entries: fields.l1_entries_needed(),
        })
    }
}

/// The header fields that decide.
struct Fields {
    version: u32,
    backing_offset: u64,
    cluster_bits: u32,
    size: u64,
    encryption: u32,
    l1_entries: u32,
    l1_offset: u64,
    refcount_offset: u64,
    refcount_clusters: u32,
    snapshots: u32,
    incompatible: u64,
    refcount_order: u32,
    header_bytes: u32,
}

impl Fields {
    /// `None` when there are too few bytes.
    fn read(head: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_be_bytes(*head.get(at..)?.first_chunk::<4>()?));
        let long = |at: usize| Some(u64::from_be_bytes(*head.get(at..)?.first_chunk::<8>()?));
        let version = word(4)?;
        let newer = version >= 3;
        Some(Self {
            version,
            backing_offset: long(8)?,
            cluster_bits: word(20)?,
            size: long(24)?,
            encryption: word(32)?,
            l1_entries: word(36)?,
            l1_offset: long(40)?,
            refcount_offset: long(48)?,
            refcount_clusters: word(56)?,
            snapshots: word(60)?,
            incompatible: if newer { long(72)? } else { 0 },
            refcount_order: if newer { word(96)? } else { 4 },
            header_bytes: if newer { word(100)? } else { u32::try_from(V2_BYTES).ok()? },
        })
    }

    fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    fn l1_entries_needed(&self) -> u64 {
        self.size.div_ceil(1 << (2 * self.cluster_bits - 3))
    }

    fn refuse_unreadable(&self) -> Result<()> {
        match self.version {
            2 | 3 => {}
            1 => {
                return Err(Error::unsupported("qcow2-version", "a qcow image of version 1")
                    .hint("convert it: qemu-img convert -f qcow -O qcow2 IMAGE IMAGE.qcow2"));
            }
            other => return Err(Error::unsupported("qcow2-version", format!("a qcow2 image of version {other}"))),
        }
        if !(9..=21).contains(&self.cluster_bits) {
            let message = format!("clusters of 2^{} bytes; 2^9 to 2^21 are possible", self.cluster_bits);
            return Err(Error::invalid("bad-qcow2-header", message));
        }
        let (least, most) = if self.version == 2 { (V2_BYTES, V2_BYTES) } else { (V3_BYTES, 1 << self.cluster_bits) };
        let header_bytes = self.header_bytes as usize;
        if header_bytes < least || header_bytes > most || !header_bytes.is_multiple_of(8) {
            return Err(Error::invalid("bad-qcow2-header", format!("a header of {header_bytes} bytes")));
        }
        Ok(())
    }

    fn refuse_references(&self) -> Result<()> {
        if self.backing_offset != 0 {
            return Err(Error::invalid("backing-file", "the image is only the difference to another file, its backing file")
                .hint("nothing that an image names is opened here; where its backing file is, make a whole one: qemu-img convert -O qcow2 IMAGE whole.qcow2"));
        }
        if self.incompatible & 4 != 0 {
            return Err(Error::invalid("external-data-file", "the image keeps its data in another file")
                .hint("nothing that an image names is opened here; where its data file is, make a whole one: qemu-img convert -f qcow2 -O qcow2 IMAGE whole.qcow2"));
        }
        Ok(())
    }

    fn refuse_features(&self) -> Result<()> {
        if self.encryption != 0 {
            return Err(Error::unsupported("encrypted-image", "the image is encrypted").hint(
                "decrypt it: qemu-img convert --object secret,id=s,file=PASSPHRASE --image-opts driver=qcow2,encrypt.key-secret=s,file.filename=IMAGE -O qcow2 plain.qcow2",
            ));
        }
        let refuse = |code, what: &str| Err(Error::unsupported(code, what.to_owned()).hint(CONVERT));
        match self.incompatible {
            0 => Ok(()),
            bits if bits & 2 != 0 => {
                refuse("corrupt-image", "the image is marked as corrupt; qemu-img check tells what is wrong")
            }
            bits if bits & 1 != 0 => Err(Error::unsupported("dirty-image", "the image was not closed cleanly")
                .hint("close what uses it, then: qemu-img check -r all IMAGE")),
            bits if bits & 8 != 0 => refuse("qcow2-compression", "its clusters are compressed by zstd"),
            bits if bits & 16 != 0 => refuse("qcow2-subclusters", "it has extended level 2 entries"),
            bits => refuse("qcow2-feature", &format!("it has unknown features {bits:#x}")),
        }
    }

    fn refuse_absurd(&self, file_bytes: u64) -> Result<()> {
        let bad = |what: String| Err(Error::invalid("bad-qcow2-header", what));
        if self.size > VOLUME_BYTES_MAX {
            check_size(self.size)?;
        }
        if self.refcount_order > 6 {
            return bad(format!("refcounts of 2^{} bits", self.refcount_order));
        }
        let cluster = self.cluster_bytes();
        if u64::from(self.refcount_clusters) * cluster > REFCOUNT_TABLE_BYTES_MAX {
            return bad(format!("a refcount table of {} clusters", self.refcount_clusters));
        }
        if self.snapshots > SNAPSHOTS_MAX {
            return bad(format!("{} snapshots", self.snapshots));
        }
        let l1_bytes = u64::from(self.l1_entries) * 8;
        if l1_bytes > L1_BYTES_MAX || u64::from(self.l1_entries) < self.l1_entries_needed() {
            return bad(format!("a level 1 table of {} entries for {} bytes", self.l1_entries, self.size));
        }
        for (name, offset) in [("level 1", self.l1_offset), ("refcount", self.refcount_offset)] {
            if !offset.is_multiple_of(cluster) {
                return bad(format!("the {name} table lies at {offset}, within a cluster"));
            }
        }
        if self.size > 0 && self.l1_offset < cluster {
            return bad("the level 1 table lies within the header".to_owned());
        }
        match self.l1_offset.checked_add(l1_bytes) {
            Some(end) if end <= file_bytes => Ok(()),
            _ => Err(truncated()),
        }
    }
}

/// The error of an image whose tables point past its end.
pub(super) fn truncated() -> Error {
    Error::invalid("truncated-image", "the file ends before the image does")
        .hint("copy or download it again, and compare its checksum")
}
