//! The device thread: files by position, Unix sockets, epoll. It opens nothing.

use super::kvm::{in_and_out, out};
use super::{Rule, When};
use crate::devices::virtio::balloon::release::{OVER_FLAGS, OVER_PROTECTION};
use crate::devices::virtio::net::tap::TUNSETOFFLOAD;
use kvm_bindings::{kvm_clock_data, kvm_irqchip, kvm_pit_state2};

/// `FIONBIO`: how the standard library makes a socket non-blocking.
const FIONBIO: u64 = 0x5421;
/// KVM_GET_PIT2
pub(super) const PIT: u64 = out::<kvm_pit_state2>(0x9f);
/// The only type of socket that is made.
const STREAM: u64 = (libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) as u64;

pub(super) const RULES: &[Rule] = &[
    Rule { call: libc::SYS_epoll_wait, when: &[], why: "the event loop" },
    Rule { call: libc::SYS_epoll_pwait, when: &[], why: "the event loop, as some C libraries call it" },
    Rule { call: libc::SYS_epoll_ctl, when: &[], why: "connections come and go" },
    Rule { call: libc::SYS_read, when: &[], why: "eventfds, signalfd, timerfd, sockets" },
    Rule { call: libc::SYS_pread64, when: &[], why: "smaps" },
    Rule {
        call: libc::SYS_io_uring_enter,
        when: &[When::Null { argument: 4 }],
        why: "disks: rings made before, each restricted to four operations on its own file",
    },
    Rule { call: libc::SYS_mincore, when: &[], why: "resident guest memory, where there is no /proc" },
    Rule { call: libc::SYS_getrandom, when: &[], why: "the entropy device" },
    Rule {
        call: libc::SYS_accept4,
        when: &[When::Is { argument: 3, value: libc::SOCK_CLOEXEC as u64 }],
        why: "control and vsock connections of the host",
    },
    Rule {
        call: libc::SYS_socket,
        when: &[
            When::Is { argument: 0, value: libc::AF_UNIX as u64 },
            When::Is { argument: 1, value: STREAM },
        ],
        why: "a guest connects to a port of the host, which is a Unix socket",
    },
    Rule {
        call: libc::SYS_connect,
        when: &[],
        why: "the same; no socket but of the family above can be made",
    },
    Rule {
        call: libc::SYS_recvfrom,
        when: &[When::Null { argument: 4 }],
        why: "control and vsock connections",
    },
    Rule {
        call: libc::SYS_sendto,
        when: &[When::Null { argument: 4 }],
        why: "control and vsock connections, to no other address",
    },
    Rule {
        call: libc::SYS_recvmsg,
        when: &[When::Is { argument: 2, value: 0 }],
        why: "control connections: the files of a snapshot come with its request",
    },
    Rule {
        call: libc::SYS_tgkill,
        when: &[When::Is { argument: 2, value: crate::vcpu::crew::HALT_SIGNAL as u64 }],
        why: "a pause takes the vCPU threads out of the guest",
    },
    Rule {
        call: libc::SYS_ioctl,
        when: &[When::Is { argument: 1, value: in_and_out::<kvm_irqchip>(0x62) }],
        why: "KVM_GET_IRQCHIP, for a snapshot",
    },
    Rule {
        call: libc::SYS_ioctl,
        when: &[When::Is { argument: 1, value: out::<kvm_clock_data>(0x7c) }],
        why: "KVM_GET_CLOCK, for a snapshot",
    },
    Rule {
        call: libc::SYS_ioctl,
        when: &[When::Is { argument: 1, value: PIT }],
        why: "KVM_GET_PIT2, for a snapshot",
    },
    Rule { call: libc::SYS_ftruncate, when: &[], why: "the files of a snapshot" },
    Rule {
        call: libc::SYS_lseek,
        when: &[When::Is { argument: 2, value: libc::SEEK_DATA as u64 }],
        why: "a snapshot of a restored machine: what the file holds that it was restored from",
    },
    Rule {
        call: libc::SYS_lseek,
        when: &[When::Is { argument: 2, value: libc::SEEK_HOLE as u64 }],
        why: "the same",
    },
    Rule { call: libc::SYS_shutdown, when: &[], why: "half-closed vsock connections" },
    Rule {
        call: libc::SYS_ioctl,
        when: &[When::Is { argument: 1, value: FIONBIO }],
        why: "accepted and connected sockets are non-blocking",
    },
    Rule {
        call: libc::SYS_ioctl,
        when: &[When::Is { argument: 1, value: TUNSETOFFLOAD }],
        why: "a network driver says what it can do; no other request of a tap is allowed",
    },
    Rule { call: libc::SYS_readv, when: &[], why: "frames of a tap into guest memory" },
    Rule { call: libc::SYS_writev, when: &[], why: "frames of the guest to a tap" },
    Rule {
        call: libc::SYS_mmap,
        when: &[
            When::Is { argument: 2, value: OVER_PROTECTION as u64 },
            When::Is { argument: 3, value: OVER_FLAGS as u64 },
        ],
        why: "fresh memory in place of pages that the guest gave back",
    },
    Rule {
        call: libc::SYS_madvise,
        when: &[When::Is { argument: 2, value: libc::MADV_REMOVE as u64 }],
        why: "shared memory that the guest gave back",
    },
    Rule {
        call: libc::SYS_madvise,
        when: &[When::Is { argument: 2, value: libc::MADV_DONTDUMP as u64 }],
        why: "fresh guest memory is in no core dump",
    },
    Rule {
        call: libc::SYS_madvise,
        when: &[When::Is { argument: 2, value: libc::MADV_HUGEPAGE as u64 }],
        why: "fresh guest memory asks for huge pages, as the rest of it",
    },
    Rule { call: libc::SYS_timerfd_settime, when: &[], why: "deadlines of vsock connections, rates" },
    Rule { call: libc::SYS_close, when: &[], why: "connections that ended" },
];
