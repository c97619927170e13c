//! What the guest finds on its buses.

pub mod bus;
pub mod console;
pub mod platform;
pub mod power;
pub mod rate_limit;
pub mod serial;
pub mod virtio;
