//! The libFuzzer binary of the body `balloon`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pinfold_vmm::fuzz::run("balloon", data));
