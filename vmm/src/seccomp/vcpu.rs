//! vCPU threads: run the guest and tell the device thread.

use super::{Rule, When};

/// `KVM_RUN`: `_IO(0xae, 0x80)`
const KVM_RUN: u64 = 0xae80;

pub(super) const RULES: &[Rule] = &[Rule {
    call: libc::SYS_ioctl,
    when: &[When::Is { argument: 1, value: KVM_RUN }],
    why: "run the guest; no other request reaches KVM from here",
}];
