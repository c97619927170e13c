//! From the first instruction to Rust: `entry.s`, and what it calls.

use crate::{console, cpu, memory};
use core::arch::global_asm;
use core::panic::PanicInfo;

global_asm!(include_str!("entry.s"), options(att_syntax));

/// Offset of the command line's address in `hvm_start_info` (Xen, public/arch-x86/hvm/start_info.h).
const COMMAND_LINE: u64 = 24;
const COMMAND_LINE_BYTES_MAX: usize = 2048;

#[unsafe(no_mangle)]
extern "C" fn rust_main(start_info: u64) -> ! {
    cpu::set_up_interrupts();
    let text = memory::read64(start_info + COMMAND_LINE);
    let bytes = (0..COMMAND_LINE_BYTES_MAX as u64).position(|at| memory::read8(text + at) == 0);
    crate::run(memory::bytes(text, bytes.unwrap_or(0)))
}

#[unsafe(no_mangle)]
extern "C" fn rust_other() -> ! {
    cpu::run_as_other()
}

/// An exception or an interrupt; `frame` is the return address on the stack, then CS, RFLAGS, RSP and SS.
#[unsafe(no_mangle)]
extern "C" fn rust_trap(vector: u64, frame: u64) {
    cpu::trap(vector, frame);
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let line = info.location().map_or(0, |location| location.line());
    let file = info.location().map_or("?", |location| location.file());
    console::say!("failed: a panic in ", file, " line ", u64::from(line));
    cpu::halt()
}

/// What the compiler calls for copies. `rep` moves are one instruction for an emulator, however long.
#[unsafe(no_mangle)]
extern "C" fn memcpy(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
    memory::copy(to as u64, from as u64, bytes as u64);
    to
}

#[unsafe(no_mangle)]
extern "C" fn memmove(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
    if (to as u64) <= from as u64 {
        memory::copy(to as u64, from as u64, bytes as u64);
    } else {
        for at in (0..bytes as u64).rev() {
            memory::write8(to as u64 + at, memory::read8(from as u64 + at));
        }
    }
    to
}

#[unsafe(no_mangle)]
extern "C" fn memset(to: *mut u8, value: i32, bytes: usize) -> *mut u8 {
    memory::fill(to as u64, value as u8, bytes as u64);
    to
}

#[unsafe(no_mangle)]
extern "C" fn memcmp(left: *const u8, right: *const u8, bytes: usize) -> i32 {
    for at in 0..bytes as u64 {
        let difference =
            i32::from(memory::read8(left as u64 + at)) - i32::from(memory::read8(right as u64 + at));
        if difference != 0 {
            return difference;
        }
    }
    0
}

#[unsafe(no_mangle)]
extern "C" fn bcmp(left: *const u8, right: *const u8, bytes: usize) -> i32 {
    memcmp(left, right, bytes)
}

/// Named by the compiled core library; nothing here unwinds.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
