//! The one clock of all measurements: CLOCK_MONOTONIC, which the trace points can be told to use too. Under `-icount` it
//! counts instructions, 2 ns each.

use nix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// Microseconds since the node's start.
pub fn now_us() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Linux has CLOCK_MONOTONIC");
    u64::try_from(Duration::from(now).as_micros()).unwrap_or(u64::MAX)
}
