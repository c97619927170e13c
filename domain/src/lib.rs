//! The words that every Pinfold crate shares. No I/O, no async, no clock.
#![forbid(unsafe_code)]

pub mod assignment;
pub mod ids;
pub mod lifecycle;
pub mod node;
pub mod placement;
pub mod reason;
pub mod resources;
pub mod spec;
pub mod time;

pub use assignment::{Milestone, Sandbox, TimelineEntry};
pub use ids::{Epoch, IdError, NodeId, RequestId, Revision, SandboxId, TenantId, Term};
pub use lifecycle::{Phase, Transition};
pub use node::{Node, NodeState};
pub use placement::{Explanation, FilterCount, Verdict};
pub use reason::{Cause, Reason};
pub use resources::Resources;
pub use spec::{SandboxSpec, SpecError};
pub use time::{Millis, Timestamp};
