//! One microVM in one process: one thread for all devices, one for each vCPU, no async runtime. A worker for each disk where
//! the host has no io_uring, and one that listens to a page-fault handler where memory comes from such a process.
//!
//! [`builder::build`] turns a config into a [`machine::Machine`], a straight list of steps; [`machine::Machine::run`]
//! runs it to its end. Devices are state machines over guest memory. Nothing that a guest does may bring the process
//! down: broken requests are counted and refused.

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
compile_error!("pinfold-vmm runs on Linux on x86-64 only");

pub mod acpi;
pub mod boot;
pub mod builder;
pub mod confinement;
pub mod control;
pub mod descriptors;
pub mod devices;
pub mod ending;
pub mod events;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
pub mod generation;
pub mod layout;
pub mod machine;
pub mod memory;
pub mod memory_use;
pub mod metrics;
pub mod probe;
pub mod process;
pub mod record;
pub mod seccomp;
pub mod signals;
pub mod snapshot;
pub mod userfault;
pub mod vcpu;
