//! Client of Pinfold's public API (`pinfold.api.v1`).
//!
//! ```no_run
//! use pinfold_sdk::{Client, ExecOptions, NewSandbox};
//! use std::time::Duration;
//!
//! # async fn example() -> Result<(), pinfold_sdk::Error> {
//! let client = Client::connect("http://127.0.0.1:7420").await?;
//! let sandbox = client.create(NewSandbox::default()).await?;
//! let sandbox = client.wait_running(sandbox.id, Duration::from_secs(60)).await?;
//!
//! let process = client.exec(sandbox.id, ExecOptions::command(["uname", "-a"])).await?;
//! let output = process.output(64 * 1024).await?;
//! println!("{}", String::from_utf8_lossy(&output.stdout));
//!
//! client.delete(sandbox.id).await?;
//! # Ok(())
//! # }
//! ```
//!
//! - Every call has a deadline ([`ClientOptions::call_timeout`], [`Client::with_call_timeout`]), which travels to the
//!   server; a stream has one for its start.
//! - Every mutation carries a request id, so a call that is cut short is repeated safely (a bounded number of times).
//! - Dropping a stream ends it: a [`Process`] that is dropped is ended in its guest.
//! - An [`Error`] has the stable reason, a sentence for a person, the gRPC code, and whether the same call may succeed
//!   later.
#![forbid(unsafe_code)]

mod call;
mod client;
mod connection;
mod error;
mod file;
mod logs;
mod model;
mod process;
mod saved;
mod watch;

pub use client::{Client, ClientOptions};
pub use error::Error;
pub use file::{FileInfo, FileReader, WriteOptions};
pub use logs::{LogChunk, LogStream};
pub use model::{Explanation, NewSandbox, Sandbox, SandboxFilter, Verdict};
pub use process::{ExecOptions, Exit, Outcome, Output, Process, ProcessEvent, ProcessInput, TerminalSize};
pub use saved::{ForkOf, ForkOptions, NewTemplate, Snapshot, Template};
pub use watch::{Watch, WatchEvent};

pub use pinfold_domain as domain;
pub use pinfold_proto::limits;
pub use tonic::Code;
