//! The libFuzzer binary of the body `acpi`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pinfold_vmm::fuzz::run("acpi", data));
