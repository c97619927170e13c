//! The `pinfold` program. See the library for all of it.
#![forbid(unsafe_code)]

fn main() {
    let code = pinfold_cli::main();
    // not a return from main: a thread that waits for a line of stdin would hold the process
    std::process::exit(code);
}
