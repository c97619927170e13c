//! Starts and ends a local fleet. The command `dev up` and the system tests both use it.

use super::artifacts::{self, NodeFiles};
use super::state::{NodeKind, NodeState, State};
use super::virtual_node::{Acceleration, NodeFailure, NodeOptions, StartLimits, VirtualNode};
use super::{host_node, scheduler};
use crate::failure::advised;
use crate::progress::Progress;
use anyhow::{Context, Result, ensure};
use pinfold_domain::NodeState as Liveness;
use pinfold_sdk::Client;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

/// Nodes that fell silent and were started again, for one fleet.
const MAX_RESTARTS: u32 = 2;
/// From the node's "ready" to its registration with the scheduler.
const REGISTRATION_LIMIT: Duration = Duration::from_secs(60);
/// A control shell answers in milliseconds; this long a silence on a busy machine is a livelock.
const CONTROL_LIMIT: Duration = Duration::from_secs(30);

/// Of a virtual node: four sandboxes of up to 512 MiB.
const USUAL_MEMORY_MIB: u64 = 3072;
/// One sandbox.
const LEAST_MEMORY_MIB: u64 = 768;
/// QEMU's own, beside the node's.
const QEMU_MEMORY_MIB: u64 = 128;

#[derive(Debug, Clone)]
pub struct FleetOptions {
    pub nodes: u32,
    pub memory_mib: u64,
    pub cpus: u32,
    pub placement: String,
    /// `None`: node agents run on this machine itself
    pub virtual_nodes: Option<Acceleration>,
    pub files: NodeFiles,
    pub limits: StartLimits,
}

/// A fleet that was started, or is being started.
#[derive(Debug)]
pub struct Fleet {
    pub directory: PathBuf,
    pub state: State,
}

impl Fleet {
    /// Starts everything in `directory`, which exists and is empty. What was started is ended again on an error.
    pub async fn start(directory: &Path, options: &FleetOptions, progress: &mut Progress) -> Result<Self> {
        check_memory(options)?;
        let mut fleet = Self { directory: directory.to_owned(), state: State::default() };
        match fleet.bring_up(options, progress).await {
            Ok(()) => Ok(fleet),
            Err(error) => {
                progress.say("ending what was started");
                if let Err(left) = fleet.kill().await {
                    progress.say(&format!("could not end all of it: {left:#}"));
                }
                Err(error)
            }
        }
    }

    pub fn endpoint(&self) -> &str {
        self.state.scheduler.as_ref().map_or("", |scheduler| &scheduler.endpoint)
    }

    async fn bring_up(&mut self, options: &FleetOptions, progress: &mut Progress) -> Result<()> {
        progress.begin("scheduler: placement and the record of all sandboxes");
        let mut scheduler = scheduler::launch(&self.directory, &options.placement)?;
        // ended with all the rest, should it not become ready
        self.state.scheduler = Some(scheduler.clone());
        self.state.save(&self.directory)?;
        scheduler::wait_ready(&self.directory, &mut scheduler).await?;
        self.state.scheduler = Some(scheduler);
        self.state.save(&self.directory)?;
        progress.done(self.endpoint());
        let client = Client::connect(self.endpoint()).await?;
        match options.virtual_nodes {
            Some(acceleration) => self.virtual_nodes(options, acceleration, &client, progress).await,
            None => self.host_node(options, &client, progress).await,
        }
    }

    async fn host_node(
        &mut self,
        options: &FleetOptions,
        client: &Client,
        progress: &mut Progress,
    ) -> Result<()> {
        progress.begin("node agent on this machine");
        let node = host_node::launch(&self.directory, "node-1", self.endpoint(), &options.files)?;
        self.state.nodes.push(node);
        self.state.save(&self.directory)?;
        let node = &self.state.nodes[0];
        let deadline = Instant::now() + REGISTRATION_LIMIT;
        while !is_ready(client, &node.name).await? {
            ensure!(node.process.is_alive(), "the node agent ended, see {}", node.log.display());
            ensure!(Instant::now() < deadline, "the node agent did not register, see {}", node.log.display());
            // the API has no watch for nodes
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        progress.done("ready");
        Ok(())
    }

    async fn virtual_nodes(
        &mut self,
        options: &FleetOptions,
        acceleration: Acceleration,
        client: &Client,
        progress: &mut Progress,
    ) -> Result<()> {
        let qemu = artifacts::qemu()?;
        let how = match acceleration {
            Acceleration::Emulated => "emulated, with SVM",
            Acceleration::Kvm => "on this machine's KVM",
        };
        let plural = if options.nodes == 1 { "node" } else { "nodes" };
        progress.begin(format!("{} virtual {plural} ({how}, {} MiB)", options.nodes, options.memory_mib));
        let mut nodes = Vec::new();
        for number in 1..=options.nodes {
            nodes.push(self.launch_virtual(&qemu, options, acceleration, number)?);
        }
        let mut at = 0;
        while at < nodes.len() {
            match self.await_node(&nodes[at], options.limits, client).await {
                Ok(seconds) => {
                    progress.detail(&format!("{} of {} ready", at + 1, nodes.len()));
                    progress.say(&format!("  {} booted in {seconds} s and is ready", nodes[at].name));
                    at += 1;
                }
                Err(NodeFailure::Silent { name, what })
                    if self.state.silent_nodes_restarted < MAX_RESTARTS =>
                {
                    self.state.silent_nodes_restarted += 1;
                    let count = self.state.silent_nodes_restarted;
                    progress.say(&format!(
                        "  {name} fell silent ({what}): a livelock of emulated nested virtualisation. Ending QEMU \
                         {} and starting the node again ({count} of {MAX_RESTARTS})",
                        nodes[at].process.pid
                    ));
                    nodes[at] = self.replace(&nodes[at], &qemu, options, acceleration, at).await?;
                }
                Err(failure) => return Err(failure.into()),
            }
        }
        progress.done("ready");
        Ok(())
    }

    fn launch_virtual(
        &mut self,
        qemu: &Path,
        options: &FleetOptions,
        acceleration: Acceleration,
        number: u32,
    ) -> Result<VirtualNode> {
        let name = format!("node-{number}");
        let directory = self.directory.join(format!("n{number}"));
        let node = NodeOptions {
            name: name.clone(),
            memory_mib: options.memory_mib,
            cpus: options.cpus,
            acceleration,
            scheduler: self.endpoint().to_owned(),
            labels: vec![("pinfold.dev/node".to_owned(), name.clone())],
        };
        let launched = VirtualNode::launch(qemu, &options.files, &directory, &node)?;
        self.state.nodes.push(NodeState {
            name,
            kind: NodeKind::Virtual,
            process: launched.process,
            directory,
            memory_mib: Some(options.memory_mib),
            log: launched.console_path(),
        });
        self.state.save(&self.directory)?;
        Ok(launched)
    }

    async fn replace(
        &mut self,
        silent: &VirtualNode,
        qemu: &Path,
        options: &FleetOptions,
        acceleration: Acceleration,
        at: usize,
    ) -> Result<VirtualNode> {
        silent.kill().await?;
        self.state.nodes.retain(|node| node.name != silent.name);
        std::fs::remove_dir_all(&silent.directory)
            .with_context(|| format!("cannot remove {}", silent.directory.display()))?;
        self.launch_virtual(qemu, options, acceleration, u32::try_from(at + 1).unwrap_or(u32::MAX))
    }

    /// Booted, answering, and registered with the scheduler; the seconds that its boot took.
    async fn await_node(
        &self,
        node: &VirtualNode,
        limits: StartLimits,
        client: &Client,
    ) -> Result<String, NodeFailure> {
        let failed = |what: String| NodeFailure::Failed {
            name: node.name.clone(),
            what,
            console: node.console_tail(25),
        };
        let seconds = node.wait_booted(limits).await?;
        let deadline = Instant::now() + REGISTRATION_LIMIT;
        loop {
            match is_ready(client, &node.name).await {
                Ok(true) => return Ok(seconds),
                Ok(false) => {}
                Err(error) => return Err(failed(format!("the scheduler cannot be asked: {error}"))),
            }
            if node.console_tail(5).contains("pinfold-node: the agent ended") {
                return Err(failed("its agent ended".to_owned()));
            }
            if Instant::now() >= deadline {
                if node.answers(CONTROL_LIMIT).await {
                    return Err(failed(format!(
                        "its agent did not register within {} s",
                        REGISTRATION_LIMIT.as_secs()
                    )));
                }
                let what = format!("its control shell did not answer for {} s", CONTROL_LIMIT.as_secs());
                return Err(NodeFailure::Silent { name: node.name.clone(), what });
            }
            // the API has no watch for nodes
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// The virtual nodes of a fleet, for their control shells.
    pub fn virtual_node_list(&self) -> Vec<VirtualNode> {
        let nodes = self.state.nodes.iter().filter(|node| node.kind == NodeKind::Virtual);
        nodes
            .map(|node| VirtualNode {
                name: node.name.clone(),
                directory: node.directory.clone(),
                process: node.process,
            })
            .collect()
    }

    /// Kills the scheduler and starts it again on what it has stored, at the same address.
    pub async fn restart_scheduler(&mut self, placement: &str) -> Result<()> {
        let before = self.state.scheduler.clone().context("the fleet has a scheduler")?;
        before.process.kill().await?;
        self.state.scheduler = Some(scheduler::relaunch(&self.directory, &before, placement).await?);
        self.state.save(&self.directory)
    }

    /// Ends every process at once, without asking anybody.
    pub async fn kill(&self) -> Result<()> {
        let mut result = Ok(());
        for (_, process) in self.state.processes() {
            result = result.and(process.kill().await);
        }
        result
    }
}

async fn is_ready(client: &Client, name: &str) -> Result<bool, pinfold_sdk::Error> {
    let nodes = client.nodes().await?;
    Ok(nodes.iter().any(|node| node.id.as_str() == name && node.state == Liveness::Ready))
}

/// Of each virtual node, when nobody says otherwise: the usual, or what fits into three quarters of what is free, but
/// never too little for one sandbox.
pub fn default_memory_mib(nodes: u32) -> Result<u64> {
    let each = available_memory_mib()? * 3 / 4 / u64::from(nodes.max(1));
    Ok(each.saturating_sub(QEMU_MEMORY_MIB).clamp(LEAST_MEMORY_MIB, USUAL_MEMORY_MIB))
}

/// MemAvailable of proc_meminfo(5).
pub fn available_memory_mib() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let available = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let available = available.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    Ok(available.context("/proc/meminfo has no MemAvailable")? / 1024)
}

/// Refuses what would push this machine into swap.
fn check_memory(options: &FleetOptions) -> Result<()> {
    if options.virtual_nodes.is_none() {
        return Ok(());
    }
    let available_mib = available_memory_mib()?;
    let needed_mib = u64::from(options.nodes) * (options.memory_mib + QEMU_MEMORY_MIB);
    if needed_mib <= available_mib {
        return Ok(());
    }
    Err(advised(
        format!(
            "{} nodes of {} MiB need {needed_mib} MiB of memory, {available_mib} MiB are free",
            options.nodes, options.memory_mib
        ),
        "use a smaller --memory-mib (768 holds one sandbox), or fewer --nodes",
    ))
}
