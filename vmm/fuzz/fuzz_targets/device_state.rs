//! The libFuzzer binary of the body `device_state`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pinfold_vmm::fuzz::run("device_state", data));
