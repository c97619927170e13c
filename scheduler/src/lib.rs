//! The control plane: it carries events into the engine and effects out of it.
//!
//! ```text
//!   clients --> api ----.                      .--> view --> api (reads, watches)
//!                        >--> driver [engine] --+--> store (durable before anything else)
//!   nodes ---> nodes ---'                      '--> nodes (assign, stop, forget)
//!
//!   bytes:  client <--> api/{exec,files,logs} <--> nodes/relay <--> node     (never through the driver)
//! ```
//!
//! Invariant: what a caller, a watcher or a node is told has been stored before.
#![forbid(unsafe_code)]

pub mod api;
pub mod app;
pub mod config;
pub mod driver;
pub mod effects;
pub mod listen;
pub mod nodes;
pub mod server;
pub mod store;
pub mod view;
