//! Everything that the rest of Pinfold may know about the VMM and the jailer.
//!
//! A microVM is one process. The node agent starts the jailer with a [`JailConfig`], the jailer confines itself and
//! becomes the VMM, the VMM reads its [`MachineConfig`]. Every host resource (kernel, disks, sockets, `/dev/kvm`)
//! reaches the VMM as an **open file descriptor**: it opens no path, so its seccomp filter needs no `open`, and a
//! config holds no host path.
//!
//! After the start there are three channels, each of which survives a restart of the node agent:
//!
//! ```text
//!   control   a listening Unix socket, one JSON message per line          [`control`]
//!   console   a ring in a file, written by the VMM, read by anyone        [`console`]
//!   exit      a file that holds one JSON [`control::ExitRecord`] at the end
//! ```
#![forbid(unsafe_code)]

pub mod config;
pub mod console;
pub mod control;
pub mod jail;
pub mod page_fault;

pub use config::{
    CpuTemplate, Disk, FdNumber, MachineConfig, MachineConfigError, MemoryBacking, Net, PageFaultHandler,
    RateLimit, Restore, RestoreMemory, Vsock,
};
pub use jail::{JailConfig, JailConfigError, PassedFd};
