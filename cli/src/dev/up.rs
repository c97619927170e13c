//! `dev up`.

use super::artifacts::NodeFiles;
use super::fleet::{self, Fleet, FleetOptions};
use super::preflight::{self, Verdict};
use super::state::{self, State};
use super::virtual_node::{Acceleration, StartLimits};
use super::{host_node, status};
use crate::args::{DevUp, Format};
use crate::failure::{Interrupted, advised};
use crate::progress::Progress;
use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

pub async fn run(options: DevUp, format: Format) -> Result<i32> {
    let directory = state::directory()?;
    let lock = state::lock(&directory)?;
    let before = State::load_from(&directory)?.unwrap_or_default();
    if before.processes().any(|(_, process)| process.is_alive()) {
        return Err(advised(
            format!("a dev fleet runs already in {}", directory.display()),
            "`pinfold dev status` shows it, `pinfold dev down` ends it",
        ));
    }
    // what a fleet that died has left: no process of it lives
    clear(&directory)?;
    let mut progress = Progress::told();
    let options = plan(options, &mut progress).await?;
    let started = start(&directory, &options, &mut progress).await;
    if let Err(error) = &started {
        // who ended it needs no logs to know why
        let logs = if error.is::<Interrupted>() { None } else { keep_logs(&directory) };
        clear(&directory)?;
        std::fs::remove_dir(&directory).with_context(|| format!("cannot remove {}", directory.display()))?;
        if let Some(logs) = logs {
            progress.say(&format!("logs are kept in {}", logs.display()));
        }
    }
    let fleet = started?;
    drop(progress);
    drop(lock);
    status::show(&fleet.state, format).await?;
    if format == Format::Table {
        eprintln!("try: pinfold run -- uname -a");
    }
    Ok(0)
}

/// Ctrl-C ends what was started.
async fn start(
    directory: &std::path::Path,
    options: &FleetOptions,
    progress: &mut Progress,
) -> Result<Fleet> {
    let mut interrupts = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let mut terminations = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let interrupted = tokio::select! {
        started = Fleet::start(directory, options, progress) => return started,
        _ = interrupts.recv() => Interrupted,
        _ = terminations.recv() => Interrupted,
    };
    let state = State::load_from(directory)?.unwrap_or_default();
    Fleet { directory: directory.to_owned(), state }.kill().await?;
    Err(interrupted.into())
}

/// Decides where microVMs will run and says so in one sentence.
async fn plan(options: DevUp, progress: &mut Progress) -> Result<FleetOptions> {
    progress.begin("pre-flight: can microVMs run on this machine itself?");
    let preflight = preflight::probe().await?;
    progress.done(&preflight.sentence);
    let usable = preflight.verdict == Verdict::Usable;
    let obstacle = if options.virtual_nodes || options.nodes > 1 {
        Some("virtual nodes were asked for".to_owned())
    } else {
        host_node::obstacle()
    };
    let virtual_nodes = match obstacle {
        None if usable => {
            progress.say("microVMs run on this machine's own KVM");
            None
        }
        Some(obstacle) if usable => {
            progress.say(&format!("microVMs run in virtual nodes on this machine's KVM: {obstacle}"));
            Some(Acceleration::Kvm)
        }
        _ => {
            progress.say("microVMs run in virtual nodes: QEMU emulates a host with SVM, real KVM runs in it");
            Some(Acceleration::Emulated)
        }
    };
    let memory_mib = match options.memory_mib {
        Some(given) => given,
        None => fleet::default_memory_mib(options.nodes)?,
    };
    Ok(FleetOptions {
        nodes: options.nodes,
        memory_mib,
        cpus: options.cpus,
        placement: options.placement,
        virtual_nodes,
        files: NodeFiles::find(options.node_files.as_deref())?,
        limits: StartLimits::default(),
    })
}

/// Removes everything in the state directory; the directory itself holds our lock.
fn clear(directory: &std::path::Path) -> Result<()> {
    let context = || format!("cannot clear {}", directory.display());
    for entry in std::fs::read_dir(directory).with_context(context)? {
        let path = entry.with_context(context)?.path();
        let removed =
            if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        removed.with_context(context)?;
    }
    Ok(())
}

/// Copies the logs of a start that failed out of the state directory.
fn keep_logs(directory: &std::path::Path) -> Option<std::path::PathBuf> {
    let to = tempfile::Builder::new().prefix("pinfold-dev-logs-").tempdir().ok()?;
    let mut logs = vec![directory.join("scheduler.log")];
    for entry in std::fs::read_dir(directory).ok()?.flatten() {
        logs.extend(["console.log", "qemu.log"].map(|name| entry.path().join(name)));
    }
    let mut any = false;
    for log in logs {
        let Ok(relative) = log.strip_prefix(directory) else { continue };
        let name = relative.display().to_string().replace('/', "-");
        any |= std::fs::copy(&log, to.path().join(name)).is_ok();
    }
    any.then(|| to.keep())
}
