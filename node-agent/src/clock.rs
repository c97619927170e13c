//! The node's monotonic clock that also counts suspended time, so that a time to live is never stretched, and that
//! does not start again with the agent, so that a record written by one agent is right for the next.

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Microseconds of CLOCK_BOOTTIME.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootTime(pub u64);

impl BootTime {
    pub fn now() -> Self {
        let time = clock_gettime(ClockId::Boottime);
        // both parts are never negative for this clock
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        let micros = u64::try_from(time.tv_nsec).unwrap_or(0) / 1000;
        Self(seconds.saturating_mul(1_000_000).saturating_add(micros))
    }

    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_micros()).unwrap_or(u64::MAX)))
    }

    /// From `earlier` to `self`; zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// From now to `self`; zero when it is over.
    pub fn remaining(self) -> Duration {
        self.since(Self::now())
    }
}

/// Distinguishes boots of this machine: a record of another boot describes nothing that lives.
pub fn boot_id() -> std::io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_do_not_go_below_zero() {
        let now = BootTime::now();
        assert!(now.0 > 0);
        assert_eq!(now.since(now.after(Duration::from_secs(1))), Duration::ZERO);
        assert_eq!(now.after(Duration::from_secs(1)).since(now), Duration::from_secs(1));
        assert_eq!(now.after(Duration::MAX), BootTime(u64::MAX));
    }
}
