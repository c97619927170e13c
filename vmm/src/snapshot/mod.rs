//! Saving a paused machine, and going on from there in another process.
//!
//! ```text
//!   state file                                       memory file
//!   +--------+---------+--------+-----+----------+   +-----------------------------------------+
//!   | magic  | version | length | MAC | CBOR     |   | ranges of RAM one after another, sparse |
//!   +--------+---------+--------+-----+----------+   +-----------------------------------------+
//!     checked in this order     key     manifest, then the machine
//! ```
//!
//! Nothing of the CBOR is parsed before the MAC over header and body is right, and nothing of the machine is touched
//! before the manifest fits the config. The memory file is not read by a restore but mapped, so it costs what is
//! touched. [`save`] and [`restore`] are the two ways through; the other modules are their parts.

pub mod blob;
pub mod changes;
pub mod dirty;
pub mod format;
pub mod manifest;
pub mod memory;
pub mod merge;
pub mod pages;
pub mod released;
pub mod restore;
pub mod save;
pub mod vm;
pub mod working_set;
