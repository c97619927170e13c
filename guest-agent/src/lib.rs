//! PID 1 of the guest: brings the guest up, then serves `pinfold.guest.v1` to the node agent over vsock.
//!
//! ```text
//! init ── modules ── devices ── mounts ── root ──> server ──┬── exec      processes of the workload
//!   (once, before anything else; a failure is             ├── files     read and write, as a guest user
//!    one `fatal:` line on the console, then reset)        ├── settings  clock, hostname, limits
//!                                                         ├── suspension  stand still while the machine is saved
//!                                                         └── shutdown  end the workload, sync, power off
//! ```
//!
//! - [`agent`]: what the calls share, and every bound of the agent
//! - [`reaper`]: the only caller of `waitpid`
//! - [`tasks`]: the only caller of `tokio::spawn`
//! - [`cgroup`]: the workload's cgroup, one child per process that a caller started
//!
//! Invariant: what the workload does cannot keep the agent from answering. The agent is in a cgroup of its own, it makes
//! all its threads before the first call, and a call takes only what [`agent::limits`] bounds.

pub mod agent;
pub mod cgroup;
pub mod console;
pub mod entropy;
pub mod exec;
pub mod files;
pub mod init;
pub mod reaper;
pub mod server;
pub mod settings;
pub mod shutdown;
pub mod suspension;
pub mod tasks;
