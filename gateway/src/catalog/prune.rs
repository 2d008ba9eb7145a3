//! Takes away states that were superseded long ago.
//!
//! Of a series stay: number 1, so that "1 is missing" says in one request that there never was such a name; the newest, tombstones too; and
//! what was superseded less than `PRUNE_AFTER` ago. Numbers are never used again, so a removal that is late or done twice harms nobody.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;

use clonegate_core::format::catalog::NOUNS;
use clonegate_core::ids::Name;
use clonegate_core::{Error, Result};
use futures::{StreamExt, TryStreamExt};

use super::listing::{Moment, PRUNE_AFTER};
use super::{Catalog, numbers};
use crate::store::{LISTED_MAX, Listed, keys};

/// Removals under way at a time.
const REMOVALS_AT_ONCE: usize = 16;

impl Catalog {
    /// Takes away the states of all names that were superseded long ago, and says how many. Also where there are too many for a list. Done by
    /// several gateways at once it does no harm.
    ///
    /// # Errors
    /// Those of the store. What was taken away until then stays away.
    pub async fn prune(&self) -> Result<u64> {
        // A clock that is ahead would take away what is young: the store and this host have to agree that it is old.
        let now_ms = self.home.now_ms().await?.min(self.clock.now_ms());
        let mut pruned = 0;
        for noun in NOUNS {
            pruned += self.prune_noun(noun, now_ms, LISTED_MAX).await?;
        }
        Ok(pruned)
    }

    /// How many states this took away so far.
    pub fn pruned(&self) -> u64 {
        self.pruned.load(Relaxed)
    }

    /// Looks at no more than `most` objects at a time: any part of a series tells of its lower numbers that they are superseded.
    pub(super) async fn prune_noun(&self, noun: &'static str, now_ms: u64, most: usize) -> Result<u64> {
        let mut pruned = 0;
        loop {
            let begun = Moment::now(&self.clock);
            let (listed, whole) = self.home.list_some(&keys::catalog_prefix(noun), most).await?;
            if whole {
                self.digest(noun, begun, &listed);
            }
            let going = superseded(&listed, now_ms);
            let count = going.len() as u64;
            futures::stream::iter(going)
                .map(|(name, number)| async move {
                    self.home.delete(&keys::catalog(noun, &name, number)).await?;
                    self.pruned.fetch_add(1, Relaxed);
                    Ok::<_, Error>(())
                })
                .buffer_unordered(REMOVALS_AT_ONCE)
                .try_for_each(|()| async { Ok(()) })
                .await?;
            pruned += count;
            if whole || count == 0 {
                if !whole {
                    tracing::warn!(
                        noun,
                        most,
                        "more states than a list takes, and of those looked at none is old enough to go"
                    );
                }
                return Ok(pruned);
            }
        }
    }
}

/// The states that may go. The nearest higher one that is listed was written after the one that superseded them, or is it; so if it is old, they
/// have been superseded for as long.
fn superseded(listed: &[Listed], now_ms: u64) -> Vec<(Name, u64)> {
    let mut series: HashMap<Name, Vec<(u64, u64)>> = HashMap::new();
    for listed in listed {
        if let Some((name, number)) = numbers::parse(&listed.key) {
            series.entry(name).or_default().push((number, listed.modified_ms));
        }
    }
    let after_ms = u64::try_from(PRUNE_AFTER.as_millis()).unwrap_or(u64::MAX);
    let is_old = |modified_ms: u64| modified_ms > 0 && modified_ms.saturating_add(after_ms) < now_ms;
    let mut going = Vec::new();
    for (name, mut numbers) in series {
        numbers.sort_unstable();
        let old = numbers.windows(2).filter(|pair| pair[0].0 > 1 && is_old(pair[1].1));
        going.extend(old.map(|pair| (name.clone(), pair[0].0)));
    }
    going
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_the_newest_and_what_was_superseded_lately_stay() {
        let hour = 3_600_000;
        let now = 100 * hour;
        let at = |key: &str, hours: u64| Listed { key: key.to_owned(), size: 1, modified_ms: hours * hour };
        let listed = [
            at("a.1", 1),
            at("a.2", 2),
            at("a.10", 3),
            at("a.9", 51),
            at("a.11", 53),
            at("a.12", 99),
            at("b.1", 1),
            at("c.1", 1),
            at("c.2", 1),
            at("d.1", 1),
            at("d.2", 1),
            at("d.3", 0),
            at("no catalog key", 1),
        ];
        let mut going = superseded(&listed, now);
        going.sort();
        let a = Name::new("a").unwrap();
        assert_eq!(going, [(a.clone(), 2), (a, 9)], "10 was superseded 47 hours ago; of d nobody knows when");
        assert_eq!(superseded(&listed, 40 * hour), [], "a clock that is behind waits");
    }
}
