//! A virtual CPU: one thread that runs it until the machine ends.
//!
//! ```text
//!   created --> halted --order--> running --exit to a bus--> running
//!                 ^                 |  |
//!                 +--halt signal----+  +-- shutdown, internal error, failed entry --> ended (halted for good)
//! ```
//!
//! The thread installs its seccomp filter before it is halted for the first time. It never leaves by itself: the device
//! thread ends the process. [`crew`] is the other side of its orders.

pub mod cpuid;
pub mod crew;
pub mod registers;
pub mod state;

use crate::devices::bus::Bus;
use crate::ending::Ending;
use crate::metrics::Metrics;
use crate::seccomp::Binding;
use crew::{Order, Post, Word};
use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use pinfold_vmm_api::control::ExitReason;
use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Below the size of a huge page, so that the stack never becomes one: that would cost 2 MiB for each vCPU.
const STACK_BYTES: usize = 256 * 1024;
/// `KVM_SYSTEM_EVENT_*`
const SYSTEM_EVENT_SHUTDOWN: u32 = 1;
const SYSTEM_EVENT_RESET: u32 = 2;
/// Exits that finish what the guest had begun when it was halted: a string instruction or an access that crosses a page
/// takes a few.
const SETTLE_EXITS_MAX: u32 = 64;

thread_local! {
    /// `immediate_exit` of this thread's vCPU: KVM_RUN returns at once while it is not zero.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(std::ptr::null_mut()) };
}

/// A signal that comes just before KVM_RUN must end it as well as one that comes within.
pub(crate) extern "C" fn on_halt_signal(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: the thread set it to a byte of its vCPU's kvm_run page, which is mapped as long as the thread lives.
        unsafe { flag.write_volatile(1) };
    }
}

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
    /// KVM_RUN was left because somebody wants the thread
    Interrupted,
    End(ExitReason, String),
}

impl Vcpu {
    /// Starts the thread. It is bound by `binding`, says that it is halted, and then does what is ordered.
    fn spawn(mut self, binding: Binding, post: Post) -> io::Result<JoinHandle<()>> {
        let thread = std::thread::Builder::new().name(format!("vcpu{}", self.id)).stack_size(STACK_BYTES);
        thread.spawn(move || {
            IMMEDIATE_EXIT.set(&raw mut self.fd.get_kvm_run().immediate_exit);
            let bound = binding.bind().is_ok();
            if !bound {
                self.ending.state(ExitReason::Internal, "a vCPU thread cannot install its seccomp filter");
            }
            self.serve(bound, &post);
            park();
        })
    }

    /// `may_run`: it has what it takes, and has not ended.
    fn serve(&mut self, mut may_run: bool, post: &Post) {
        let mut word = Word::Halted;
        while post.words.send((self.id, word)).is_ok() {
            let Ok(order) = post.orders.recv() else { return };
            word = match order {
                Order::Save(msrs) => Word::Saved(Box::new(state::save(&self.fd, &msrs))),
                Order::Run | Order::Resume => {
                    if matches!(order, Order::Resume) {
                        // a guest without kvmclock has nothing to be told
                        let _ = self.fd.kvmclock_ctrl();
                    }
                    may_run = may_run && self.run(&post.halt);
                    Word::Halted
                }
            };
        }
    }

    /// Runs the guest until it is to halt; false when it has ended.
    fn run(&mut self, halt: &AtomicBool) -> bool {
        loop {
            let next = if halt.load(Ordering::SeqCst) { self.settle() } else { self.run_once() };
            match next {
                Next::Run => {}
                Next::Interrupted if halt.load(Ordering::SeqCst) => return true,
                Next::Interrupted => {}
                Next::End(reason, message) => {
                    self.ending.state(reason, message);
                    return false;
                }
            }
        }
    }

    /// Finishes the access that the last exit was about, without another instruction of the guest: before that its
    /// registers are not whole (KVM API, 5, "kvm_run").
    fn settle(&mut self) -> Next {
        for _ in 0..SETTLE_EXITS_MAX {
            self.fd.set_kvm_immediate_exit(1);
            match self.run_once() {
                Next::Run => {}
                other => return other,
            }
        }
        let message = format!("vCPU {} did not finish its last access in {SETTLE_EXITS_MAX} exits", self.id);
        Next::End(ExitReason::VcpuFailed, message)
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
                libc::EINTR => {
                    fd.set_kvm_immediate_exit(0);
                    Next::Interrupted
                }
                libc::EAGAIN => Next::Run,
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
