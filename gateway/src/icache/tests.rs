use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::*;

const LINE: usize = 64 * 1024;

fn key(number: u64) -> LineKey {
    let mut bytes = [7; 32];
    bytes[24..].copy_from_slice(&number.to_le_bytes());
    LineKey(bytes)
}

fn line(fill: u8) -> Bytes {
    Bytes::from(vec![fill; LINE])
}

fn put(cache: &ICache, number: u64) {
    if let Lookup::Lead(claim, _) = cache.begin(key(number), Asker::Machine) {
        claim.fulfil(Ok(line(1)));
    }
}

#[tokio::test]
async fn a_thousand_who_ask_at_once_cost_one_fetch() {
    let cache = ICache::new(64 << 20);
    let fetches = Arc::new(AtomicU32::new(0));
    let asks = (0..1000).map(|_| {
        let (cache, fetches) = (Arc::clone(&cache), Arc::clone(&fetches));
        tokio::spawn(async move {
            let fetch = async move {
                fetches.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok(line(9))
            };
            cache.get_or_fetch(key(1), &Handle::current(), fetch).await
        })
    });
    for asked in futures::future::join_all(asks).await {
        assert_eq!(asked.unwrap().unwrap(), line(9));
    }
    assert_eq!(fetches.load(Ordering::SeqCst), 1);
    let stats = cache.stats();
    assert_eq!((stats.misses, stats.joins, stats.hits, stats.in_flight), (1, 999, 0, 0));
    assert_eq!(stats.spared_bytes, 999 * LINE as u64);
}

#[tokio::test]
async fn a_cancelled_leader_harms_nobody() {
    let cache = ICache::new(64 << 20);
    let gate = Arc::new(tokio::sync::Notify::new());
    let lead = {
        let (cache, gate) = (Arc::clone(&cache), Arc::clone(&gate));
        tokio::spawn(async move {
            let fetch = async move {
                gate.notified().await;
                Ok(line(3))
            };
            cache.get_or_fetch(key(1), &Handle::current(), fetch).await
        })
    };
    while cache.stats().misses == 0 {
        tokio::task::yield_now().await;
    }
    let Lookup::Join(follower) = cache.begin(key(1), Asker::Machine) else { panic!("the fetch is under way") };
    lead.abort();
    assert!(lead.await.unwrap_err().is_cancelled());
    gate.notify_one();
    assert_eq!(follower.await.unwrap(), line(3));
    assert_eq!(cache.get(&key(1)), Some(line(3)));
}

#[tokio::test]
async fn an_error_reaches_everybody_and_is_not_kept() {
    let cache = ICache::new(64 << 20);
    let runtime = Handle::current();
    let fail = || async { Err(Error::unavailable("store-down", "no answer")) };
    let (first, second) = (cache.get_or_fetch(key(1), &runtime, fail()), cache.get_or_fetch(key(1), &runtime, fail()));
    let (first, second) = futures::join!(first, second);
    assert_eq!((first.unwrap_err().code(), second.unwrap_err().code()), ("store-down", "store-down"));
    assert_eq!(cache.stats().failures, 1);
    let again = cache.get_or_fetch(key(1), &runtime, async { Ok(line(2)) }).await;
    assert_eq!(again.unwrap(), line(2));
}

#[tokio::test]
async fn a_fetch_that_panics_wakes_those_who_wait() {
    let cache = ICache::new(64 << 20);
    let fetch = async { panic!("a bug in a fetch") };
    let died = cache.get_or_fetch(key(1), &Handle::current(), fetch).await;
    assert_eq!(died.unwrap_err().code(), "fetch-died");
    let Lookup::Lead(claim, pending) = cache.begin(key(2), Asker::Machine) else { panic!("nobody fetches it") };
    drop(claim);
    assert_eq!(pending.await.unwrap_err().code(), "fetch-died");
    assert_eq!((cache.stats().failures, cache.stats().in_flight), (2, 0));
}

#[test]
fn bytes_are_accounted_exactly_and_bounded() {
    let capacity = 16 << 20;
    let cache = ICache::new(capacity);
    for number in 0..100 {
        put(&cache, number);
    }
    let weight = LINE as u64 + LINE_OVERHEAD_BYTES;
    assert_eq!(cache.stats().resident_bytes, 100 * weight);
    for number in 100..1000 {
        put(&cache, number);
        assert!(cache.stats().resident_bytes <= capacity);
    }
    let stats = cache.stats();
    assert_eq!(stats.resident_bytes, stats.entries * weight);
    assert_eq!(stats.evictions + stats.entries, 1000);
    assert!(stats.entries >= 200, "only {} lines of 256 are kept", stats.entries);
    cache.clear();
    assert_eq!((cache.stats().entries, cache.stats().resident_bytes), (0, 0));
}

#[test]
fn a_cache_of_any_size_keeps_lines_of_any_size_that_fit() {
    for capacity in [1u64 << 20, 4 << 20, 9 << 20, 16 << 20, 100 << 20, 1 << 30] {
        let cache = ICache::new(capacity);
        for bytes in [4096, LINE, 1 << 20] {
            if (bytes as u64 + LINE_OVERHEAD_BYTES) * 2 > capacity {
                continue;
            }
            let Lookup::Lead(claim, _) = cache.begin(key(bytes as u64), Asker::Machine) else {
                panic!("not there yet")
            };
            claim.fulfil(Ok(Bytes::from(vec![1; bytes])));
            assert!(cache.get(&key(bytes as u64)).is_some(), "{bytes} bytes in {capacity}");
        }
    }
    put(&ICache::new(0), 1);
}

#[test]
fn one_scan_of_four_times_the_cache_does_not_flush_what_is_used() {
    let cache = ICache::new(32 << 20);
    let hot = 200u64; // of about 510 that fit
    for _ in 0..3 {
        for number in 0..hot {
            put(&cache, number);
            cache.get(&key(number));
        }
    }
    for number in 0..4 * 512 {
        put(&cache, 1_000_000 + number);
    }
    let kept = (0..hot).filter(|number| cache.get(&key(*number)).is_some()).count();
    assert!(kept >= 190, "{kept} of {hot} survived");
}

#[test]
fn keys_that_differ_in_any_part_spread() {
    let mut seen = std::collections::HashSet::new();
    for at in 0..32 {
        for value in 0..=255u8 {
            let mut bytes = [7; 32];
            bytes[at] = value;
            seen.insert(KeyHash.hash_one(LineKey(bytes)));
        }
    }
    assert_eq!(seen.len(), 32 * 255 + 1);
}
