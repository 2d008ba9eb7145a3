//! Whether a history of one register is linearizable, where every write writes another value.
//!
//! A write and the reads of its value make a cluster; its zone goes from its first end to its last begin. A history is
//! linearizable if and only if no read ends before its write begins, no two forward zones (end before begin) overlap, and
//! no backward zone lies within a forward one (Gibbons and Korach, 1997).

use std::collections::BTreeMap;

/// One request and its answer. Times are of one clock; the request took effect somewhere in between.
#[derive(Debug, Clone, Copy)]
pub struct Operation {
    pub begin: u64,
    pub end: u64,
    /// What it wrote, or read.
    pub value: u64,
    pub write: bool,
}

#[derive(Debug, Clone, Copy)]
struct Zone {
    value: u64,
    first_end: u64,
    last_begin: u64,
}

/// Checks one register that holds 0 in the beginning.
///
/// # Errors
/// What is wrong, for people.
pub fn check(history: &[Operation]) -> Result<(), String> {
    let mut clusters: BTreeMap<u64, Vec<Operation>> = BTreeMap::new();
    for operation in history {
        clusters.entry(operation.value).or_default().push(*operation);
    }
    if let Some(unwritten) = clusters.get_mut(&0) {
        unwritten.push(Operation { begin: 0, end: 0, value: 0, write: true });
    }
    let mut zones = Vec::new();
    for (value, cluster) in &clusters {
        let mut writes = cluster.iter().filter(|operation| operation.write);
        let (Some(write), None) = (writes.next(), writes.next()) else {
            return Err(format!("{value} was read and not written, or written twice"));
        };
        if let Some(read) = cluster.iter().find(|operation| operation.end < write.begin) {
            return Err(format!("{value} was read until {} and written from {} on", read.end, write.begin));
        }
        zones.push(Zone {
            value: *value,
            first_end: cluster.iter().map(|operation| operation.end).min().unwrap_or(0),
            last_begin: cluster.iter().map(|operation| operation.begin).max().unwrap_or(0),
        });
    }
    zones.sort_by_key(|zone| zone.first_end.min(zone.last_begin));
    let (forward, backward): (Vec<_>, Vec<_>) = zones.into_iter().partition(|zone| zone.first_end < zone.last_begin);
    for pair in forward.windows(2) {
        if pair[1].first_end < pair[0].last_begin {
            let (one, other) = (pair[0].value, pair[1].value);
            return Err(format!("{one} and {other} cannot be put one after the other: {pair:?}"));
        }
    }
    for zone in &backward {
        // The last forward zone that begins before it is the only one that it can be in.
        let before = forward.partition_point(|other| other.first_end < zone.last_begin);
        if let Some(around) = before.checked_sub(1).map(|at| forward[at])
            && zone.first_end < around.last_begin
        {
            return Err(format!("{} is in the middle of {}: {zone:?}, {around:?}", zone.value, around.value));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(begin: u64, end: u64, value: u64) -> Operation {
        Operation { begin, end, value, write: true }
    }

    fn read(begin: u64, end: u64, value: u64) -> Operation {
        Operation { begin, end, value, write: false }
    }

    #[test]
    fn what_can_be_put_in_one_order_is_taken() {
        for history in [
            vec![],
            vec![read(1, 2, 0), write(3, 4, 1), read(5, 6, 1)],
            vec![write(1, 10, 1), write(1, 10, 2), read(11, 12, 1), read(13, 14, 1)],
            vec![write(1, 10, 1), read(2, 3, 1), read(2, 9, 0), read(4, 5, 1)],
            vec![write(1, 2, 1), write(3, 9, 2), read(4, 5, 1), read(6, 7, 2), read(8, 9, 2)],
        ] {
            check(&history).unwrap();
        }
    }

    #[test]
    fn what_goes_back_in_time_is_found() {
        for history in [
            // An old value after the new one was acknowledged, or was seen by another.
            vec![write(1, 2, 1), write(3, 4, 2), read(5, 6, 1)],
            vec![write(1, 2, 1), write(3, 20, 2), read(5, 6, 2), read(7, 8, 1)],
            vec![write(1, 2, 1), read(3, 4, 0)],
            // Two readers that saw two writes in different orders.
            vec![write(1, 9, 1), write(1, 9, 2), read(10, 11, 1), read(12, 13, 2), read(14, 15, 1)],
            // From the future, from nowhere.
            vec![read(1, 2, 1), write(3, 4, 1)],
            vec![read(1, 2, 7)],
        ] {
            assert!(check(&history).is_err(), "{history:?}");
        }
    }
}
