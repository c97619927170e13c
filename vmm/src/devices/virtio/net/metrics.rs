//! What all network devices together count.

use crate::metrics::Count;

#[derive(Debug, Default)]
pub struct NetMetrics {
    pub received_frames: Count,
    pub received_bytes: Count,
    pub transmitted_frames: Count,
    pub transmitted_bytes: Count,
    /// frames with a source address that is not the guest's: dropped
    pub spoofed: Count,
    /// frames for the guest that its buffers cannot take or that it has not agreed to: dropped
    pub dropped: Count,
    /// how often a frame had to wait for its rate
    pub throttled: Count,
    /// frames that the host refused
    pub host_errors: Count,
    /// frames and buffers that broke a rule, spoofed ones included
    pub guest_errors: Count,
}
