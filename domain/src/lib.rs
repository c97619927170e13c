//! The words that every Pinfold crate shares. No I/O, no async, no clock.
#![forbid(unsafe_code)]

pub mod assignment;
pub mod ids;
pub mod lifecycle;
pub mod node;
pub mod placement;
pub mod reason;
pub mod resources;
pub mod snapshot;
pub mod spec;
pub mod template;
pub mod time;

pub use assignment::{Milestone, Origin, Sandbox, TimelineEntry};
pub use ids::{
    Epoch, IdError, NodeId, RequestId, Revision, SandboxId, SnapshotId, TemplateId, TenantId, Term,
};
pub use lifecycle::{Phase, Transition};
pub use node::{Node, NodeState};
pub use placement::{Explanation, FilterCount, Verdict};
pub use reason::{Cause, Reason};
pub use resources::Resources;
pub use snapshot::{Snapshot, SnapshotReport, SnapshotSizes, SnapshotState, SnapshotTransition};
pub use spec::{SandboxSpec, Source, SpecError};
pub use template::{Preparation, Template, TemplateReport};
pub use time::{Millis, Timestamp};
