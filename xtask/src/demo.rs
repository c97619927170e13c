//! `cargo xtask demo`: the product as its user meets it, through the `pinfold` command alone.
//!
//! ```text
//!   doctor -> dev up -> create -> exec ... -> timeline -> rm -> dev down
//!                |                                               ^
//!                +------- any failure on the way ----------------+
//! ```
//!
//! Every command is printed before it runs and its output is shown as it comes. A command that ends with another exit
//! code than the expected one fails the demo; the fleet is taken down in either case.

mod pinfold;
mod processes;
mod timeline;

use crate::workspace::Workspace;
use anyhow::{Context, Result, ensure};
use pinfold::Pinfold;
use std::time::{Duration, Instant};

/// Virtual nodes get this much memory when there are several: two sandboxes each.
const MEMORY_MIB_OF_MANY: &str = "1536";
/// Under emulation, with several nodes starting sandboxes at once on few cores, a start takes its time.
const START_TIMEOUT: &str = "240s";

const PYTHON: &str = r#"import os, platform, sys, time
print("Python", platform.python_version(), "on", platform.release(), "as pid", os.getpid(), flush=True)
for step in range(1, 4):
    print("step", step, "of 3", flush=True)
    time.sleep(0.3)
print("the primes below 50:", [n for n in range(2, 50) if all(n % d for d in range(2, n))])
"#;

const GIT: &str = r#"set -e
git init -q -b main /workspace/demo
cd /workspace/demo
git config user.name Demo
git config user.email demo@example.org
echo 'print("hello")' > hello.py
git add hello.py
git commit -q -m "First commit from inside a microVM"
git log --stat --oneline"#;

/// Notes how many processes and kernel threads there are on a quiet day.
const NOTE: &str = r#"total = open("/proc/loadavg").read().split()[3].split("/")[1]
open("/tmp/quiet", "w").write(total)
print(total, "processes and kernel threads")
"#;

/// Waits until the bomb has filled its limit, then says so. In one process: there is no room for more.
const COUNT: &str = r#"import time
def more():
    total = int(open("/proc/loadavg").read().split()[3].split("/")[1])
    return total - int(open("/tmp/quiet").read())
for _ in range(100):
    if more() > 40:
        break
    time.sleep(0.1)
print(more(), "more than before")
assert more() > 20, "the fork bomb did not go off"
"#;

/// The same count, going down.
const QUIET: &str = r#"import time
def more():
    total = int(open("/proc/loadavg").read().split()[3].split("/")[1])
    return total - int(open("/tmp/quiet").read())
for _ in range(100):
    if more() < 10:
        break
    time.sleep(0.1)
print("all is quiet again")
assert more() < 10, "the fork bomb outlived its client"
"#;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Nodes; with more than one, two sandboxes for each are spread over them
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=8))]
    pub nodes: u32,
}

pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    let started = Instant::now();
    let pinfold = Pinfold::new(workspace);
    // what a demo that was interrupted has left
    pinfold.quietly(&["dev", "down"])?;
    title("The pre-flight: where can microVMs run?");
    // its exit code tells whether this host can do it alone; the demo can go on with virtual nodes
    pinfold.show(&["doctor"], None)?;
    title("A local fleet: one scheduler, and a node agent on each node");
    let shown = up(&pinfold, arguments).and_then(|()| scenario(&pinfold, arguments));
    title("The end: everything goes, and what is left is looked for");
    let down = pinfold.expect(0, &["dev", "down"], None);
    shown?;
    down?;
    let left = processes::with_state_directory(pinfold.state_directory())?;
    ensure!(left.is_empty(), "processes of the demo are still there: {left:?}");
    println!("and no process that the demo started is left on this machine");
    println!("\n\u{2713} demo: all shown in {:.0} s (without building)", started.elapsed().as_secs_f64());
    Ok(())
}

fn up(pinfold: &Pinfold, arguments: &Arguments) -> Result<()> {
    let nodes = arguments.nodes.to_string();
    let mut words = vec!["dev", "up", "--nodes", &nodes];
    if arguments.nodes > 1 {
        words.extend(["--memory-mib", MEMORY_MIB_OF_MANY]);
    }
    pinfold.expect(0, &words, None)?;
    pinfold.expect(0, &["nodes"], None)
}

fn scenario(pinfold: &Pinfold, arguments: &Arguments) -> Result<()> {
    one_sandbox(pinfold)?;
    if arguments.nodes > 1 {
        spread(pinfold, arguments.nodes)?;
    }
    Ok(())
}

fn one_sandbox(pinfold: &Pinfold) -> Result<()> {
    title("A sandbox: its own kernel, 1 CPU, 256 MiB, 64 processes");
    let name = "demo";
    pinfold.expect(
        0,
        &["create", "--name", name, "--memory", "256MiB", "--pids", "64", "--start-timeout", START_TIMEOUT],
        None,
    )?;
    title("Commands in it, their output as it comes");
    pinfold.expect(0, &["exec", name, "--", "uname", "-a"], None)?;
    pinfold.expect(0, &["exec", name, "--", "python3", "-"], Some(PYTHON))?;
    pinfold.expect(0, &["exec", name, "--", "bash", "-s"], Some(GIT))?;
    pinfold.expect(7, &["exec", name, "--", "sh", "-c", "exit 7"], None)?;
    fork_bomb(pinfold, name)?;
    title("Its life so far, and its end");
    pinfold.expect(0, &["stop", name], None)?;
    let sandbox = pinfold.json(&["get", name])?;
    timeline::print(&sandbox)?;
    pinfold.expect(0, &["rm", name], None)?;
    pinfold.expect(0, &["ls"], None)
}

/// A fork bomb fills the sandbox's limit while other commands still get their answer, and ends with its client.
fn fork_bomb(pinfold: &Pinfold, name: &str) -> Result<()> {
    title("A fork bomb, held by the limit on processes");
    pinfold.expect(0, &["exec", name, "--", "python3", "-"], Some(NOTE))?;
    let words = [
        "exec",
        name,
        "--timeout",
        "60s",
        "--",
        "bash",
        "-c",
        "exec 2>/dev/null; bomb() { bomb | bomb & }; bomb; sleep 60",
    ];
    let bomb = pinfold.start(&words)?;
    pinfold.expect(0, &["exec", name, "--", "python3", "-"], Some(COUNT))?;
    let asked = Instant::now();
    pinfold.expect(0, &["exec", name, "--", "echo", "still answering"], None)?;
    println!("  (after {} ms, with the bomb at work)", asked.elapsed().as_millis());
    bomb.kill()?;
    println!("  (the bomb's client is gone, and its processes with it)");
    pinfold.expect(0, &["exec", name, "--", "python3", "-"], Some(QUIET))
}

fn spread(pinfold: &Pinfold, nodes: u32) -> Result<()> {
    let count = nodes * 2;
    title(&format!("{count} sandboxes over {nodes} nodes"));
    let began = Instant::now();
    let starting = (1..=count)
        .map(|number| {
            let name = format!("spread-{number}");
            pinfold.start(&[
                "create",
                "--name",
                &name,
                "--memory",
                "192MiB",
                "--cpus",
                "0.5",
                "--start-timeout",
                START_TIMEOUT,
            ])
        })
        .collect::<Result<Vec<_>>>()?;
    for create in starting {
        let code = create.wait()?;
        ensure!(code == 0, "a create ended with exit code {code}");
    }
    println!("  (all of them run after {:.1} s)", Duration::as_secs_f64(&began.elapsed()));
    pinfold.expect(0, &["ls"], None)?;
    pinfold.expect(0, &["nodes"], None)?;
    let list = pinfold.json(&["nodes"])?;
    let list =
        list.as_array().or_else(|| list["nodes"].as_array()).context("`pinfold nodes -o json` is no list")?;
    for node in list {
        ensure!(
            node["sandboxes"] == 2,
            "node {} has {} sandboxes, an even spread gives 2",
            node["id"],
            node["sandboxes"]
        );
    }
    pinfold.expect(0, &["rm", "--all"], None)
}

fn title(text: &str) {
    println!("\n\u{2500}\u{2500} {text}");
}
