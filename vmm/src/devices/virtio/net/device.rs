//! State and configuration of a network device.

use super::header::{self, F_CSUM, F_GUEST_CSUM, F_GUEST_TSO4, F_GUEST_TSO6, F_HOST_TSO4, F_HOST_TSO6};
use super::receive::Receiver;
use super::tap::{Tap, TapError};
use super::transmit::Transmitter;
use crate::devices::rate_limit::Gate;
use crate::devices::virtio::command::{Command, Direction, Outcome};
use crate::devices::virtio::persist::{DeviceState, DeviceStateError};
use crate::devices::virtio::queue::BrokenQueue;
use crate::devices::virtio::{DeviceIo, HostSource, Progress, TYPE_NET, VirtioDevice};
use crate::metrics::Metrics;
use pinfold_vmm_api::RateLimit;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

pub(crate) const RECEIVE: usize = 0;
pub(crate) const TRANSMIT: usize = 1;
pub const QUEUE_SIZE: u16 = 256;
const QUEUE_SIZES: [u16; 2] = [QUEUE_SIZE; 2];

pub(super) const SOURCE_TAP: usize = 0;
pub(super) const SOURCE_RECEIVE_TIMER: usize = 1;
pub(super) const SOURCE_TRANSMIT_TIMER: usize = 2;

#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("{0}")]
    Tap(#[from] TapError),
    #[error("a timer of the rate limit cannot be made: {0}")]
    Timer(#[from] io::Error),
}

pub struct Net {
    pub(super) tap: Tap,
    pub(super) mac: [u8; 6],
    /// what the driver has agreed to; none while there is no driver
    pub(super) features: u64,
    pub(super) receiver: Receiver,
    pub(super) transmitter: Transmitter,
    pub(super) metrics: Arc<Metrics>,
}

impl Net {
    pub fn new(
        tap: File,
        mac: [u8; 6],
        receive_rate: RateLimit,
        transmit_rate: RateLimit,
        metrics: Arc<Metrics>,
    ) -> Result<Self, NetError> {
        Self::over(Tap::new(tap)?, mac, receive_rate, transmit_rate, metrics)
    }

    pub(crate) fn over(
        tap: Tap,
        mac: [u8; 6],
        receive_rate: RateLimit,
        transmit_rate: RateLimit,
        metrics: Arc<Metrics>,
    ) -> Result<Self, NetError> {
        Ok(Self {
            tap,
            mac,
            features: 0,
            receiver: Receiver::new(Gate::new(receive_rate)?),
            transmitter: Transmitter::new(Gate::new(transmit_rate)?),
            metrics,
        })
    }
}

impl VirtioDevice for Net {
    fn kind(&self) -> u32 {
        TYPE_NET
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        let to_guest = F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6 | header::F_MRG_RXBUF;
        header::F_MAC | F_CSUM | F_HOST_TSO4 | F_HOST_TSO6 | to_guest
    }

    fn accepts(&self, features: u64) -> bool {
        header::is_consistent(features)
    }

    /// `struct virtio_net_config` up to `mac`: no feature has given the rest a meaning.
    fn config(&self) -> &[u8] {
        &self.mac
    }

    fn activate(&mut self, features: u64) {
        self.features = features;
        if self.tap.set_offload(features).is_err() {
            self.metrics.net.host_errors.increment();
        }
    }

    fn reset(&mut self) {
        self.features = 0;
        self.receiver.reset();
        self.transmitter.reset();
        // a guest that is not there has agreed to nothing
        let _ = self.tap.set_offload(0);
    }

    fn quiesce(&mut self, io: Option<&mut DeviceIo<'_>>) -> Result<(), BrokenQueue> {
        if let Some(io) = io {
            self.receiver.put_back(&mut io.queues[RECEIVE], &self.metrics.net);
        }
        Ok(())
    }

    fn queue_event(&mut self, queue: usize, io: &mut DeviceIo<'_>) -> Result<Progress, BrokenQueue> {
        if queue == RECEIVE { self.receive(io) } else { self.transmit(io) }
    }

    fn host_sources(&self) -> Vec<HostSource> {
        vec![
            HostSource::edge(self.tap.as_raw_fd()),
            HostSource::level(self.receiver.gate.as_raw_fd()),
            HostSource::level(self.transmitter.gate.as_raw_fd()),
        ]
    }

    fn host_event(&mut self, source: usize, io: Option<&mut DeviceIo<'_>>) -> Result<Progress, BrokenQueue> {
        self.host_side(source, io)
    }

    fn command(&mut self, command: Command) -> Outcome {
        let Command::SetRate { direction, limit } = command else { return Outcome::Unsupported };
        match direction {
            Direction::Receive => self.receiver.gate.set(limit),
            Direction::Transmit => self.transmitter.gate.set(limit),
        }
        Outcome::Done
    }

    fn save(&self) -> DeviceState {
        self.state()
    }

    fn restore(&mut self, saved: &DeviceState) -> Result<(), DeviceStateError> {
        self.check(saved)
    }
}
