//! `pinfold dev`: a local fleet on one machine, as kind is for Kubernetes.
//!
//! ```text
//!   pinfold dev up                                       127.0.0.1, a free port
//!     |-- pinfold-scheduler  <-------------- clients ---------+
//!     |        ^  ^                                           |
//!     |        |  +---- 10.0.2.2 ----+                        |
//!     |-- QEMU: virtual node 1       |      (or, on a host with hardware virtualisation and root,
//!     +-- QEMU: virtual node 2 ------+       one node agent on the host itself)
//! ```
//!
//! Invariants: everything that is started is written to the state file before it is waited for, and is ended by its
//! recorded pid only while /proc shows the recorded start time. `up` that fails half way undoes what it did. Every
//! wait has a bound.

pub mod artifacts;
pub mod control_shell;
pub mod down;
pub mod file_watch;
pub mod fleet;
pub mod host_node;
pub mod preflight;
pub mod process;
pub mod scheduler;
pub mod state;
pub mod status;
pub mod up;
pub mod virtual_node;
