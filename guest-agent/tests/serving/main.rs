//! The agent's calls over real gRPC, with real processes and files.
#![allow(clippy::unwrap_used, reason = "all of it is test code, also what is not in a test function")]

mod exec;
mod files;
mod flow;
mod harness;
