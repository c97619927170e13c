//! State and configuration of a balloon.

use super::release::Releaser;
use crate::devices::virtio::chain::Chain;
use crate::devices::virtio::command::{Command, Outcome};
use crate::devices::virtio::persist::{DeviceState, DeviceStateError};
use crate::devices::virtio::queue::BrokenQueue;
use crate::devices::virtio::{DeviceIo, Progress, TYPE_BALLOON, VirtioDevice};
use crate::memory::GuestMemory;
use crate::metrics::Metrics;
use crate::snapshot::released::Released;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The unit of the balloon, whatever the guest's pages are (virtio 1.2, 5.5.6).
pub const PAGE_BYTES: u64 = crate::memory::PAGE_BYTES;
/// inflate, deflate; then statistics and reporting, as far as the driver wants them. Linux reports 32 ranges at once.
const QUEUE_SIZES: [u16; 4] = [128, 128, 64, 64];

/// Feature bits (virtio 1.2, 5.5.3).
pub const F_STATS: u64 = 1 << 1;
pub const F_DEFLATE_ON_OOM: u64 = 1 << 2;
pub const F_PAGE_POISON: u64 = 1 << 4;
pub const F_REPORTING: u64 = 1 << 5;

/// `struct virtio_balloon_config` (5.5.4): num_pages, actual, free_page_hint_cmd_id, poison_val.
const CONFIG_BYTES: usize = 16;
const NUM_PAGES_AT: usize = 0;
const ACTUAL_AT: usize = 4;
const POISON_AT: usize = 12;

/// The guest is not woken for its statistics more often, however often the host looks.
const STATISTICS_INTERVAL: Duration = Duration::from_secs(2);

/// What a queue is for. Drivers number those that they want without gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Inflate,
    Deflate,
    Statistics,
    Reporting,
}

pub struct Balloon {
    pub(super) releaser: Releaser,
    pub(super) config: [u8; CONFIG_BYTES],
    /// of the driver that is there
    pub(super) features: u64,
    /// the buffer in which the driver has told how it does; given back, it is asked to tell again (5.5.6.3)
    pub(super) statistics: Option<Chain>,
    pub(super) statistics_wanted: bool,
    /// of the request at the head of each queue: runs of pages that went back in turns before
    pub(super) done: [usize; QUEUE_SIZES.len()],
    asked_at: Option<Instant>,
    pub(super) metrics: Arc<Metrics>,
}

impl Balloon {
    /// Begins empty. `record`: where pages that go back are listed, for snapshots.
    pub fn new(memory: &GuestMemory, record: Arc<Released>, metrics: Arc<Metrics>) -> Self {
        Self {
            releaser: Releaser::new(memory, record),
            config: [0; CONFIG_BYTES],
            features: 0,
            statistics: None,
            statistics_wanted: false,
            done: [0; QUEUE_SIZES.len()],
            asked_at: None,
            metrics,
        }
    }

    pub(super) fn role(&self, queue: usize) -> Option<Role> {
        let optional = [(F_STATS, Role::Statistics), (F_REPORTING, Role::Reporting)];
        let wanted =
            optional.iter().filter(|(feature, _)| self.features & feature != 0).map(|(_, role)| *role);
        [Role::Inflate, Role::Deflate].into_iter().chain(wanted).nth(queue)
    }

    fn number(&self, at: usize) -> u32 {
        let bytes = self.config[at..].first_chunk().copied().unwrap_or_default();
        u32::from_le_bytes(bytes)
    }

    fn set_number(&mut self, at: usize, value: u32) {
        self.config[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// Whether the driver wants its free pages filled with something that the host does not write.
    pub(super) fn is_poisoned(&self) -> bool {
        self.features & F_PAGE_POISON != 0 && self.number(POISON_AT) != 0
    }

    fn tell_held(&self) {
        let held = (u64::from(self.number(ACTUAL_AT)) * PAGE_BYTES).min(self.releaser.memory_bytes());
        self.metrics.balloon.held_bytes.set(held);
    }

    fn set_target(&mut self, target_bytes: u64) -> Outcome {
        let most = self.releaser.memory_bytes();
        let Some(pages) = u32::try_from(target_bytes / PAGE_BYTES).ok().filter(|_| target_bytes <= most)
        else {
            return Outcome::Refused(format!(
                "target_bytes is {target_bytes}, above the {most} bytes of the machine"
            ));
        };
        self.set_number(NUM_PAGES_AT, pages);
        Outcome::ConfigChanged
    }

    pub(super) fn numbers(&self) -> [u32; 3] {
        [NUM_PAGES_AT, ACTUAL_AT, POISON_AT].map(|at| self.number(at))
    }

    pub(super) fn set_numbers(&mut self, [target, actual, poison]: [u32; 3]) {
        self.set_number(NUM_PAGES_AT, target);
        self.set_number(ACTUAL_AT, actual);
        self.set_number(POISON_AT, poison);
        self.tell_held();
    }
}

impl VirtioDevice for Balloon {
    fn kind(&self) -> u32 {
        TYPE_BALLOON
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        // nothing is reported where nothing can go back (5.5.6.4)
        let reporting = if self.releaser.can_release() { F_PAGE_POISON | F_REPORTING } else { 0 };
        F_STATS | F_DEFLATE_ON_OOM | reporting
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    /// The driver says how much is in the balloon, and what it fills free pages with.
    fn write_config(&mut self, offset: usize, data: &[u8]) -> bool {
        let Ok(bytes) = <[u8; 4]>::try_from(data) else { return false };
        if offset != ACTUAL_AT && offset != POISON_AT {
            return false;
        }
        self.set_number(offset, u32::from_le_bytes(bytes));
        self.tell_held();
        true
    }

    fn activate(&mut self, features: u64) {
        self.features = features;
    }

    /// The host's target stays: the next driver will read it.
    fn reset(&mut self) {
        self.features = 0;
        self.statistics = None;
        self.done = [0; QUEUE_SIZES.len()];
        self.set_numbers([self.number(NUM_PAGES_AT), 0, 0]);
    }

    fn quiesce(&mut self, io: Option<&mut DeviceIo<'_>>) -> Result<(), BrokenQueue> {
        let statistics = (0..QUEUE_SIZES.len()).find(|queue| self.role(*queue) == Some(Role::Statistics));
        if let (Some(io), Some(queue), Some(_)) = (io, statistics, self.statistics.take()) {
            io.queues[queue].undo_pop();
        }
        Ok(())
    }

    fn queue_event(&mut self, queue: usize, io: &mut DeviceIo<'_>) -> Result<Progress, BrokenQueue> {
        self.requests(queue, io)
    }

    fn command(&mut self, command: Command) -> Outcome {
        match command {
            Command::SetBalloon { target_bytes } => self.set_target(target_bytes),
            Command::Refresh => {
                let is_due = self.asked_at.is_none_or(|at| at.elapsed() >= STATISTICS_INTERVAL);
                if is_due {
                    self.statistics_wanted = true;
                    self.asked_at = Some(Instant::now());
                }
                Outcome::Done
            }
            Command::SetRate { .. } => Outcome::Unsupported,
        }
    }

    fn save(&self) -> DeviceState {
        self.state()
    }

    fn restore(&mut self, saved: &DeviceState) -> Result<(), DeviceStateError> {
        self.take_over(saved)
    }
}
