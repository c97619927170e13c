//! What a case has at hand: the client, the node, the programs.

use anyhow::{Context as _, Result, ensure};
use pinfold_cli::dev::artifacts::{self, NodeFiles};
use pinfold_cli::dev::fleet::{Fleet, FleetOptions};
use pinfold_cli::dev::preflight::{self, Verdict};
use pinfold_cli::dev::virtual_node::{Acceleration, StartLimits, VirtualNode};
use pinfold_cli::progress::Progress;
use pinfold_domain::SandboxId;
use pinfold_sdk::{Client, ExecOptions, NewSandbox, Outcome, Output, Sandbox, SandboxFilter};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::sync::Mutex;

/// From the create call to a running sandbox, on a busy machine under emulation.
pub const START_LIMIT: Duration = Duration::from_secs(120);
const NODE_MEMORY_MIB: u64 = 3072;
const PLACEMENT: &str = "spread";

#[derive(Clone)]
pub struct Context {
    pub client: Client,
    pub node: VirtualNode,
    pub endpoint: String,
    fleet: Arc<Mutex<Fleet>>,
}

/// The fleet, with the directory that it lives in.
pub struct FleetGuard {
    pub context: Context,
    /// `None` once it is removed
    directory: Option<TempDir>,
}

impl FleetGuard {
    pub async fn start() -> Result<Self> {
        // short: sockets lie below it
        let directory = tempfile::Builder::new().prefix("pfsys-").tempdir()?;
        let usable = preflight::probe().await?.verdict == Verdict::Usable;
        let options = FleetOptions {
            nodes: 1,
            memory_mib: NODE_MEMORY_MIB,
            cpus: 2,
            placement: PLACEMENT.to_owned(),
            virtual_nodes: Some(if usable { Acceleration::Kvm } else { Acceleration::Emulated }),
            files: NodeFiles::find(None)?,
            limits: StartLimits::default(),
        };
        let fleet = Fleet::start(directory.path(), &options, &mut Progress::told()).await?;
        let node = fleet.virtual_node_list().into_iter().next().context("a fleet of one has one node")?;
        let context = Context {
            client: Client::connect(fleet.endpoint()).await?,
            node,
            endpoint: fleet.endpoint().to_owned(),
            fleet: Arc::new(Mutex::new(fleet)),
        };
        Ok(Self { context, directory: Some(directory) })
    }

    pub async fn node_is_silent(&self, limit: Duration) -> bool {
        !self.context.node.answers(limit).await
    }

    /// Where the node's console and the scheduler's log end now.
    pub async fn mark(&self) -> Mark {
        let length = |path: PathBuf| std::fs::metadata(path).map_or(0, |metadata| metadata.len() as usize);
        Mark { console: length(self.context.node.console_path()), log: length(self.scheduler_log().await) }
    }

    /// What both have said since `mark`.
    pub async fn evidence(&self, mark: &Mark) -> String {
        format!(
            "--- the node's console\n{}\n--- the scheduler's log\n{}\n---",
            since(&self.context.node.console_path(), mark.console),
            since(&self.scheduler_log().await, mark.log)
        )
    }

    async fn scheduler_log(&self) -> PathBuf {
        let fleet = self.context.fleet.lock().await;
        fleet.state.scheduler.as_ref().map(|scheduler| scheduler.log.clone()).unwrap_or_default()
    }

    /// Ends every process by its pid; an error when one survives.
    pub async fn end(mut self) -> Result<()> {
        self.context.node.power_off(Duration::from_secs(10)).await?;
        let fleet = self.context.fleet.lock().await;
        fleet.kill().await?;
        for (name, process) in fleet.state.processes() {
            ensure!(!process.is_alive(), "{name} (pid {}) is still alive", process.pid);
        }
        drop(fleet);
        self.directory.take().map_or(Ok(()), TempDir::close).context("cannot remove the fleet's directory")
    }
}

/// A point in the logs.
pub struct Mark {
    console: usize,
    log: usize,
}

/// The last lines behind `offset`, cut to a width that can be read, without colours.
fn since(path: &Path, offset: usize) -> String {
    const LINES: usize = 40;
    let bytes = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(bytes.get(offset..).unwrap_or_default()).into_owned();
    let lines: Vec<String> = text
        .lines()
        .map(|line| {
            let mut parts = line.split("\x1b[");
            let first = parts.next().unwrap_or_default().to_owned();
            // a colour ends with its `m`
            let plain = parts.map(|part| part.split_once('m').map_or(part, |(_, text)| text));
            plain.fold(first, |line, part| line + part).chars().take(240).collect()
        })
        .collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

impl Drop for FleetGuard {
    /// A suite that panics or returns early leaves no process behind. After [`FleetGuard::end`] there is none.
    fn drop(&mut self) {
        if let Ok(fleet) = self.context.fleet.try_lock() {
            for (_, process) in fleet.state.processes() {
                process.signal_end();
            }
        }
    }
}

impl Context {
    /// Creates a sandbox and waits until it runs.
    pub async fn start(&self, new: NewSandbox) -> Result<Sandbox> {
        let sandbox = self.client.create(new).await?;
        Ok(self.client.wait_running(sandbox.id, START_LIMIT).await?)
    }

    /// A small one.
    pub async fn sandbox(&self) -> Result<SandboxId> {
        Ok(self.start(NewSandbox::default()).await?.id)
    }

    pub async fn exec(&self, id: SandboxId, options: ExecOptions) -> Result<Output> {
        Ok(self.client.exec(id, options).await?.output(1024 * 1024).await?)
    }

    /// Runs a script; its stdout. A script that fails is an error.
    pub async fn shell(&self, id: SandboxId, script: &str) -> Result<String> {
        let output = self.exec(id, ExecOptions::command(["sh", "-c", script])).await?;
        ensure!(
            output.exit.outcome == Outcome::Code(0),
            "{script:?} ended with {:?} {}: {}{}",
            output.exit.outcome,
            output.exit.message,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Waits until `sandbox` has ended.
    pub async fn ended(&self, id: SandboxId) -> Result<Sandbox> {
        let sandbox = self.client.wait_ended(id, START_LIMIT).await?;
        ensure!(sandbox.phase.is_final(), "sandbox {id} was removed before its end was seen");
        Ok(sandbox)
    }

    /// Deletes every sandbox and waits until all are gone.
    pub async fn remove_all(&self) -> Result<()> {
        let (all, _) = self.client.list_all(SandboxFilter::default()).await?;
        for sandbox in &all {
            self.client.delete(sandbox.id).await?;
        }
        for sandbox in &all {
            let gone = self.client.wait_gone(sandbox.id, Duration::from_secs(60)).await;
            gone.with_context(|| format!("sandbox {} ({})", sandbox.id, sandbox.phase))?;
        }
        Ok(())
    }

    pub async fn scheduler_pid(&self) -> Result<u32> {
        let fleet = self.fleet.lock().await;
        Ok(fleet.state.scheduler.as_ref().context("a fleet has a scheduler")?.process.pid)
    }

    /// kill -9, then a new one on the same store and address.
    pub async fn restart_scheduler(&self) -> Result<()> {
        self.fleet.lock().await.restart_scheduler(PLACEMENT).await
    }

    /// A command in the node; its output. One that fails is an error.
    pub async fn in_node(&self, command: &str) -> Result<String> {
        let answer = self.node.run(command, Duration::from_secs(60)).await?;
        ensure!(answer.code == 0, "{command:?} in the node ended with {}: {}", answer.code, answer.output);
        Ok(answer.output)
    }

    /// Pid and resident bytes of a process of the node, by its program's name.
    pub async fn in_node_process(&self, program: &str) -> Result<(u32, u64)> {
        let command =
            format!("p=$(pidof {program} | cut -d' ' -f1) && echo $p $(grep VmRSS /proc/$p/status)");
        let output = self.in_node(&command).await?;
        let words: Vec<&str> = output.split_whitespace().collect();
        let [pid, _, kib, _] = words.as_slice() else { anyhow::bail!("not understood: {output:?}") };
        Ok((pid.parse()?, kib.parse::<u64>()? * 1024))
    }

    /// Runs `pinfold` with `stdin`; waits for its end.
    pub async fn cli(&self, arguments: &[&str], stdin: &[u8]) -> Result<std::process::Output> {
        let mut child = tokio::process::Command::new(artifacts::program("pinfold")?)
            .args(arguments)
            .env("PINFOLD_SCHEDULER", &self.endpoint)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut input = child.stdin.take().context("stdin is a pipe")?;
        let feed = async move {
            // the command may end before it has read everything
            let _ = input.write_all(stdin).await;
        };
        let (output, ()) = tokio::join!(child.wait_with_output(), feed);
        Ok(output?)
    }

    /// Room that the node has given away; all zero when nothing runs.
    pub async fn reserved_is_zero_within(&self, limit: Duration) -> Result<()> {
        let free = async {
            loop {
                let nodes = self.client.nodes().await?;
                let node = nodes.first().context("the node is registered")?;
                if node.reserved == pinfold_domain::Resources::default() && node.sandboxes == 0 {
                    return Ok(());
                }
                // the API has no watch for nodes
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        tokio::time::timeout(limit, free).await.context("the node's room did not come back")?
    }
}
