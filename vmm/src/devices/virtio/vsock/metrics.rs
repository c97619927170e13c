//! What the socket device counts.

use crate::metrics::Count;

#[derive(Debug, Default)]
pub struct VsockMetrics {
    /// connections that both sides agreed to
    pub connections: Count,
    pub to_guest_bytes: Count,
    pub to_host_bytes: Count,
    /// connections that were refused: nobody listens, limit reached, no answer in time
    pub refused: Count,
    /// packets that broke a rule
    pub guest_errors: Count,
}
