//! KVM: what more could be got out of the descriptors that a VMM holds.

use super::{Attempt, Outcome, SECCOMP, UID, World, call};

pub const ALL: &[Attempt] = &[
    Attempt {
        name: "kvm-create-vm",
        what: "make another virtual machine with any descriptor",
        stops: UID,
        act: kvm_create_vm,
    },
    Attempt { name: "kvm-open", what: "open `/dev/kvm`", stops: UID, act: kvm_open },
    Attempt {
        name: "kvm-create-vcpu",
        what: "give the machine another vCPU",
        stops: SECCOMP,
        act: kvm_create_vcpu,
    },
    Attempt {
        name: "kvm-create-device",
        what: "make a device of KVM",
        stops: SECCOMP,
        act: kvm_create_device,
    },
    Attempt {
        name: "kvm-memory",
        what: "show the guest more of the process's memory",
        stops: SECCOMP,
        act: kvm_memory,
    },
];

// linux/kvm.h
const KVM_CREATE_VM: usize = 0xae01;
const KVM_CREATE_VCPU: usize = 0xae41;
const KVM_SET_USER_MEMORY_REGION: usize = 0x4020_ae46;
const KVM_CREATE_DEVICE: usize = 0xc00c_aee0;
const KVM_CREATE_DEVICE_TEST: u32 = 1;
const KVM_DEV_TYPE_VFIO: u32 = 4;

/// The first success of `request` on any descriptor, else the last error that is not about the descriptor.
fn on_any(request: usize, argument: usize) -> Outcome {
    let mut last = Err(libc::EBADF);
    for descriptor in 3..256 {
        match call(libc::SYS_ioctl, [descriptor, request, argument]) {
            Ok(value) => return Ok(value),
            Err(libc::EBADF | libc::ENOTTY | libc::EINVAL) => {}
            Err(errno) => last = Err(errno),
        }
    }
    last
}

fn kvm_create_vm(_: &World) -> Outcome {
    on_any(KVM_CREATE_VM, 0)
}

fn kvm_open(_: &World) -> Outcome {
    call(libc::SYS_open, [c"/dev/kvm".as_ptr() as usize, libc::O_RDWR as usize])
}

fn kvm_create_vcpu(_: &World) -> Outcome {
    on_any(KVM_CREATE_VCPU, 31)
}

fn kvm_create_device(_: &World) -> Outcome {
    let device = [KVM_DEV_TYPE_VFIO, 0, KVM_CREATE_DEVICE_TEST];
    match on_any(KVM_CREATE_DEVICE, device.as_ptr() as usize) {
        // KVM was built without it: what counts is that KVM was asked
        Err(libc::ENODEV) => Ok(0),
        other => other,
    }
}

fn kvm_memory(_: &World) -> Outcome {
    const BYTES: usize = 4096;
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let page = call(libc::SYS_mmap, [0, BYTES, protection as usize, flags as usize, usize::MAX, 0])? as u64;
    // struct kvm_userspace_memory_region: slot, flags, guest address, bytes, address
    let region = [30_u64, 0x70_0000_0000, BYTES as u64, page];
    on_any(KVM_SET_USER_MEMORY_REGION, region.as_ptr() as usize)
}
