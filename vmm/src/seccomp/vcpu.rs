//! vCPU threads: run the guest and tell the device thread; tell the vCPU's state while it is halted. None can be set.

use super::kvm::{in_and_out, nothing, out};
use super::{Rule, When};
use kvm_bindings::{
    kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msrs, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
    kvm_xsave,
};

const RUN: &str = "run the guest; no request that changes its state reaches KVM from here";
const TELL: &str = "the state of a halted vCPU, for a snapshot";

/// `ioctl` with this request.
macro_rules! request {
    ($request:expr, $why:expr) => {
        Rule { call: libc::SYS_ioctl, when: &[When::Is { argument: 1, value: $request }], why: $why }
    };
}

pub(super) const RULES: &[Rule] = &[
    request!(nothing(0x80), RUN),
    request!(nothing(0xad), "KVM_KVMCLOCK_CTRL: a guest that stood still is not told that it hung"),
    request!(out::<kvm_regs>(0x81), TELL),
    request!(out::<kvm_sregs>(0x83), TELL),
    request!(in_and_out::<kvm_msrs>(0x88), TELL),
    request!(out::<kvm_lapic_state>(0x8e), TELL),
    request!(out::<kvm_mp_state>(0x98), TELL),
    request!(out::<kvm_vcpu_events>(0x9f), TELL),
    request!(out::<kvm_debugregs>(0xa1), TELL),
    request!(nothing(0xa3), "KVM_GET_TSC_KHZ, for a snapshot"),
    request!(out::<kvm_xsave>(0xa4), TELL),
    request!(out::<kvm_xcrs>(0xa6), TELL),
];
