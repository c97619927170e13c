//! What the balloon counts.

use crate::metrics::Count;

#[derive(Debug, Default)]
pub struct BalloonMetrics {
    pub inflated_pages: Count,
    pub deflated_pages: Count,
    /// what the driver says is in the balloon, at most the guest's memory
    pub held_bytes: Count,
    pub reported_bytes: Count,
    /// pages that stayed where they are: the host's kernel could not take them
    pub kept_bytes: Count,
    /// as the driver told it last
    pub available_bytes: Count,
    /// pages outside of memory, lists that are too long, configuration that is none
    pub guest_errors: Count,
}
