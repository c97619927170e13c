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
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "response", rename_all = "snake_case")]
pub enum Response {
    Status(Status),
    Killed,
    Error { message: String },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub state: MachineState,
    /// the VMM's version
    pub version: String,
    pub timing: StartTiming,
    pub memory: MemoryUse,
    pub counters: Counters,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MachineState {
    Running,
    Ending,
}

/// Microseconds since the VMM process began (its first instruction in `main`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartTiming {
    pub kernel_loaded_us: u64,
    pub devices_ready_us: u64,
    /// just before the first KVM_RUN
    pub first_run_us: u64,
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
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// the guest asked for a reset (i8042, ACPI reset register, triple fault)
    GuestReset,
    /// the guest powered itself off (ACPI S5)
    GuestPowerOff,
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
    /// KVM refused something
    Kvm,
    /// KVM stopped a vCPU for good (internal error, failed entry)
    VcpuFailed,
    /// a fault of the VMM
    Internal,
}
