//! `pinfold-vmm`: runs one microVM, or says whether this machine can.

use anyhow::Context;
use pinfold_vmm::process::{self, Options};
use std::io::Write;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

const USAGE: &str = "\
One microVM in one process

Usage: pinfold-vmm run --config-fd N [--proc-fd N]
       pinfold-vmm probe [--kvm PATH]
       pinfold-vmm rules

run     runs the microVM of a config until it ends
          --config-fd N   descriptor from which the config is read as JSON
          --proc-fd N     descriptor of a directory with a procfs, where the jail has none; closed before the guest runs
probe   says as JSON whether this machine can run microVMs, and what to do if not
          --kvm PATH      the KVM device, if not /dev/kvm
rules   lists as JSON the system calls that each thread may make, under which conditions and why
";

#[derive(Debug)]
enum Command {
    Run { config_fd: RawFd, proc_fd: Option<RawFd> },
    Probe { kvm: PathBuf },
    Rules,
    Help,
    Version,
}

fn main() -> ExitCode {
    let began = Instant::now();
    one_arena();
    match command(lexopt::Parser::from_env()).and_then(|command| carry_out(command, began)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("pinfold-vmm: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// All threads share one heap. An arena for each lies on a boundary of 64 MiB, where the host may make its first page a huge
/// one: 2 MiB for a few hundred bytes.
fn one_arena() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number before there is a second thread; on failure there are more arenas.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1)
    };
}

fn carry_out(command: Command, began: Instant) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run { config_fd, proc_fd } => {
            process::run(&Options { config_fd, proc_fd, began, landlock: true, once_bound: None })
        }
        Command::Probe { kvm } => probe(&kvm),
        Command::Rules => print(&serde_json::to_string(&pinfold_vmm::seccomp::listing::all())?),
        Command::Help => print(USAGE),
        Command::Version => print(concat!("pinfold-vmm ", env!("CARGO_PKG_VERSION"), "\n")),
    }
}

fn print(text: &str) -> anyhow::Result<ExitCode> {
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// Reads the command line: one command, then its options in any order.
fn command(mut arguments: lexopt::Parser) -> anyhow::Result<Command> {
    use lexopt::prelude::{Long, Short, Value, ValueExt};
    let name = match arguments.next()? {
        Some(Long("help") | Short('h')) => return Ok(Command::Help),
        Some(Long("version") | Short('V')) => return Ok(Command::Version),
        Some(Value(name)) => name.string()?,
        Some(other) => return Err(other.unexpected().into()),
        None => anyhow::bail!("no command given; see pinfold-vmm --help"),
    };
    let (mut config_fd, mut proc_fd, mut kvm) = (None, None, PathBuf::from("/dev/kvm"));
    while let Some(argument) = arguments.next()? {
        match (name.as_str(), argument) {
            (_, Long("help") | Short('h')) => return Ok(Command::Help),
            ("run", Long("config-fd")) => config_fd = Some(arguments.value()?.parse()?),
            ("run", Long("proc-fd")) => proc_fd = Some(arguments.value()?.parse()?),
            ("probe", Long("kvm")) => kvm = arguments.value()?.into(),
            (_, other) => return Err(other.unexpected().into()),
        }
    }
    match name.as_str() {
        "run" => Ok(Command::Run { config_fd: config_fd.context("run needs --config-fd")?, proc_fd }),
        "probe" => Ok(Command::Probe { kvm }),
        "rules" => Ok(Command::Rules),
        other => anyhow::bail!("{other:?} is no command; see pinfold-vmm --help"),
    }
}

/// The exit code says that the question was answered, not what the answer is.
fn probe(kvm: &Path) -> anyhow::Result<ExitCode> {
    println!("{}", serde_json::to_string_pretty(&pinfold_vmm::probe::probe(kvm))?);
    Ok(ExitCode::SUCCESS)
}
