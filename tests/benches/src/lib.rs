//! What the benchmark and the hostile guest's host both need: a tap as the VMM wants it.
#![deny(unsafe_code)]

#[allow(unsafe_code)]
pub mod tap;
