//! Batches that are larger than a record takes, in parts.

use clonegate_core::format::log::Run;
use clonegate_core::limits::COMMIT_BYTES_MAX;
use clonegate_core::units::{BLOCK_BYTES, BlockIndex};

use super::commit::RUNS_MAX;

/// Bytes that a run has; zeroes are none.
pub(super) fn data_bytes(run: &Run) -> u64 {
    if run.data.is_some() { run.blocks * BLOCK_BYTES } else { 0 }
}

/// Runs in pieces of what one record takes, in the order of the volume.
pub(super) fn split(runs: Vec<Run>) -> Vec<Vec<Run>> {
    let most = COMMIT_BYTES_MAX as u64 / 2;
    let mut parts = vec![Vec::new()];
    let mut bytes = 0;
    for mut run in runs {
        loop {
            let length = data_bytes(&run);
            let full = parts.last().is_some_and(|part: &Vec<Run>| part.len() >= RUNS_MAX);
            let room = most - bytes;
            if !full && length <= room {
                bytes += length;
                parts.last_mut().into_iter().for_each(|part| part.push(run.clone()));
                break;
            }
            let blocks = room / BLOCK_BYTES;
            if !full && blocks > 0 {
                let cut = usize::try_from(blocks * BLOCK_BYTES).unwrap_or(usize::MAX);
                let head = Run { start: run.start, blocks, data: run.data.as_ref().map(|data| data.slice(..cut)) };
                run = Run {
                    start: BlockIndex(run.start.0 + blocks),
                    blocks: run.blocks - blocks,
                    data: run.data.as_ref().map(|data| data.slice(cut..)),
                };
                parts.last_mut().into_iter().for_each(|part| part.push(head.clone()));
            }
            parts.push(Vec::new());
            bytes = 0;
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_large_batch_is_cut_into_records_that_hold_it_all() {
        let blocks = 5000u64;
        let data = Bytes::from((0..blocks * BLOCK_BYTES).map(|b| (b >> 12) as u8).collect::<Vec<_>>());
        let runs = vec![
            Run { start: BlockIndex(7), blocks, data: Some(data) },
            Run { start: BlockIndex(1 << 20), blocks: 1 << 30, data: None },
        ];
        let parts = split(runs);
        assert_eq!(parts.len(), 5);
        let mut next = 7;
        for run in parts.iter().flatten().filter(|run| run.data.is_some()) {
            assert_eq!(run.start.0, next);
            let data = run.data.as_ref().expect("it was filtered for data");
            assert_eq!(data.len() as u64, run.blocks * BLOCK_BYTES);
            assert_eq!(data[0], (next - 7) as u8);
            next += run.blocks;
        }
        assert_eq!(next, 7 + blocks);
    }
}
