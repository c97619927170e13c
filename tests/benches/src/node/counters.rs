//! KVM's counters in debugfs (`Documentation/virt/kvm/api.rst` of Linux, 4.132; the names are those of
//! `arch/x86/kvm/x86.c`). They are sums over all virtual machines that live, so one lives at a time.

use anyhow::{Context, Result};
use serde::Serialize;
use std::fs;
use std::path::Path;

const ROOT: &str = "/sys/kernel/debug/kvm";

#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Exits {
    pub total: u64,
    /// port I/O
    pub io: u64,
    /// accesses to memory that is none, served in user space
    pub mmio: u64,
    pub halt: u64,
    /// the host's own interrupts
    pub interrupt: u64,
    /// nested page faults that gave a page
    pub page_faults: u64,
}

/// Needs debugfs.
pub fn read() -> Result<Exits> {
    Ok(Exits {
        total: one("exits")?,
        io: one("io_exits")?,
        mmio: one("mmio_exits")?,
        halt: one("halt_exits")?,
        interrupt: one("irq_exits")?,
        page_faults: one("pf_taken")?,
    })
}

fn one(name: &str) -> Result<u64> {
    let path = Path::new(ROOT).join(name);
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    text.trim().parse().with_context(|| format!("{} holds {text:?}", path.display()))
}
