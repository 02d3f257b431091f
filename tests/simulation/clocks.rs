//! The clocks of one machine: a monotonic one that runs too fast or too slow, and a wall clock
//! that jumps by weeks.
//!
//! Shapes: simulated time and monotonic time in microseconds, wall time in milliseconds.
//! Law: with `skew` off only the wall time differs; every draw is made either way, so that the
//! same seed can be compared with and without (invariant I9).

use ucp::proto::rng::Rng;
use ucp::proto::time::{Monotonic, Now, WallTime};

use super::queue::Draw;

const MILLION: u64 = 1_000_000;
const DAY_MS: i64 = 86_400_000;
const WALL_BASE_MS: i64 = 1_750_000_000_000;

/// The clocks of one machine since its boot.
pub struct HostClock {
    booted: u64,
    offset: u64,
    rate: u64,
    wall_offset: i64,
    skew: bool,
}

impl HostClock {
    /// The clocks of a machine that boots at `at`.
    pub fn boot(at: u64, skew: bool, rng: &mut Rng) -> Self {
        let offset = rng.range(1, 3_600 * MILLION);
        // Two of them differ by less than the drift that leases allow for.
        let rate = rng.range(MILLION - 4_000, MILLION + 4_000);
        let wall_offset = Self::draw_offset(rng);
        Self { booted: at, offset, rate, wall_offset, skew }
    }

    fn draw_offset(rng: &mut Rng) -> i64 {
        let span = 40 * DAY_MS.unsigned_abs();
        i64::try_from(rng.below(span)).expect("weeks fit") - 20 * DAY_MS
    }

    /// Moves the wall clock by up to 20 days, either way.
    pub fn jump(&mut self, rng: &mut Rng) {
        self.wall_offset += Self::draw_offset(rng);
    }

    /// What the clocks show.
    pub fn now(&self, at: u64) -> Now {
        let run = (at - self.booted) * self.rate / MILLION;
        let skew = if self.skew { self.wall_offset } else { 0 };
        let wall = WALL_BASE_MS + i64::try_from(at / 1_000).expect("fits") + skew;
        Now { mono: Monotonic(self.offset + run), wall: WallTime(u64::try_from(wall).unwrap_or(0)) }
    }

    /// When the monotonic clock will show at least `mono`.
    pub fn when(&self, mono: Monotonic) -> u64 {
        let run = u128::from(mono.0.saturating_sub(self.offset));
        let span = (run * u128::from(MILLION)).div_ceil(u128::from(self.rate));
        self.booted.saturating_add(u64::try_from(span).unwrap_or(u64::MAX))
    }
}
