//! The scheduler of a local fleet.

use super::artifacts;
use super::file_watch::DirectoryWatch;
use super::process::spawn_detached;
use super::state::SchedulerState;
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::time::Duration;

/// Its store is empty: a start takes milliseconds, a busy machine's some more.
const START_LIMIT: Duration = Duration::from_secs(30);
/// The scheduler writes its address into this file.
const READY_FILE: &str = "scheduler.address";

/// Starts `pinfold-scheduler` on a free port of the loopback, its data and log in `directory`.
pub fn launch(directory: &Path, placement: &str) -> Result<SchedulerState> {
    let data = directory.join("scheduler");
    std::fs::create_dir(&data).with_context(|| format!("cannot make {}", data.display()))?;
    launch_on(directory, placement, "127.0.0.1:0")
}

/// Starts one that has ended again, on the same data and at the same address.
pub async fn relaunch(directory: &Path, before: &SchedulerState, placement: &str) -> Result<SchedulerState> {
    let address = before.endpoint.trim_start_matches("http://");
    // of the one that was killed
    let _ = std::fs::remove_file(directory.join(READY_FILE));
    let mut scheduler = launch_on(directory, placement, address)?;
    wait_ready(directory, &mut scheduler).await?;
    Ok(scheduler)
}

fn launch_on(directory: &Path, placement: &str, listen: &str) -> Result<SchedulerState> {
    let program = artifacts::program("pinfold-scheduler")?;
    let log = directory.join("scheduler.log");
    let text = |path: &Path| path.display().to_string();
    let arguments = [
        "--listen".to_owned(),
        listen.to_owned(),
        "--data-dir".to_owned(),
        text(&directory.join("scheduler")),
        "--ready-file".to_owned(),
        text(&directory.join(READY_FILE)),
        "--placement".to_owned(),
        placement.to_owned(),
    ];
    let process = spawn_detached(&program, &arguments, directory, &log)?;
    Ok(SchedulerState { endpoint: String::new(), process, log })
}

/// Waits until it answers calls; fills in its address.
pub async fn wait_ready(directory: &Path, scheduler: &mut SchedulerState) -> Result<()> {
    let address = directory.join(READY_FILE);
    let mut watch = DirectoryWatch::new(directory)?;
    let ready = async {
        loop {
            match std::fs::read_to_string(&address) {
                Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_owned()),
                _ if !scheduler.process.is_alive() => {
                    let log = std::fs::read_to_string(&scheduler.log).unwrap_or_default();
                    let from = log.len().saturating_sub(2000);
                    let end = log.get(from..).unwrap_or(&log);
                    bail!("the scheduler ended at its start:\n{}", end.trim_end());
                }
                _ => {}
            }
            // it writes its log, then the address, into this directory; its end leaves no trace here
            let _ = tokio::time::timeout(Duration::from_millis(500), watch.changed()).await;
        }
    };
    let address = tokio::time::timeout(START_LIMIT, ready).await;
    let address = address.with_context(|| format!("no answer within {} s", START_LIMIT.as_secs()))??;
    scheduler.endpoint = format!("http://{}", address.trim_start_matches("http://"));
    Ok(())
}
