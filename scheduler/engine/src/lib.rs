//! The scheduler as a function: `step(now, event) -> effects`.
//!
//! It has no clock, no socket, no task and no randomness: the same events give the same effects, always. Everything
//! that an engine knows comes from its stored state and from events.
//!
//! ```text
//!   event --> admission   create, stop, delete                --+
//!             suspension  pause, resume                         |
//!             snapshots   taken, used, dropped; fork            |
//!             templates   which node has prepared which         |
//!             cluster     node joined, heard, silent, lost      |    outbox      effects:
//!             reconcile   what nodes say against what is stored +--> one step's  changes first, then
//!             assignment  accepted, refused, expired            |    decisions   answers and commands
//!   time ---> lifetimes   what is due                         --+
//!                              placement and queue decide where and when
//! ```
#![forbid(unsafe_code)]

pub mod config;
pub mod engine;
pub mod event;

mod admission;
mod assignment;
mod cluster;
mod ending;
mod fork;
mod invariants;
mod lifetimes;
mod operations;
mod origin;
mod outbox;
mod placement;
mod queue;
mod reconcile;
mod requests;
mod restore;
mod snapshots;
mod state;
mod suspension;
mod templates;
mod timers;

pub use config::{ConfigError, EngineConfig, PlacementPolicy};
pub use engine::Engine;
pub use event::{
    Answered, CallId, Change, Effect, Event, ForkRequest, ForkSource, NodeRegistration, NodeReport,
    Operation, OperationRecord, Rejection, RequestRecord, SessionId, StoredState,
};
pub use templates::TemplateStatus;
