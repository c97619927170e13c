//! Runs the cases one after the other on one fleet and ends the fleet whatever happens.

use crate::cases::{self, Case};
use crate::context::{Context, FleetGuard};
use anyhow::{Context as _, Result};
use futures::FutureExt;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

/// For one case, when it names no other: several times what it takes on a machine that is busy with other tests.
const CASE_LIMIT: Duration = Duration::from_secs(240);
/// Fleets that are started again because their node fell silent.
const MAX_NEW_FLEETS: u32 = 2;
/// A node that does not answer for so long has livelocked.
const SILENCE: Duration = Duration::from_secs(45);

#[derive(Debug, Default)]
pub struct Summary {
    pub passed: usize,
    pub failed: usize,
    skipped: usize,
    new_fleets: u32,
    seconds: u64,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nsystem tests with real microVMs: {} s", self.seconds)?;
        writeln!(f, "nodes that fell silent and were replaced: {}", self.new_fleets)?;
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// Runs the cases whose names contain one of `filters` (none: all).
pub async fn run(filters: &[String]) -> Result<Summary> {
    let began = Instant::now();
    let mut summary = Summary::default();
    let wanted =
        |case: &&Case| filters.is_empty() || filters.iter().any(|filter| case.name.contains(filter.as_str()));
    let all = cases::all();
    let chosen: Vec<&Case> = all.iter().filter(wanted).collect();
    summary.skipped = all.len() - chosen.len();
    println!("running {} system tests", chosen.len());
    if chosen.is_empty() {
        return Ok(summary);
    }
    let mut fleet = FleetGuard::start().await.context("the fleet could not be started")?;
    for case in chosen {
        let mut mark = fleet.mark().await;
        let mut outcome = run_case(case, &fleet.context).await;
        while outcome.is_err() && summary.new_fleets < MAX_NEW_FLEETS && fleet.node_is_silent(SILENCE).await {
            summary.new_fleets += 1;
            println!(
                "node fell silent during {}: a livelock of emulated nested virtualisation. A new fleet is started and \
                 the case runs again ({} of {MAX_NEW_FLEETS})",
                case.name, summary.new_fleets
            );
            fleet.end().await?;
            fleet = FleetGuard::start().await.context("the fleet could not be started again")?;
            mark = fleet.mark().await;
            outcome = run_case(case, &fleet.context).await;
        }
        match outcome {
            Ok(seconds) => {
                summary.passed += 1;
                println!("test {} ... ok ({seconds:.1} s)", case.name);
            }
            Err(error) => {
                summary.failed += 1;
                println!("test {} ... FAILED\n    {error}", case.name);
                println!("{}", fleet.evidence(&mark).await);
            }
        }
    }
    fleet.end().await?;
    summary.seconds = began.elapsed().as_secs();
    Ok(summary)
}

/// One case with its limit; then every sandbox that it made is removed.
async fn run_case(case: &Case, context: &Context) -> Result<f64, String> {
    let began = Instant::now();
    let limit = case.limit.unwrap_or(CASE_LIMIT);
    let run = AssertUnwindSafe((case.run)(context.clone())).catch_unwind();
    let outcome = match tokio::time::timeout(limit, run).await {
        Ok(Ok(outcome)) => outcome.map_err(|error| format!("{error:#}").replace('\n', "\n    ")),
        Ok(Err(panic)) => Err(panic_text(panic.as_ref())),
        Err(_) => Err(format!("it did not end within {} s", limit.as_secs())),
    };
    let seconds = began.elapsed().as_secs_f64();
    let swept =
        context.remove_all().await.map_err(|error| format!("sandboxes could not be removed: {error:#}"));
    outcome.and(swept).map(|()| seconds)
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked").to_owned()
}
