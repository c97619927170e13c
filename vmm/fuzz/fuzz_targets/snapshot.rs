//! The libFuzzer binary of the body `snapshot`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pinfold_vmm::fuzz::run("snapshot", data));
