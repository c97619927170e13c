//! `/init` of every guest. All of it is in the library, so that the tests can run the server without being PID 1.

fn main() -> ! {
    pinfold_guest_agent::init::main()
}
