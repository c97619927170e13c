//! What each daemon needs before it can do its own work: configuration, logs, an orderly end, named tasks.
//!
//! A daemon's `main` uses them in this order: [`config`] gives typed values or ends the process with a sentence,
//! [`logs`] opens the log, [`shutdown`] turns signals into a token, and [`tasks`] runs everything under that token.
#![forbid(unsafe_code)]

pub mod config;
pub mod logs;
pub mod shutdown;
pub mod tasks;

pub use tasks::Tasks;
pub use tokio_util::sync::CancellationToken;
