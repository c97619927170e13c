//! The whole path with real microVMs: client, scheduler, node agent, jailer, VMM, guest kernel, guest agent.
//!
//! One virtual node serves all cases: its boot is shared, each case has sandboxes of its own. So this suite is one
//! process with a list of cases instead of the standard harness:
//!
//! ```text
//!   cargo test -p pinfold-tests --test system                      everything
//!   cargo test -p pinfold-tests --test system -- disk fork         cases whose names contain one of these
//! ```
//!
//! It needs `build/node` (`cargo xtask images`) and the programs (`$PINFOLD_BIN_DIR`, else beside the test's own
//! directory). To a test runner that asks for a list it is one test, `all`.
//!
//! A virtual node under emulation livelocks now and then. When a case fails and the node no longer answers, the node
//! is ended by its pid, a new fleet is started and the case runs again; the closing summary counts this.
#![forbid(unsafe_code)]

mod bare;
mod cases;
mod context;
mod runner;

use std::process::ExitCode;

/// What a test runner may ask for; other flags of the standard harness change nothing here.
struct Arguments {
    list: bool,
    ignored_only: bool,
    filters: Vec<String>,
}

fn arguments() -> Arguments {
    let mut parsed = Arguments { list: false, ignored_only: false, filters: Vec::new() };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--list" => parsed.list = true,
            "--ignored" => parsed.ignored_only = true,
            "--format" | "--color" | "--test-threads" | "--skip" | "-Z" => {
                arguments.next();
            }
            flag if flag.starts_with('-') => {}
            // the one test of the list
            "all" => {}
            filter => parsed.filters.push(filter.to_owned()),
        }
    }
    parsed
}

fn main() -> ExitCode {
    let arguments = arguments();
    if arguments.list {
        if !arguments.ignored_only {
            println!("all: test");
        }
        return ExitCode::SUCCESS;
    }
    if arguments.ignored_only {
        println!("0 passed, 0 failed");
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime with two threads can be made");
    match runtime.block_on(runner::run(&arguments.filters)) {
        Ok(summary) => {
            println!("{summary}");
            // a filter may be meant for another suite
            let ran = summary.passed > 0 || !arguments.filters.is_empty();
            if summary.failed == 0 && ran { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("the system tests could not run: {error:#}");
            ExitCode::FAILURE
        }
    }
}
