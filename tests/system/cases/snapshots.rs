//! Saved machines, with real memory, disks, clocks and random numbers.

use crate::context::{Context, START_LIMIT};
use anyhow::{Context as _, Result, bail, ensure};
use pinfold_domain::{Milestone, Phase, Resources, SandboxId, Source};
use pinfold_sdk::{ForkOf, ForkOptions, NewSandbox, NewTemplate, Sandbox};
use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// To save all of a small guest's memory, or to bring it back, on a busy machine under emulation.
const SAVE_LIMIT: Duration = Duration::from_secs(120);
/// The clock of a guest against this machine's, when both are asked over an emulated network: the exec is in it.
const CLOCK_ERROR: Duration = Duration::from_secs(5);

/// Counts in memory for as long as it lives.
const COUNTER: &str = "(setsid sh -c 'i=0; while :; do i=$((i+1)); echo $i > /dev/shm/next; \
                       mv /dev/shm/next /dev/shm/count; sleep 0.1; done' >/dev/null 2>&1 &); \
                       until cat /dev/shm/count 2>/dev/null; do sleep 0.1; done";

async fn count(context: &Context, id: SandboxId) -> Result<u64> {
    let text = context.shell(id, "cat /dev/shm/count").await?;
    text.trim().parse().with_context(|| format!("{text:?} is no count"))
}

/// That the process which counts still does.
async fn counts_on(context: &Context, id: SandboxId, from: u64) -> Result<()> {
    let first = count(context, id).await?;
    ensure!(first >= from, "it had counted to {from}, and is at {first}");
    let further = context.shell(id, "sleep 1; cat /dev/shm/count").await?;
    ensure!(further.trim().parse::<u64>()? > first, "it stands at {first}");
    Ok(())
}

async fn clock_is_right(context: &Context, id: SandboxId) -> Result<()> {
    let seconds: f64 = context.shell(id, "date +%s.%N").await?.trim().parse()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
    let error = (now - seconds).abs();
    ensure!(error < CLOCK_ERROR.as_secs_f64(), "the guest's clock is {error:.1} s away");
    Ok(())
}

async fn pause(context: &Context, id: SandboxId) -> Result<Sandbox> {
    context.client.pause(id).await?;
    Ok(context.client.wait_paused(id, SAVE_LIMIT).await?)
}

async fn resume(context: &Context, id: SandboxId) -> Result<Sandbox> {
    context.client.resume(id).await?;
    Ok(context.client.wait_resumed(id, SAVE_LIMIT).await?)
}

/// Prints how long a sandbox took from its acceptance to a guest that serves.
fn told(what: &str, sandbox: &Sandbox) -> Result<u64> {
    let reached = |milestone: Milestone| {
        sandbox.reached(milestone).with_context(|| format!("{} is missing", milestone.as_str()))
    };
    let took = reached(Milestone::GuestReady)?.since(reached(Milestone::Accepted)?).0;
    let way: Vec<_> = sandbox.timeline.iter().map(|entry| entry.milestone.as_str()).collect();
    println!("    {what}: ready after {took} ms ({})", way.join(" "));
    Ok(took)
}

/// MemAvailable of the node (proc_meminfo(5)), in MiB, after its page cache was dropped.
async fn free_mib(context: &Context) -> Result<u64> {
    context.in_node("sync; echo 3 > /proc/sys/vm/drop_caches").await?;
    let text = context.in_node("sed -n 's/MemAvailable: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo").await?;
    Ok(text.trim().parse::<u64>()? / 1024)
}

pub async fn pause_gives_memory_back_and_resume_brings_all_back(context: Context) -> Result<()> {
    const FILLED_MIB: u64 = 100;
    let id = context.sandbox().await?;
    context.shell(id, COUNTER).await?;
    let fill = format!("echo kept > /root/file; head -c {FILLED_MIB}M /dev/urandom > /dev/shm/ballast");
    let sum = context.shell(id, &format!("{fill}; sha256sum < /dev/shm/ballast")).await?;
    let before = count(&context, id).await?;
    let running_mib = free_mib(&context).await?;
    let paused = pause(&context, id).await?;
    ensure!(paused.phase == Phase::Paused && paused.cause.is_none(), "{paused:?}");
    // no process, no cgroup, and the memory is free again
    context.in_node("! pidof pinfold-vmm").await?;
    context.in_node(&format!("! ls -d /sys/fs/cgroup/pinfold/{id}")).await?;
    let paused_mib = free_mib(&context).await?;
    println!(
        "    free memory of the node: {running_mib} MiB while it ran, {paused_mib} MiB while it is paused"
    );
    ensure!(paused_mib >= running_mib + FILLED_MIB, "{running_mib} MiB, then {paused_mib} MiB");
    let refused = context.shell(id, "true").await.err().context("a paused sandbox ran a command")?;
    ensure!(format!("{refused:#}").contains("paused"), "{refused:#}");
    // long enough for a clock that stood still to show it
    tokio::time::sleep(CLOCK_ERROR + Duration::from_secs(2)).await;
    resume(&context, id).await?;
    clock_is_right(&context, id).await?;
    counts_on(&context, id, before).await?;
    let after = context.shell(id, "cat /root/file; sha256sum < /dev/shm/ballast").await?;
    ensure!(after == format!("kept\n{sum}"), "{after:?}, not {sum:?}");
    // and once more: what was written since is there too
    context.shell(id, "echo more >> /root/file").await?;
    pause(&context, id).await?;
    resume(&context, id).await?;
    ensure!(context.shell(id, "cat /root/file").await? == "kept\nmore\n");
    counts_on(&context, id, before).await
}

pub async fn paused_sandbox_outlives_its_agent_and_can_be_deleted(context: Context) -> Result<()> {
    let id = context.sandbox().await?;
    context.shell(id, COUNTER).await?;
    let before = count(&context, id).await?;
    pause(&context, id).await?;
    let (old, _) = context.in_node_process("pinfold-node-agent").await?;
    let restart = format!("kill -9 {old}; setsid /etc/pinfold/agent </dev/null >/dev/console 2>&1 &");
    context.in_node(&restart).await?;
    // the new agent has to register before it can be told to resume
    let mut last = None;
    let resumed = async {
        while let Err(error) = resume(&context, id).await {
            last = Some(error);
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    if tokio::time::timeout(START_LIMIT, resumed).await.is_err() {
        bail!("it was not resumed by the new agent; the last answer: {last:?}");
    }
    counts_on(&context, id, before).await?;
    pause(&context, id).await?;
    context.client.delete(id).await?;
    context.client.wait_gone(id, Duration::from_secs(60)).await?;
    context.in_node(&format!("! ls -d /var/lib/pinfold/sandboxes/{id}")).await?;
    context.reserved_is_zero_within(Duration::from_secs(20)).await
}

/// What must differ between machines that come of one.
async fn identity(context: &Context, id: SandboxId) -> Result<[String; 3]> {
    let script = "head -c 16 /dev/urandom | od -An -tx1; cat /proc/sys/kernel/hostname /etc/machine-id";
    let text = context.shell(id, script).await?;
    let lines: Vec<&str> = text.lines().collect();
    let [random, hostname, machine] = lines[..] else { anyhow::bail!("not understood: {text:?}") };
    Ok([random, hostname, machine].map(str::to_owned))
}

pub async fn forks_go_on_apart_from_one_instant(context: Context) -> Result<()> {
    let source = context.sandbox().await?;
    context.shell(source, COUNTER).await?;
    context.shell(source, "echo of-the-source > /root/file; sync").await?;
    // so that a fork whose clock nobody sets is found
    context.shell(source, "date -s 2001-01-01").await?;
    let before = count(&context, source).await?;
    let snapshot = context.client.create_snapshot(source, "before", None).await?;
    let snapshot = context.client.wait_snapshot(snapshot.id, SAVE_LIMIT).await?;
    println!("    snapshot: {:?}", snapshot.sizes);
    // the source goes on, and what it does now is not in the snapshot
    counts_on(&context, source, before).await?;
    context.shell(source, "echo later > /root/file").await?;
    let (forks, _) = context.client.fork(ForkOf::Snapshot(snapshot.id), 3, ForkOptions::default()).await?;
    let mut seen = vec![identity(&context, source).await?];
    for fork in &forks {
        let fork = context.client.wait_running(fork.id, START_LIMIT).await?;
        told("fork", &fork)?;
        ensure!(context.shell(fork.id, "cat /root/file").await? == "of-the-source\n");
        counts_on(&context, fork.id, before).await?;
        clock_is_right(&context, fork.id).await?;
        context.shell(fork.id, &format!("echo {0} > /root/own; echo {0} > /dev/shm/own", fork.id)).await?;
        seen.push(identity(&context, fork.id).await?);
    }
    for part in 0..3 {
        let distinct: BTreeSet<&String> = seen.iter().map(|identity| &identity[part]).collect();
        ensure!(distinct.len() == seen.len(), "two machines have the same: {seen:?}");
    }
    for fork in &forks {
        let own = context.shell(fork.id, "cat /root/own /dev/shm/own").await?;
        ensure!(own == format!("{0}\n{0}\n", fork.id), "{own:?}");
    }
    ensure!(context.shell(source, "ls /root/own 2>&1; cat /root/file").await?.ends_with("later\n"));
    context.client.delete_snapshot(snapshot.id).await?;
    // what was made from it does not need it any more
    counts_on(&context, forks[0].id, before).await?;
    let gone = async {
        while !context.client.snapshots(None).await?.is_empty() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(Duration::from_secs(60), gone).await.context("the snapshot stays")??;
    context.in_node("! ls /var/lib/pinfold/snapshots | grep .").await?;
    Ok(())
}

pub async fn create_from_a_template_is_a_restore(context: Context) -> Result<()> {
    let resources = Resources { disk_bytes: 256 << 20, ..pinfold_domain::spec::defaults::RESOURCES };
    let new = NewTemplate { name: "tool".to_owned(), resources: Some(resources), ..NewTemplate::default() };
    context.client.create_template(new).await?;
    let prepared = async {
        loop {
            let template = context.client.get_template("tool").await?;
            ensure!(template.last_failure.is_none(), "{template:?}");
            if template.nodes_prepared == 1 {
                return Ok(());
            }
            // the API has no watch for templates
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    tokio::time::timeout(SAVE_LIMIT, prepared).await.context("it is not prepared")??;
    let cold = NewSandbox { resources: Some(resources), ..NewSandbox::default() };
    let cold = told("cold boot", &context.start(cold).await?)?;
    let mut seen = BTreeSet::new();
    for number in ["first", "second", "third"] {
        let source = Source::Template("tool".to_owned());
        let sandbox = context.start(NewSandbox { source, ..NewSandbox::default() }).await?;
        let took = told(&format!("{number} create from the template"), &sandbox)?;
        ensure!(sandbox.reached(Milestone::Booted).is_none(), "it was booted: {:?}", sandbox.timeline);
        ensure!(sandbox.reached(Milestone::Woken).is_some(), "{:?}", sandbox.timeline);
        println!("    {:.3} of the cold boot", took as f64 / cold.max(1) as f64);
        ensure!(took < cold, "a restore took {took} ms, a boot {cold} ms");
        clock_is_right(&context, sandbox.id).await?;
        seen.insert(identity(&context, sandbox.id).await?);
    }
    ensure!(seen.len() == 3, "{seen:?}");
    context.client.delete_template("tool").await?;
    let gone = async {
        while context.in_node("ls /var/lib/pinfold/templates | grep .").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone).await.context("the template's files stay")
}
