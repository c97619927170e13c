//! One sandbox on this node: one task owns it from its assignment to the end of all that it took.
//!
//! ```text
//!   registry --assign--> actor: bringup ----> Running ----> ending ----> teardown ----> ended, record kept
//!                          |  fail, time-out, stop              ^                          |
//!                          +------------------------------------+                       Forget: record gone
//!   agent starts: recover --> actor at Running (machine lives) or at ending (it is gone)
//! ```
//!
//! [`record`] is what outlives the agent, [`policy`] turns a spec into limits, [`bringup`] and [`teardown`] are the way
//! up and down, [`save`] and [`restore`] the way to the disk and back, [`actor`] decides between them, [`recover`] finds
//! what an earlier agent left. [`template`] boots a machine in order to save it.

pub mod actor;
pub mod bringup;
#[cfg(test)]
pub mod fake_host;
pub mod policy;
pub mod record;
pub mod recover;
pub mod restore;
pub mod save;
pub mod teardown;
pub mod template;

use crate::catalog::Catalog;
use crate::guest::Guests;
use crate::host::paths::StateDirectory;
use crate::host::uids::UidPool;
use crate::host::{Cgroups, Disks, Images};
use crate::machine::Machines;
use std::sync::Arc;

/// All that a sandbox takes from, behind traits.
#[derive(Clone)]
pub struct Host {
    pub images: Arc<dyn Images>,
    pub disks: Arc<dyn Disks>,
    pub cgroups: Arc<dyn Cgroups>,
    pub machines: Arc<dyn Machines>,
    pub guests: Arc<dyn Guests>,
    pub uids: Arc<UidPool>,
    pub catalog: Arc<Catalog>,
    pub state: StateDirectory,
    /// of this boot of the machine
    pub boot_id: Arc<str>,
}
