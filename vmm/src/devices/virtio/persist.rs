//! What of a device is kept in a snapshot: what its driver has told it or may have seen of it, and which is not in its
//! transport, its config or its files.

use serde::{Deserialize, Serialize};

/// One variant for each kind of device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceState {
    Block(super::block::persist::BlockState),
    Balloon(super::balloon::persist::BalloonState),
    Net(super::net::persist::NetState),
    Rng,
    Vsock(super::vsock::persist::VsockState),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceStateError {
    #[error("the saved device has type {saved}, the configured one {configured}")]
    Kind { saved: u32, configured: u32 },
    #[error("the saved state is that of another kind of device")]
    Variant,
    #[error("the saved device has {saved} queues, the configured one {configured}")]
    Queues { saved: usize, configured: usize },
    #[error("queue {queue} of the saved device does not fit: {why}")]
    Queue { queue: usize, why: &'static str },
    #[error(
        "the saved driver has agreed to features {saved:#x}, of which the device offers only {offered:#x}"
    )]
    Features { saved: u64, offered: u64 },
    #[error("{what} of the saved device is {saved}, that of the configured one {configured}")]
    Differs { what: &'static str, saved: u64, configured: u64 },
}
