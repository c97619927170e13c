//! G13, G14, G31, G32 and G34: the processor and what is beside it.

use crate::console::say;
use crate::memory::{self, DATA};
use crate::virtio::WINDOWS;
use crate::{Failed, Outcome, cpu};
use core::sync::atomic::Ordering::SeqCst;

const I8042_COMMAND: u16 = 0x64;
const PULSE_RESET: u8 = 0xfe;
const PM1_CONTROL: u16 = 0x604;
const SLEEP_OFF: u16 = 5 << 10 | 1 << 13;
const BUTTON_LINE: u32 = 17;
/// (QEMU, docs/specs/pvpanic)
const PANIC_PORT: u16 = 0x505;
const RESET_REGISTER: u16 = 0x608;
/// about a second and a half
const STORM_TICKS: u64 = 1 << 32;
const TSC: u32 = 0x10;
const TSC_ADJUST: u32 = 0x3b;
const TSC_DEADLINE: u32 = 0x6e0;

/// Ports whose writes end the machine or are this guest's only voice.
fn is_spared(port: u16) -> bool {
    matches!(port, I8042_COMMAND | 0x92 | 0xcf9 | PANIC_PORT | 0x3f8..=0x3ff)
        || (0x600..=0x60f).contains(&port)
}

pub fn ports_registers_and_leaves() -> Outcome {
    for port in (0..=u16::MAX).step_by(7).chain(0..0x1000) {
        cpu::in8(port);
        if port % 3 == 0 {
            let _ = cpu::in32(port);
        }
        if !is_spared(port) {
            cpu::out8(port, port as u8);
            cpu::out16(port, 0xffff);
            cpu::out32(port, u32::MAX);
        }
    }
    memory::fill(DATA, 0x55, 1 << 16);
    cpu::out_string(0x80, DATA, 1 << 16);
    cpu::in_string(0x71, DATA, 1 << 16);
    say!("ports walked");
    let before = cpu::FAULTS.load(SeqCst);
    for first in [0u32, 0x400, 0xc001_0000, 0x4000_0000, 0x4b56_4d20] {
        for number in first..first + 0x200 {
            let value = cpu::read_msr(number);
            // the local APIC's base, microcode updates, and what would take this guest its own memory types
            if !matches!(number, 0x1b | 0x79 | 0x200..=0x2ff) {
                cpu::write_msr(number, value ^ 0x1000);
                cpu::write_msr(number, value);
            }
        }
    }
    say!("registers refused ", cpu::FAULTS.load(SeqCst) - before);
    for leaf in [0, 0x8000_0000, 0x4000_0000] {
        for below in 0..64 {
            for subleaf in [0, 1, 2, u32::MAX] {
                cpu::cpuid(leaf + below, subleaf);
            }
        }
    }
    say!("leaves walked");
    Ok(())
}

/// Interrupts off and halted: only the host can end it.
pub fn halt_for_ever() -> Outcome {
    Ok(())
}

/// KVM cannot fetch instructions from where no memory is.
pub fn code_from_a_device() -> Outcome {
    say!("jumping into a device");
    cpu::jump_to(WINDOWS)
}

pub fn triple_fault() -> Outcome {
    say!("no handlers");
    cpu::forget_handlers();
    cpu::undefined_instruction();
    Err(Failed("an exception without handlers was survived"))
}

pub fn reset() -> Outcome {
    cpu::out8(RESET_REGISTER, 0);
    cpu::out8(I8042_COMMAND, 0xd1);
    cpu::out8(I8042_COMMAND, PULSE_RESET);
    cpu::wait_until(1 << 34, || false);
    Err(Failed("a reset was survived"))
}

/// Bits that mean nothing first: they end nothing.
pub fn panic() -> Outcome {
    for bits in [0, 2, 4, 0x80] {
        cpu::out8(PANIC_PORT, bits);
    }
    say!("panics");
    cpu::out8(PANIC_PORT, 1);
    cpu::wait_until(1 << 34, || false);
    Err(Failed("a panic was survived"))
}

pub fn power_off() -> Outcome {
    for kind in 0..8 {
        cpu::out16(PM1_CONTROL, kind << 10);
    }
    cpu::out16(PM1_CONTROL, SLEEP_OFF);
    cpu::wait_until(1 << 34, || false);
    Err(Failed("the end of power was survived"))
}

/// Not hostile: a guest that heeds its power button. The button's line is that of the ACPI event device (ACPI 6.5, 5.6.9).
pub fn power_button() -> Outcome {
    cpu::route_line(BUTTON_LINE);
    cpu::enable_interrupts();
    let before = cpu::INTERRUPTS_SEEN.load(SeqCst);
    say!("waiting for the button");
    if !cpu::wait_until(1 << 36, || cpu::INTERRUPTS_SEEN.load(SeqCst) > before) {
        return Err(Failed("nobody pressed the button"));
    }
    cpu::disable_interrupts();
    say!("pressed");
    cpu::out16(PM1_CONTROL, SLEEP_OFF);
    cpu::wait_until(1 << 34, || false);
    Err(Failed("the end of power was survived"))
}

/// Interrupts on for `STORM_TICKS` while `act` runs again and again.
fn storm(what: &'static str, mut act: impl FnMut()) {
    let before = cpu::INTERRUPTS_SEEN.load(SeqCst);
    let began = cpu::ticks();
    cpu::enable_interrupts();
    while cpu::ticks().wrapping_sub(began) < STORM_TICKS {
        act();
    }
    cpu::disable_interrupts();
    say!(what, " ", cpu::INTERRUPTS_SEEN.load(SeqCst) - before);
}

pub fn interrupt_storm() -> Outcome {
    storm("interrupts to itself", || cpu::interrupt_self(cpu::FLOOD_VECTOR));
    cpu::start_timer(1);
    storm("timer at its fastest", cpu::pause);
    cpu::stop_timer();
    cpu::timer_by_deadline();
    storm("deadlines in the past", || cpu::write_msr(TSC_DEADLINE, 1));
    cpu::stop_timer();
    Ok(())
}

/// Both processors, for long.
pub fn spin() -> Outcome {
    if !cpu::start_other(spin_for_a_while) {
        return Err(Failed("the second processor does not start"));
    }
    spin_for_a_while();
    cpu::join_other(1 << 34);
    Ok(())
}

fn spin_for_a_while() {
    let began = cpu::ticks();
    while cpu::ticks().wrapping_sub(began) < 4 * STORM_TICKS {
        memory::write64(DATA, began);
    }
}

pub fn clocks() -> Outcome {
    for value in [0, u64::MAX, 1 << 63, 1] {
        cpu::write_msr(TSC_ADJUST, value);
        cpu::write_msr(TSC, value);
        cpu::ticks();
    }
    cpu::write_msr(TSC_ADJUST, 0);
    // the pages of KVM's clock where no memory is, half on a page, and in this guest's own way
    for number in [0x11, 0x12, 0x4b56_4d00, 0x4b56_4d01, 0x4b56_4d03] {
        for address in [memory::HOLE | 1, u64::MAX, (DATA + 4090) | 1, DATA | 1, 0] {
            cpu::write_msr(number, address);
        }
    }
    say!("clocks set");
    Ok(())
}

pub fn split_locks() -> Outcome {
    // the last byte of a cache line and the first three of the next
    let across = DATA + 63;
    let began = cpu::ticks();
    let mut locks = 0u64;
    while cpu::ticks().wrapping_sub(began) < STORM_TICKS {
        for _ in 0..64 {
            memory::split_lock(across);
        }
        locks += 64;
    }
    say!("locks ", locks);
    Ok(())
}
