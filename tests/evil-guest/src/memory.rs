//! Physical memory by address. The first 4 GiB are mapped one to one.
//!
//! The functions are safe to call in the sense that matters here: nothing but this guest can be hurt, and hurting itself
//! is what it is for. The map of what it uses: image from 1 MiB, rings from 16 MiB, data from 32 MiB.

use core::arch::asm;

/// One ring takes [`RING_BYTES`], the n-th ring begins at n times that from here.
pub const RINGS: u64 = 16 << 20;
pub const RING_BYTES: u64 = 0x1_0000;
/// Requests, indirect tables, payload.
pub const DATA: u64 = 32 << 20;
/// End of the least memory that a machine has here.
pub const END: u64 = 96 << 20;
/// A hole: between the end of any small guest's memory and the windows of devices.
pub const HOLE: u64 = 0xc000_0000;

macro_rules! access {
    ($read:ident, $write:ident, $kind:ty) => {
        #[inline]
        pub fn $read(address: u64) -> $kind {
            // SAFETY: the address space is the guest's own; see the module's head.
            unsafe { (address as *const $kind).read_volatile() }
        }

        #[inline]
        pub fn $write(address: u64, value: $kind) {
            // SAFETY: the address space is the guest's own; see the module's head.
            unsafe { (address as *mut $kind).write_volatile(value) }
        }
    };
}

access!(read8, write8, u8);
access!(read16, write16, u16);
access!(read32, write32, u32);
access!(read64, write64, u64);

/// Bytes that nobody writes any more.
pub fn bytes(address: u64, length: usize) -> &'static [u8] {
    // SAFETY: mapped as all of the first 4 GiB; the callers' memory is written by nobody.
    unsafe { core::slice::from_raw_parts(address as *const u8, length) }
}

pub fn copy(to: u64, from: u64, length: u64) {
    // SAFETY: the address space is the guest's own; see the module's head.
    unsafe { asm!("rep movsb", inout("rcx") length => _, inout("rdi") to => _, inout("rsi") from => _) }
}

pub fn fill(to: u64, value: u8, length: u64) {
    // SAFETY: the address space is the guest's own; see the module's head.
    unsafe { asm!("rep stosb", inout("rcx") length => _, inout("rdi") to => _, in("al") value) }
}

/// Reads a byte and leaves it as it is, by an instruction that writes: the page is the guest's after it.
pub fn touch(address: u64) {
    write8(address, read8(address));
}

/// Adds to a word that lies across two cache lines, with the bus locked.
pub fn split_lock(address: u64) {
    // SAFETY: the address space is the guest's own; see the module's head.
    unsafe { asm!("lock add dword ptr [{0}], 1", in(reg) address) }
}
