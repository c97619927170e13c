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
    /// bzImage, or ELF with a PVH note; read once
    pub kernel: FdNumber,
    pub initrd: Option<FdNumber>,
    /// Appended by the VMM: `virtio_mmio.device=` entries when `mmio_on_cmdline` is set.
    pub cmdline: String,
    /// Describe virtio-mmio devices on the kernel command line too, for kernels without ACPI. Such a kernel runs on one
    /// vCPU: processors are described by ACPI alone.
    #[serde(default)]
    pub mmio_on_cmdline: bool,
    /// In order: the first is `/dev/vda` in the guest.
    pub disks: Vec<Disk>,
    pub vsock: Option<Vsock>,
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
        }
        if let Some(vsock) = &self.vsock {
            in_range("vsock cid", u64::from(vsock.cid), 3, u64::from(u32::MAX - 1))?;
            // sun_path holds 108 bytes; "_4294967295" is the longest suffix
            printable("guest_connect_prefix", &vsock.guest_connect_prefix, 96)?;
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
