//! Answers to `BLOCK_STATUS`: a device's extents as runs of each context.

use std::sync::Arc;

use clonegate_core::Result;
use clonegate_core::limits::NBD_STATUS_EXTENTS_MAX;
use clonegate_core::nbd::meta::{self, Context, Run};
use clonegate_core::units::ByteRange;

use crate::device::{Device, Extent, Source};

/// Bytes asked of the device at first; four times more each time that little came back.
const WINDOW_BYTES: u64 = 64 << 20;

/// The extents at the beginning of `range`: all of them, or enough of them that it is worth a reply. When the client
/// wants `one` only, asking ends as soon as each context has its first run.
pub(super) async fn extents(device: Arc<dyn Device>, range: ByteRange, one: bool) -> Result<Vec<Extent>> {
    let mut found: Vec<Extent> = Vec::new();
    let mut at = range.start();
    let mut window = WINDOW_BYTES;
    while at < range.end() && found.len() < NBD_STATUS_EXTENTS_MAX {
        let part = ByteRange::new(at, range.end().min(at.saturating_add(window)));
        let extents = device.extents(part).await?;
        let few = extents.len() <= 16;
        extents.into_iter().for_each(|extent| extent.append_to(&mut found));
        at = part.end();
        if one && runs(Context::Allocation, &found, false).len() > 1 {
            break;
        }
        if few {
            window = window.saturating_mul(4);
        }
    }
    Ok(found)
}

/// The runs of one context over `extents`; one only when the client asked for one.
pub(super) fn runs(context: Context, extents: &[Extent], one: bool) -> Vec<Run> {
    let status = |source| match (context, source) {
        (Context::Allocation, Source::Delta | Source::Base) | (Context::Source, Source::Zero) => 0,
        (Context::Allocation, Source::Zero) => meta::STATE_HOLE | meta::STATE_ZERO,
        (Context::Source, Source::Delta) => meta::SOURCE_DELTA,
        (Context::Source, Source::Base) => meta::SOURCE_BASE,
    };
    let all = extents.iter().map(|extent| Run { length: extent.range.len(), status: status(extent.source) });
    meta::merge(all, if one { 1 } else { NBD_STATUS_EXTENTS_MAX })
}
