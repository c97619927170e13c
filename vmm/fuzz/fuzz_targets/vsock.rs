//! The libFuzzer binary of the body `vsock`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pinfold_vmm::fuzz::run("vsock", data));
