//! Numbers of a series: reading them from keys, and finding the highest by asking for single ones.

use std::future::Future;

use clonegate_core::Result;
use clonegate_core::ids::Name;

/// `NAME.NUMBER` as listed. A name may hold dots; the number is behind the last.
pub(super) fn parse(key: &str) -> Option<(Name, u64)> {
    let (name, number) = key.rsplit_once('.')?;
    Some((Name::new(name).ok()?, number.parse().ok().filter(|n| *n > 0)?))
}

/// The last of a series that goes on from `start` without a gap: doubles its stride until a number is
/// missing, then halves. One request when `start` is the last. `None` when nothing is above `start`.
pub(super) async fn newest<T, F, R>(start: u64, fetch: F) -> Result<Option<T>>
where
    F: Fn(u64) -> R,
    R: Future<Output = Result<Option<T>>>,
{
    let mut best = None;
    let (mut low, mut stride) = (start, 1_u64);
    let mut high = loop {
        let probe = low.saturating_add(stride);
        match fetch(probe).await? {
            Some(found) => {
                best = Some(found);
                low = probe;
                stride *= 2;
            }
            None => break probe,
        }
    };
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        match fetch(middle).await? {
            Some(found) => {
                best = Some(found);
                low = middle;
            }
            None => high = middle,
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[tokio::test]
    async fn the_last_number_is_found_with_few_requests() {
        for last in (0_u64..70).chain([1000, 4095, 4096, 4097]) {
            for start in [0, last / 2, last.saturating_sub(1), last] {
                let asked = Cell::new(0_u32);
                let asked_of = &asked;
                let found = newest(start, |n| async move {
                    asked_of.set(asked_of.get() + 1);
                    Ok((n <= last).then_some(n))
                })
                .await
                .unwrap();
                assert_eq!(found.unwrap_or(start), last, "from {start}");
                assert!(asked.get() <= 2 + 2 * (last - start + 1).ilog2(), "{} from {start} to {last}", asked.get());
            }
        }
    }

    #[test]
    fn keys_are_read_back() {
        assert_eq!(parse("win.11.3"), Some((Name::new("win.11").unwrap(), 3)));
        for wrong in ["win", "win.", "win.x", "win.0", ".3", "Win.3"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
