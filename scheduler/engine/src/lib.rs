//! The scheduler as a function: `step(now, event) -> effects`.
//!
//! It has no clock, no socket, no task and no randomness: the same events give the same effects, always. Everything
//! that an engine knows comes from its stored state and from events.
#![forbid(unsafe_code)]

pub mod config;
pub mod engine;
pub mod event;

pub use config::{ConfigError, EngineConfig, PlacementPolicy};
pub use engine::Engine;
pub use event::{
    CallId, Change, Effect, Event, NodeRegistration, NodeReport, Rejection, RequestRecord, SessionId, StoredState,
};
