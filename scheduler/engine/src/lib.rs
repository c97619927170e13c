//! The scheduler as a function: `step(now, event) -> effects`.
//!
//! It has no clock, no socket, no task and no randomness: the same events give the same effects, always. Everything
//! that an engine knows comes from its stored state and from events.
//!
//! ```text
//!   event --> admission   create, stop, delete                --+
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
mod invariants;
mod lifetimes;
mod outbox;
mod placement;
mod queue;
mod reconcile;
mod requests;
mod restore;
mod state;
mod timers;

pub use config::{ConfigError, EngineConfig, PlacementPolicy};
pub use engine::Engine;
pub use event::{
    CallId, Change, Effect, Event, NodeRegistration, NodeReport, Rejection, RequestRecord, SessionId,
    StoredState,
};
