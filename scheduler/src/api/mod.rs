//! `pinfold.api.v1`: thin handlers. Each checks its request once, asks the view or the driver, converts the answer.

pub mod deadline;
pub mod exec;
pub mod files;
pub mod forks;
pub mod guest;
pub mod logs;
pub mod nodes;
pub mod pages;
pub mod sandboxes;
pub mod snapshots;
pub mod status;
pub mod streams;
pub mod templates;
pub mod watch;
