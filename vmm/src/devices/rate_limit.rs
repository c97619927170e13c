//! Rate limits: token buckets for bytes and operations.
//!
//! ```text
//!   per_second ---> [ level <= burst, or what the next request costs ] --+
//!                                                                        +--> a request takes all it costs, or waits
//!   at the start -> [ first_burst, once ] -------------------------------+
//! ```
//!
//! Invariants, held exactly (integers, in tokens times nanoseconds):
//! - what was taken by any time is at most `burst + first_burst + per_second * time`;
//! - a request that waits is let through at the very nanosecond at which its tokens are there: one that costs more than
//!   `burst` saves up for it, so nothing starves;
//! - more time never makes a request wait that would have passed.

use pinfold_vmm_api::RateLimit;
use pinfold_vmm_api::config::TokenBucket;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};
use vmm_sys_util::timerfd::TimerFd;

const NANOS: u128 = 1_000_000_000;

/// One bucket. `level` and `first` are in tokens times [`NANOS`]; times are nanoseconds since some instant.
#[derive(Debug, Clone)]
struct Bucket {
    per_second: u64,
    burst: u64,
    level: u128,
    first: u128,
    at: u64,
}

impl Bucket {
    /// A rate or burst of zero counts as 1: nothing may wait for ever.
    fn new(config: TokenBucket, now: u64) -> Self {
        let burst = config.burst.max(1);
        Self {
            per_second: config.per_second.max(1),
            burst,
            level: u128::from(burst) * NANOS,
            first: u128::from(config.first_burst) * NANOS,
            at: now,
        }
    }

    /// Nanoseconds until `cost` tokens are there; none when they are.
    fn wait_for(&mut self, now: u64, cost: u64) -> Option<u128> {
        let earned = u128::from(self.per_second) * u128::from(now.saturating_sub(self.at));
        self.at = self.at.max(now);
        let cost = u128::from(cost) * NANOS;
        // who needs more than a burst saves up for it, but for no more than that
        let most = (u128::from(self.burst) * NANOS).max(cost.saturating_sub(self.first));
        // the sum of two products of 64 bits each, and thus below 2^128
        self.level = self.level.saturating_add(earned).min(most);
        let missing = cost.saturating_sub(self.level + self.first);
        (missing > 0).then(|| missing.div_ceil(u128::from(self.per_second)))
    }

    /// After [`Self::wait_for`] said that they are there.
    fn take(&mut self, cost: u64) {
        let cost = u128::from(cost) * NANOS;
        let from_first = cost.min(self.first);
        self.first -= from_first;
        self.level = self.level.saturating_sub(cost - from_first);
    }
}

/// Both limits of a device or of one direction of it.
#[derive(Debug, Clone)]
struct Limiter {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
}

impl Limiter {
    fn new(limit: RateLimit, now: u64) -> Self {
        let bucket = |config: Option<TokenBucket>| config.map(|config| Bucket::new(config, now));
        Self { bytes: bucket(limit.bytes), operations: bucket(limit.operations) }
    }

    fn is_free(&self) -> bool {
        self.bytes.is_none() && self.operations.is_none()
    }

    /// Takes one operation and its bytes, both or neither. Errors: nanoseconds to wait.
    fn take(&mut self, now: u64, bytes: u64) -> Result<(), u128> {
        let costs = [(&mut self.bytes, bytes), (&mut self.operations, 1)];
        let wait = |(bucket, cost): (&mut Option<Bucket>, u64)| bucket.as_mut()?.wait_for(now, cost);
        if let Some(wait) = costs.into_iter().filter_map(wait).max() {
            return Err(wait);
        }
        if let Some(bucket) = &mut self.bytes {
            bucket.take(bytes);
        }
        if let Some(bucket) = &mut self.operations {
            bucket.take(1);
        }
        Ok(())
    }
}

/// A limit with the timer that tells when what waits may go on.
#[derive(Debug)]
pub struct Gate {
    limiter: Limiter,
    timer: TimerFd,
    timer_runs: bool,
    began: Instant,
}

impl Gate {
    pub fn new(limit: RateLimit) -> io::Result<Self> {
        Ok(Self {
            limiter: Limiter::new(limit, 0),
            timer: TimerFd::new()?,
            timer_runs: false,
            began: Instant::now(),
        })
    }

    /// From now on this limit, with full buckets. What waits is to be tried again: the timer of the old limit, which may be
    /// far off, is no more.
    pub fn set(&mut self, limit: RateLimit) {
        self.limiter = Limiter::new(limit, self.now());
        if std::mem::take(&mut self.timer_runs) {
            // one that fires all the same wakes the device for nothing, once
            let _ = self.timer.clear();
        }
    }

    /// Whether a request with so many bytes may go. If not, the timer runs until it may.
    pub fn pass(&mut self, bytes: u64) -> bool {
        if self.limiter.is_free() {
            return true;
        }
        let now = self.now();
        match self.limiter.take(now, bytes) {
            Ok(()) => true,
            Err(wait) => {
                let wait = Duration::from_nanos(u64::try_from(wait).unwrap_or(u64::MAX));
                // a timer that cannot be set would be one that never fires: then nothing is held back
                let set = self.timer_runs || self.timer.reset(wait, None).is_ok();
                self.timer_runs = set;
                !set
            }
        }
    }

    /// Without a limit no cost need be known.
    pub fn is_free(&self) -> bool {
        self.limiter.is_free()
    }

    /// The timer is readable, or was: its event may be one of a round in which the limit was set anew and another timer
    /// began. So it is stopped and not read, which would wait for that one. What waits is to be tried again.
    pub fn timer_fired(&mut self) {
        if std::mem::take(&mut self.timer_runs) {
            let _ = self.timer.clear();
        }
    }

    fn now(&self) -> u64 {
        // 2^64 nanoseconds are 584 years
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

impl AsRawFd for Gate {
    /// Readable when what waited may go on.
    fn as_raw_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }
}

#[cfg(test)]
mod tests;
