//! The way down: undoes what was taken, in reverse, and looks whether it is gone.
//!
//! Every act succeeds when there is nothing to do, so a teardown may be repeated: after a failure here, or by the next
//! agent. What cannot be undone within the tries stays in the list, keeps its uid out of use, and is named.

use super::bringup::{Context, Taken};
use crate::host::{HostError, blocking};
use crate::machine::Machine;
use std::sync::Arc;
use std::time::Duration;

const TRIES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// From SIGKILL to the end of the process; guest memory has to be freed in between.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Undoes everything in `context.taken`. Returns what is left behind, as a sentence.
pub async fn run(context: &Context, machine: Option<&Arc<dyn Machine>>) -> Result<(), String> {
    all_but(context, machine, |_| false).await
}

/// Undoes all that a paused sandbox gives back: what it keeps is its disk, its uid, and its saved machine.
pub async fn to_the_disk(context: &Context, machine: Option<&Arc<dyn Machine>>) -> Result<(), String> {
    all_but(context, machine, |taken| matches!(taken, Taken::Uid(_) | Taken::Disk)).await
}

async fn all_but(
    context: &Context,
    machine: Option<&Arc<dyn Machine>>,
    stays: fn(Taken) -> bool,
) -> Result<(), String> {
    while let Some(taken) = context.taken.last().filter(|taken| !stays(*taken)) {
        let mut pause = FIRST_PAUSE;
        let mut tries = 0;
        while let Err(error) = undo(context, machine, taken).await {
            tries += 1;
            let id = context.ledger.assignment().id;
            tracing::warn!(sandbox = %id, ?taken, tries, error = error.sentence(), "an undo failed");
            if tries == TRIES {
                return Err(format!("left behind: {taken:?}: {}", error.sentence()));
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        context.taken.pop();
    }
    Ok(())
}

async fn undo(context: &Context, machine: Option<&Arc<dyn Machine>>, taken: Taken) -> Result<(), HostError> {
    let Context { host, ledger, .. } = context;
    let id = ledger.assignment().id;
    let paths = ledger.paths();
    match taken {
        Taken::Machine => {
            // By cgroup and not by pid: also what a bring-up that was dropped may have started.
            host.cgroups.kill(id)?;
            if let Some(machine) = machine {
                let timeout = std::io::Error::from(std::io::ErrorKind::TimedOut);
                tokio::time::timeout(KILL_TIMEOUT, machine.exited())
                    .await
                    .map_err(|_| HostError::new("see the VMM end after it was killed", timeout))?;
            }
            Ok(())
        }
        Taken::RunFiles => paths.remove_run_files(),
        Taken::Cgroup => {
            host.cgroups.kill(id)?;
            host.cgroups.remove(id).await?;
            ledger.unmap();
            Ok(())
        }
        Taken::Disk => {
            let (disks, paths) = (Arc::clone(&host.disks), paths.clone());
            blocking(move || {
                disks.remove(&paths.disk())?;
                paths.remove_saved()
            })
            .await
        }
        Taken::Uid(uid) => {
            host.uids.give_back(uid);
            Ok(())
        }
    }
}
