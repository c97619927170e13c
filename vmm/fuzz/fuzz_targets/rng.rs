//! The libFuzzer binary of the body `rng`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pinfold_vmm::fuzz::run("rng", data));
