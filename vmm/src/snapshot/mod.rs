//! Saving a paused machine, and going on from there in another process.

pub mod blob;
