//! Latencies, counted in buckets that are 1/32 of their value wide.

use std::time::Duration;

/// Buckets in each power of two.
const FINE: u64 = 32;
const FINE_BITS: u32 = 5;
#[expect(clippy::cast_possible_truncation, reason = "32 fits any usize")]
const BUCKETS: usize = (64 - FINE_BITS as usize + 1) * FINE as usize;

/// Counts durations; any percentile is right within 3 %.
#[derive(Debug, Clone)]
pub struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    longest: Duration,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: vec![0; BUCKETS], count: 0, longest: Duration::ZERO }
    }
}

fn bucket(nanos: u64) -> usize {
    let power = 63 - nanos.max(FINE).leading_zeros();
    let shift = power - FINE_BITS;
    let fine = (nanos.max(FINE) >> shift) - FINE;
    if nanos < FINE {
        0
    } else {
        usize::try_from(u64::from(shift) * FINE + fine).unwrap_or(BUCKETS - 1).min(BUCKETS - 1)
    }
}

fn highest_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let (shift, fine) = (bucket / FINE, bucket % FINE);
    ((FINE + fine + 1) << shift) - 1
}

impl Histogram {
    /// Counts one.
    pub fn record(&mut self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX >> 1).min(u64::MAX >> 1);
        self.buckets[bucket(nanos)] += 1;
        self.count += 1;
        self.longest = self.longest.max(duration);
    }

    /// Adds what another has counted.
    pub fn add(&mut self, other: &Self) {
        for (own, more) in self.buckets.iter_mut().zip(&other.buckets) {
            *own += more;
        }
        self.count += other.count;
        self.longest = self.longest.max(other.longest);
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The longest.
    pub fn longest(&self) -> Duration {
        self.longest
    }

    /// The duration that `percent` of all are not longer than; zero when there are none.
    pub fn percentile(&self, percent: f64) -> Duration {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a rank is small and not negative"
        )]
        let rank = ((percent / 100.0 * self.count as f64).ceil() as u64).clamp(1, self.count.max(1));
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank && *count > 0 {
                return Duration::from_nanos(highest_of(bucket)).min(self.longest);
            }
        }
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_right_within_three_percent() {
        let mut histogram = Histogram::default();
        for micros in 1..=10_000u64 {
            histogram.record(Duration::from_micros(micros));
        }
        for (percent, micros) in [(50.0, 5000.0), (99.0, 9900.0), (99.9, 9990.0), (1.0, 100.0)] {
            let got = histogram.percentile(percent).as_secs_f64() * 1e6;
            assert!((got / micros - 1.0).abs() < 0.04, "p{percent}: {got} is not {micros}");
        }
        assert_eq!(histogram.percentile(100.0), Duration::from_millis(10));
        assert_eq!(Histogram::default().percentile(50.0), Duration::ZERO);
    }

    #[test]
    fn every_duration_has_a_bucket() {
        let mut histogram = Histogram::default();
        for shift in 0..64 {
            histogram.record(Duration::from_nanos(1 << shift));
        }
        histogram.record(Duration::ZERO);
        histogram.record(Duration::MAX);
        assert_eq!(histogram.count(), 66);
    }
}
