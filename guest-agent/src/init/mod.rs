//! From the kernel's first instruction in user space to a guest that serves.
//!
//! ```text
//! [mounts] /dev /proc /sys ─ [modules] ─ [root] vda (read-only) + vdb (own disk) = overlay ─ switch
//!   ─ [mounts] /run /dev/pts /dev/shm ─ [machine] cgroups, loopback ─ serve ─ hello ─ ... ─ power off
//! ```
//!
//! Each step runs once, in this order. A step that cannot be done ends the guest: one `fatal:` line on the console, then
//! reset. Only modules and the loopback may fail: a kernel may have them built in, or not need them.

mod cmdline;
mod devices;
mod hello;
mod image;
mod machine;
mod modules;
mod mounts;
mod root;

use crate::agent::{Agent, Role, limits};
use crate::console::{self, Fatal};
use crate::{server, shutdown, tasks};
use pinfold_proto::limits::GUEST_PORT;
use std::os::fd::OwnedFd;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::StreamExt;
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener};

/// Never returns: the guest ends with it.
pub fn main() -> ! {
    if std::process::id() != 1 {
        eprintln!("pinfold-guest-agent is the init of a guest; it is of no use as an ordinary program");
        std::process::exit(2);
    }
    // a panic of a task ends that task alone; one out here ends the guest
    let ended =
        std::panic::catch_unwind(run).unwrap_or_else(|_| Err(Fatal::Internal("init panicked".to_owned())));
    match ended {
        Ok(disk) => {
            mounts::seal(&disk);
            shutdown::power_off()
        }
        Err(fatal) => {
            console::fatal(&fatal);
            shutdown::reset()
        }
    }
}

/// The sandbox's disk, when the guest was asked to stop.
fn run() -> Result<OwnedFd, Fatal> {
    mounts::kernel_file_systems()?;
    console::attach();
    modules::load_all();
    console::note("modules are loaded");
    let disk = root::assemble_and_switch()?;
    mounts::in_the_root()?;
    console::note("the root is mounted");
    let workload = machine::set_up_cgroups()?;
    machine::set_up_the_rest();
    let machine_id = mounts::machine_id();
    if let Some(hostname) = cmdline::value("pinfold.hostname")
        && let Err(error) = nix::unistd::sethostname(hostname)
    {
        console::say(format_args!("cannot set the hostname: {error}"));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Fatal::internal("cannot start the runtime"))?;
    runtime.block_on(async {
        let agent = Agent::new(Role::Init, workload, machine::memory_bytes(), machine_id)
            .map_err(Fatal::internal("cannot start the reaper and the workers"))?;
        let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, GUEST_PORT))
            .map_err(Fatal::internal("cannot listen on vsock"))?;
        // a kernel with vsock loopback would let any user of the guest ask the agent to be root
        let from_host = listener.incoming().filter(|accepted| {
            accepted
                .as_ref()
                .is_ok_and(|stream| stream.peer_addr().is_ok_and(|peer| peer.cid() == VMADDR_CID_HOST))
        });
        console::note("serving");
        let mut power_button =
            signal(SignalKind::terminate()).map_err(Fatal::internal("cannot listen for the power button"))?;
        let pressed = agent.clone();
        tasks::spawn("power button", async move {
            // the kernel's ACPI power button is a SIGTERM to PID 1 (`ACPI_TINY_POWER_BUTTON_SIGNAL`)
            if power_button.recv().await.is_some()
                && let Err(cause) = shutdown::stop_workload(pressed, limits::POWER_BUTTON_GRACE).await
            {
                console::say(format_args!("no clean stop: {}", cause.message));
            }
        });
        tasks::spawn("hello", hello::say());
        server::serve(agent, from_host).await.map_err(Fatal::internal("cannot serve"))?;
        // the last answer is in the kernel's hands; the host must have it before the machine ends
        tokio::time::sleep(limits::LINGER).await;
        Ok(())
    })?;
    Ok(disk)
}
