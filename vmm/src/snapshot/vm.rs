//! What a virtual machine has beside its vCPUs: interrupt controllers, the interval timer, the clock.

use super::blob::{Blob, WrongSize};
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmState {
    pic_master: Blob,
    pic_slave: Blob,
    ioapic: Blob,
    /// only for machines that have one
    pub pit: Option<Blob>,
    /// nanoseconds of the guest's own clock
    clock_ns: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum VmStateError {
    #[error("KVM refused {act} the {what}: {source}")]
    Kvm { act: &'static str, what: &'static str, source: kvm_ioctls::Error },
    #[error("the saved {what}: {source}")]
    Size { what: &'static str, source: WrongSize },
}

const PIC: &str = "interrupt controller";
const PIT: &str = "interval timer";
const CLOCK: &str = "clock";

/// Of a machine whose vCPUs have been saved.
pub fn save(vm: &VmFd, has_pit: bool) -> Result<VmState, VmStateError> {
    let refused = |what| move |source| VmStateError::Kvm { act: "to tell", what, source };
    let chip = |chip_id| {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        vm.get_irqchip(&mut chip).map_err(refused(PIC))?;
        Ok(Blob::of(&chip))
    };
    let pit = if has_pit { Some(Blob::of(&vm.get_pit2().map_err(refused(PIT))?)) } else { None };
    Ok(VmState {
        pic_master: chip(KVM_IRQCHIP_PIC_MASTER)?,
        pic_slave: chip(KVM_IRQCHIP_PIC_SLAVE)?,
        ioapic: chip(KVM_IRQCHIP_IOAPIC)?,
        pit,
        clock_ns: vm.get_clock().map_err(refused(CLOCK))?.clock,
    })
}

/// After the vCPUs have been restored. The guest's clock goes on where it was: time in which the machine did not exist
/// has not passed for its timers, and its guest agent sets the time of day (no KVM_CLOCK_REALTIME here).
pub fn restore(vm: &VmFd, state: &VmState) -> Result<(), VmStateError> {
    let refused = |what| move |source| VmStateError::Kvm { act: "to set", what, source };
    let size = |what| move |source| VmStateError::Size { what, source };
    for blob in [&state.pic_master, &state.pic_slave, &state.ioapic] {
        vm.set_irqchip(&blob.read().map_err(size(PIC))?).map_err(refused(PIC))?;
    }
    if let Some(pit) = &state.pit {
        vm.set_pit2(&pit.read().map_err(size(PIT))?).map_err(refused(PIT))?;
    }
    let clock = kvm_clock_data { clock: state.clock_ns, ..Default::default() };
    vm.set_clock(&clock).map_err(refused(CLOCK))
}
