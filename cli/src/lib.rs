//! `pinfold`, the command line: the Rust client plus printing, and a local fleet ([`dev`]).
//!
//! Exit codes: the remote process's own for `run` and `exec` (128 + n when signal n ended it, 124 when its time limit
//! did), 0 for success, 2 for a wrong command line, 125 when a call failed, 130 after Ctrl-C.
#![forbid(unsafe_code)]

pub mod args;
mod attach;
mod commands;
mod connect;
pub mod dev;
mod escape;
mod failure;
mod lookup;
mod output;
mod parse;
pub mod progress;
mod terminal;

use clap::Parser;

/// Runs the command line of this process; the exit code.
pub fn main() -> i32 {
    let arguments = match args::Cli::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // a closed pipe is the only way in which this fails
            let _ = error.print();
            return error.exit_code();
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start the I/O runtime: {error}");
            return failure::CALL_FAILED;
        }
    };
    let result = runtime.block_on(commands::dispatch(arguments));
    terminal::restore();
    // a thread of it may wait for a line of stdin
    runtime.shutdown_background();
    match result {
        Ok(code) => code,
        Err(error) => failure::report(&error),
    }
}
