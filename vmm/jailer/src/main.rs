//! `pinfold-jailer --config-fd <n>`: confines one VMM and becomes it. See [`jail`] for the procedure and
//! `pinfold_vmm_api::jail` for the configuration and the answer.

mod config;
mod jail;
mod steps;

use pinfold_vmm_api::jail::JailOutcome;
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let outcome = match config::from_arguments(std::env::args().skip(1)).and_then(|config| jail::run(&config))
    {
        Ok(pid) => JailOutcome::Pid(pid),
        Err(error) => JailOutcome::Error(describe(&error)),
    };
    let line = serde_json::to_string(&outcome).expect("an integer and a string are always JSON");
    // Nobody is left to tell when even this fails: the exit code still says it.
    let written = writeln!(std::io::stdout(), "{line}");
    match (outcome, written) {
        (JailOutcome::Pid(_), Ok(())) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// The error and its causes on one line.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
