//! `first-run`: the VMM's own processor time from exec to the guest's first instruction, by its own count (`StartTiming`). It needs
//! no guest that goes on from there, so it runs on any machine with a `/dev/kvm`, without emulation.

use crate::control;
use crate::launch::{self, Machine};
use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::{Value, json};
use std::thread::sleep;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    machine: Machine,
    #[arg(long, default_value_t = 20)]
    runs: u32,
}

pub fn run(arguments: &Arguments) -> Result<Value> {
    arguments.machine.warm()?;
    let (mut cpu_us, mut wall_us) = (Vec::new(), Vec::new());
    for _ in 0..arguments.runs {
        let mut running = launch::start(&arguments.machine)?;
        let socket = running.control.clone().context("this VMM has no control socket")?;
        let began = Instant::now();
        let timing = loop {
            ensure!(running.child.try_wait()?.is_none(), "the VMM ended: {}", running.console.text()?);
            ensure!(began.elapsed() < PATIENCE, "the guest was not entered in time");
            // the socket takes connections from the start; it answers once the guest runs
            let timing = control::status(&socket)?.timing;
            if timing.first_run_us > 0 {
                break timing;
            }
            sleep(Duration::from_millis(1));
        };
        cpu_us.push(timing.first_run_cpu_us);
        wall_us.push(timing.first_run_us);
    }
    Ok(json!({ "cpu_us": cpu_us, "wall_us": wall_us }))
}
