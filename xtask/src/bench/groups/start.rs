//! Start cost and exits with the stock kernel, in counted instructions.

use super::{HELLO_INITRD, IMAGES, QEMU, VMM, cmdline};
use crate::bench::lab::{Lab, at};
use crate::bench::table::{Goal, Row, median};
use crate::workspace::Workspace;
use anyhow::Result;
use serde_json::Value;

/// Under `-icount` a look at the console costs the guest its only processor.
const POLL_US: &str = "20000";

pub fn start(lab: &mut Lab<'_>, workspace: &Workspace) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let bz = boot(lab, "bzImage", "vmlinuz", &[])?;
    rows.push(
        first_run("exec to first KVM_RUN, stock bzImage, counted", &bz)?
            .beside("recorded: Firecracker 143, Cloud Hypervisor 151, QEMU microvm 282"),
    );
    let elf = workspace.images().join("kernels/stock/vmlinux");
    if elf.is_file() {
        let sample = boot(lab, "mapped ELF", "vmlinux", &[])?;
        rows.push(
            first_run("exec to first KVM_RUN, its ELF, mapped, counted", &sample)?
                .beside("recorded, copied: Firecracker 362, Cloud Hypervisor 370"),
        );
    }
    Ok(rows)
}

pub fn exits(lab: &mut Lab<'_>) -> Result<Vec<Row>> {
    let sample = boot(lab, "bzImage", "vmlinuz", &[])?;
    // for whoever asks what the exits are for: in the raw samples
    boot(lab, "bzImage, profiled", "vmlinuz", &["--profile"])?;
    let row = |what: &str, limit: f64, path: &str| -> Result<Row> {
        Ok(Row::at_most(what, limit, at(&sample, path)?, ""))
    };
    Ok(vec![
        row("exits to the first line, stock bzImage", 3000.0, "exits.total")?
            .beside("recorded: Firecracker 3,331, Cloud Hypervisor 3,861, QEMU microvm 50,337"),
        row("... of which port I/O", 200.0, "exits.io")?
            .beside("recorded: Firecracker 279, Cloud Hypervisor 734, QEMU microvm 46,891"),
        Row::shown("... of which MMIO", at(&sample, "exits.mmio")?, ""),
        Row::shown("... of which nested page faults", at(&sample, "exits.page_faults")?, ""),
        Row::shown("... of which the host's interrupts", at(&sample, "exits.interrupt")?, ""),
    ])
}

fn first_run(what: &str, sample: &Value) -> Result<Row> {
    Ok(Row::at_most(what, 110.0, at(sample, "to_first_run_us")? / 1000.0, "ms"))
}

fn boot(lab: &mut Lab<'_>, label: &str, kernel: &str, more: &[&str]) -> Result<Value> {
    let kernel = format!("{IMAGES}/kernels/stock/{kernel}");
    let arguments = [
        "boot",
        "--program",
        VMM,
        "--kernel",
        &kernel,
        "--initrd",
        HELLO_INITRD,
        "--cmdline",
        cmdline(),
        "--poll-us",
        POLL_US,
    ];
    lab.counted(label, &[&arguments, more].concat())
}

/// Ours and QEMU's microvm machine in turns, the same kernel and initramfs.
pub fn realtime(lab: &mut Lab<'_>, runs: u32) -> Result<Vec<Row>> {
    let kernel = format!("{IMAGES}/kernels/stock/vmlinuz");
    let common = ["--kernel", &kernel, "--initrd", HELLO_INITRD, "--cmdline", cmdline()];
    let ours = [&["boot", "--program", VMM][..], &common].concat();
    let qemu = [&["boot", "--vmm", "qemu", "--program", QEMU][..], &common].concat();
    let (mut ours_ms, mut qemu_ms) = (Vec::new(), Vec::new());
    let mut last = Value::Null;
    for _ in 0..runs {
        ours_ms.push(at(&lab.real("ours", &ours)?, "to_mark_us")? / 1000.0);
        last = lab.real("QEMU microvm", &qemu)?;
        qemu_ms.push(at(&last, "to_mark_us")? / 1000.0);
    }
    let what = "exec to first line, stock bzImage";
    Ok(vec![
        Row::ratio(what, Goal::RatioAtMost(0.4), median(&ours_ms), "ms", median(&qemu_ms))
            .beside("QEMU microvm with ACPI"),
        Row::shown("exits of QEMU microvm to the first line", at(&last, "exits.total")?, ""),
    ])
}
