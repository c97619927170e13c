//! The cases by what they attack.

mod block;
mod console;
mod frames;
mod machine;
mod memory;
mod neighbour;
mod queues;
mod races;
mod sockets;
mod transport;

use crate::Case;

macro_rules! cases {
    ($($name:literal $run:path),+ $(,)?) => {
        pub static ALL: &[Case] = &[$(Case { name: $name, run: $run }),+];
    };
}

cases! {
    "neighbour" neighbour::echo,
    "G1" queues::loops,
    "G2" queues::links,
    "G3" queues::addresses,
    "G4" queues::lengths,
    "G5" races::available_index,
    "G6" races::requests_in_flight,
    "G7" queues::directions,
    "G8" races::double_fetch,
    "G9" races::kick_storm,
    "G10" sockets::used_ring_never_read,
    "G11" transport::every_access,
    "G12" transport::status_walk,
    "G13" machine::ports_registers_and_leaves,
    "G13-halt" machine::halt_for_ever,
    "G13-internal" machine::code_from_a_device,
    "G13-triple" machine::triple_fault,
    "G13-reset" machine::reset,
    "G13-off" machine::power_off,
    "button" machine::power_button,
    "G14" machine::interrupt_storm,
    "G15" console::flood,
    "G16" console::control_sequences,
    "G17" console::input,
    "G18" transport::every_log_site,
    "G19" sockets::connection_storm,
    "G20" sockets::headers,
    "G21" sockets::ports_nobody_published,
    "G24" block::requests,
    "G26" memory::balloon,
    "G27" memory::touch_everything,
    "G28" block::shared_base_image,
    "G30" machine::panic,
    "G31" machine::spin,
    "G32" machine::clocks,
    "G34" machine::split_locks,
    "G35" frames::headers,
    "G36" frames::chains,
    "G37" frames::races,
}
