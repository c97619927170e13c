//! Numbers of KVM's requests, put together as `linux/kvm.h` does: `_IO`, `_IOR`, `_IOW` and `_IOWR` of type 0xae.

const KVM: u64 = 0xae << 8;

const fn sized<T>(direction: u64, number: u64) -> u64 {
    direction << 30 | (size_of::<T>() as u64) << 16 | KVM | number
}

pub(super) const fn nothing(number: u64) -> u64 {
    KVM | number
}

/// KVM writes a `T`.
pub(super) const fn out<T>(number: u64) -> u64 {
    sized::<T>(2, number)
}

/// KVM reads a `T` and writes it back.
pub(super) const fn in_and_out<T>(number: u64) -> u64 {
    sized::<T>(3, number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings::{kvm_irqchip, kvm_msrs, kvm_regs};

    /// As `strace` tells them.
    #[test]
    fn numbers_are_those_of_the_header() {
        assert_eq!(nothing(0x80), 0xae80);
        assert_eq!(out::<kvm_regs>(0x81), 0x8090_ae81);
        assert_eq!(in_and_out::<kvm_msrs>(0x88), 0xc008_ae88);
        assert_eq!(in_and_out::<kvm_irqchip>(0x62), 0xc208_ae62);
    }
}
