//! QEMU's `microvm` machine with ACPI, virtio over MMIO. Its own firmware loads the kernel: with qboot, or without PIT, PIC and
//! RTC, it was no faster here.

use super::{Console, Machine, Running, spawn};
use crate::net;
use anyhow::{Context, Result};
use command_fds::{CommandFdExt, FdMapping};
use std::fs::File;
use std::os::fd::RawFd;
use std::process::{Command, Stdio};

const MACHINE: &str = "microvm,acpi=on,pcie=off,isa-serial=on";
/// The tap's descriptor in QEMU.
const TAP_FD: RawFd = 3;

pub fn start(machine: &Machine) -> Result<Running> {
    let directory = &machine.directory;
    let console = directory.join("console");
    File::create(&console).context("making the console file")?;
    let mut command = Command::new(&machine.program);
    command.args(["-M", MACHINE, "-accel", "kvm", "-cpu", "host", "-nodefaults", "-no-user-config"]);
    command.args(["-display", "none", "-no-reboot", "-smp", &machine.vcpus.to_string()]);
    command.args(["-m", &machine.memory_mib.to_string()]);
    command.args(["-L", "/usr/share/qemu", "-L", "/usr/share/seabios"]);
    command.arg("-kernel").arg(&machine.kernel);
    if let Some(initrd) = &machine.initrd {
        command.arg("-initrd").arg(initrd);
    }
    command.args(["-append", &machine.cmdline]);
    for (index, (path, read_only)) in machine.disks().iter().enumerate() {
        let only = if *read_only { "on" } else { "off" };
        let file = path.display();
        command.args(["-drive", &format!("id=d{index},file={file},format=raw,if=none,readonly={only}")]);
        command.args(["-device", &format!("virtio-blk-device,drive=d{index},serial=disk{index}")]);
    }
    command.args(["-device", "virtio-rng-device"]);
    command.args(["-device", "virtio-serial-device"]);
    let port = directory.join("port");
    command.args(["-chardev", &format!("socket,id=port,path={},server=on,wait=off", port.display())]);
    command.args(["-device", "virtserialport,chardev=port,name=bench"]);
    command.args(["-serial", &format!("file:{}", console.display())]);
    if machine.tap {
        command.args(["-netdev", &format!("tap,id=net,fd={TAP_FD},vhost=off")]);
        command.args(["-device", &format!("virtio-net-device,netdev=net,mac={}", super::mac_text())]);
        let tap = FdMapping { parent_fd: net::tap()?.into(), child_fd: TAP_FD };
        command.fd_mappings(vec![tap]).context("one descriptor has one number")?;
    }
    command.stdin(Stdio::null());
    let (child, began_us) = spawn(&mut command)?;
    Ok(Running {
        child,
        console: Console::plain(&console)?,
        control: None,
        hello: None,
        bench_listener: None,
        bench_socket: Some(port),
        began_us,
    })
}
