//! Testkit: what several suites share.
#![forbid(unsafe_code)]

pub mod fake_agent;
pub mod harness;
pub mod sim;
