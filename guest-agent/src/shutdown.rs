//! The clean stop.
//!
//! ```text
//! Shutdown call: no new calls ─ SIGTERM ─ grace ─ SIGKILL ─ sync ─ answer      then: disk read-only ─ power off
//! ```

use crate::agent::{Agent, Phase, Role, limits};
use crate::console;
use nix::sys::reboot::{RebootMode, reboot};
use pinfold_domain::{Cause, Reason};
use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

const POWER_OFF_PATIENCE: Duration = Duration::from_secs(1);

/// Ends the workload and brings its files to the disk. `grace` is between SIGTERM and SIGKILL.
pub async fn stop_workload(agent: Arc<Agent>, grace: Duration) -> Result<(), Cause> {
    agent.enter(Phase::Stopping);
    // a workload that stands still could not heed the SIGTERM; where it does not, there is nothing to undo
    drop(agent.workload.thaw());
    agent.workload.terminate(&agent.reaper);
    if !emptied_within(&agent, grace.min(limits::SHUTDOWN_GRACE)).await {
        let killed = agent.workload.kill(&agent.reaper);
        killed.map_err(|error| Cause::new(Reason::Internal, format!("cannot end the workload: {error}")))?;
        if !emptied_within(&agent, limits::KILL).await {
            // a process that the kernel holds: the power-off ends it
            console::say("a process outlived SIGKILL");
        }
    }
    if agent.role == Role::Init {
        agent.workers.run(nix::unistd::sync).await?;
    }
    agent.enter(Phase::Off);
    Ok(())
}

/// The root of every process tree is the agent's child, or becomes it, so the last end is one that the reaper sees.
async fn emptied_within(agent: &Agent, time: Duration) -> bool {
    let mut reaped = agent.reaper.subscribe();
    let emptied = async {
        while !agent.workload.is_empty(&agent.reaper) {
            if reaped.changed().await.is_err() {
                return;
            }
        }
    };
    tokio::time::timeout(time, emptied).await.is_ok()
}

/// Ends the machine: by ACPI power-off where the firmware has it, else by reset, which every VMM of Pinfold takes as an end
/// too. A kernel that is asked for a power-off that it cannot do stops all processors for ever, so it is asked only where it
/// can.
pub fn power_off() -> ! {
    if has_soft_off() {
        // where the VMM does not heed it, the call does not come back to its thread, and the reset follows
        let asked = thread::Builder::new().spawn(|| reboot(RebootMode::RB_POWER_OFF));
        if asked.is_ok() {
            thread::sleep(POWER_OFF_PATIENCE);
        }
    }
    reset()
}

/// Whether the firmware describes the soft-off state: ACPI specification 6.5, section 7.4.2.6 (`_S5_`).
fn has_soft_off() -> bool {
    let name = b"_S5_";
    fs::read("/sys/firmware/acpi/tables/DSDT")
        .is_ok_and(|table| table.windows(name.len()).any(|bytes| bytes == name))
}

/// Ends the machine at once.
pub fn reset() -> ! {
    let Err(error) = reboot(RebootMode::RB_AUTOBOOT);
    console::say(format_args!("cannot reset: {error}"));
    // the end of PID 1 is a kernel panic, which `panic=` on the kernel's command line turns into a reset
    std::process::exit(1)
}
