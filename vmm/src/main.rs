//! `pinfold-vmm`: runs one microVM, or says whether this machine can.

use anyhow::Context;
use pinfold_vmm::descriptors::{self, Descriptors};
use pinfold_vmm::{builder, memory_use, record};
use pinfold_vmm_api::MachineConfig;
use pinfold_vmm_api::control::{ExitReason, ExitRecord};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// A config is some hundred bytes; a longer one is none.
const CONFIG_BYTES_MAX: u64 = 64 * 1024;

const USAGE: &str = "\
One microVM in one process

Usage: pinfold-vmm run --config-fd N [--proc-fd N]
       pinfold-vmm probe [--kvm PATH]

run     runs the microVM of a config until it ends
          --config-fd N   descriptor from which the config is read as JSON
          --proc-fd N     descriptor of a directory with a procfs, where the jail has none; closed before the guest runs
probe   says as JSON whether this machine can run microVMs, and what to do if not
          --kvm PATH      the KVM device, if not /dev/kvm
";

#[derive(Debug)]
enum Command {
    Run { config_fd: RawFd, proc_fd: Option<RawFd> },
    Probe { kvm: PathBuf },
    Help,
    Version,
}

fn main() -> ExitCode {
    let began = Instant::now();
    match command(lexopt::Parser::from_env()).and_then(|command| carry_out(command, began)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("pinfold-vmm: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn carry_out(command: Command, began: Instant) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run { config_fd, proc_fd } => run(config_fd, proc_fd, began),
        Command::Probe { kvm } => probe(&kvm),
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
        other => anyhow::bail!("{other:?} is no command; see pinfold-vmm --help"),
    }
}

/// The exit code says that the question was answered, not what the answer is.
fn probe(kvm: &Path) -> anyhow::Result<ExitCode> {
    println!("{}", serde_json::to_string_pretty(&pinfold_vmm::probe::probe(kvm))?);
    Ok(ExitCode::SUCCESS)
}

/// Runs the machine and ends the process. Returns only when there is no exit file to write to.
fn run(config_fd: RawFd, proc_fd: Option<RawFd>, began: Instant) -> anyhow::Result<ExitCode> {
    let config = read_config(config_fd)?;
    // SAFETY: nothing in this process has used the descriptors of the config yet.
    let exit = unsafe { descriptors::take_exit(&config) }?;
    die_with_a_record(&exit)?;
    let smaps = memory_use::open_smaps(proc_fd);
    let record = match machine(&config, smaps, began) {
        Ok(machine) => machine.run(),
        Err(error) => ExitRecord {
            reason: error.reason(),
            message: error.to_string(),
            memory: Default::default(),
            counters: Default::default(),
            events: Vec::new(),
        },
    };
    eprintln!("pinfold-vmm {}: {:?}: {}", config.id, record.reason, record.message);
    let written = record::write(&exit, &record);
    // threads of vCPUs are still in the guest: nothing may be dropped, the process ends whole
    leave(i32::from(written.is_err()))
}

fn machine(
    config: &MachineConfig,
    smaps: Option<File>,
    began: Instant,
) -> Result<pinfold_vmm::machine::Machine, builder::BuildError> {
    config.validate()?;
    // SAFETY: nothing in this process has used the descriptors of the config yet, but for the exit record's.
    let descriptors = unsafe { Descriptors::take(config) }?;
    builder::build(config, descriptors, smaps, began)
}

fn read_config(fd: RawFd) -> anyhow::Result<MachineConfig> {
    anyhow::ensure!(fd >= 3, "--config-fd is {fd}, it must be 3 or more");
    // SAFETY: nothing else in this process uses the descriptor; a wrong number makes the read fail.
    let file = unsafe { File::from_raw_fd(fd) };
    let mut text = String::new();
    file.take(CONFIG_BYTES_MAX + 1).read_to_string(&mut text).context("reading the config")?;
    anyhow::ensure!(
        text.len() as u64 <= CONFIG_BYTES_MAX,
        "the config takes more than {CONFIG_BYTES_MAX} bytes, which is its limit"
    );
    serde_json::from_str(&text).context("the config is not one")
}

/// A panic of any thread ends the machine, with a record.
fn die_with_a_record(exit: &File) -> anyhow::Result<()> {
    let exit = exit.try_clone().context("duplicating the exit descriptor")?;
    std::panic::set_hook(Box::new(move |panic| {
        let message = format!("the VMM panicked: {panic}");
        eprintln!("pinfold-vmm: {message}");
        let record = ExitRecord {
            reason: ExitReason::Internal,
            message,
            memory: Default::default(),
            counters: Default::default(),
            events: Vec::new(),
        };
        let _ = record::write(&exit, &record);
        leave(1)
    }));
    Ok(())
}

fn leave(code: i32) -> ! {
    // SAFETY: ends the process at once; nothing runs after it.
    unsafe { libc::_exit(code) }
}
