//! Resident memory. Guest memory is looked at with transparent huge pages off in the node, so that what was touched is what
//! is seen.

use super::Sandbox;
use crate::bench::lab::{Lab, at};
use crate::bench::table::Row;
use anyhow::Result;

const MIB: f64 = 1_048_576.0;

/// One processor; two disks, vsock and the entropy device.
pub fn run(lab: &mut Lab<'_>) -> Result<Vec<Row>> {
    let sandbox = Sandbox::with("pinfold/vmlinux");
    let arguments = [sandbox.arguments(), vec!["--huge-pages", "never", "--idle-ms", "3000"]].concat();
    let sample = lab.real("our kernel, idle", &arguments)?;
    let arguments = [sandbox.arguments(), vec!["--huge-pages", "always", "--idle-ms", "3000"]].concat();
    let huge = lab.real("our kernel, idle, huge pages", &arguments)?;
    let row = |what: &str, limit: f64, path: &str| -> Result<Row> {
        Ok(Row::at_most(what, limit, at(&sample, path)? / MIB, "MiB"))
    };
    let shared = at(&sample, "memory.guest_shared")? / MIB;
    Ok(vec![
        row("private memory of the VMM, idle, 1 vCPU, 4 devices", 0.4, "idle.memory.vmm_private")?
            .beside("recorded: Firecracker 0.3, Cloud Hypervisor 0.7, QEMU microvm 25"),
        Row::at_most(
            "... where the node gives transparent huge pages to everything",
            0.4,
            at(&huge, "idle.memory.vmm_private")? / MIB,
            "MiB",
        )
        .beside("recorded: Firecracker 0.3, or 2.3 when its heap gets one"),
        row("file-backed memory of the VMM", 3.0, "idle.memory.vmm_file")?
            .beside("recorded: Firecracker 3.7, Cloud Hypervisor 5.9, QEMU microvm 23"),
        row("guest memory touched by a cold boot to agent ready, our kernel", 45.0, "memory.guest_private")?
            .beside(format!("and {shared:.1} MiB of the kernel's file; recorded to the first line, stock kernel: Firecracker 113 (bzImage), 78 (ELF)")),
        Row::shown("guest memory after some seconds idle", at(&sample, "idle.memory.guest_private")? / MIB, "MiB"),
        Row::shown("CPU of the idle VMM", at(&sample, "idle.activity.cpu_ns")? / at(&sample, "idle.span_us")? / 10.0, "%"),
        Row::shown(
            "wake-ups of the idle VMM's threads",
            at(&sample, "idle.activity.voluntary_switches")? / at(&sample, "idle.span_us")? * 1e6,
            "/s",
        ),
        Row::shown("pause of an idle machine", at(&sample, "pauses.pause_us")? / 1000.0, "ms"),
        Row::shown("resume of it", at(&sample, "pauses.resume_us")? / 1000.0, "ms"),
        Row::shown("exits of the idle guest", at(&sample, "idle.exits.total")? / at(&sample, "idle.span_us")? * 1e6, "/s"),
    ])
}
