//! A hostile guest in a real microVM, on this host's KVM: `tests/evil-guest` runs each case, and this judges it.
//!
//! ```text
//!   each case:  a fresh VMM --> guest: begin, done --> paused, resumed, ended by the host
//!                  |   ^ while it runs: status answered, memory, descriptors, threads within their bounds
//!                  |   +-- a neighbour that was there before answers all the time
//!                  +-- events on a watching connection: the kinds and devices of the case's row, counted
//! ```
//!
//! It needs `/dev/kvm`, `/dev/net/tun`, `ip` and root: the guest has no kernel and runs where a stock one does not. To a test runner that asks for a
//! list it is one test, `all`. Arguments are names of cases.
#![forbid(unsafe_code)]

mod bounds;
mod cases;
mod host;
mod machine;
mod neighbour;
mod run;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    if has("--list") {
        if !has("--ignored") {
            println!("all: test");
        }
        return ExitCode::SUCCESS;
    }
    if has("--ignored") {
        println!("0 passed, 0 failed");
        return ExitCode::SUCCESS;
    }
    // flags of the standard harness change nothing here; `all` is the one test of the list
    let filters: Vec<&str> = arguments
        .iter()
        .map(String::as_str)
        .filter(|word| !word.starts_with('-') && *word != "all")
        .collect();
    match run::all(&filters) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("the cases of the hostile guest could not run: {error:#}");
            ExitCode::FAILURE
        }
    }
}
