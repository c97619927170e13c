//! What all block devices together count.

use crate::metrics::Count;

#[derive(Debug, Default)]
pub struct BlockMetrics {
    pub read_bytes: Count,
    pub write_bytes: Count,
    pub flushes: Count,
    /// flushes that had something to bring to the disk
    pub syncs: Count,
    pub discards: Count,
    pub zeroes: Count,
    /// how often a request had to wait for its rate
    pub throttled: Count,
    /// requests that the host's file refused
    pub host_errors: Count,
    /// requests past the end, too long, to a read-only disk, of unknown type or of a wrong form
    pub guest_errors: Count,
}
