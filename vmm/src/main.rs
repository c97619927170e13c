//! `pinfold-vmm`: runs one microVM, or says whether this machine can.

use anyhow::Context;
use clap::{Parser, Subcommand};
use pinfold_vmm::descriptors::{self, Descriptors};
use pinfold_vmm::{builder, memory_use, record};
use pinfold_vmm_api::MachineConfig;
use pinfold_vmm_api::control::{ExitReason, ExitRecord};
use std::fs::File;
use std::io::Read;
use std::os::fd::{FromRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// A config is some hundred bytes; a longer one is none.
const CONFIG_BYTES_MAX: u64 = 64 * 1024;

#[derive(Debug, Parser)]
#[command(name = "pinfold-vmm", version, about = "One microVM in one process")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the microVM of a config until it ends
    Run {
        /// Descriptor from which the config is read as JSON
        #[arg(long, value_name = "N")]
        config_fd: RawFd,
        /// Descriptor of a directory with a procfs, where the jail has none; closed before the guest runs
        #[arg(long, value_name = "N")]
        proc_fd: Option<RawFd>,
    },
    /// Say as JSON whether this machine can run microVMs, and what to do if not
    Probe {
        /// The KVM device
        #[arg(long, value_name = "PATH", default_value = "/dev/kvm")]
        kvm: PathBuf,
    },
}

fn main() -> ExitCode {
    let began = Instant::now();
    let result = match Cli::parse().command {
        Command::Run { config_fd, proc_fd } => run(config_fd, proc_fd, began),
        Command::Probe { kvm } => probe(&kvm),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("pinfold-vmm: {error:#}");
            ExitCode::from(2)
        }
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
