//! virtio block device (virtio 1.2, 5.2) over a host file.

pub mod device;
pub mod events;
pub mod metrics;
pub mod persist;
mod transfer;

#[cfg(test)]
mod tests;
