//! `pinfold-bench-guest`: init of a guest that is measured. It says `HELLO` before anything else, so that the first line of a
//! guest means the same under every VMM, and then does what `bench=` on the kernel's command line asks for.
#![forbid(unsafe_code)]

use nix::unistd::pause;

fn main() {
    // a console that is not there is seen by the other side, which waits for the line
    println!("HELLO");
    loop {
        pause();
    }
}
