//! What is measured: one group for each kind of question.

mod agent;
mod host;
mod io;
mod memory;
mod restore;
mod start;

use super::lab::Lab;
use super::table::Row;
use crate::images;
use crate::workspace::Workspace;
use anyhow::Result;
use clap::ValueEnum;

/// In the node.
const IMAGES: &str = "/var/lib/pinfold/images";
const VMM: &str = "/bench/bin/pinfold-vmm";
const QEMU: &str = "/bench/bin/qemu-system-x86_64";
/// initramfs images with the benchmark's program as init: one that says a line, one that serves
const HELLO_INITRD: &str = "/bench/hello.cpio";
const SERVE_INITRD: &str = "/bench/serve.cpio";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Group {
    /// exec to the first KVM_RUN, in instructions
    Start,
    /// exits to the guest's first line
    Exits,
    /// what the VMM and a cold boot hold of the node's memory
    Memory,
    /// exec to the first line, ours and QEMU's microvm in turns
    Realtime,
    /// exec to the guest agent's hello, our kernel and the stock one in turns
    Agent,
    /// the VMM's own processor time, on this machine itself
    Host,
    /// a saved sandbox taken up again, and clones of it
    Restore,
    /// block devices, ours and QEMU's in turns
    Block,
    /// vsock and QEMU's virtio serial port in turns
    Channel,
    /// network devices, ours and QEMU's in turns
    Net,
}

impl Group {
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Exits => "exits",
            Self::Memory => "memory",
            Self::Realtime => "realtime",
            Self::Agent => "agent",
            Self::Host => "host",
            Self::Restore => "restore",
            Self::Block => "block",
            Self::Channel => "channel",
            Self::Net => "net",
        }
    }

    pub fn why(self) -> &'static str {
        match self {
            Self::Start => {
                "instructions of the VMM before the guest's first one; a node that counts them, one microVM each"
            }
            Self::Exits => "how often the guest leaves for the host until its first line",
            Self::Memory => "resident memory of an idle VMM, and guest memory that a cold boot touches",
            Self::Realtime => {
                "exec to the guest's first line beside QEMU's microvm machine, by the wall's clock"
            }
            Self::Agent => {
                "exec to the guest agent's hello, our kernel beside the stock one, by the wall's clock"
            }
            Self::Host => {
                "the VMM's own processor time before the guest's first instruction, on this machine itself"
            }
            Self::Restore => {
                "a saved sandbox taken up again beside a cold boot, by size, and 20 clones of it"
            }
            Self::Block => "a raw disk in the node's memory, by loops in the guest, beside QEMU's virtio-blk",
            Self::Channel => "round trips and bulk between node and guest: vsock beside QEMU's virtio-serial",
            Self::Net => "TCP between node and guest over a tap, beside QEMU's virtio-net",
        }
    }

    pub fn run(self, lab: &mut Lab<'_>, workspace: &Workspace, runs: u32) -> Result<Vec<Row>> {
        match self {
            Self::Start => start::start(lab, workspace),
            Self::Exits => start::exits(lab),
            Self::Memory => memory::run(lab),
            Self::Realtime => start::realtime(lab, runs),
            Self::Agent => agent::run(lab, runs),
            Self::Host => host::run(lab, workspace),
            Self::Restore => restore::run(lab, runs),
            Self::Block => io::block(lab, runs),
            Self::Channel => io::channel(lab, runs),
            Self::Net => io::net(lab, runs),
        }
    }
}

/// The command line that every kernel of ours gets (`kernel.json`).
fn cmdline() -> &'static str {
    images::guest::CMDLINE
}

/// What a sandbox boots: the guest agent as init, the root image, a disk of its own.
struct Sandbox {
    kernel: String,
    initrd: String,
    root: String,
}

impl Sandbox {
    /// `kernel`: `stock/vmlinuz` or `pinfold/vmlinux`
    fn with(kernel: &str) -> Self {
        let name = kernel.split('/').next().unwrap_or(kernel);
        Self {
            kernel: format!("{IMAGES}/kernels/{kernel}"),
            initrd: format!("{IMAGES}/kernels/{name}/initrd.cpio"),
            root: format!("{IMAGES}/base/rootfs.erofs:ro"),
        }
    }

    fn arguments(&self) -> Vec<&str> {
        vec![
            "boot",
            "--program",
            VMM,
            "--kernel",
            &self.kernel,
            "--initrd",
            &self.initrd,
            "--cmdline",
            cmdline(),
            "--disk",
            &self.root,
            "--scratch-mib",
            "1024",
            "--agent",
        ]
    }
}
