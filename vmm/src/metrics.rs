//! Counters that all threads add to without waiting for each other.

use pinfold_vmm_api::control;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    pub fn increment(&self) {
        self.add(1);
    }

    /// For what goes up and down.
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What the machine has done so far. See [`control::Counters`] for the meaning of each.
#[derive(Debug, Default)]
pub struct Metrics {
    pub exits_pio: Count,
    pub exits_mmio: Count,
    pub exits_other: Count,
    pub block: crate::devices::virtio::block::metrics::BlockMetrics,
    pub balloon: crate::devices::virtio::balloon::metrics::BalloonMetrics,
    pub net: crate::devices::virtio::net::metrics::NetMetrics,
    pub vsock: crate::devices::virtio::vsock::metrics::VsockMetrics,
    pub rng: crate::devices::virtio::rng::metrics::RngMetrics,
    pub console_dropped_bytes: Count,
    /// broken rules outside of one device's requests: buses and transports
    pub guest_errors: Count,
    pub events: crate::events::Events,
}

impl Metrics {
    /// Requests that broke a rule of their device, of all devices together.
    pub fn device_guest_errors(&self) -> u64 {
        self.block.guest_errors.get()
            + self.net.guest_errors.get()
            + self.balloon.guest_errors.get()
            + self.vsock.guest_errors.get()
            + self.rng.guest_errors.get()
    }

    /// What a bound of the devices has turned away, of all devices together.
    pub fn device_limited(&self) -> u64 {
        self.vsock.refused.get() + self.block.throttled.get() + self.net.throttled.get()
    }

    pub fn snapshot(&self) -> control::Counters {
        control::Counters {
            exits_pio: self.exits_pio.get(),
            exits_mmio: self.exits_mmio.get(),
            exits_other: self.exits_other.get(),
            block_read_bytes: self.block.read_bytes.get(),
            block_write_bytes: self.block.write_bytes.get(),
            vsock_connections: self.vsock.connections.get(),
            guest_errors: self.guest_errors.get() + self.device_guest_errors(),
            console_dropped_bytes: self.console_dropped_bytes.get(),
            net_received_bytes: self.net.received_bytes.get(),
            net_transmitted_bytes: self.net.transmitted_bytes.get(),
            net_dropped_frames: self.net.dropped.get(),
            net_spoofed_frames: self.net.spoofed.get(),
            throttled: self.block.throttled.get() + self.net.throttled.get(),
            balloon_bytes: self.balloon.held_bytes.get(),
            reported_bytes: self.balloon.reported_bytes.get(),
            guest_available_bytes: self.balloon.available_bytes.get(),
        }
    }
}
