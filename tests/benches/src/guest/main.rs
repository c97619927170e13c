//! `pinfold-bench-guest`: init of a guest that is measured. It says `HELLO` before anything else, so that the first line of a
//! guest means the same under every VMM. With `bench=serve` on the kernel's command line it then does what the other side
//! asks for, over vsock or a virtio serial port, whichever there is.
//!
//! ```text
//!   HELLO --> nothing more to do: sleeps for ever
//!         \-> file systems, modules --> channel --> one line asked, one line answered, until `quit`
//! ```
#![forbid(unsafe_code)]

mod block;
mod channel;
mod net;
mod serve;
mod set_up;

use nix::unistd::pause;

fn main() {
    // what an `exec` request runs: the cheapest program there is
    if std::env::args().nth(1).as_deref() == Some("true") {
        return;
    }
    // a console that is not there is seen by the other side, which waits for the line
    println!("HELLO");
    if let Err(error) = work() {
        println!("FAILED {error:#}");
    }
    loop {
        pause();
    }
}

fn work() -> anyhow::Result<()> {
    set_up::proc()?;
    if !std::fs::read_to_string("/proc/cmdline")?.split_whitespace().any(|word| word == "bench=serve") {
        return Ok(());
    }
    set_up::the_rest()?;
    let mut channel = channel::open()?;
    println!("SERVING");
    serve::serve(&mut channel)
}
