//! State and configuration of the entropy device: it has neither.

use crate::devices::virtio::persist::{DeviceState, DeviceStateError};
use crate::devices::virtio::queue::BrokenQueue;
use crate::devices::virtio::{DeviceIo, Progress, TYPE_RNG, VirtioDevice};
use crate::metrics::Metrics;
use std::sync::Arc;

const QUEUE_SIZES: [u16; 1] = [64];

pub struct Rng {
    pub(super) metrics: Arc<Metrics>,
}

impl Rng {
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics }
    }
}

impl VirtioDevice for Rng {
    fn kind(&self) -> u32 {
        TYPE_RNG
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> &[u8] {
        &[]
    }

    fn queue_event(&mut self, queue: usize, io: &mut DeviceIo<'_>) -> Result<Progress, BrokenQueue> {
        self.requests(queue, io)
    }

    fn save(&self) -> DeviceState {
        DeviceState::Rng
    }

    fn restore(&mut self, saved: &DeviceState) -> Result<(), DeviceStateError> {
        if matches!(saved, DeviceState::Rng) { Ok(()) } else { Err(DeviceStateError::Variant) }
    }
}
