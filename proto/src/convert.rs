//! Wire to domain and back. A value from the wire is checked here, once; the error names field, value and limit.
//!
//! - [`spec`]: what a caller asks for
//! - [`sandbox`]: sandboxes, nodes, reports
//! - [`snapshot`]: snapshots, templates, and what nodes have of them
//! - [`process`]: exec frames, public API to guest API and back
//! - [`file`]: file frames and paths

pub mod file;
pub mod process;
pub mod sandbox;
pub mod snapshot;
pub mod spec;

use pinfold_domain::{Cause, IdError, Reason, SpecError, Timestamp};

/// A value from the wire that breaks a rule. Becomes a [`Cause`] with [`Reason::InvalidArgument`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("{field} is missing")]
    Missing { field: &'static str },
    #[error(transparent)]
    Id(#[from] IdError),
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error("{field} is {value}, which is not a known value")]
    UnknownEnum { field: &'static str, value: i32 },
    #[error("{field} is {value}, outside {min} to {max}")]
    OutOfRange { field: &'static str, value: u64, min: u64, max: u64 },
    #[error("{field} takes {bytes} bytes, the limit is {max}")]
    TooLarge { field: &'static str, bytes: usize, max: usize },
    #[error("{field} {value:?} is not allowed: {why}")]
    NotAllowed { field: &'static str, value: String, why: &'static str },
}

impl From<WireError> for Cause {
    fn from(error: WireError) -> Self {
        Self::new(Reason::InvalidArgument, error.to_string())
    }
}

pub(crate) fn in_range(field: &'static str, value: u64, (min, max): (u64, u64)) -> Result<(), WireError> {
    if (min..=max).contains(&value) { Ok(()) } else { Err(WireError::OutOfRange { field, value, min, max }) }
}

pub(crate) fn at_most(field: &'static str, bytes: usize, max: usize) -> Result<(), WireError> {
    if bytes <= max { Ok(()) } else { Err(WireError::TooLarge { field, bytes, max }) }
}

/// A value for an error message: bounded, so that a hostile field does not come back whole.
pub(crate) fn excerpt(value: &str) -> String {
    value.chars().take(80).collect()
}

pub fn timestamp(at: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: i64::try_from(at.0 / 1000).unwrap_or(i64::MAX),
        // below 10^9, so it fits
        nanos: (at.0 % 1000) as i32 * 1_000_000,
    }
}

/// Times before 1970 become 1970.
pub fn timestamp_from_wire(at: &prost_types::Timestamp) -> Timestamp {
    let seconds = u64::try_from(at.seconds).unwrap_or(0);
    let millis = u64::try_from(at.nanos).unwrap_or(0) / 1_000_000;
    Timestamp(seconds.saturating_mul(1000).saturating_add(millis))
}
