//! A virtual CPU: one thread that runs it until the machine ends.
//!
//! ```text
//!   created --start gate--> running --exit to a bus--> running
//!                              |
//!                              +-- shutdown, internal error, failed entry --> ended (the thread parks)
//! ```
//!
//! The thread installs its seccomp filter before it waits at the gate, and the gate opens when every thread has one.
//! It never leaves by itself: the device thread ends the process.

pub mod cpuid;
pub mod registers;

use crate::devices::bus::Bus;
use crate::ending::Ending;
use crate::metrics::Metrics;
use crate::seccomp::Binding;
use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use pinfold_vmm_api::control::ExitReason;
use std::io;
use std::sync::{Arc, Barrier};
use std::thread::JoinHandle;

/// `KVM_SYSTEM_EVENT_*`
const SYSTEM_EVENT_SHUTDOWN: u32 = 1;
const SYSTEM_EVENT_RESET: u32 = 2;

pub struct Vcpu {
    pub id: u32,
    pub fd: VcpuFd,
    pub bus: Arc<Bus>,
    pub ending: Arc<Ending>,
    pub metrics: Arc<Metrics>,
}

/// What the loop does after an exit.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Run,
    End(ExitReason, String),
}

impl Vcpu {
    /// Starts the thread. It is bound by `binding`, meets the others at `ready`, and runs the guest after `gate`.
    pub fn spawn(
        mut self,
        binding: Binding,
        ready: Arc<Barrier>,
        gate: Arc<Barrier>,
    ) -> io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name(format!("vcpu{}", self.id)).spawn(move || {
            let bound = binding.bind().is_ok();
            if !bound {
                self.ending.state(ExitReason::Internal, "a vCPU thread cannot install its seccomp filter");
            }
            ready.wait();
            gate.wait();
            if bound {
                self.run();
            }
            park();
        })
    }

    fn run(&mut self) {
        loop {
            match self.run_once() {
                Next::Run => {}
                Next::End(reason, message) => {
                    self.ending.state(reason, message);
                    return;
                }
            }
        }
    }

    fn run_once(&mut self) -> Next {
        let Self { fd, bus, metrics, id, .. } = self;
        match fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                metrics.exits_pio.increment();
                bus.port_write(port, data);
                Next::Run
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                metrics.exits_pio.increment();
                bus.port_read(port, data);
                Next::Run
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                metrics.exits_mmio.increment();
                bus.memory_read(address, data);
                Next::Run
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                metrics.exits_mmio.increment();
                bus.memory_write(address, data);
                Next::Run
            }
            Ok(VcpuExit::InternalError) => {
                metrics.exits_other.increment();
                internal_error(*id, fd)
            }
            Ok(other) => {
                metrics.exits_other.increment();
                rare(*id, &other)
            }
            Err(error) => match error.errno() {
                libc::EINTR | libc::EAGAIN => Next::Run,
                _ => Next::End(ExitReason::VcpuFailed, format!("KVM_RUN of vCPU {id} failed: {error}")),
            },
        }
    }
}

fn rare(id: u32, exit: &VcpuExit<'_>) -> Next {
    match exit {
        VcpuExit::Shutdown => Next::End(ExitReason::GuestReset, format!("triple fault on vCPU {id}")),
        VcpuExit::SystemEvent(SYSTEM_EVENT_RESET, _) => {
            Next::End(ExitReason::GuestReset, "the guest reset itself by a hypercall".into())
        }
        VcpuExit::SystemEvent(SYSTEM_EVENT_SHUTDOWN, _) => {
            Next::End(ExitReason::GuestPowerOff, "the guest powered itself off by a hypercall".into())
        }
        // with KVM's own interrupt controller a halted vCPU waits in the kernel; these are harmless
        VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::Hlt | VcpuExit::Nmi => Next::Run,
        VcpuExit::FailEntry(reason, cpu) => Next::End(
            ExitReason::VcpuFailed,
            format!("the processor refused to enter vCPU {id} on CPU {cpu}: reason {reason:#x}"),
        ),
        other => {
            Next::End(ExitReason::VcpuFailed, format!("vCPU {id} left KVM in an unknown way: {other:?}"))
        }
    }
}

/// `KVM_EXIT_INTERNAL_ERROR`: KVM cannot go on with this vCPU, mostly because it cannot emulate an instruction.
fn internal_error(id: u32, fd: &mut VcpuFd) -> Next {
    // SAFETY: after this exit `internal` is the member of the union that KVM filled in; it is plain integers.
    let kind = unsafe { fd.get_kvm_run().__bindgen_anon_1.internal.suberror };
    let what = match kind {
        KVM_INTERNAL_ERROR_EMULATION => "it cannot emulate an instruction".to_owned(),
        KVM_INTERNAL_ERROR_SIMUL_EX => "an exception came while another was delivered".to_owned(),
        KVM_INTERNAL_ERROR_DELIVERY_EV => "an event could not be delivered to the guest".to_owned(),
        KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => {
            "the processor left the guest for an unknown reason".to_owned()
        }
        other => format!("error {other}"),
    };
    Next::End(ExitReason::VcpuFailed, format!("KVM stopped vCPU {id}: {what}"))
}

/// Waits for the end of the process.
fn park() {
    loop {
        std::thread::park();
    }
}
