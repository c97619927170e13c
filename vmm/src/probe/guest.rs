//! A guest of some twenty instructions in long mode that takes two exceptions through its own IDT.
//!
//! ```text
//!   0x1000 PML4   0x2000 PDPT   0x3000 page directory: 2 MiB, one to one
//!   0x4000 IDT    0x5000 GDT    0x6000 code   0x7000, 0x7100 handlers   0x8000 end of the stack
//! ```

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use std::mem::ManuallyDrop;
use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

const MEMORY_BYTES: usize = 0x20_0000;
const IDT: u64 = 0x4000;
const GDT: u64 = 0x5000;
const CODE: u64 = 0x6000;
const HANDLE_UNDEFINED: u64 = 0x7000;
const HANDLE_BREAKPOINT: u64 = 0x7100;
const STACK_TOP: u64 = 0x8000;
const CODE_SELECTOR: u16 = 8;

const PORT: u16 = 0xf4;
/// 32 of one handler and 10 of the other
const ANSWER: u8 = 42;

#[rustfmt::skip]
const PROGRAM: &[u8] = &[
    0x31, 0xc0,             // xor eax, eax
    0x0f, 0xa2,             // cpuid
    0x31, 0xdb,             // xor ebx, ebx
    0x50,                   // push rax
    0x0f, 0x0b,             // ud2
    0xcc,                   // int3
    0x58,                   // pop rax
    0x89, 0xd8,             // mov eax, ebx
    0xe6, 0xf4,             // out 0xf4, al
    0xf4,                   // hlt
    0xeb, 0xfd,             // jmp to the hlt
];
#[rustfmt::skip]
const UNDEFINED_HANDLER: &[u8] = &[
    0x48, 0x83, 0x04, 0x24, 0x02, // add qword [rsp], 2: past the ud2
    0x83, 0xc3, 0x20,             // add ebx, 32
    0x48, 0xcf,                   // iretq
];
#[rustfmt::skip]
const BREAKPOINT_HANDLER: &[u8] = &[
    0x83, 0xc3, 0x0a,       // add ebx, 10
    0x48, 0xcf,             // iretq
];

/// Emulated processors need milliseconds; what needs seconds for this does not come back.
const TIME_LIMIT: Duration = Duration::from_secs(5);
/// How long, and how often, the thread is asked to leave KVM.
const LEAVE_TRIES: u32 = 100;
const LEAVE_INTERVAL: Duration = Duration::from_millis(10);

#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("KVM refused to {act}: {source}")]
    Kvm { act: &'static str, source: kvm_ioctls::Error },
    #[error("cannot {0}")]
    Host(&'static str),
    #[error("the probe guest did not come back within 5 s")]
    Late,
    #[error("the probe guest answered {0}, not 42")]
    WrongAnswer(u8),
    #[error("the probe guest stopped without an answer: {0}")]
    Stopped(String),
}

/// Runs the guest; how long it took.
pub fn run(kvm: &Kvm) -> Result<Duration, ProbeError> {
    let refused = |act| move |source| ProbeError::Kvm { act, source };
    let vm = kvm.create_vm().map_err(refused("create a virtual machine"))?;
    let memory: GuestMemoryMmap<()> = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)])
        .map_err(|_| ProbeError::Host("map 2 MiB"))?;
    // never unmapped: a guest that does not come back may still be using it, and the process ends soon
    let memory = ManuallyDrop::new(memory);
    write(&memory).map_err(|_| ProbeError::Host("write to mapped memory"))?;
    let region = memory.iter().next().ok_or(ProbeError::Host("find the mapping"))?;
    let slot = kvm_userspace_memory_region {
        slot: 0,
        guest_phys_addr: 0,
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
        flags: 0,
    };
    // SAFETY: the mapping is never taken back.
    unsafe { vm.set_user_memory_region(slot) }.map_err(refused("take memory"))?;
    let vcpu = vm.create_vcpu(0).map_err(refused("create a vCPU"))?;
    set_registers(&vcpu)?;
    run_in_time(vcpu)
}

fn run_in_time(mut vcpu: VcpuFd) -> Result<Duration, ProbeError> {
    extern "C" fn interrupt(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(SIGRTMIN(), interrupt).map_err(|_| ProbeError::Host("handle a signal"))?;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let (sender, receiver) = mpsc::channel();
    let began = Instant::now();
    let thread = std::thread::Builder::new()
        .name("probe".into())
        .spawn(move || {
            // nobody listens any more when the guest is late
            let _ = sender.send(run_to_the_end(&mut vcpu, &stopped));
        })
        .map_err(|_| ProbeError::Host("start a thread"))?;
    let Ok(result) = receiver.recv_timeout(TIME_LIMIT) else {
        stop.store(true, Ordering::SeqCst);
        for _ in 0..LEAVE_TRIES {
            if thread.is_finished() {
                break;
            }
            // SAFETY: the handle is not joined, so the thread's id is valid.
            unsafe { libc::pthread_kill(thread.as_pthread_t(), SIGRTMIN()) };
            // a signal just before KVM_RUN is lost, so there is nothing to wait on but another try
            std::thread::sleep(LEAVE_INTERVAL);
        }
        return Err(ProbeError::Late);
    };
    let elapsed = began.elapsed();
    let _ = thread.join();
    result.map(|()| elapsed)
}

fn run_to_the_end(vcpu: &mut VcpuFd, stop: &AtomicBool) -> Result<(), ProbeError> {
    let mut answer = None;
    while !stop.load(Ordering::SeqCst) {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(PORT, data)) => answer = data.first().copied(),
            Ok(VcpuExit::Hlt) => {
                return match answer {
                    Some(ANSWER) => Ok(()),
                    Some(other) => Err(ProbeError::WrongAnswer(other)),
                    None => Err(ProbeError::Stopped("halted".into())),
                };
            }
            Ok(other) => return Err(ProbeError::Stopped(format!("{other:?}"))),
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(ProbeError::Stopped(format!("KVM_RUN failed: {error}"))),
        }
    }
    Err(ProbeError::Late)
}

fn write(memory: &GuestMemoryMmap<()>) -> Result<(), vm_memory::GuestMemoryError> {
    let quad = |address: u64, value: u64| memory.write_obj(value, GuestAddress(address));
    quad(0x1000, 0x2003)?;
    quad(0x2000, 0x3003)?;
    quad(0x3000, 0x83)?;
    quad(GDT + 8, 0x00af_9b00_0000_ffff)?;
    quad(GDT + 16, 0x00cf_9300_0000_ffff)?;
    for (vector, handler) in [(3, HANDLE_BREAKPOINT), (6, HANDLE_UNDEFINED)] {
        // a present 64-bit interrupt gate; both handlers lie below 64 KiB
        quad(IDT + vector * 16, handler & 0xffff | u64::from(CODE_SELECTOR) << 16 | 0x8e00 << 32)?;
    }
    memory.write_slice(PROGRAM, GuestAddress(CODE))?;
    memory.write_slice(UNDEFINED_HANDLER, GuestAddress(HANDLE_UNDEFINED))?;
    memory.write_slice(BREAKPOINT_HANDLER, GuestAddress(HANDLE_BREAKPOINT))
}

fn set_registers(vcpu: &VcpuFd) -> Result<(), ProbeError> {
    let refused = |act| move |source| ProbeError::Kvm { act, source };
    let mut sregs = vcpu.get_sregs().map_err(refused("read registers"))?;
    let flat = kvm_segment {
        limit: 0xffff_ffff,
        selector: CODE_SELECTOR,
        type_: 0xb,
        present: 1,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment { selector: 16, type_: 3, l: 0, db: 1, ..flat };
    sregs.cs = flat;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.gdt = kvm_dtable { base: GDT, limit: 23, ..Default::default() };
    sregs.idt = kvm_dtable { base: IDT, limit: 16 * 7 - 1, ..Default::default() };
    sregs.cr3 = 0x1000;
    sregs.cr4 = 1 << 5;
    sregs.cr0 = 1 << 31 | 1 << 4 | 1;
    sregs.efer = 1 << 10 | 1 << 8;
    vcpu.set_sregs(&sregs).map_err(refused("set registers"))?;
    let regs = kvm_regs { rip: CODE, rsp: STACK_TOP, rflags: 2, ..Default::default() };
    vcpu.set_regs(&regs).map_err(refused("set registers"))
}
