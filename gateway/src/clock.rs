//! Time and randomness, reached through one place so that a simulation replays from a seed.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use clonegate_core::ids::{Id, Nonce};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

/// Wall time at which every simulation begins: 2026-01-01 00:00 UTC, in milliseconds since 1970.
const SIMULATION_BEGINS_MS: u64 = 1_767_225_600_000;

/// Where time and randomness come from. Clones share it.
///
/// Sleeping and time-outs are tokio's in both kinds, so a simulation runs under `#[tokio::test(start_paused = true)]` and
/// takes no real time.
#[derive(Clone)]
pub struct Clock(Kind);

#[derive(Clone)]
enum Kind {
    System,
    Simulated(Arc<Simulated>),
}

struct Simulated {
    origin: Instant,
    random: Mutex<StdRng>,
}

impl Clock {
    /// The clock of the host and the randomness of the operating system.
    pub const fn system() -> Self {
        Self(Kind::System)
    }

    /// Time that begins at a fixed moment and advances with tokio's (paused) time; randomness from `seed`.
    pub fn simulated(seed: u64) -> Self {
        Self(Kind::Simulated(Arc::new(Simulated {
            origin: Instant::now(),
            random: Mutex::new(StdRng::seed_from_u64(seed)),
        })))
    }

    /// Wall time, milliseconds since 1970 UTC. Never decides who owns what: wall clocks jump and differ.
    pub fn now_ms(&self) -> u64 {
        match &self.0 {
            Kind::System => system_now_ms(),
            Kind::Simulated(simulated) => {
                let elapsed = Instant::now().saturating_duration_since(simulated.origin).as_millis();
                SIMULATION_BEGINS_MS.saturating_add(u64::try_from(elapsed).unwrap_or(u64::MAX))
            }
        }
    }

    /// A moment for measuring durations; monotonic.
    pub fn instant(&self) -> Instant {
        Instant::now()
    }

    /// Waits.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    /// Fills `bytes` with randomness.
    pub fn fill(&self, bytes: &mut [u8]) {
        match &self.0 {
            Kind::System => system_fill(bytes),
            Kind::Simulated(simulated) => simulated.random.lock().fill_bytes(bytes),
        }
    }

    /// A random number over all 64 bits.
    pub fn random_u64(&self) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// A fresh nonce.
    pub fn nonce(&self) -> Nonce {
        let mut bytes = [0; 16];
        self.fill(&mut bytes);
        Nonce(bytes)
    }

    /// A fresh identifier.
    pub fn id<K>(&self) -> Id<K> {
        let mut bytes = [0; 16];
        self.fill(&mut bytes);
        Id::from_bytes(bytes)
    }

    /// A duration between half of `most` and `most`, so that those who wait do not all come back at once.
    pub fn jitter(&self, most: Duration) -> Duration {
        let half = most / 2;
        let nanos = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX);
        half + Duration::from_nanos(self.random_u64() % nanos.saturating_add(1).max(1))
    }
}

#[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock of the host")]
fn system_now_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |elapsed| u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
}

#[expect(clippy::disallowed_methods, reason = "the one place that draws real randomness")]
fn system_fill(bytes: &mut [u8]) {
    rand::rng().fill_bytes(bytes);
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Kind::System => "Clock::System",
            Kind::Simulated(_) => "Clock::Simulated",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clonegate_core::ids::CloneId;

    #[test]
    fn a_seed_replays_and_another_seed_differs() {
        let draw = |seed| {
            let clock = Clock::simulated(seed);
            (clock.nonce(), clock.id::<clonegate_core::ids::CloneKind>(), clock.random_u64())
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn the_system_does_not_repeat_itself() {
        let clock = Clock::system();
        let (one, other): (CloneId, CloneId) = (clock.id(), clock.id());
        assert_ne!(one, other);
        assert!(clock.now_ms() > SIMULATION_BEGINS_MS);
    }

    #[test]
    fn jitter_stays_between_half_and_whole() {
        let clock = Clock::simulated(1);
        for most in [Duration::ZERO, Duration::from_nanos(1), Duration::from_millis(250), Duration::from_secs(3600)] {
            for _ in 0..100 {
                let drawn = clock.jitter(most);
                assert!(drawn >= most / 2 && drawn <= most, "{drawn:?} of {most:?}");
            }
        }
    }
}
