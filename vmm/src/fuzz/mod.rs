//! Bodies of the fuzz targets: each takes any bytes and must neither panic, nor hang, nor take memory without bound.
//!
//! `vmm/fuzz` wraps each in a libFuzzer binary; the unit test below replays every input that is kept in `vmm/fuzz/corpus`.
//! Compiled for tests and with the feature `fuzzing` only, so nothing of it is in the shipped binary.

mod balloon;
mod devices;
mod files;
mod lines;
mod net;
mod ops;
mod saved;

/// Takes any bytes.
pub type Body = fn(&[u8]);

/// Name and body of every target. A target is a file in `vmm/fuzz/fuzz_targets` and a folder in `vmm/fuzz/corpus`.
pub const TARGETS: &[(&str, Body)] = &[
    ("transport", devices::transport),
    ("rng", devices::rng),
    ("block", devices::block),
    ("net", net::net),
    ("balloon", balloon::balloon),
    ("vsock", devices::vsock),
    ("vsock_packets", devices::vsock_packets),
    ("kernel", files::kernel),
    ("acpi", files::acpi),
    ("snapshot", saved::snapshot),
    ("device_state", saved::device_state),
    ("config", lines::config),
    ("control", lines::control),
];

/// Runs the target called `name`.
pub fn run(name: &str, data: &[u8]) {
    let (_, body) =
        TARGETS.iter().find(|(known, _)| *known == name).expect("the binary is named after a target");
    body(data);
}

#[cfg(test)]
mod tests;
