//! virtio entropy device (virtio 1.2, 5.4): the host's random numbers.

pub mod device;
pub mod events;
pub mod metrics;
