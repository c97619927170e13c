//! The list G1 to G37 of a hostile guest, as far as a guest without a kernel can do it: what each case needs, what the
//! host must have been told of it, and how it ends. docs/hostile-guest.md has the same list for readers.

use pinfold_vmm_api::control::{EventKind, ExitReason};
use std::time::Duration;

/// What the machine of a case has to have told: a kind of event, of a device.
pub type Told = (EventKind, &'static str);

pub enum End {
    /// it says that it is done; then it is paused, resumed and ended by the host
    Done,
    /// it ends by itself
    Itself(ExitReason),
}

pub struct Case {
    pub name: &'static str,
    pub what: &'static str,
    pub told: &'static [Told],
    pub end: End,
    pub limit: Duration,
    /// the host presses the power button once the guest waits for it
    pub presses: bool,
}

const fn case(name: &'static str, what: &'static str, told: &'static [Told]) -> Case {
    Case { name, what, told, end: End::Done, limit: Duration::from_secs(60), presses: false }
}

const fn ends(name: &'static str, what: &'static str, reason: ExitReason) -> Case {
    Case { name, what, told: &[], end: End::Itself(reason), limit: Duration::from_secs(60), presses: false }
}

use EventKind::{DeviceNeedsReset as Broken, GuestFault as Fault, GuestPanic as Panic, Limited};

/// A broken queue of each kind of device.
const ALL_BROKEN: &[Told] =
    &[(Broken, "disk0"), (Broken, "disk1"), (Broken, "net0"), (Broken, "vsock"), (Broken, "rng")];
const ALL_FAULTY: &[Told] =
    &[(Fault, "disk0"), (Fault, "disk1"), (Fault, "net0"), (Fault, "vsock"), (Fault, "rng"), (Fault, "bus")];

pub const ALL: &[Case] = &[
    case("G1", "descriptor chains that loop", ALL_BROKEN),
    case("G2", "links, flags and indirect tables that are wrong", ALL_BROKEN),
    case("G3", "buffers outside memory, over the rings, over each other", ALL_BROKEN),
    case("G4", "buffers of wrong lengths, more than 4 GiB together", ALL_BROKEN),
    case(
        "G5",
        "available index that jumps, goes back, and never rests",
        &[(Broken, "disk0"), (Broken, "rng")],
    ),
    case("G6", "one request in flight many times, reset under it", &[(Broken, "disk0")]),
    case("G7", "directions of buffers exchanged", ALL_BROKEN),
    case("G8", "descriptors that change between check and use", &[(Broken, "disk0")]),
    case("G9", "storm of kicks, random event index", &[]),
    case("G10", "used rings that nobody reads, while the host sends", &[]),
    case("G11", "every register, in every width, at every offset", ALL_FAULTY),
    case("G12", "status, features and queue registers in wrong orders", ALL_FAULTY),
    case("G13", "ports, model specific registers, CPUID leaves", &[]),
    case("G13-halt", "halted with interrupts off", &[]),
    ends("G13-internal", "code that KVM cannot fetch", ExitReason::VcpuFailed),
    ends("G13-triple", "exception without a handler", ExitReason::GuestReset),
    ends("G13-reset", "reset by the keyboard controller", ExitReason::GuestReset),
    ends("G13-off", "power off by ACPI", ExitReason::GuestPowerOff),
    Case { presses: true, ..ends("button", "power button, and a clean end", ExitReason::GuestPowerOff) },
    case("G14", "storm of interrupts, timers and deadlines", &[]),
    case("G15", "flood of the serial port", &[(Limited, "console")]),
    case("G16", "control sequences and an endless line", &[]),
    case("G17", "input of the serial port that nobody reads", &[]),
    case("G18", "everything that is logged, over and over", ALL_BROKEN),
    case("G19", "ten thousand connections, resets, halves", &[(Limited, "vsock")]),
    case("G20", "packets with wrong headers, past their credit", &[(Fault, "vsock"), (Broken, "vsock")]),
    case("G21", "ports of the host that nobody listens on", &[(Limited, "vsock")]),
    case("G24", "disk requests past the end, of wrong size and kind", &[(Fault, "disk0")]),
    case(
        "G26",
        "balloon: frames that are none, twice, in use; lies",
        &[(Fault, "balloon"), (Broken, "balloon")],
    ),
    case("G27", "all of memory written at full speed", &[]),
    case("G28", "writes to the image that all share", &[(Fault, "disk1")]),
    Case { told: &[(Panic, "machine")], ..ends("G30", "panic by its device", ExitReason::GuestPanic) },
    case("G31", "all processors busy", &[]),
    case("G32", "clocks set to nonsense", &[]),
    case("G34", "locks across cache lines", &[]),
    case("G35", "frames with wrong headers, lengths and source addresses", &[(Fault, "net0")]),
    case("G36", "frames and receive buffers in wrong chains", &[(Fault, "net0"), (Broken, "net0")]),
    case("G37", "frames that change, answers that nobody reads", &[(Fault, "net0")]),
];
