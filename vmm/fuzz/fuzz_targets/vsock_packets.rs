//! The libFuzzer binary of the body `vsock_packets`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pinfold_vmm::fuzz::run("vsock_packets", data));
