//! Boots one microVM without a node agent or a jail, for work on the VMM itself and for the system tests.
//!
//! Opens every file by path and starts `pinfold-vmm` with the descriptors. Then it copies the console to standard output,
//! prints a status while the guest runs and the exit record at the end; or, started by `boot start`, leaves the machine to
//! the other commands, which find it by its directory.
//!
//! ```text
//!   boot --vmm pinfold-vmm --kernel vmlinuz --initrd initrd.gz --disk root.img:ro --cmdline 'console=ttyS0'
//!
//!   boot start --vmm pinfold-vmm --kernel vmlinux --directory d     and then, in any order
//!   boot wait d 'login:'        boot console d        boot end d
//!   boot ask d/control '{"request":"status"}'         boot snapshot d/control saved full
//! ```

mod machine;
mod wire;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use machine::Machine;
use pinfold_vmm_api::console::Reader;
use pinfold_vmm_api::control::{Request, Response, SnapshotKind};
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Option<Run>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a machine and leave it; its process id is in `pid`, what the VMM says in `log`
    Start(Machine),
    /// Wait until the console has said something; all that it has said
    Wait {
        directory: PathBuf,
        text: String,
        #[arg(long, default_value_t = 50)]
        seconds: u64,
    },
    /// All that the console has said
    Console { directory: PathBuf },
    /// One request, one answer
    Ask { control: PathBuf, request: String },
    /// Save a paused machine to `state` and `memory` in a directory
    Snapshot {
        control: PathBuf,
        to: PathBuf,
        /// full, full_tracked or diff
        kind: String,
    },
    /// Send a line to a vsock port of the guest; what comes back
    Talk { vsock: PathBuf, port: u32 },
    /// Wait until the machine has ended; its exit record
    End {
        directory: PathBuf,
        #[arg(long, default_value_t = 50)]
        seconds: u64,
    },
}

#[derive(Debug, Args)]
struct Run {
    #[command(flatten)]
    machine: Machine,
    /// ask for the status when the console has said this
    #[arg(long, default_value = "HELLO")]
    status_after: String,
    /// then connect to this vsock port of the guest, send a line and print what comes back
    #[arg(long)]
    connect: Option<u32>,
    /// listen for guest connections to this vsock port and send back what comes
    #[arg(long)]
    listen: Option<u32>,
    /// then ask for so much of the guest's memory, and for the status a second later
    #[arg(long)]
    balloon_mib: Option<u64>,
    /// then press the power button
    #[arg(long)]
    power_button: bool,
    /// then ask the VMM to end
    #[arg(long)]
    kill: bool,
    /// then pause for so long, and resume
    #[arg(long)]
    pause_ms: Option<u64>,
    /// then pause, save to `state` and `memory` in this directory, and resume
    #[arg(long)]
    snapshot: Option<PathBuf>,
    /// then let it run for a second, and save what changed to this directory
    #[arg(long)]
    diff: Option<PathBuf>,
    #[arg(long, default_value_t = 120)]
    timeout_seconds: u64,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    match (arguments.command, arguments.run) {
        (Some(command), _) => carry_out(&command),
        (None, Some(run)) => follow(&run),
        (None, None) => bail!("name a machine, or a command"),
    }
}

fn carry_out(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Start(machine) => {
            let child = machine.start(Some(&machine.directory.join("log")))?;
            std::fs::write(machine.directory.join("pid"), child.id().to_string())?;
        }
        Command::Wait { directory, text, seconds } => {
            print!("{}", wire::wait_for(directory, text, Duration::from_secs(*seconds))?);
        }
        Command::Console { directory } => print!("{}", wire::console(directory)?),
        Command::Ask { control, request } => {
            let request: Request = serde_json::from_str(request).context("the request")?;
            told(&wire::ask(control, &request)?)?;
        }
        Command::Snapshot { control, to, kind } => {
            let kind: SnapshotKind = serde_json::from_value(kind.as_str().into())?;
            told(&wire::snapshot(control, to, kind)?)?;
        }
        Command::Talk { vsock, port } => println!("{}", wire::talk(vsock, *port)?),
        Command::End { directory, seconds } => {
            let record = wire::wait_ended(directory, Duration::from_secs(*seconds))?;
            println!("{}", serde_json::to_string(&record)?);
        }
    }
    Ok(())
}

/// Prints an answer; a refusal is an error.
fn told(response: &Response) -> anyhow::Result<()> {
    if let Response::Error { message } = response {
        bail!("{message}");
    }
    println!("{}", serde_json::to_string(response)?);
    Ok(())
}

fn follow(arguments: &Run) -> anyhow::Result<()> {
    let directory = &arguments.machine.directory;
    std::fs::create_dir_all(directory)?;
    if let Some(port) = arguments.listen {
        wire::echo_server(&directory.join(format!("vsock_{port}")))?;
    }
    let began = Instant::now();
    let mut child: Child = arguments.machine.start(None)?;
    let console = Reader::new(File::open(directory.join("console"))?);
    let (mut offset, mut seen, mut asked) = (0, Vec::new(), false);
    let mut ended = None;
    loop {
        let chunk = console.read(offset, 64 * 1024)?;
        offset = chunk.offset + chunk.data.len() as u64;
        std::io::stdout().write_all(&chunk.data)?;
        seen.extend(&chunk.data);
        if !asked && String::from_utf8_lossy(&seen).contains(&arguments.status_after) {
            asked = true;
            println!("[boot] {:?} seen after {} ms", arguments.status_after, began.elapsed().as_millis());
            at_mark(arguments)?;
        }
        if let Some(status) = ended {
            println!("[boot] {status} after {} ms", began.elapsed().as_millis());
            println!("[boot] {:#?}", wire::record(directory)?);
            return Ok(());
        }
        ended = child.try_wait()?;
        if began.elapsed() > Duration::from_secs(arguments.timeout_seconds) {
            child.kill()?;
            bail!("no end within {} s", arguments.timeout_seconds);
        }
        // the console is a file: there is nothing to wait on but time
        std::thread::sleep(wire::LOOK_INTERVAL);
    }
}

/// What to do once the guest has said that it is up.
fn at_mark(arguments: &Run) -> anyhow::Result<()> {
    let control = arguments.machine.directory.join("control");
    println!("[boot] {:?}", wire::ask(&control, &Request::Status)?);
    if let Some(port) = arguments.connect {
        let text = wire::talk(&arguments.machine.directory.join("vsock"), port)?;
        println!("[boot] port {port} answered {text:?}");
        println!("[boot] {:?}", wire::ask(&control, &Request::Status)?);
    }
    if let Some(pause_ms) = arguments.pause_ms {
        println!("[boot] {:?}", wire::ask(&control, &Request::Pause)?);
        std::thread::sleep(Duration::from_millis(pause_ms));
        println!("[boot] {:?}", wire::ask(&control, &Request::Resume)?);
    }
    if let Some(to) = &arguments.snapshot {
        println!("[boot] {:?}", wire::ask(&control, &Request::Pause)?);
        println!("[boot] {:?}", wire::snapshot(&control, to, SnapshotKind::FullTracked)?);
        println!("[boot] {:?}", wire::ask(&control, &Request::Resume)?);
    }
    if let Some(to) = &arguments.diff {
        std::thread::sleep(Duration::from_secs(1));
        println!("[boot] {:?}", wire::ask(&control, &Request::Pause)?);
        println!("[boot] {:?}", wire::snapshot(&control, to, SnapshotKind::Diff)?);
        println!("[boot] {:?}", wire::ask(&control, &Request::Resume)?);
    }
    if let Some(mib) = arguments.balloon_mib {
        let request = Request::SetBalloon { target_bytes: mib << 20 };
        println!("[boot] {:?}", wire::ask(&control, &request)?);
        std::thread::sleep(Duration::from_secs(3));
        println!("[boot] {:?}", wire::ask(&control, &Request::Status)?);
    }
    if arguments.power_button {
        println!("[boot] {:?}", wire::ask(&control, &Request::PowerButton)?);
    }
    if arguments.kill {
        println!("[boot] {:?}", wire::ask(&control, &Request::Kill)?);
    }
    Ok(())
}
