//! What the entropy device counts.

use crate::metrics::Count;

#[derive(Debug, Default)]
pub struct RngMetrics {
    pub bytes: Count,
    pub guest_errors: Count,
}
