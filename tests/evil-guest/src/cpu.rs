//! Ports, registers, traps, and a second processor.

use crate::console::say;
use crate::memory;
use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

const CODE_SELECTOR: u64 = 8;
const LOCAL_APIC: u64 = 0xfee0_0000;
const APIC_END_OF_INTERRUPT: u64 = 0xb0;
const APIC_SPURIOUS: u64 = 0xf0;
const APIC_COMMAND_LOW: u64 = 0x300;
const APIC_COMMAND_HIGH: u64 = 0x310;
const APIC_TIMER: u64 = 0x320;
const APIC_TIMER_COUNT: u64 = 0x380;
const APIC_TIMER_DIVIDE: u64 = 0x3e0;
const IO_APIC: u64 = 0xfec0_0000;

/// First vector of interrupts.
pub const INTERRUPTS: u64 = 32;
/// Vectors of this guest's own.
pub const TIMER_VECTOR: u64 = 0x40;
pub const FLOOD_VECTOR: u64 = 0x41;
pub const LINE_VECTOR: u64 = 0x50;

const UNDEFINED: u64 = 6;
const GENERAL_PROTECTION: u64 = 13;
/// Where a started processor begins: 0x8000, page 8.
const TRAMPOLINE: u64 = 0x8000;

/// Traps seen.
pub static FAULTS: AtomicU64 = AtomicU64::new(0);
pub static INTERRUPTS_SEEN: AtomicU64 = AtomicU64::new(0);
static WAITS: AtomicU64 = AtomicU64::new(0);
/// What the other processor runs, as the address of a function.
static OTHER: AtomicU64 = AtomicU64::new(0);
static OTHER_STATE: AtomicU64 = AtomicU64::new(0);
/// Bytes of the instruction to pass over after a general protection fault; zero: such a fault is the end.
static SKIP: AtomicU64 = AtomicU64::new(0);

pub fn out8(port: u16, value: u8) {
    // SAFETY: a port of the guest's own machine.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value) }
}

pub fn out16(port: u16, value: u16) {
    // SAFETY: a port of the guest's own machine.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value) }
}

pub fn out32(port: u16, value: u32) {
    // SAFETY: a port of the guest's own machine.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value) }
}

pub fn in8(port: u16) -> u8 {
    let value;
    // SAFETY: a port of the guest's own machine.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value) }
    value
}

pub fn in32(port: u16) -> u32 {
    let value;
    // SAFETY: a port of the guest's own machine.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value) }
    value
}

/// `length` bytes to one port by one instruction.
pub fn out_string(port: u16, from: u64, length: u64) {
    // SAFETY: a port of the guest's own machine.
    unsafe { asm!("rep outsb", in("dx") port, inout("rsi") from => _, inout("rcx") length => _) }
}

/// `words` of four bytes to one port by one instruction.
pub fn out_words(port: u16, from: u64, words: u64) {
    // SAFETY: a port of the guest's own machine.
    unsafe { asm!("rep outsd", in("dx") port, inout("rsi") from => _, inout("rcx") words => _) }
}

/// `length` bytes from one port by one instruction.
pub fn in_string(port: u16, to: u64, length: u64) {
    // SAFETY: memory of the guest's own.
    unsafe { asm!("rep insb", in("dx") port, inout("rdi") to => _, inout("rcx") length => _) }
}

/// A model specific register; zero where there is none.
pub fn read_msr(number: u32) -> u64 {
    let (low, high): (u32, u32);
    SKIP.store(2, SeqCst);
    // SAFETY: a register that does not exist faults, and the handler passes over the two bytes of the instruction.
    unsafe { asm!("rdmsr", in("ecx") number, inout("eax") 0 => low, inout("edx") 0 => high) }
    SKIP.store(0, SeqCst);
    u64::from(high) << 32 | u64::from(low)
}

pub fn write_msr(number: u32, value: u64) {
    SKIP.store(2, SeqCst);
    // SAFETY: as above; what is written hurts this guest alone.
    unsafe { asm!("wrmsr", in("ecx") number, in("eax") value as u32, in("edx") (value >> 32) as u32) }
    SKIP.store(0, SeqCst);
}

pub fn cpuid(leaf: u32, subleaf: u32) -> u32 {
    core::arch::x86_64::__cpuid_count(leaf, subleaf).eax
}

pub fn ticks() -> u64 {
    // SAFETY: reads a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

pub fn pause() {
    core::hint::spin_loop();
}

/// Ends the case: no interrupt wakes this processor any more.
pub fn halt() -> ! {
    loop {
        // SAFETY: stops this processor.
        unsafe { asm!("cli", "hlt") }
    }
}

pub fn enable_interrupts() {
    // SAFETY: every vector has a handler.
    unsafe { asm!("sti") }
}

pub fn disable_interrupts() {
    // SAFETY: this guest needs no interrupt to go on.
    unsafe { asm!("cli") }
}

/// Waits for one interrupt; they are off again after it. A KVM that emulates every instruction wakes a halted processor
/// by an undefined instruction, which is as good here.
pub fn wait_for_interrupt() {
    WAITS.store(1, SeqCst);
    // SAFETY: every vector has a handler.
    unsafe { asm!("sti", "hlt", "cli") }
    WAITS.store(0, SeqCst);
}

pub fn undefined_instruction() {
    // SAFETY: an exception, which is what the caller wants.
    unsafe { asm!("ud2") }
}

/// Takes the handlers of all exceptions away: the next one is a triple fault.
pub fn forget_handlers() {
    let nothing = [0u64; 2];
    // SAFETY: a table of length zero, which is the point.
    unsafe { asm!("lidt [{0}]", in(reg) &nothing) }
}

pub fn jump_to(address: u64) -> ! {
    // SAFETY: nothing of this guest is needed after it.
    unsafe { asm!("jmp {0}", in(reg) address, options(noreturn)) }
}

#[cfg(freestanding)]
mod linked {
    unsafe extern "C" {
        static stubs: u8;
        static idt: u8;
        static trampoline_start: u8;
        static trampoline_end: u8;
    }

    pub fn stubs_at() -> u64 {
        &raw const stubs as u64
    }
    pub fn idt_at() -> u64 {
        &raw const idt as u64
    }
    /// from, to
    pub fn trampoline() -> (u64, u64) {
        (&raw const trampoline_start as u64, &raw const trampoline_end as u64)
    }
}

#[cfg(not(freestanding))]
mod linked {
    pub fn stubs_at() -> u64 {
        0
    }
    pub fn idt_at() -> u64 {
        0
    }
    pub fn trampoline() -> (u64, u64) {
        (0, 0)
    }
}

/// A gate for every vector, and the local APIC on.
pub fn set_up_interrupts() {
    for vector in 0..256 {
        let handler = linked::stubs_at() + 16 * vector;
        let gate = linked::idt_at() + 16 * vector;
        let low = handler & 0xffff | CODE_SELECTOR << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
        memory::write64(gate, low);
        memory::write64(gate + 8, handler >> 32);
    }
    apic_write(APIC_SPURIOUS, 0x1ff);
}

fn apic_write(register: u64, value: u32) {
    memory::write32(LOCAL_APIC + register, value);
}

pub fn trap(vector: u64, frame: u64) {
    if vector >= INTERRUPTS || vector == UNDEFINED && WAITS.load(SeqCst) == 1 {
        INTERRUPTS_SEEN.fetch_add(1, SeqCst);
        return apic_write(APIC_END_OF_INTERRUPT, 0);
    }
    FAULTS.fetch_add(1, SeqCst);
    let skip = SKIP.load(SeqCst);
    if vector != GENERAL_PROTECTION || skip == 0 {
        say!("failed: exception ", vector, " at ", memory::read64(frame));
        halt();
    }
    memory::write64(frame, memory::read64(frame) + skip);
}

/// Lets line `line` of the I/O APIC raise [`LINE_VECTOR`] on the first processor.
pub fn route_line(line: u32) {
    for (register, value) in [(0x11 + 2 * line, 0), (0x10 + 2 * line, LINE_VECTOR as u32)] {
        memory::write32(IO_APIC, register);
        memory::write32(IO_APIC + 0x10, value);
    }
}

/// An interrupt to this processor itself.
pub fn interrupt_self(vector: u64) {
    apic_write(APIC_COMMAND_LOW, 1 << 18 | vector as u32);
}

/// Makes the timer fire again and again, as fast as it may.
pub fn start_timer(count: u32) {
    apic_write(APIC_TIMER_DIVIDE, 0b1011);
    apic_write(APIC_TIMER, 1 << 17 | TIMER_VECTOR as u32);
    apic_write(APIC_TIMER_COUNT, count);
}

/// The timer by deadline: what is over fires at once.
pub fn timer_by_deadline() {
    apic_write(APIC_TIMER, 2 << 17 | TIMER_VECTOR as u32);
}

pub fn stop_timer() {
    apic_write(APIC_TIMER, 1 << 16);
    apic_write(APIC_TIMER_COUNT, 0);
}

/// Starts the second processor in `run`. False when it does not come.
pub fn start_other(run: fn()) -> bool {
    OTHER.store(run as usize as u64, SeqCst);
    OTHER_STATE.store(0, SeqCst);
    let (from, to) = linked::trampoline();
    memory::copy(TRAMPOLINE, from, to - from);
    // INIT, then the page to start at, twice (SDM 3A, 10.4.4.1)
    for command in [0x4500, 0x4600 | (TRAMPOLINE >> 12) as u32, 0x4600 | (TRAMPOLINE >> 12) as u32] {
        apic_write(APIC_COMMAND_HIGH, 1 << 24);
        apic_write(APIC_COMMAND_LOW, command);
        for _ in 0..2000 {
            pause();
        }
    }
    wait_until(1 << 34, || OTHER_STATE.load(SeqCst) > 0)
}

/// Waits for the end of what the second processor runs.
pub fn join_other(limit_ticks: u64) -> bool {
    wait_until(limit_ticks, || OTHER_STATE.load(SeqCst) > 1)
}

pub fn run_as_other() -> ! {
    OTHER_STATE.store(1, SeqCst);
    let run = OTHER.load(SeqCst);
    // SAFETY: stored by `start_other` from a function of this type.
    let run: fn() = unsafe { core::mem::transmute(run as usize) };
    run();
    OTHER_STATE.store(2, SeqCst);
    halt()
}

/// True once `holds`; false after `limit_ticks` of the time stamp counter.
pub fn wait_until(limit_ticks: u64, mut holds: impl FnMut() -> bool) -> bool {
    let began = ticks();
    while !holds() {
        if ticks().wrapping_sub(began) > limit_ticks {
            return false;
        }
        pause();
    }
    true
}
