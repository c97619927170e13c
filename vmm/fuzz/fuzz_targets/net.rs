//! The libFuzzer binary of the body `net`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pinfold_vmm::fuzz::run("net", data));
