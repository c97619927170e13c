//! Brings the guest up.
pub fn main() -> ! {
    std::process::exit(1)
}
