//! What a microVM is made of.

use serde::{Deserialize, Serialize};

/// A file descriptor that the VMM inherits, by its number in the VMM process.
pub type FdNumber = i32;

/// Upper bounds of a machine. A config outside them is refused before anything is allocated.
pub mod limits {
    /// virtual CPUs
    pub const MAX_VCPUS: u32 = 32;
    /// MiB of guest memory, least: Debian's cloud kernel and its initramfs need about 80
    pub const MIN_MEMORY_MIB: u64 = 96;
    /// MiB of guest memory, most
    pub const MAX_MEMORY_MIB: u64 = 256 * 1024;
    /// virtio-blk devices
    pub const MAX_DISKS: usize = 8;
    /// virtio-net devices
    pub const MAX_NETS: usize = 4;
    /// hexadecimal digits of a snapshot key: 256 bits
    pub const SNAPSHOT_KEY_DIGITS: usize = 64;
    /// bytes of kernel command line, the least that every x86 kernel takes (`COMMAND_LINE_SIZE` is 2048)
    pub const MAX_CMDLINE_BYTES: usize = 2000;
}

/// One microVM. JSON, unknown fields are refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// sandbox id; only for log lines
    pub id: String,
    pub vcpus: u32,
    pub memory_mib: u64,
    /// bzImage, or ELF with a PVH note. A machine has either this or [`Self::restore`].
    #[serde(default)]
    pub kernel: Option<FdNumber>,
    #[serde(default)]
    pub initrd: Option<FdNumber>,
    /// Go on where a snapshot was taken, instead of booting.
    #[serde(default)]
    pub restore: Option<Restore>,
    #[serde(default)]
    pub memory_backing: MemoryBacking,
    /// which processor features the guest sees
    #[serde(default)]
    pub cpu_template: CpuTemplate,
    /// Appended by the VMM: `virtio_mmio.device=` entries when `mmio_on_cmdline` is set.
    pub cmdline: String,
    /// Describe virtio-mmio devices on the kernel command line too, for kernels without ACPI. Such a kernel runs on one
    /// vCPU: processors are described by ACPI alone.
    #[serde(default)]
    pub mmio_on_cmdline: bool,
    /// In order: the first is `/dev/vda` in the guest.
    pub disks: Vec<Disk>,
    #[serde(default)]
    pub nets: Vec<Net>,
    pub vsock: Option<Vsock>,
    /// A balloon, with statistics and free page reporting. It begins empty.
    #[serde(default)]
    pub balloon: bool,
    /// open `/dev/kvm`
    pub kvm: FdNumber,
    /// listening Unix stream socket for [`crate::control`]
    pub control: FdNumber,
    /// regular file, read-write, for the [`crate::console`] ring
    pub console: FdNumber,
    /// regular file, write, for the [`crate::control::ExitRecord`]
    pub exit: FdNumber,
    /// Leave the seccomp filters out. For debugging on a developer's machine only.
    #[serde(default)]
    pub without_seccomp: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// up to 20 ASCII bytes, the guest reads it by VIRTIO_BLK_T_GET_ID (virtio 1.2, 5.2.6)
    pub serial: String,
    pub file: FdNumber,
    pub read_only: bool,
    #[serde(default)]
    pub rate: RateLimit,
}

/// A network device over a tap that the host has set up: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, one queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Net {
    pub tap: FdNumber,
    /// the guest's address, six bytes; not a group address
    pub mac: [u8; 6],
    /// from the guest's view
    #[serde(default)]
    pub receive_rate: RateLimit,
    #[serde(default)]
    pub transmit_rate: RateLimit,
}

/// Both limits hold; what has none is free.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    #[serde(default)]
    pub bytes: Option<TokenBucket>,
    /// requests of a disk, frames of a network
    #[serde(default)]
    pub operations: Option<TokenBucket>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenBucket {
    /// steady rate, at least 1
    pub per_second: u64,
    /// how much may go at once after a pause, at least 1
    pub burst: u64,
    /// on top of it, once
    #[serde(default)]
    pub first_burst: u64,
}

/// What guest memory is made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemoryBacking {
    /// private anonymous memory that asks for transparent huge pages
    #[default]
    Anonymous,
    /// a memfd, shared, so that another process may map it
    Memfd,
    /// hugetlbfs pages of 2 MiB, which the host must have set aside
    HugePages,
}

/// Which processor features a guest sees. A snapshot moves only between machines that offer all of its template.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CpuTemplate {
    /// all that the host and KVM have, but for nested virtualisation and performance counters
    #[default]
    Host,
    /// x86-64-v2 (System V ABI, micro-architecture levels): SSE4.2, POPCNT, CMPXCHG16B
    X8664V2,
    /// x86-64-v3: AVX2, BMI, FMA
    X8664V3,
}

/// A machine that was saved by [`crate::control::Request::Snapshot`]. Its devices must be given in the same order and of
/// the same kinds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restore {
    /// the state file, read-only
    pub state: FdNumber,
    pub memory: RestoreMemory,
    /// Pages to have in place before the guest goes on, written by [`crate::control::Request::WorkingSet`].
    #[serde(default)]
    pub working_set: Option<FdNumber>,
    /// the key that the snapshot was authenticated with, 64 hexadecimal digits
    pub key: String,
    /// Wait for [`crate::control::Request::Resume`] before the first instruction.
    #[serde(default)]
    pub paused: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestoreMemory {
    /// The memory file, mapped privately: a page costs something when it is touched.
    File(FdNumber),
    /// Somebody else has it, and gives page by page what is touched.
    Handler(PageFaultHandler),
}

/// See [`crate::page_fault`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PageFaultHandler {
    /// a Unix stream socket that is connected to it
    pub socket: FdNumber,
    /// Open `/dev/userfaultfd`: the faults of a guest come from the kernel, and without privileges no process may handle
    /// those by itself.
    pub userfaultfd: FdNumber,
}

/// The VMM's own vsock device over Unix sockets.
///
/// Host to guest: connect to `listener`'s socket, send `CONNECT <port>\n`, receive `OK <host port>\n`, then bytes.
/// Guest to host: a guest connection to (CID 2, port P) makes the VMM connect to `<guest_connect_prefix>_<P>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vsock {
    /// the guest's context id, 3 or more
    pub cid: u32,
    /// listening Unix stream socket
    pub listener: FdNumber,
    /// a path as the jailed VMM sees it
    pub guest_connect_prefix: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MachineConfigError {
    #[error("{field} is {value}, outside {min} to {max}")]
    OutOfRange { field: &'static str, value: u64, min: u64, max: u64 },
    #[error("{field} is {bytes} bytes long, the limit is {max}")]
    TooLong { field: &'static str, bytes: usize, max: usize },
    #[error("{field} holds a byte outside printable ASCII")]
    NotPrintable { field: &'static str },
    #[error("a machine boots a kernel or is restored: exactly one of `kernel` and `restore`")]
    KernelOrRestore,
    #[error("mac of network {index} is {first:#04x}:..., a group address")]
    GroupAddress { index: usize, first: u8 },
    #[error("the snapshot key is not {0} hexadecimal digits", limits::SNAPSHOT_KEY_DIGITS)]
    SnapshotKey,
    #[error(
        "restore.working_set is given and memory comes from a page-fault handler, which puts pages in place itself"
    )]
    WorkingSetOfHandler,
}

impl MachineConfig {
    /// Checks every bound in [`limits`].
    pub fn validate(&self) -> Result<(), MachineConfigError> {
        let in_range = |field, value, min, max| {
            if (min..=max).contains(&value) {
                Ok(())
            } else {
                Err(MachineConfigError::OutOfRange { field, value, min, max })
            }
        };
        in_range("vcpus", u64::from(self.vcpus), 1, u64::from(limits::MAX_VCPUS))?;
        in_range("memory_mib", self.memory_mib, limits::MIN_MEMORY_MIB, limits::MAX_MEMORY_MIB)?;
        in_range("disks", self.disks.len() as u64, 0, limits::MAX_DISKS as u64)?;
        printable("cmdline", &self.cmdline, limits::MAX_CMDLINE_BYTES)?;
        for disk in &self.disks {
            printable("disk serial", &disk.serial, 20)?;
            disk.rate.validate()?;
        }
        in_range("nets", self.nets.len() as u64, 0, limits::MAX_NETS as u64)?;
        for (index, net) in self.nets.iter().enumerate() {
            if net.mac[0] & 1 == 1 {
                return Err(MachineConfigError::GroupAddress { index, first: net.mac[0] });
            }
            net.receive_rate.validate()?;
            net.transmit_rate.validate()?;
        }
        if self.kernel.is_some() == self.restore.is_some() {
            return Err(MachineConfigError::KernelOrRestore);
        }
        if let Some(restore) = &self.restore {
            let digits = restore.key.bytes().all(|byte| byte.is_ascii_hexdigit());
            if !digits || restore.key.len() != limits::SNAPSHOT_KEY_DIGITS {
                return Err(MachineConfigError::SnapshotKey);
            }
            if restore.working_set.is_some() && matches!(restore.memory, RestoreMemory::Handler(_)) {
                return Err(MachineConfigError::WorkingSetOfHandler);
            }
        }
        if let Some(vsock) = &self.vsock {
            in_range("vsock cid", u64::from(vsock.cid), 3, u64::from(u32::MAX - 1))?;
            // sun_path holds 108 bytes; "_4294967295" is the longest suffix
            printable("guest_connect_prefix", &vsock.guest_connect_prefix, 96)?;
        }
        Ok(())
    }
}

impl RateLimit {
    /// Every rate and burst is at least 1.
    pub fn validate(&self) -> Result<(), MachineConfigError> {
        for bucket in [self.bytes, self.operations].into_iter().flatten() {
            for (field, value) in [("rate per_second", bucket.per_second), ("rate burst", bucket.burst)] {
                if value == 0 {
                    return Err(MachineConfigError::OutOfRange { field, value, min: 1, max: u64::MAX });
                }
            }
        }
        Ok(())
    }
}

fn printable(field: &'static str, text: &str, max: usize) -> Result<(), MachineConfigError> {
    if text.len() > max {
        return Err(MachineConfigError::TooLong { field, bytes: text.len(), max });
    }
    if text.bytes().all(|b| (0x20..0x7f).contains(&b)) {
        Ok(())
    } else {
        Err(MachineConfigError::NotPrintable { field })
    }
}
