//! The libFuzzer binary of the body `transport`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pinfold_vmm::fuzz::run("transport", data));
