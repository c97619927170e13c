//! The state of a halted vCPU: taken on its own thread, put into a new vCPU before its thread starts.
//!
//! Order matters in both directions. Taking: the multiprocessing state first, because asking for it lets a pending INIT or
//! SIPI act on the registers; events last. Putting: CPUID before all that depends on it, the local APIC before the
//! deadline of its timer, the time stamp counter before that deadline and before KVM's clock.

use crate::snapshot::blob::{Blob, WrongSize};
use kvm_bindings::{Msrs, kvm_lapic_state, kvm_msr_entry, kvm_xsave};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

const MSR_TSC: u32 = 0x10;
const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// Timer entry of the local vector table, and its bits that say how the timer is programmed (Intel SDM 3, 11.5.1).
const LVT_TIMER: usize = 0x320;
const LVT_TIMER_MODE: u32 = 0b11 << 17;
const LVT_TIMER_DEADLINE: u32 = 0b10 << 17;

/// What a host may call its time stamp counter's rate between two looks at it, as Linux itself allows: 250 in a million.
const TSC_TOLERANCE_PER_MILLION: u64 = 250;

/// One vCPU. Fields are named after the ioctls that read and write them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuState {
    pub tsc_khz: u32,
    mp_state: Blob,
    regs: Blob,
    sregs: Blob,
    xsave: Blob,
    xcrs: Blob,
    debug_regs: Blob,
    lapic: Blob,
    msrs: Blob,
    events: Blob,
}

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("KVM refused {act} {what} of a vCPU: {source}")]
    Kvm { act: &'static str, what: &'static str, source: kvm_ioctls::Error },
    #[error("the saved {what} of a vCPU: {source}")]
    Size { what: &'static str, source: WrongSize },
    #[error("KVM refused model specific register {index:#x} of a vCPU with {value:#x}")]
    Msr { index: u32, value: u64 },
    #[error("{0} model specific registers are more than KVM takes at once")]
    TooManyMsrs(usize),
    #[error(
        "the guest's time stamp counter runs at {saved} kHz, that of this host at {host} and cannot be scaled"
    )]
    Tsc { saved: u32, host: u32 },
}

fn refused(act: &'static str, what: &'static str) -> impl Fn(kvm_ioctls::Error) -> StateError {
    move |source| StateError::Kvm { act, what, source }
}

/// Model specific registers of `all` that belong to a guest. Left out are those of Hyper-V's interface, which no guest of
/// ours is offered, and those that only describe the host.
pub fn saved_msrs(all: &[u32]) -> Vec<u32> {
    let of_hyper_v = 0x4000_0000..=0x4000_01ff;
    // of VMX; PERF_CAPABILITIES, ARCH_CAPABILITIES, PLATFORM_INFO, UCODE_REV
    let of_vmx = 0x480..=0x491;
    let of_host = [0x345, 0x10a, 0xce, 0x8b];
    let is_guests =
        |index: &u32| !of_hyper_v.contains(index) && !of_vmx.contains(index) && !of_host.contains(index);
    let mut saved: Vec<u32> = all.iter().copied().filter(is_guests).collect();
    saved.sort_by_key(|index| (restore_rank(*index), *index));
    saved.dedup();
    saved
}

/// The counter first, KVM's own clock after it, the deadline last.
fn restore_rank(index: u32) -> u32 {
    match index {
        MSR_TSC => 0,
        MSR_TSC_DEADLINE => 3,
        0x4b56_4d00..=0x4b56_4dff | 0x11 | 0x12 => 2,
        _ => 1,
    }
}

/// `msrs`: from [`saved_msrs`]. The vCPU is not in the guest.
pub fn save(vcpu: &VcpuFd, msrs: &[u32]) -> Result<VcpuState, StateError> {
    let get = |what| refused("to tell the", what);
    Ok(VcpuState {
        mp_state: Blob::of(&vcpu.get_mp_state().map_err(get("multiprocessing state"))?),
        regs: Blob::of(&vcpu.get_regs().map_err(get("registers"))?),
        sregs: Blob::of(&vcpu.get_sregs().map_err(get("system registers"))?),
        xsave: Blob::of(&vcpu.get_xsave().map_err(get("extended state"))?),
        xcrs: Blob::of(&vcpu.get_xcrs().map_err(get("extended control registers"))?),
        debug_regs: Blob::of(&vcpu.get_debug_regs().map_err(get("debug registers"))?),
        lapic: Blob::of(&vcpu.get_lapic().map_err(get("local APIC"))?),
        tsc_khz: vcpu.get_tsc_khz().map_err(get("time stamp rate"))?,
        msrs: Blob::of(read_msrs(vcpu, msrs)?.as_slice()),
        events: Blob::of(&vcpu.get_vcpu_events().map_err(get("events"))?),
    })
}

/// KVM stops at the first register that this vCPU has not; it is left out and the rest is asked for.
fn read_msrs(vcpu: &VcpuFd, wanted: &[u32]) -> Result<Vec<kvm_msr_entry>, StateError> {
    let mut read = Vec::with_capacity(wanted.len());
    let mut left = wanted;
    while !left.is_empty() {
        let entries: Vec<_> =
            left.iter().map(|index| kvm_msr_entry { index: *index, ..Default::default() }).collect();
        let mut msrs = Msrs::from_entries(&entries).map_err(|_| StateError::TooManyMsrs(left.len()))?;
        let count = vcpu
            .get_msrs(&mut msrs)
            .map_err(refused("to tell the", "model specific registers"))?
            .min(left.len());
        read.extend_from_slice(&msrs.as_slice()[..count]);
        left = left.get(count + 1..).unwrap_or_default();
    }
    Ok(read)
}

/// Puts `state` into a new vCPU that has its CPUID and whose thread has not started.
pub fn restore(vcpu: &VcpuFd, state: &VcpuState) -> Result<(), StateError> {
    let set = |what| refused("the", what);
    let size = |what| move |source| StateError::Size { what, source };
    set_tsc_rate(vcpu, state.tsc_khz)?;
    let lapic: kvm_lapic_state = state.lapic.read().map_err(size("local APIC"))?;
    vcpu.set_mp_state(state.mp_state.read().map_err(size("multiprocessing state"))?)
        .map_err(set("multiprocessing state"))?;
    vcpu.set_regs(&state.regs.read().map_err(size("registers"))?).map_err(set("registers"))?;
    vcpu.set_sregs(&state.sregs.read().map_err(size("system registers"))?)
        .map_err(set("system registers"))?;
    let xsave: kvm_xsave = state.xsave.read().map_err(size("extended state"))?;
    // SAFETY: no feature of dynamic size is enabled for this process, so KVM reads the fixed 4096 bytes of `xsave`.
    unsafe { vcpu.set_xsave(&xsave) }.map_err(set("extended state"))?;
    vcpu.set_xcrs(&state.xcrs.read().map_err(size("extended control registers"))?)
        .map_err(set("extended control registers"))?;
    vcpu.set_debug_regs(&state.debug_regs.read().map_err(size("debug registers"))?)
        .map_err(set("debug registers"))?;
    vcpu.set_lapic(&lapic).map_err(set("local APIC"))?;
    let mut msrs: Vec<kvm_msr_entry> = state.msrs.read_all().map_err(size("model specific registers"))?;
    arm_lost_deadline(&mut msrs, timer_mode(&lapic));
    write_msrs(vcpu, &msrs)?;
    vcpu.set_vcpu_events(&state.events.read().map_err(size("events"))?).map_err(set("events"))
}

/// A counter that runs at the saved rate already, or as good as, is left alone.
fn set_tsc_rate(vcpu: &VcpuFd, saved: u32) -> Result<(), StateError> {
    let host = vcpu.get_tsc_khz().map_err(refused("to tell the", "time stamp rate"))?;
    if is_same_rate(saved, host) || vcpu.set_tsc_khz(saved).is_ok() {
        return Ok(());
    }
    Err(StateError::Tsc { saved, host })
}

fn is_same_rate(saved: u32, host: u32) -> bool {
    u64::from(saved.abs_diff(host)) * 1_000_000 <= u64::from(saved) * TSC_TOLERANCE_PER_MILLION
}

fn timer_mode(lapic: &kvm_lapic_state) -> u32 {
    let byte = |at: usize| u32::from(lapic.regs[LVT_TIMER + at] as u8) << (8 * at);
    (byte(0) | byte(1) | byte(2) | byte(3)) & LVT_TIMER_MODE
}

/// KVM tells a deadline of 0 also for a timer that has run out and whose interrupt the guest has not seen. Such a guest
/// would wait for ever; one interrupt too many does no harm.
fn arm_lost_deadline(msrs: &mut [kvm_msr_entry], timer_mode: u32) {
    let now = msrs.iter().find(|msr| msr.index == MSR_TSC).map(|msr| msr.data);
    let deadline = msrs.iter_mut().find(|msr| msr.index == MSR_TSC_DEADLINE);
    if let (Some(now), Some(deadline), LVT_TIMER_DEADLINE) = (now, deadline, timer_mode)
        && deadline.data == 0
    {
        deadline.data = now;
    }
}

/// A register that KVM refuses is no fault if it has the wanted value already.
fn write_msrs(vcpu: &VcpuFd, wanted: &[kvm_msr_entry]) -> Result<(), StateError> {
    let mut left = wanted;
    while !left.is_empty() {
        let msrs = Msrs::from_entries(left).map_err(|_| StateError::TooManyMsrs(left.len()))?;
        let count = vcpu.set_msrs(&msrs).map_err(refused("the", "model specific registers"))?;
        if let Some(stopped_at) = left.get(count) {
            let has = read_msrs(vcpu, &[stopped_at.index])?;
            if has.first().is_none_or(|has| has.data != stopped_at.data) {
                return Err(StateError::Msr { index: stopped_at.index, value: stopped_at.data });
            }
        }
        left = left.get(count + 1..).unwrap_or_default();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn msr(index: u32, data: u64) -> kvm_msr_entry {
        kvm_msr_entry { index, data, ..Default::default() }
    }

    #[test]
    fn the_counter_is_written_first_and_its_deadline_last() {
        let all = [MSR_TSC_DEADLINE, 0x4b56_4d01, 0x174, MSR_TSC, 0x4000_0020, 0x10a, 0x480];
        assert_eq!(saved_msrs(&all), [MSR_TSC, 0x174, 0x4b56_4d01, MSR_TSC_DEADLINE]);
    }

    #[test]
    fn a_deadline_that_is_lost_is_now() {
        let mut msrs = [msr(MSR_TSC, 77), msr(MSR_TSC_DEADLINE, 0)];
        arm_lost_deadline(&mut msrs, 0);
        assert_eq!(msrs[1].data, 0, "another timer mode");
        arm_lost_deadline(&mut msrs, LVT_TIMER_DEADLINE);
        assert_eq!(msrs[1].data, 77);
        msrs[1].data = 99;
        arm_lost_deadline(&mut msrs, LVT_TIMER_DEADLINE);
        assert_eq!(msrs[1].data, 99, "one that is still to come");
    }

    #[test]
    fn rates_within_a_look_of_each_other_are_the_same() {
        assert!(is_same_rate(2_000_000, 2_000_500));
        assert!(!is_same_rate(2_000_000, 2_000_501));
        assert!(!is_same_rate(0, 1));
    }
}
