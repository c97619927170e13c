//! The control protocol: one JSON object per line over the VMM's Unix socket, one answer per request, in order.

use serde::{Deserialize, Serialize};

/// Longest line of either side, in bytes. A longer one ends the connection.
pub const MAX_LINE_BYTES: usize = 16 * 1024;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// What the machine is doing and what it has cost so far.
    Status,
    /// End now. The guest gets no notice: a clean stop goes through the guest agent first.
    Kill,
    /// Press the power button: a guest with ACPI shuts down by itself.
    PowerButton,
    /// Stop all vCPUs and let no device touch guest memory. A paused machine stays so.
    Pause,
    Resume,
    /// Save a paused machine. Two descriptors come with the line (SCM_RIGHTS, one message): the state file and the
    /// memory file, both empty regular files open for reading and writing.
    Snapshot(SnapshotRequest),
    /// Write the list of guest pages that are in use to the descriptor that comes with the line, for
    /// [`crate::config::Restore::working_set`].
    WorkingSet,
    /// Change the limits of a device.
    SetRate(SetRate),
    /// Ask the guest to give back or take memory until its balloon holds this much.
    SetBalloon {
        target_bytes: u64,
    },
    /// From now on this connection gets a [`Response::Event`] line for each thing worth telling, after the answer
    /// [`Response::Done`]; first for what has been seen before. A watcher that does not read gets the latest of each kind
    /// when it reads again, not what was between.
    Watch,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRequest {
    pub kind: SnapshotKind,
    /// 64 hexadecimal digits
    pub key: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotKind {
    /// all of guest memory that is not zero
    Full,
    /// The same, and from then on what changes is followed, so that a diff can be taken: each page costs a fault when it is
    /// written for the first time after it. A diff goes on following.
    FullTracked,
    /// what changed since the last snapshot of this machine, or since its restore; the memory file is sparse
    Diff,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetRate {
    pub device: RateDevice,
    pub limit: crate::config::RateLimit,
}

/// By its place in the config.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RateDevice {
    Disk(usize),
    NetReceive(usize),
    NetTransmit(usize),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "response", rename_all = "snake_case")]
pub enum Response {
    Status(Status),
    Killed,
    /// the request was carried out and has no other answer
    Done,
    Snapshot(SnapshotTaken),
    Event(Event),
    Error {
        message: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotTaken {
    pub state_bytes: u64,
    /// bytes of data in the memory file; its length is that of guest memory
    pub memory_data_bytes: u64,
    /// how long it took to write
    pub took_us: u64,
}

/// Something that a host wants to know at once. Each kind of each device is told at most once a second; `count` says how
/// often it was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub kind: EventKind,
    /// the device, as `disk0`, `net0`, `vsock`; or `bus`, `console`, `machine`
    pub device: String,
    /// since the machine began
    pub count: u64,
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// the guest broke a rule of a device or a bus
    GuestFault,
    /// a driver broke its queue: the device wants a reset
    DeviceNeedsReset,
    /// the guest's kernel says that it panicked
    GuestPanic,
    /// a limit of the host took effect: console, connections, rate
    Limited,
}

impl EventKind {
    pub const ALL: [Self; 4] = [Self::GuestFault, Self::DeviceNeedsReset, Self::GuestPanic, Self::Limited];

    /// As on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::GuestFault => "guest_fault",
            Self::DeviceNeedsReset => "device_needs_reset",
            Self::GuestPanic => "guest_panic",
            Self::Limited => "limited",
        }
    }
}

/// How often a kind of event was seen on a device since the machine began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventCount {
    pub kind: EventKind,
    pub device: String,
    pub count: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub state: MachineState,
    /// the VMM's version
    pub version: String,
    pub timing: StartTiming,
    pub memory: MemoryUse,
    pub counters: Counters,
    /// those that were seen
    #[serde(default)]
    pub events: Vec<EventCount>,
    #[serde(default)]
    pub confinement: Confinement,
}

/// What holds the VMM beside its jail.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// the version of Landlock that is in force; none where the host's kernel has it not or has it switched off
    pub landlock_version: Option<u32>,
    /// every thread is bound by its seccomp filter
    pub seccomp: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MachineState {
    Running,
    Paused,
    Ending,
}

/// Microseconds since the VMM process began (its first instruction in `main`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartTiming {
    pub kernel_loaded_us: u64,
    pub devices_ready_us: u64,
    /// just before the first KVM_RUN
    pub first_run_us: u64,
    /// processor time of the whole process by then, exec included
    #[serde(default)]
    pub first_run_cpu_us: u64,
}

/// Bytes, from `/proc/self/smaps` or an equal source.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryUse {
    /// resident pages of guest memory
    pub guest_resident_bytes: u64,
    /// private anonymous resident pages outside guest memory: what the VMM itself costs
    pub vmm_private_bytes: u64,
    /// file-backed resident pages: the binary
    pub vmm_file_bytes: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    pub exits_pio: u64,
    pub exits_mmio: u64,
    pub exits_other: u64,
    pub block_read_bytes: u64,
    pub block_write_bytes: u64,
    pub vsock_connections: u64,
    /// accesses or requests of the guest that broke a rule and were refused
    pub guest_errors: u64,
    /// serial output that came faster than the console takes it
    #[serde(default)]
    pub console_dropped_bytes: u64,
    /// frames without their virtio headers
    #[serde(default)]
    pub net_received_bytes: u64,
    #[serde(default)]
    pub net_transmitted_bytes: u64,
    /// frames that did not reach the guest: its buffers were too short, or it had not agreed to their form
    #[serde(default)]
    pub net_dropped_frames: u64,
    /// frames of the guest with another source address than its own; never sent
    #[serde(default)]
    pub net_spoofed_frames: u64,
    /// how often a request or a frame had to wait for its rate
    #[serde(default)]
    pub throttled: u64,
    /// what is in the balloon now
    #[serde(default)]
    pub balloon_bytes: u64,
    /// free pages that the guest has reported and the host has taken back, counted each time
    #[serde(default)]
    pub reported_bytes: u64,
    /// as the guest's balloon driver tells it, at most every few seconds; zero before it has
    #[serde(default)]
    pub guest_available_bytes: u64,
}

/// Why a VMM ended. Written to the exit file as one JSON object before the process exits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    pub reason: ExitReason,
    /// a sentence for a person; may be empty
    pub message: String,
    /// what the machine had cost at its end
    #[serde(default)]
    pub memory: MemoryUse,
    #[serde(default)]
    pub counters: Counters,
    /// those that were seen
    #[serde(default)]
    pub events: Vec<EventCount>,
}

impl ExitRecord {
    /// Of a machine that did not run, or does not know any more what it cost.
    pub fn without_cost(reason: ExitReason, message: impl Into<String>) -> Self {
        let (memory, counters) = Default::default();
        Self { reason, message: message.into(), memory, counters, events: Vec::new() }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// the guest asked for a reset (i8042, ACPI reset register, triple fault)
    GuestReset,
    /// the guest powered itself off (ACPI S5)
    GuestPowerOff,
    /// the guest's kernel panicked and said so
    GuestPanic,
    /// a [`Request::Kill`] or SIGTERM
    Killed,
    /// the config was refused
    BadConfig,
    /// the kernel file is neither a bzImage nor a PVH ELF, or does not fit
    BadKernel,
    /// the initramfs does not fit or cannot be read
    BadInitrd,
    /// a disk cannot be used
    BadDisk,
    /// a network device cannot be used
    BadNet,
    /// the snapshot is damaged, of another version or key, or does not fit this machine or config
    BadSnapshot,
    /// the page-fault handler does not answer, or left before all of guest memory was in place
    PageFaultHandler,
    /// KVM refused something
    Kvm,
    /// KVM stopped a vCPU for good (internal error, failed entry)
    VcpuFailed,
    /// a fault of the VMM
    Internal,
}
