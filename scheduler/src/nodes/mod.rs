//! The nodes' side: they dial, keep one session each, and dial once more for every stream to a guest.

pub mod convert;
pub mod relay;
pub mod service;
pub mod session;
pub mod sessions;
mod stuck;
