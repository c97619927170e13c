//! What a guest or a client may take, at its bound.

use super::processes::processes_with;
use crate::context::Context;
use anyhow::{Context as _, Result, ensure};
use pinfold_cli::dev::status::resident_bytes;
use pinfold_domain::spec::defaults;
use pinfold_domain::{Resources, SandboxId};
use pinfold_sdk::{ExecOptions, NewSandbox, Outcome, ProcessEvent};
use std::time::Duration;

const MIB: u64 = 1024 * 1024;
/// What one stream that stands still may cost a daemon: its windows and queues, and room for the allocator.
const STREAM_COST_BYTES: u64 = 48 * MIB;

fn with(resources: Resources) -> NewSandbox {
    NewSandbox { resources: Some(resources), ..NewSandbox::default() }
}

pub async fn fork_bomb_leaves_the_sandbox_answering(context: Context) -> Result<()> {
    let id = context.start(with(Resources { pids: 64, ..defaults::RESOURCES })).await?.id;
    let bomb = "import os,time\nprint('ready',flush=True)\nwhile True:\n  try: os.fork()\n  except OSError: time.sleep(0.05)\n";
    let mut process = context.client.exec(id, ExecOptions::command(["python3", "-c", bomb])).await?;
    while !matches!(process.next().await?, Some(ProcessEvent::Stdout(_))) {}
    tokio::time::sleep(Duration::from_secs(3)).await;
    // file calls need no process in the guest: they answer while the bomb holds every pid
    let file =
        context.client.read_file(id, "/etc/hostname", None).await.context("no answer under the bomb")?;
    ensure!(!file.bytes(4096).await?.is_empty());
    // the client that leaves ends its processes, all of them
    drop(process);
    let calm = async {
        loop {
            match processes_with(&context, id, "import os,time").await {
                Ok(left) if left.is_empty() => return,
                // no pid was free for the question
                _ => tokio::time::sleep(Duration::from_millis(500)).await,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), calm).await.context("the bomb still runs")?;
    ensure!(context.shell(id, "echo alive").await? == "alive\n");
    Ok(())
}

pub async fn disk_of_its_own_is_a_limit(context: Context) -> Result<()> {
    let id = context.start(with(Resources { disk_bytes: 64 * MIB, ..defaults::RESOURCES })).await?.id;
    let script = "dd if=/dev/zero of=/root/big bs=1M count=200 2>&1; echo code $?; rm /root/big; echo more > /root/b && cat /root/b";
    let output = context.shell(id, script).await?;
    ensure!(output.contains("No space left on device") && output.contains("code 1"), "{output}");
    ensure!(output.ends_with("more\n"), "{output}");
    Ok(())
}

pub async fn memory_limit_holds(context: Context) -> Result<()> {
    let id = context.sandbox().await?;
    // more than the guest has: its kernel ends the process, the sandbox goes on
    let script = "import sys\nb=bytearray(600<<20)\nfor i in range(0,len(b),4096): b[i]=1\n";
    let output = context.exec(id, ExecOptions::command(["python3", "-c", script])).await?;
    ensure!(output.exit.outcome != Outcome::Code(0), "600 MiB in a guest of 256 MiB: {:?}", output.exit);
    ensure!(context.shell(id, "echo alive").await? == "alive\n");
    Ok(())
}

struct Resident {
    scheduler: u64,
    agent: u64,
}

async fn resident(context: &Context) -> Result<Resident> {
    let scheduler = resident_bytes(context.scheduler_pid().await?).context("the scheduler lives")?;
    let (_, agent) = context.in_node_process("pinfold-node-agent").await?;
    Ok(Resident { scheduler, agent })
}

fn check_growth(before: &Resident, after: &Resident) -> Result<()> {
    for (name, before, after) in
        [("scheduler", before.scheduler, after.scheduler), ("node agent", before.agent, after.agent)]
    {
        println!("    {name}: {} KiB resident before, {} KiB after", before / 1024, after / 1024);
        let grown = after.saturating_sub(before);
        ensure!(
            grown <= STREAM_COST_BYTES,
            "the {name} grew by {grown} bytes, the bound is {STREAM_COST_BYTES}"
        );
    }
    Ok(())
}

pub async fn stdin_that_nobody_reads_is_bounded(context: Context) -> Result<()> {
    const GIB: u64 = 1024 * MIB;
    let id = context.sandbox().await?;
    let before = resident(&context).await?;
    let process = context.client.exec(id, ExecOptions::command(["sleep", "60061"])).await?;
    let block = vec![b'x'; 64 * 1024];
    let mut sent: u64 = 0;
    while sent < GIB {
        // held back: nothing was taken for this long
        match tokio::time::timeout(Duration::from_secs(8), process.input().write(block.clone())).await {
            Ok(true) => sent += block.len() as u64,
            Ok(false) => anyhow::bail!("the process ended after {sent} bytes"),
            Err(_) => break,
        }
    }
    println!("    {sent} bytes of 1 GiB were taken before the stream stood still");
    ensure!(sent < 64 * MIB, "{sent} bytes were taken from a client by nobody who reads");
    check_growth(&before, &resident(&context).await?)?;
    // another stream of the same sandbox is not held up by it
    ensure!(context.shell(id, "echo alive").await? == "alive\n");
    // the client goes while its input is held back
    drop(process);
    is_gone(&context, id, "60061").await
}

/// Waits until no process in the sandbox has `word` in its command line.
async fn is_gone(context: &Context, id: SandboxId, word: &str) -> Result<()> {
    let gone = async {
        while !processes_with(context, id, word).await?.is_empty() {
            // nothing in the guest tells the end of a process that is not ours
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        Ok(())
    };
    let limit = Duration::from_secs(20);
    tokio::time::timeout(limit, gone).await.with_context(|| format!("the process of {word} still runs"))?
}

pub async fn output_that_nobody_reads_is_bounded(context: Context) -> Result<()> {
    let id = context.sandbox().await?;
    let before = resident(&context).await?;
    let mut process = context.client.exec(id, ExecOptions::command(["cat", "/dev/zero"])).await?;
    while !matches!(process.next().await?, Some(ProcessEvent::Stdout(_))) {}
    // nothing is read from here on
    tokio::time::sleep(Duration::from_secs(10)).await;
    check_growth(&before, &resident(&context).await?)?;
    ensure!(context.shell(id, "echo alive").await? == "alive\n");
    drop(process);
    is_gone(&context, id, "/dev/zero").await
}
